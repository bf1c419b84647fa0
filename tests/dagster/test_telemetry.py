"""Observers of a step: configured on the resource, within the run's trace, and in Dagster's log."""

from typing import Any

import dagster as dg
import pandas as pd
import pytest

from ondine_core.telemetry import CallEnded, Event, Observer, RunEnded, register_observer
from ondine_dagster import LLMResource, llm_asset
from tests.support import instances
from tests.support.collector import Collector
from tests.support.provider import Provider, matching, refusal, status

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
DAILY = dg.DailyPartitionsDefinition("2026-01-01")


@llm_asset(prompt="Repeat: {text}", output={"answer": str}, partitions_def=DAILY)
def answers() -> pd.DataFrame:
    return pd.DataFrame({"text": ["a", "b", "c"]})


def materialize(
    provider: Provider, observers: list[Any], tags: dict[str, str] | None = None
) -> tuple[dg.ExecuteInProcessResult, list[str]]:
    """The result of a run for one day, and its log."""
    llm = LLMResource(
        model="openai_compatible/m",
        base_url=provider.base_url,
        input_cost_per_1k_tokens=0.001,
        output_cost_per_1k_tokens=0.002,
        observers=observers,
    )
    with instances.ephemeral() as instance:
        result = dg.materialize(
            [answers],
            resources={"llm": llm},
            instance=instance,
            partition_key="2026-01-02",
            tags=tags,
            raise_on_error=False,
        )
        return result, [entry.user_message for entry in instance.all_logs(result.run_id)]


def test_the_runs_trace_goes_on_and_agrees_with_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tag `traceparent` is the parent; spans have run, asset and partition, and add up to the metadata."""
    with Collector() as collector, Provider() as provider:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        gateway = {"name": "prometheus", "push_gateway": collector.url}
        tags = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
        result, _ = materialize(provider, ["opentelemetry", gateway], tags)
    (event,) = result.asset_materializations_for_node("answers")
    shown = {name: value.value for name, value in event.metadata.items()}
    spans = collector.spans()
    (run,) = (span for span in spans if span.name == "enrich answers")
    calls = [span for span in spans if span.name == "chat m"]
    assert (run.trace, run.parent) == (TRACE, SPAN)
    assert {span.trace for span in spans} == {TRACE}
    assert {span.attributes["ondine.run.id"] for span in spans} == {result.run_id}
    assert {span.attributes["ondine.partition"] for span in spans} == {"2026-01-02"}
    assert sum(call.attributes["gen_ai.usage.output_tokens"] for call in calls) == shown["ondine/output_tokens"]
    cost = sum(call.attributes["ondine.cost.usd"] for call in calls)
    assert cost == pytest.approx(shown["ondine/cost_usd"], abs=1e-12)
    assert collector.total("ondine.cost.usd") == pytest.approx(shown["ondine/cost_usd"], abs=1e-12)
    (group, *_) = {request.path for request in collector.to("/metrics/job/ondine/instance/")}
    assert "/ondine_asset/answers/ondine_partition/2026-01-02/ondine_run/" in group


@pytest.mark.parametrize("broken", [False, True])
def test_lines_are_in_dagsters_log(broken: bool) -> None:
    """Also when the step fails; no prompt is in them."""
    fault = status(401) if broken else matching("Repeat: b", refusal)
    with Provider(fault=fault) as provider:
        result, log = materialize(provider, [{"name": "logging", "level": "debug"}])
    assert result.success is not broken
    lines = [line for line in log if f" run={result.run_id}" in line]
    assert any("run started" in line for line in lines)
    assert any(("run ended early" if broken else "run ended") in line for line in lines)
    assert sum("call ended" in line for line in lines) >= (1 if broken else 3)
    assert broken or any("rows failed" in line for line in lines)
    assert not any("Repeat:" in line for line in lines)


def test_user_observer_works_beside_a_failing_one() -> None:
    """The failing one is warned of once in the log; the asset is not affected."""
    seen: list[Event] = []

    @register_observer("seeing")
    def open_seeing() -> Observer:
        return seen.append

    @register_observer("failing")
    def open_failing() -> Observer:
        def fail(event: Event) -> None:
            raise ValueError(event)

        return fail

    with Provider() as provider:
        result, log = materialize(provider, ["seeing", "failing"])
    assert result.success
    assert sum(isinstance(event, CallEnded) for event in seen) == 3
    assert isinstance(seen[-1], RunEnded)
    assert seen[-1].run.origin.asset == "answers"
    assert sum("'failing' failed with ValueError" in line for line in log) == 1


def test_unknown_observer_is_an_error_of_the_resource() -> None:
    """It lists the known ones."""
    with pytest.raises(ValueError, match=r"there is no 'opentelemetri'. Did you mean 'opentelemetry'"):
        LLMResource(model="openai/gpt-4o-mini", observers=["opentelemetri"])
