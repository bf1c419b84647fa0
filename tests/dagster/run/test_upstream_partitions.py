"""Assets whose upstream partitions differ: weeks of days, overlapping windows, an unpartitioned asset of partitions."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pytest

from ondine_core.errors import ConfigError
from ondine_dagster import ErrorRateCheck, GoldenCheck, ScriptedModel, build_llm_asset, llm_asset, shards
from tests.support import instances

DAILY = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-15")
WEEKLY = dg.WeeklyPartitionsDefinition("2026-01-04")
WEEK = [f"2026-01-{day:02}" for day in range(4, 11)]
ALL_DAYS = list(DAILY.get_partition_keys())
LLM = ScriptedModel({"": {"team": "x"}})
COLUMNS = {"prompt": "Team? {body}", "output": {"team": str}}


@dg.asset(partitions_def=DAILY)
def tickets(context: dg.AssetExecutionContext) -> pd.DataFrame:
    """Two tickets a day, none on the 6th, whose file has no columns."""
    day = context.partition_key
    return pd.DataFrame() if day == "2026-01-06" else pd.DataFrame({"day": [day] * 2, "body": [f"a {day}", f"b {day}"]})


def decorated(partitions: dg.PartitionsDefinition[Any] | None, **arguments: Any) -> dg.AssetsDefinition:
    @llm_asset(name="teams", partitions_def=partitions, **COLUMNS, **arguments)
    def teams(tickets: Any) -> Any:
        return tickets

    return teams


def built(partitions: dg.PartitionsDefinition[Any] | None, **arguments: Any) -> dg.AssetsDefinition:
    return build_llm_asset(name="teams", upstream="tickets", partitions_def=partitions, **COLUMNS, **arguments)


def run(
    asset: dg.AssetsDefinition, days: Sequence[str], key: str | None, upstream: dg.AssetsDefinition = tickets
) -> dg.ExecuteInProcessResult:
    with instances.ephemeral() as instance:
        for day in days:
            assert dg.materialize([upstream], instance=instance, partition_key=day).success
        return dg.materialize(
            [upstream, asset],
            selection=[asset],
            partition_key=key,
            resources={"llm": LLM},
            instance=instance,
            raise_on_error=False,
        )


def days_of(result: dg.ExecuteInProcessResult) -> list[str]:
    assert result.success
    return list(result.output_for_node("teams")["day"])


def twice(days: Sequence[str]) -> list[str]:
    return [day for day in days if day != "2026-01-06" for _ in range(2)]


BOTH = pytest.mark.parametrize("make", [decorated, built])


@BOTH
def test_a_week_has_the_rows_of_its_days(make: Any) -> None:
    """All of them in order; the day with the week's key is one of seven."""
    assert days_of(run(make(WEEKLY), WEEK, "2026-01-04")) == twice(WEEK)


@pytest.mark.parametrize(
    "tags",
    [
        {"dagster/partition": "2026-01-05"},
        {"dagster/asset_partition_range_start": "2026-01-05", "dagster/asset_partition_range_end": "2026-01-06"},
    ],
    ids=["partition", "range"],
)
def test_asset_without_partitions_has_none_in_a_run_that_has(tags: dict[str, str]) -> None:
    """A job may have both kinds of assets, and a run of one asset the tags of another."""

    @llm_asset(**COLUMNS)
    def whole() -> pd.DataFrame:
        return pd.DataFrame({"body": ["a"]})

    job = dg.Definitions(assets=[tickets, whole], resources={"llm": LLM}).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(tags=tags, asset_selection=[whole.key])
    (made,) = result.get_asset_materialization_events()
    assert made.partition is None
    assert made.materialization.metadata["dagster/row_count"].value == 1


@BOTH
def test_an_asset_without_partitions_has_the_rows_of_all(make: Any) -> None:
    """An unpartitioned asset downstream of days."""
    assert days_of(run(make(None), ALL_DAYS, None)) == twice(ALL_DAYS)


@pytest.mark.parametrize("has_partitions", [True, False])
def test_without_any_upstream_table_nothing_is_materialized(
    capfd: pytest.CaptureFixture[str], *, has_partitions: bool
) -> None:
    """Of days that are all missing or of no partition yet: there is no table to add columns to, which is no fault."""

    @dg.asset(name="tickets", partitions_def=DAILY if has_partitions else dg.DynamicPartitionsDefinition(name="shops"))
    def upstream() -> pd.DataFrame:
        raise NotImplementedError

    checks = [ErrorRateCheck(max_rate=0.5)]
    if has_partitions:
        ins = {"tickets": dg.AssetIn(metadata={"allow_missing_partitions": True})}
        asset = decorated(WEEKLY, ins=ins, checks=checks)
    else:
        asset = built(None, checks=checks)
    result = instances.materialize(
        [upstream, asset],
        selection=[asset],
        partition_key="2026-01-04" if has_partitions else None,
        resources={"llm": LLM, "io_manager": dg.FilesystemIOManager()},
    )
    assert result.success
    assert not result.get_asset_materialization_events()
    log = capfd.readouterr().err
    assert "no upstream partition of this run has a table" in log
    assert "did not yield" not in log


