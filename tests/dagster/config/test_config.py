"""Run config from the Launchpad, and runs of one or several partitions of an unpartitioned table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from ondine_core.errors import RefusedError
from ondine_core.providers.scripted import ScriptedModel
from ondine_dagster import (
    ErrorRateCheck,
    LLMAssetConfig,
    LLMResource,
    llm_asset,
    replay_failed_rows_job,
    shards,
)
from ondine_dagster.config.launchpad import Sample
from ondine_dagster.frames import frame_of
from ondine_dagster.run.trial import choose_rows
from tests.support import instances
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
def instance() -> Iterator[dg.DagsterInstance]:
    with instances.ephemeral() as found:
        yield found


def run(asset: dg.AssetsDefinition, instance: dg.DagsterInstance, llm: Any, **config: Any) -> Any:
    chosen = {"ops": {asset.op.name: {"config": config}}} if config else None
    return dg.materialize([asset], instance=instance, resources={"llm": llm}, run_config=chosen, raise_on_error=False)


def events(result: Any, kind: str) -> list[Any]:
    return [event for event in result.all_events if event.event_type_value == kind]


def observed(result: Any) -> dict[str, Any]:
    """The metadata of the last observation; earlier ones are progress."""
    *_, event = events(result, "ASSET_OBSERVATION")
    return {name: value.value for name, value in event.asset_observation_data.asset_observation.metadata.items()}


def test_launchpad_schema_describes_every_field() -> None:
    """Every field has a description, and none is required."""
    fields = shouts.op.config_schema.config_type.fields  # type: ignore[union-attr]
    assert set(fields) == set(LLMAssetConfig.model_fields)
    assert all(field.description and not field.is_required for field in fields.values())


@pytest.mark.parametrize("asset", [shouts, checked_shouts], ids=["plain", "with checks"])
def test_dry_run_reports_the_estimate_and_does_nothing(
    asset: dg.AssetsDefinition, instance: dg.DagsterInstance
) -> None:
    """Rows, prompts, calls and cost are logged and observed; nothing is asked, stored or materialized."""
    llm = shout()
    result = run(asset, instance, llm, dry_run=True)
    assert result.success
    assert llm.calls == []
    assert not events(result, "ASSET_MATERIALIZATION")
    assert not events(result, "ASSET_CHECK_EVALUATION")
    found = observed(result)
    figures = ("rows", "unique_prompts", "requests")
    assert [found[f"ondine/estimated_{name}"] for name in figures] == [4, 3, 3]
    assert found["ondine/estimated_cost_usd_most"] == 0
    assert run(asset, instance, llm).success
    assert len(llm.calls) == 3
    again = observed(run(asset, instance, llm, dry_run=True))
    assert (again["ondine/estimated_rows_reused"], again["ondine/estimated_requests"]) == (4, 0)


def test_a_dry_run_is_silent_about_checks(instance: dg.DagsterInstance) -> None:
    """Dagster would log missing check outputs as if something had failed."""
    result = run(checked_shouts, instance, shout(), dry_run=True)
    messages = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert any("Dry run" in text for text in messages)
    assert [text for text in messages if "expected outputs" in text] == []


def test_assets_downstream_of_a_dry_run_do_not_run(instance: dg.DagsterInstance) -> None:
    """There is no new table."""

    @dg.asset
    def downstream(shouts: pd.DataFrame) -> None:
        raise AssertionError(shouts)

    config = {"ops": {"shouts": {"config": {"dry_run": True}}}}
    result = dg.materialize([shouts, downstream], instance=instance, resources={"llm": shout()}, run_config=config)
    assert [event.step_key for event in events(result, "STEP_SKIPPED")] == ["downstream"]


@pytest.mark.parametrize("asset", [shouts, checked_shouts], ids=["plain", "with checks"])
def test_a_trial_shows_rows_and_leaves_the_table_alone(
    asset: dg.AssetsDefinition, instance: dg.DagsterInstance
) -> None:
    """`max_rows` asks the first rows and shows them in an observation; the real run reuses their answers."""
    llm = shout()
    result = run(asset, instance, llm, max_rows=2)
    assert result.success
    assert len(llm.calls) == 2
    assert not events(result, "ASSET_MATERIALIZATION")
    assert not events(result, "ASSET_CHECK_EVALUATION")
    found = observed(result)
    assert found["ondine/trial/rows"].split("\n")[2:] == ["| A | a |", "| B | b |"]
    assert (found["ondine/trial/rows_total"], found["ondine/trial/rows_available"]) == (2, 4)
    assert "**user**\n~~~text\nShout: a\n~~~" in found["ondine/trial/messages"]
    assert found["ondine/trial/cost_usd"] == 0
    assert all(name.startswith("ondine/trial/") for name in found)
    whole = run(asset, instance, llm)
    assert list(whole.output_for_node(asset.op.name, "result")["loud"]) == ["A", "B", "C", "A"]
    assert len(llm.calls) == 3


def test_a_trial_of_more_rows_than_there_are_is_a_trial(instance: dg.DagsterInstance) -> None:
    """Whether the table is replaced does not depend on its length."""
    result = run(shouts, instance, shout(), max_rows=9)
    assert not events(result, "ASSET_MATERIALIZATION")
    assert observed(result)["ondine/trial/rows_total"] == 4


def test_trial_reports_failed_rows_and_does_not_fail(instance: dg.DagsterInstance) -> None:
    """With counted reasons; `on_row_error` and `max_error_rate` apply to real runs only."""

    @llm_asset(**ARGUMENTS, on_row_error="raise", max_error_rate=0.0)
    def strict() -> pd.DataFrame:
        return pd.DataFrame({"text": TEXTS})

    result = run(strict, instance, ScriptedModel(lambda _: "nonsense"), max_rows=2)
    assert result.success
    found = observed(result)
    assert found["ondine/trial/rows_failed"] == 2
    assert "invalid: " in found["ondine/trial/rows"]
    assert [record.data["rows"] for record in found["ondine/trial/failures"].records] == [2]


def test_random_trial_is_stable_and_nested(instance: dg.DagsterInstance) -> None:
    """The sample is not the head of the table, always the same, and part of a larger sample."""

    @llm_asset(**ARGUMENTS)
    def many() -> pd.DataFrame:
        return pd.DataFrame({"text": [f"row {number}" for number in range(1000)]})

    llm = shout()
    first = observed(run(many, instance, llm, max_rows=5, sample="random"))
    again = observed(run(many, instance, llm, max_rows=5, sample="random"))
    assert len(llm.calls) == 5
    assert again["ondine/trial/rows"] == first["ondine/trial/rows"]
    assert {call.messages[-1].content for call in llm.calls} != {f"Shout: row {number}" for number in range(5)}
    wider = observed(run(many, instance, llm, max_rows=8, sample="random"))
    assert len(llm.calls) == 8
    assert set(first["ondine/trial/rows"].split("\n")) < set(wider["ondine/trial/rows"].split("\n"))


def test_assets_downstream_of_a_trial_do_not_run(instance: dg.DagsterInstance) -> None:
    """There is no new table."""

    @dg.asset
    def downstream(shouts: pd.DataFrame) -> None:
        raise AssertionError(shouts)

    config = {"ops": {"shouts": {"config": {"max_rows": 1}}}}
    result = dg.materialize([shouts, downstream], instance=instance, resources={"llm": shout()}, run_config=config)
    assert [event.step_key for event in events(result, "STEP_SKIPPED")] == ["downstream"]


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
@pytest.mark.parametrize("sample", Sample)
def test_a_trial_takes_rows_of_any_frame(make: Any, sample: Sample) -> None:
    """The chosen rows keep the frame's kind and order."""
    chosen = choose_rows(frame_of(make({"n": list(range(20))})), LLMAssetConfig(max_rows=5, sample=sample)).to_native()
    assert type(chosen) is type(make({"n": [1]}))
    numbers = frame_of(chosen).get_column("n").to_list()
    assert numbers == sorted(numbers)
    assert len(numbers) == 5


