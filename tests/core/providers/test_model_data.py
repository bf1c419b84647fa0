"""Prices, limits and providers without litellm, with an older one, and with a newer one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from ondine_core.providers import model_data
from ondine_core.providers.model_data import installed_litellm, model_facts, read_provider_names
from ondine_core.providers.model_data.__main__ import main, select

LOOK = """
from ondine_core.providers.model_data import provider_names, source
from ondine_core.providers.pricing import find_price
print(source(), find_price("openai/gpt-4o-mini").input, "acme" in provider_names(), "bedrock" in provider_names())
"""


def write_litellm(folder: Path, version: str) -> None:
    """Write a package of that name with the data files of a given release."""
    package = folder / "litellm"
    about = folder / f"litellm-{version}.dist-info"
    for path in (package, about):
        path.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: litellm\nVersion: {version}\n")
    prices = {
        "gpt-4o-mini": {"litellm_provider": "openai", "input_cost_per_token": 7e-6, "output_cost_per_token": 8e-6}
    }
    (package / "model_prices_and_context_window_backup.json").write_bytes(orjson.dumps(prices))
    chatting = {"providers": {"acme": {"endpoints": {"chat_completions": True}}}}
    (package / "provider_endpoints_support_backup.json").write_bytes(orjson.dumps(chatting))


@pytest.mark.parametrize(
    ("version", "seen"), [("999.1.0", "litellm 999.1.0 0.000007 True False"), ("1.0.0", "1.5E-7 False True")]
)
def test_newer_data_is_used_without_importing_litellm(version: str, seen: str, tmp_path: Path) -> None:
    """An installed litellm's prices are used if it is newer than the copy, else not read."""
    write_litellm(tmp_path, version)
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(root)))}
    ran = subprocess.run([sys.executable, "-c", LOOK], check=True, capture_output=True, text=True, env=environment)
    assert ran.stdout.strip().endswith(seen)


def test_copy_equals_litellms_file_in_all_fields_used(tmp_path: Path) -> None:
    """For every model that answers in text, prices and limits are those of litellm's file."""
    litellm = installed_litellm()
    assert litellm is not None
    assert main(tmp_path) == 0
    whole = orjson.loads((litellm / model_data.LITELLM_PRICES).read_bytes())
    copy = orjson.loads((tmp_path / model_data.PRICES).read_bytes())
    assert copy == select(whole)
    assert len(copy) > 3000
    for name, facts in copy.items():
        figures = {key: fact for key, fact in whole[name].items() if "cost" in key or key.startswith("max_")}
        assert figures.items() <= facts.items()
    assert set(orjson.loads((tmp_path / model_data.PROVIDERS).read_bytes())) == read_provider_names(litellm)
    names = {file.name for file in model_data.ENCODINGS.iterdir()}
    assert {file.name for file in (tmp_path / "encodings").iterdir()} == names


def test_packaged_copy_lists_current_models() -> None:
    """It has the release and the date that it was made from, and prices of current models."""
    about = orjson.loads((Path(model_data.__file__).parent / model_data.SOURCE).read_bytes())
    assert set(about) == {"version", "copied_on"}
    for name in ("gpt-4o-mini", "claude-haiku-4-5", "groq/openai/gpt-oss-120b"):
        assert model_facts()[name]["input_cost_per_token"] > 0