def test_a_rolling_window_has_its_rows() -> None:
    """The three days up to the run's own."""
    window = dg.TimeWindowPartitionMapping(start_offset=-2)
    asset = decorated(DAILY, ins={"tickets": dg.AssetIn("tickets", partition_mapping=window)})
    assert days_of(run(asset, ALL_DAYS[:5], "2026-01-05")) == twice(ALL_DAYS[2:5])


@pytest.mark.filterwarnings("ignore:Parameter `allow_nonexistent_upstream_partitions`")
def test_rows_of_the_day_before_are_not_those_of_the_day() -> None:
    """In a run of the first days, the partitions before are some of the run's own; none has the figures of another."""
    before = dg.TimeWindowPartitionMapping(-1, -1, allow_nonexistent_upstream_partitions=True)
    ins = {"tickets": dg.AssetIn("tickets", partition_mapping=before)}
    asset = decorated(DAILY, ins=ins, io_manager_key="teams_io")
    tags = {"dagster/asset_partition_range_start": ALL_DAYS[0], "dagster/asset_partition_range_end": ALL_DAYS[2]}
    with instances.ephemeral() as instance:
        for day in ALL_DAYS[:2]:
            assert dg.materialize([tickets], instance=instance, partition_key=day).success
        job = dg.Definitions(assets=[tickets, asset], resources={"llm": LLM, "teams_io": dg.InMemoryIOManager()})
        result = job.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, tags=tags, asset_selection=[asset.key]
        )
    made = result.get_asset_materialization_events()
    assert [event.materialization.metadata["ondine/rows_total"].value for event in made] == [4, 4, 4]


def test_rows_of_mapped_partitions_are_in_the_order_of_the_partitions() -> None:
    """Dagster has these keys in a set, whose order differs from process to process."""
    keys = [f"shop-{number:02}" for number in range(12)]

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(keys))
    def tickets(context: dg.AssetExecutionContext) -> pd.DataFrame:
        return pd.DataFrame({"day": [context.partition_key], "body": ["a"]})

    mapping = dg.StaticPartitionMapping(dict.fromkeys(keys, "all"))
    ins = {"tickets": dg.AssetIn("tickets", partition_mapping=mapping)}
    asset = decorated(dg.StaticPartitionsDefinition(["all"]), ins=ins)
    assert days_of(run(asset, keys, "all", tickets)) == keys


def test_the_last_three_days_of_an_asset_without_partitions() -> None:
    """A mapping to chosen partitions."""
    last = dg.SpecificPartitionsPartitionMapping(ALL_DAYS[-3:])
    asset = decorated(None, ins={"tickets": dg.AssetIn("tickets", partition_mapping=last)})
    assert days_of(run(asset, ALL_DAYS[-3:], None)) == twice(ALL_DAYS[-3:])


def test_a_dimension_of_two_has_the_rows_of_the_other() -> None:
    """Days of an upstream by day and shop have the rows of both shops."""
    both = dg.MultiPartitionsDefinition({"day": DAILY, "shop": dg.StaticPartitionsDefinition(["a", "b"])})

    @dg.asset(name="tickets", partitions_def=both)
    def by_shop(context: dg.AssetExecutionContext) -> pd.DataFrame:
        return pd.DataFrame({"day": [context.partition_key], "body": [context.partition_key]})

    result = run(decorated(DAILY), ["2026-01-04|a", "2026-01-04|b"], "2026-01-04", by_shop)
    assert sorted(days_of(result)) == ["2026-01-04|a", "2026-01-04|b"]


def test_partition_by_picks_from_the_rows_of_all_upstream_partitions() -> None:
    """An upstream mapping and `partition_by` work together."""
    shops = dg.StaticPartitionsDefinition(["a", "b"])
    every = dg.AssetIn("tickets", partition_mapping=dg.AllPartitionMapping())

    @llm_asset(name="teams", partitions_def=shops, partition_by="shop", ins={"tickets": every}, **COLUMNS)
    def teams(tickets: Any) -> Any:
        return {day: table.assign(shop=["a", "b"]) if len(table) else table for day, table in tickets.items()}

    result = run(teams, ALL_DAYS, "b")
    assert list(result.output_for_node("teams")["body"]) == [f"b {day}" for day in ALL_DAYS if day != "2026-01-06"]


def test_column_lineage_of_a_week_is_that_of_a_day() -> None:
    """Frames by partition have columns, too."""
    (event,) = run(decorated(WEEKLY), WEEK, "2026-01-04").asset_materializations_for_node("teams")
    assert "body" in event.metadata["dagster/column_lineage"].value.deps_by_column