def test_a_full_refresh_asks_everything_again_but_not_twice(instance: dg.DagsterInstance) -> None:
    """Stored answers are renewed; a retry of the step reuses those of its own run."""
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


def test_retry_failed_rows_false_keeps_failed_rows(instance: dg.DagsterInstance) -> None:
    """Only rows that were never asked are asked."""
    run(shouts, instance, ScriptedModel(lambda _: {"loud": "A"}, faults=[RefusedError("no")] * 1))
    llm = shout()
    result = run(shouts, instance, llm, retry_failed_rows=False)
    assert result.success
    assert llm.calls == []
    run(shouts, instance, llm)
    assert len(llm.calls) == 1


def test_retry_reasons_of_the_asset_and_of_one_run(instance: dg.DagsterInstance) -> None:
    """A refused row is not asked again every night unless the asset or the run says so."""

    @llm_asset(**ARGUMENTS, name="shouts", retry_failed_rows=["invalid", "truncated"])
    def patient() -> pd.DataFrame:
        return pd.DataFrame({"text": ["a"]})

    run(patient, instance, ScriptedModel({"": {"loud": "A"}}, faults=[RefusedError("no")]))
    llm = shout()
    run(patient, instance, llm)
    assert llm.calls == []
    replay = dg.Definitions(
        assets=[patient], jobs=[replay_failed_rows_job(patient)], resources={"llm": llm}
    ).resolve_job_def("replay_shouts")
    assert replay.execute_in_process(instance=instance).output_for_node("shouts")["loud"].tolist() == ["A"]
    assert len(llm.calls) == 1


