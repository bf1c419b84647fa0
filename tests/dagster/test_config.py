"""What a run is told in the Launchpad, and runs of one or several partitions of a table that has none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from ondine_core.errors import RefusedError
from ondine_core.providers.scripted import ScriptedModel
from ondine_dagster import ErrorRateCheck, LLMAssetConfig, LLMResource, llm_asset, shards
from tests.support.provider import Provider

TEXTS = ["a", "b", "c", "a"]
ARGUMENTS: dict[str, Any] = {"prompt": "Shout: {text}", "output": {"loud": str}}


def shout() -> ScriptedModel:
    return ScriptedModel(lambda prompt: {"loud": prompt.removeprefix("Shout: ").upper()})


@llm_asset(**ARGUMENTS)
def shouts() -> pd.DataFrame:
    """Four rows, three prompts."""
    return pd.DataFrame({"text": TEXTS})


@llm_asset(**ARGUMENTS, checks=[ErrorRateCheck(max_rate=0.5, blocking=True)], failed_rows=True)
def checked_shouts() -> pd.DataFrame:
    """The same with a check and an asset for failed rows."""
    return pd.DataFrame({"text": TEXTS})


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as found:
        yield found


def run(asset: dg.AssetsDefinition, instance: dg.DagsterInstance, llm: Any, **config: Any) -> Any:
    chosen = {"ops": {asset.op.name: {"config": config}}} if config else None
    return dg.materialize([asset], instance=instance, resources={"llm": llm}, run_config=chosen, raise_on_error=False)


def events(result: Any, kind: str) -> list[Any]:
    return [event for event in result.all_events if event.event_type_value == kind]


def observed(result: Any) -> dict[str, Any]:
    (event,) = events(result, "ASSET_OBSERVATION")
    return {name: value.value for name, value in event.asset_observation_data.asset_observation.metadata.items()}


def test_the_launchpad_shows_what_can_be_set() -> None:
    """Each field is in the asset's config schema with a description, and none has to be set."""
    fields = shouts.op.config_schema.config_type.fields  # type: ignore[union-attr]
    assert set(fields) == set(LLMAssetConfig.model_fields)
    assert all(field.description and not field.is_required for field in fields.values())


@pytest.mark.parametrize("asset", [shouts, checked_shouts], ids=["plain", "with checks"])
def test_a_dry_run_says_what_it_would_take_and_does_nothing(
    asset: dg.AssetsDefinition, instance: dg.DagsterInstance
) -> None:
    """Rows, prompts, calls and cost are in the log and in an observation; nothing is asked, stored or materialized."""
    llm = shout()
    result = run(asset, instance, llm, dry_run=True)
    assert result.success
    assert llm.calls == []
    assert not events(result, "ASSET_MATERIALIZATION")
    assert not events(result, "ASSET_CHECK_EVALUATION")
    found = observed(result)
    assert (found["ondine/rows_total"], found["ondine/unique_prompts"], found["ondine/estimated_requests"]) == (4, 3, 3)
    assert found["ondine/estimated_cost_usd_most"] == 0
    assert run(asset, instance, llm).success
    assert len(llm.calls) == 3
    again = observed(run(asset, instance, llm, dry_run=True))
    assert (again["ondine/rows_reused"], again["ondine/estimated_requests"]) == (4, 0)


def test_what_is_downstream_of_a_dry_run_does_not_run(instance: dg.DagsterInstance) -> None:
    """There is no new table to work on."""

    @dg.asset
    def downstream(shouts: pd.DataFrame) -> None:
        raise AssertionError(shouts)

    config = {"ops": {"shouts": {"config": {"dry_run": True}}}}
    result = dg.materialize([shouts, downstream], instance=instance, resources={"llm": shout()}, run_config=config)
    assert [event.step_key for event in events(result, "STEP_SKIPPED")] == ["downstream"]


def test_the_first_rows_only(instance: dg.DagsterInstance) -> None:
    """`max_rows` asks about so many rows, and the table has no others."""
    llm = shout()
    result = run(shouts, instance, llm, max_rows=2)
    assert list(result.output_for_node("shouts")["loud"]) == ["A", "B"]
    assert len(llm.calls) == 2
    assert len(run(shouts, instance, llm, max_rows=9).output_for_node("shouts")) == 4


