"""The price tier of an asset, from each place where it can be set to the request."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pandas as pd
import pytest

from ondine_core.errors import ConfigError
from ondine_core.prompts.template import Prompt
from ondine_core.providers.pricing import find_entry
from ondine_dagster import LLMResource, build_llm_asset, llm_asset
from tests.support import instances
from tests.support.asking import echo_each
from tests.support.meter import Cache, Meter, rates_of
from tests.support.provider import Provider

MODEL = "openai/gpt-5-mini"
ENTRY = find_entry(MODEL) or {}
ARGUMENTS: dict[str, Any] = {"prompt": "Repeat: {text}", "output": {"answer": "string"}}


def run(
    asset: dg.AssetsDefinition,
    resource: dict[str, Any],
    config: dict[str, Any] | None = None,
    model: str = MODEL,
    meter: Meter | None = None,
) -> tuple[dg.ExecuteInProcessResult, list[Any], Meter]:
    meter = meter or Meter(
        {"default": rates_of(ENTRY), "flex": rates_of(ENTRY, "flex"), "priority": rates_of(ENTRY, "priority")}
    )
    with Provider(echo_each, meter=meter) as provider:
        llm = LLMResource(model=model, api_key="k", base_url=provider.base_url, max_output_tokens=64, **resource)
        result = instances.materialize(
            [asset],
            resources={"llm": llm},
            run_config={"ops": {asset.op.name: {"config": config or {}}}},
            raise_on_error=False,
        )
        return result, [asked.body for asked in provider.ledger.requests], meter


def rows() -> pd.DataFrame:
    return pd.DataFrame({"text": ["a", "b", "c"]})


@pytest.mark.parametrize(
    ("resource", "argument", "config", "tier"),
    [
        ({}, {}, {}, None),
        ({"tier": "flex"}, {}, {}, "flex"),
        ({"tier": "flex"}, {"tier": "priority"}, {}, "priority"),
        ({"tier": "flex"}, {"tier": "standard"}, {}, None),
        ({}, {"tier": "priority"}, {"tier": "flex"}, "flex"),
    ],
)
def test_tier_precedence_is_launchpad_asset_resource(
    resource: dict[str, Any], argument: dict[str, Any], config: dict[str, Any], tier: str | None
) -> None:
    """The cost equals the provider's bill."""
    result, bodies, meter = run(llm_asset(**ARGUMENTS, **argument, name="shouts")(rows), resource, config)
    assert result.success
    assert {body.get("service_tier") for body in bodies} == {tier}
    (event,) = result.asset_materializations_for_node("shouts")
    assert event.metadata["ondine/cost_usd"].value == float(meter.usd)


def test_a_tier_that_the_model_does_not_have_fails_the_step_before_any_call() -> None:
    """The error lists the available ones."""
    asset = llm_asset(**ARGUMENTS, tier="flex", name="shouts")(rows)
    result, bodies, _ = run(asset, {}, model="openai/gpt-4o-mini")
    assert not result.success
    assert not bodies
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "it has 'standard', 'priority'" in str(failure.event_specific_data)


def test_unknown_tier_is_an_error_of_the_definition() -> None:
    """With the valid ones."""
    with pytest.raises(ConfigError, match="tier='cheap' must be one of 'standard', 'flex', 'priority'"):
        build_llm_asset(name="x", upstream="y", **ARGUMENTS, tier="cheap")  # type: ignore[typeddict-item]


def test_a_dry_run_shows_cost_and_time_of_each_tier_side_by_side() -> None:
    """In the log and as a table of its observation."""
    result, bodies, _ = run(llm_asset(**ARGUMENTS, name="shouts")(rows), {}, {"dry_run": True})
    assert not bodies
    (event,) = result.get_asset_observation_events()
    found = event.asset_observation_data.asset_observation.metadata
    table = found["ondine/estimated_cost_by_tier"].records
    usd = {record.data["tier"]: record.data["usd"] for record in table}
    assert set(usd) == {"standard", "flex", "priority", "batch"}
    assert usd["standard"] == found["ondine/estimated_cost_usd"].value
    assert usd["flex"] == usd["batch"] == pytest.approx(usd["standard"] / 2)
    assert usd["priority"] > usd["standard"]
    assert {record.data["tier"]: record.data["call_s_most"] for record in table} == {
        "standard": 60,
        "flex": 900,
        "priority": 60,
        "batch": 86_400,
    }


LONG = "one two six ten " * 300


@pytest.mark.parametrize("config", [{}, {"prompt_cache": "off"}])
def test_what_the_cache_read_and_saved_is_in_the_metadata(config: dict[str, Any]) -> None:
    """The Launchpad can turn it off for a run; an automatic cache of the provider is read all the same."""
    meter = Meter({"default": rates_of(ENTRY)}, Cache())
    prompt = Prompt("Repeat: {text}", system=LONG)
    asset = llm_asset(prompt=prompt, output={"answer": "string"}, prompt_cache="auto", name="shouts")(rows)
    result, _, _ = run(asset, {"max_concurrency": 1}, config, meter=meter)
    (event,) = result.asset_materializations_for_node("shouts")
    assert event.metadata["ondine/cache_read_share"].value == pytest.approx(
        meter.read_tokens / meter.input_tokens, abs=1e-6
    )
    rates = rates_of(ENTRY)
    assert event.metadata["ondine/cache_saved_usd"].value == float(meter.read_tokens * (rates.input - rates.read))
    assert meter.read_tokens > 0


def test_prompt_with_instructions_last_gets_advice_at_definition_and_in_a_dry_run() -> None:
    """For single-row calls; in batches the instructions come first anyway."""
    prompt = "{text}\n" + LONG
    asset = llm_asset(prompt=prompt, output={"answer": "string"}, name="shouts")(rows)
    message = asset.metadata_by_key[asset.key]["ondine/prompt_advice"]
    assert "Move {text} to the end" in str(message)
    result, _, _ = run(asset, {}, {"dry_run": True})
    (event,) = result.get_asset_observation_events()
    advice = event.asset_observation_data.asset_observation.metadata["ondine/prompt_advice"]
    assert "tokens of the prompt come after its first column, {text}" in str(advice.value)
    batched = llm_asset(prompt=prompt, output={"answer": "string"}, batch_size=2, name="shouts")(rows)
    assert "ondine/prompt_advice" not in batched.metadata_by_key[batched.key]