def test_another_model_and_another_cap_for_one_run(instance: dg.DagsterInstance) -> None:
    """The Launchpad's model replaces the resource's, and its cap applies."""
    with Provider(lambda _: {"loud": "A"}) as provider:
        llm = LLMResource(model="openai_compatible/small", base_url=provider.base_url)
        result = run(shouts, instance, llm, model="openai_compatible/large")
        assert result.success
        assert {asked.body["model"] for asked in provider.ledger.requests} == {"large"}
        capped = run(shouts, instance, llm, max_cost_usd=1.0)
        assert not capped.success
        (failed,) = events(capped, "STEP_FAILURE")
        assert "input_cost_per_1k_tokens" in failed.step_failure_data.user_failure_data.description


def test_open_model_cannot_be_replaced_in_the_launchpad(instance: dg.DagsterInstance) -> None:
    """Another model needs an LLMResource."""
    result = run(shouts, instance, shout(), model="openai/gpt-4o")
    (failed,) = events(result, "STEP_FAILURE")
    assert "not an LLMResource" in failed.step_failure_data.user_failure_data.description


class Loudness(LLMAssetConfig):
    """The user's config fields beside ours."""

    prefix: str = ""


class Suffix(dg.Config):
    """A user's config without our fields."""

    suffix: str = "!"


def test_user_config_may_extend_llm_asset_config(instance: dg.DagsterInstance) -> None:
    """A subclass reaches the function and the step; any other config the function only."""

    @llm_asset(**ARGUMENTS)
    def prefixed(config: Loudness) -> pd.DataFrame:
        return pd.DataFrame({"text": [config.prefix + text for text in TEXTS]})

    @llm_asset(**ARGUMENTS)
    def suffixed(config: Suffix) -> pd.DataFrame:
        return pd.DataFrame({"text": [text + config.suffix for text in TEXTS]})

    result = run(prefixed, instance, shout(), prefix="x", max_rows=1)
    assert observed(result)["ondine/trial/rows"].split("\n")[2:] == ["| XA | xa |"]
    assert list(run(suffixed, instance, shout()).output_for_node("suffixed")["loud"]) == ["A!", "B!", "C!", "A!"]


# -- partitions ----------------------------------------------------------------------------------------------------

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-04")


class Memory(dg.IOManager):
    """Keeps its outputs in memory, also of partition ranges."""

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
    """Each day's rows of an unpartitioned table."""
    return events_table


def fill(
    instance: dg.DagsterInstance, memory: Memory, config: Any = None, **selected: Any
) -> tuple[Any, ScriptedModel]:
    llm = shout()
    definitions = dg.Definitions(assets=[events_table, daily_shouts], resources={"llm": llm, "io_manager": memory})
    job = definitions.resolve_implicit_global_asset_job_def()
    keys = [dg.AssetKey("daily_shouts")]
    dg.materialize([events_table], instance=instance, resources={"io_manager": memory})
    ops = {"ops": {"daily_shouts": {"config": config}}} if config else None
    return job.execute_in_process(instance=instance, asset_selection=keys, run_config=ops, **selected), llm


def test_partition_takes_its_rows_from_an_unpartitioned_table(instance: dg.DagsterInstance) -> None:
    """Only the day's rows are asked and stored."""
    memory = Memory()
    result, llm = fill(instance, memory, partition_key="2026-01-02")
    assert result.success
    assert list(memory.tables["daily_shouts", "2026-01-02"]["loud"]) == ["B", "C"]
    assert len(llm.calls) == 2


def test_a_range_is_one_run_and_each_partition_has_its_share(instance: dg.DagsterInstance) -> None:
    """Each partition's metadata counts its own rows, and the costs add up."""
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


@pytest.mark.parametrize(
    ("selected", "rows", "partition"),
    [
        ({"partition_key": "2026-01-02"}, ["| B | b |"], "2026-01-02"),
        (
            {
                "tags": {
                    "dagster/asset_partition_range_start": "2026-01-01",
                    "dagster/asset_partition_range_end": "2026-01-03",
                }
            },
            ["| A | a |"],
            None,
        ),
    ],
)
def test_trial_of_partitions_stores_none(
    instance: dg.DagsterInstance, selected: Any, rows: list[str], partition: str | None
) -> None:
    """Its rows are those of the partition or the range."""
    memory = Memory()
    result, llm = fill(instance, memory, {"max_rows": 1}, **selected)
    assert result.success
    assert list(memory.tables) == [("events_table", "")]
    assert observed(result)["ondine/trial/rows"].split("\n")[2:] == rows
    *_, event = events(result, "ASSET_OBSERVATION")
    assert event.asset_observation_data.asset_observation.partition == partition
    assert len(llm.calls) == 1