def test_a_full_refresh_asks_everything_again_but_not_twice(instance: dg.DagsterInstance) -> None:
    """Known answers are renewed; a retry of the step finds those of its own run."""
    llm = shout()
    run(shouts, instance, llm)
    run(shouts, instance, llm, full_refresh=True)
    assert len(llm.calls) == 6

    fails = [True]

    @llm_asset(**ARGUMENTS, name="shouts", retry_policy=dg.RetryPolicy(max_retries=1), on_row_error="raise")
    def flaky() -> pd.DataFrame:
        return pd.DataFrame({"text": TEXTS})

    def answer(prompt: str) -> Any:
        if prompt.endswith("c") and fails:
            fails.clear()
            raise ConnectionError
        return {"loud": prompt.removeprefix("Shout: ").upper()}

    again = ScriptedModel(answer)
    result = run(flaky, instance, again, full_refresh=True)
    assert result.success
    asked = [call.messages[-1].content for call in again.calls]
    assert sorted(asked) == ["Shout: a", "Shout: b", "Shout: c", "Shout: c"]


def test_failed_rows_stay_failed_if_they_are_not_to_be_retried(instance: dg.DagsterInstance) -> None:
    """`retry_failed_rows=False` asks only what was never asked."""
    run(shouts, instance, ScriptedModel(lambda _: {"loud": "A"}, faults=[RefusedError("no")] * 1))
    llm = shout()
    result = run(shouts, instance, llm, retry_failed_rows=False)
    assert result.success
    assert llm.calls == []
    run(shouts, instance, llm)
    assert len(llm.calls) == 1


def test_another_model_and_another_cap_for_one_run(instance: dg.DagsterInstance) -> None:
    """The Launchpad's model is asked instead of the resource's, and the cap is that of the run."""
    with Provider(lambda _: {"loud": "A"}) as provider:
        llm = LLMResource(model="openai_compatible/small", base_url=provider.base_url)
        result = run(shouts, instance, llm, model="openai_compatible/large")
        assert result.success
        assert {asked.body["model"] for asked in provider.books.requests} == {"large"}
        capped = run(shouts, instance, llm, max_cost_usd=1.0)
        assert not capped.success
        (failed,) = events(capped, "STEP_FAILURE")
        assert "input_cost_per_1k_tokens" in failed.step_failure_data.user_failure_data.description


def test_an_open_model_cannot_be_exchanged(instance: dg.DagsterInstance) -> None:
    """A test's script stands for itself; to ask another model there must be an LLMResource."""
    result = run(shouts, instance, shout(), model="openai/gpt-4o")
    (failed,) = events(result, "STEP_FAILURE")
    assert "no LLMResource" in failed.step_failure_data.user_failure_data.description


class Loudness(LLMAssetConfig):
    """Fields of the user's beside ours."""

    prefix: str = ""


class Suffix(dg.Config):
    """Config that knows nothing of ours."""

    suffix: str = "!"


def test_config_of_ones_own_may_have_the_fields_too(instance: dg.DagsterInstance) -> None:
    """A subclass of LLMAssetConfig reaches the function and the step; any other config the function only."""

    @llm_asset(**ARGUMENTS)
    def prefixed(config: Loudness) -> pd.DataFrame:
        return pd.DataFrame({"text": [config.prefix + text for text in TEXTS]})

    @llm_asset(**ARGUMENTS)
    def suffixed(config: Suffix) -> pd.DataFrame:
        return pd.DataFrame({"text": [text + config.suffix for text in TEXTS]})

    result = run(prefixed, instance, shout(), prefix="x", max_rows=1)
    assert list(result.output_for_node("prefixed")["loud"]) == ["XA"]
    assert list(run(suffixed, instance, shout()).output_for_node("suffixed")["loud"]) == ["A!", "B!", "C!", "A!"]


# -- partitions ----------------------------------------------------------------------------------------------------

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-04")


class Memory(dg.IOManager):
    """Keeps whatever it is given, ranges of partitions included."""

    def __init__(self) -> None:
        self.tables: dict[Any, Any] = {}

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        keys = context.asset_partition_keys if context.has_asset_partitions else [""]
        self.tables[context.asset_key.path[-1], *keys] = obj

    def load_input(self, context: dg.InputContext) -> Any:
        return next(table for (name, *_), table in self.tables.items() if name == context.asset_key.path[-1])


