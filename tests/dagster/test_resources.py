"""The resource: its fields and what they become."""

from __future__ import annotations

import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Literal

import dagster as dg
import pytest
from dagster._core.storage.root import LocalArtifactStorage

from ondine_core.errors import ConfigError
from ondine_core.presets import PRESETS, preset
from ondine_core.providers.pricing import Price
from ondine_core.store.__main__ import default_store as command_line_store
from ondine_dagster import LLMResource
from ondine_dagster.resource import default_store, store_warning


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_becomes_a_resource(name: str) -> None:
    """Unchanged from the catalogue, with the resource's own fields beside it."""
    llm = LLMResource.from_spec(preset(name), requests_per_minute=30, max_concurrency=3)
    assert llm.spec() == preset(name)
    assert llm.options("answers.db").rates.requests_per_minute == 30
    assert llm.options("answers.db").policy.max_concurrency == 3


def test_effort_and_prompt_cache_reach_the_model_and_not_a_fallback() -> None:
    """A fallback gets none, since another model may have other efforts."""
    llm = LLMResource(model="openai/gpt-5", reasoning_effort="low", prompt_cache="1h", fallbacks=["openai/gpt-4o"])
    assert (llm.spec().reasoning_effort, llm.spec().prompt_cache) == ("low", "1h")
    (fallback,) = llm.options("answers.db").fallbacks
    assert (fallback.reasoning_effort, fallback.prompt_cache) == (None, "1h")
    with pytest.raises(ValueError, match="set twice"):
        LLMResource(model="openai/gpt-5", reasoning_effort="low", params={"reasoning_effort": "low"})
    with pytest.raises(ValueError, match="prompt_cache"):
        LLMResource(model="openai/m", prompt_cache="2h")  # type: ignore[arg-type]


@pytest.mark.parametrize(("cached", "costs"), [(None, "0.000002"), (0.0005, "0.0000005")])
def test_configured_prices(cached: float | None, costs: str) -> None:
    """USD per thousand tokens become a price per token; cached input costs the same unless configured."""
    llm = LLMResource(
        model="openai_compatible/m",
        input_cost_per_1k_tokens=0.002,
        output_cost_per_1k_tokens=0.008,
        cached_input_cost_per_1k_tokens=cached,
    )
    assert llm.options("answers.db").price == Price(Decimal("0.000002"), Decimal("0.000008"), Decimal(costs))


@pytest.mark.parametrize("given", ["input_cost_per_1k_tokens", "cached_input_cost_per_1k_tokens"])
def test_incomplete_price_is_refused(given: str) -> None:
    """A missing half would be a silent 0."""
    llm = LLMResource(model="openai_compatible/m", **{given: 0.002})
    with pytest.raises(ConfigError, match="Set both"):
        llm.options("answers.db")


@pytest.mark.parametrize("durability", ["process", "power"])
def test_durability_reaches_the_store(durability: Literal["process", "power"]) -> None:
    """`durability` is a field of the resource, and 'process' is the default."""
    assert LLMResource(model="openai/m", durability=durability).options("answers.db").durability == durability
    assert LLMResource(model="openai/m").options("answers.db").durability == "process"
    with pytest.raises(ValueError, match="durability"):
        LLMResource(model="openai/m", durability="disk")  # type: ignore[arg-type]


@pytest.mark.parametrize("config", ["", "local_artifact_storage: {module: %s, class: %s, config: {base_dir: %s}}"])
def test_command_line_opens_the_store_of_the_instance(config: str, tmp_path: Path) -> None:
    """With DAGSTER_HOME alone, `python -m ondine_core.store` opens the store that the instance's steps use."""
    module, name = LocalArtifactStorage.__module__, LocalArtifactStorage.__name__
    (tmp_path / "dagster.yaml").write_text(config % (module, name, tmp_path / "elsewhere") if config else "")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert default_store(instance) == command_line_store({"DAGSTER_HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("home", "folder", "is_warned"),
    [
        (None, "home/storage", True),
        ("home", "home/storage", False),
        ("elsewhere", "home/storage", True),
        ("home", "home/.tmp_dagster_home_x/storage", True),
    ],
)
def test_no_warning_below_a_configured_dagster_home(home: str | None, folder: str, is_warned: bool) -> None:
    """A `DAGSTER_HOME` in the system's temporary directory is accepted; one made by `dagster dev` is warned of."""
    with tempfile.TemporaryDirectory() as root:
        store = Path(root) / folder / "ondine" / "answers.db"
        warning = store_warning(str(store), home and str(Path(root) / home)) or ""
    assert ("in a temporary directory" in warning) == is_warned