def test_shards_of_one_table(instance: dg.DagsterInstance) -> None:
    """Together the shards ask each row once."""
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
    """The default IO manager's mapping of partition to frame may be returned as it is."""

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


@pytest.mark.parametrize(("on_row_error", "counts"), [("null", [2, 2]), ("drop", [2, 1])])
def test_row_count_of_a_partition_is_that_of_its_stored_rows(
    instance: dg.DagsterInstance, on_row_error: str, counts: list[int]
) -> None:
    """In a run of several partitions, too: dropped rows are not counted."""

    @llm_asset(**ARGUMENTS, partitions_def=DAYS, on_row_error=on_row_error)
    def ranged(context: dg.AssetExecutionContext) -> dict[str, pd.DataFrame]:
        return {key: pd.DataFrame({"text": [f"{key} a", f"{key} b"]}) for key in context.partition_keys}

    llm = ScriptedModel({"2026-01-02 b": "no JSON", "": {"loud": "HEY"}})
    tags = {"dagster/asset_partition_range_start": "2026-01-01", "dagster/asset_partition_range_end": "2026-01-02"}
    job = dg.Definitions(assets=[ranged], resources={"llm": llm, "io_manager": Memory()})
    result = job.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance, tags=tags)
    found = {event.partition: event.materialization.metadata for event in result.get_asset_materialization_events()}
    assert [found[day]["dagster/partition_row_count"].value for day in ("2026-01-01", "2026-01-02")] == counts
    assert not any("dagster/row_count" in metadata for metadata in found.values())  # a table of all partitions has more


@pytest.mark.parametrize("on_row_error", ["null", "drop"])
def test_partition_of_a_run_of_several_shows_its_own_rows_and_failures(
    instance: dg.DagsterInstance, on_row_error: str
) -> None:
    """Not those of the whole run; and the calls of all partitions add up to those of the run."""
    texts = {"2026-01-01": ["one", "again"], "2026-01-02": ["junk", "two"], "2026-01-03": ["three", "again"]}

    @llm_asset(**ARGUMENTS, partitions_def=DAYS, on_row_error=on_row_error, failed_rows=True)
    def ranged() -> dict[str, pd.DataFrame]:
        return {day: pd.DataFrame({"text": found}) for day, found in texts.items()}

    llm = ScriptedModel({"junk": "no JSON", "": {"loud": "HEY"}})
    tags = {"dagster/asset_partition_range_start": "2026-01-01", "dagster/asset_partition_range_end": "2026-01-03"}
    job = dg.Definitions(assets=[ranged], resources={"llm": llm, "io_manager": Memory()})
    result = job.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance, tags=tags)
    made = {(event.asset_key.path[-1], event.partition): event for event in result.get_asset_materialization_events()}
    calls = 0
    for day, found in texts.items():
        shown, failed = (made[name, day].materialization.metadata for name in ("ranged", "ranged_failed"))
        preview = str(shown["ondine/preview"].value)
        stored = {text for text in found if text != "junk" or on_row_error == "null"}
        assert {text for text in ("one", "two", "three", "again", "junk") if text in preview} == stored
        for metadata in (shown, failed):
            assert ("ondine/failures" in metadata) == ("junk" in found)
        assert ("ondine/rows_failed_invalid" in failed) == ("ondine/preview" in failed) == ("junk" in found)
        calls += shown["ondine/requests"].value
    assert calls == len(llm.calls) == 8


def test_partition_without_a_table_has_no_part_of_the_figures(instance: dg.DagsterInstance) -> None:
    """An IO manager that finds nothing for a day leaves it out of the mapping; the day then shows no cost of others."""

    @llm_asset(**ARGUMENTS, partitions_def=DAYS)
    def ranged() -> dict[str, pd.DataFrame]:
        return {"2026-01-01": pd.DataFrame({"text": ["a", "b"]})}

    tags = {"dagster/asset_partition_range_start": "2026-01-01", "dagster/asset_partition_range_end": "2026-01-02"}
    job = dg.Definitions(assets=[ranged], resources={"llm": shout(), "io_manager": Memory()})
    result = job.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance, tags=tags)
    found = {event.partition: event.materialization.metadata for event in result.get_asset_materialization_events()}
    for key in ("ondine/rows_total", "ondine/requests", "dagster/partition_row_count"):
        assert [found[day][key].value for day in ("2026-01-01", "2026-01-02")] == [2, 0]