@dg.asset
def events_table() -> pd.DataFrame:
    """An upstream table without partitions."""
    return pd.DataFrame({"day": ["2026-01-01", "2026-01-02", "2026-01-02", "2026-01-03"], "text": ["a", "b", "c", "d"]})


@llm_asset(**ARGUMENTS, partitions_def=DAYS, partition_by="day")
def daily_shouts(events_table: pd.DataFrame) -> pd.DataFrame:
    """Each day's rows of a table that knows no days."""
    return events_table


def fill(instance: dg.DagsterInstance, memory: Memory, **selected: Any) -> tuple[Any, ScriptedModel]:
    llm = shout()
    definitions = dg.Definitions(assets=[events_table, daily_shouts], resources={"llm": llm, "io_manager": memory})
    job = definitions.resolve_implicit_global_asset_job_def()
    keys = [dg.AssetKey("daily_shouts")]
    if "tags" in selected:
        dg.materialize([events_table], instance=instance, resources={"io_manager": memory})
        return job.execute_in_process(instance=instance, asset_selection=keys, tags=selected["tags"]), llm
    dg.materialize([events_table], instance=instance, resources={"io_manager": memory})
    return job.execute_in_process(instance=instance, asset_selection=keys, partition_key=selected["partition"]), llm


def test_a_partition_takes_its_rows_from_a_table_that_has_none(instance: dg.DagsterInstance) -> None:
    """Only the day's rows are asked about and stored."""
    memory = Memory()
    result, llm = fill(instance, memory, partition="2026-01-02")
    assert result.success
    assert list(memory.tables["daily_shouts", "2026-01-02"]["loud"]) == ["B", "C"]
    assert len(llm.calls) == 2


def test_a_range_is_one_run_and_each_partition_has_its_share(instance: dg.DagsterInstance) -> None:
    """One pass over the rows of several partitions; each one's metadata counts its own rows, and costs add up."""
    memory = Memory()
    tags = {"dagster/asset_partition_range_start": "2026-01-01", "dagster/asset_partition_range_end": "2026-01-02"}
    result, llm = fill(instance, memory, tags=tags)
    assert result.success
    assert list(memory.tables["daily_shouts", "2026-01-01", "2026-01-02"]["loud"]) == ["A", "B", "C"]
    found = {
        event.partition: {name: value.value for name, value in event.materialization.metadata.items()}
        for event in events(result, "ASSET_MATERIALIZATION")
    }
    assert {key: figures["ondine/rows_total"] for key, figures in found.items()} == {"2026-01-01": 1, "2026-01-02": 2}
    assert {key: figures["ondine/requests"] for key, figures in found.items()} == {"2026-01-01": 1, "2026-01-02": 2}
    assert len(llm.calls) == 3


def test_shards_of_one_table(instance: dg.DagsterInstance) -> None:
    """A table without natural partitions is cut into shards, which together ask each row once."""
    parts = shards(3)

    @llm_asset(**ARGUMENTS, partitions_def=parts, partition_by="id")
    def sharded() -> pd.DataFrame:
        return pd.DataFrame({"id": range(30), "text": [f"row {number}" for number in range(30)]})

    llm = shout()
    tables = [
        dg.materialize([sharded], instance=instance, resources={"llm": llm}, partition_key=key).output_for_node(
            "sharded"
        )
        for key in parts.get_partition_keys()
    ]
    assert sorted(number for table in tables for number in table["id"]) == list(range(30))
    assert len(llm.calls) == 30


def test_frames_by_partition_are_one_table(instance: dg.DagsterInstance) -> None:
    """What the default IO manager loads for a range, a mapping of partition to frame, may be returned as it is."""

    @llm_asset(**ARGUMENTS, partitions_def=DAYS)
    def ranged(context: dg.AssetExecutionContext) -> dict[str, pd.DataFrame]:
        return {key: pd.DataFrame({"text": [key]}) for key in reversed(context.partition_keys)}

    memory = Memory()
    tags = {"dagster/asset_partition_range_start": "2026-01-01", "dagster/asset_partition_range_end": "2026-01-03"}
    job = dg.Definitions(assets=[ranged], resources={"llm": shout(), "io_manager": memory})
    result = job.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance, tags=tags)
    assert result.success
    (table,) = memory.tables.values()
    assert list(table["loud"]) == ["2026-01-01", "2026-01-02", "2026-01-03"]