def test_labelled_rows_may_be_partitioned() -> None:
    """A golden set partitioned by day is one set for an unpartitioned asset."""

    @dg.asset(partitions_def=DAILY)
    def labelled(context: dg.AssetExecutionContext) -> pd.DataFrame:
        return pd.DataFrame({"body": [context.partition_key], "team": ["x"]})

    @llm_asset(name="teams", checks=[GoldenCheck(rows="labelled", min_score=1.0)], **COLUMNS)
    def teams() -> pd.DataFrame:
        return pd.DataFrame({"day": ["d"], "body": ["late"]})

    result = run(teams, ALL_DAYS, None, labelled)
    (check,) = result.get_asset_check_evaluations()
    assert check.passed


@pytest.mark.parametrize("key", ["2026-1-05", "misspelt"])
def test_unknown_partition_key_is_refused(key: str) -> None:
    """Its rows would be lost; the message names it and the fix."""

    @llm_asset(name="teams", partitions_def=DAILY, **COLUMNS)
    def teams(tickets: Any) -> Any:
        return {"2026-01-04": tickets, key: tickets}

    result = run(teams, WEEK[:1], "2026-01-04")
    assert not result.success
    (failed,) = (event for event in result.all_events if event.is_step_failure)
    message = str(failed.event_specific_data.error)
    assert f"with the key '{key}', which is a partition neither of this run nor of an upstream asset" in message
    assert "pd.concat" in message


def test_upstream_value_that_is_no_table_is_refused() -> None:
    """Also in a mapping, with the name of its partition."""

    @llm_asset(name="teams", partitions_def=DAILY, **COLUMNS)
    def teams(tickets: Any) -> Any:  # noqa: ARG001
        return {"2026-01-04": [1, 2]}

    result = run(teams, WEEK[:1], "2026-01-04")
    (failed,) = (event for event in result.all_events if event.is_step_failure)
    assert "returned a list for the partition '2026-01-04', which is not a table" in str(
        failed.event_specific_data.error
    )


def test_polars_frames_with_an_empty_day() -> None:
    """Its columns have no types, which is not an error."""

    @llm_asset(name="teams", partitions_def=WEEKLY, **COLUMNS)
    def teams(tickets: Any) -> Any:
        return {day: pl.DataFrame(table.to_dict("list")) for day, table in tickets.items()}

    assert days_of(run(teams, WEEK, "2026-01-04")) == twice(WEEK)


# -- rows that belong to no partition ------------------------------------------------------------------------------


def counted(partitions: dg.PartitionsDefinition[Any], values: Sequence[Any], key: str) -> tuple[int, str]:
    """The number of rows of no partition that a run reports, and its log."""

    @llm_asset(name="teams", partitions_def=partitions, partition_by="at", **COLUMNS)
    def teams() -> pd.DataFrame:
        return pd.DataFrame({"at": values, "body": [str(n) for n in range(len(values))]})

    with instances.ephemeral() as instance:
        if isinstance(partitions, dg.DynamicPartitionsDefinition):
            instance.add_dynamic_partitions("shops", ["a", "b"])
        result = dg.materialize([teams], partition_key=key, resources={"llm": LLM}, instance=instance)
        (event,) = result.asset_materializations_for_node("teams")
        log = "\n".join(record.user_message for record in instance.all_logs(result.run_id))
    return int(event.metadata["ondine/rows_without_partition"].value), log


@pytest.mark.parametrize(
    ("partitions", "values", "key", "lost"),
    [
        (DAILY, ["2026-01-05", None, "2025-12-31", "2026-01-15", "2026-01-14T23:59"], "2026-01-05", 3),
        (dg.DailyPartitionsDefinition("2026-01-01"), ["2026-01-05", "2999-01-01", None], "2026-01-05", 1),
        (dg.WeeklyPartitionsDefinition("2026-01-01"), ["2026-01-05", "2026-01-02"], "2026-01-04", 1),
        (dg.StaticPartitionsDefinition(["a", "b"]), ["a", "b", "c", None], "a", 2),
        (dg.DynamicPartitionsDefinition(name="shops"), ["a", "b", "c", None], "a", 2),
        (shards(2), [1, 2, 3, None], "1-of-2", 1),
        (shards(2), [1, 2, 3], "1-of-2", 0),
    ],
    ids=["days", "days to come", "before the first week", "static", "dynamic", "shards", "all"],
)
def test_rows_of_no_partition_are_counted_and_warned_of(
    partitions: dg.PartitionsDefinition[Any], values: Sequence[Any], key: str, lost: int
) -> None:
    """In the metadata of every run; rows of other partitions are not among them."""
    found, log = counted(partitions, values, key)
    assert found == lost
    assert (f"{lost} of {len(values)} rows have no value in partition_by='at'" in log) == (lost > 0)


@pytest.mark.parametrize(
    "partitions", [shards(4), dg.MultiPartitionsDefinition({"day": DAILY, "shard": shards(4)})], ids=["one", "two"]
)
def test_shards_without_a_column_are_refused(partitions: dg.PartitionsDefinition[Any]) -> None:
    """Each shard would be the whole table, paid once and stored four times."""
    with pytest.raises(ConfigError, match="shards"):
        decorated(partitions)
