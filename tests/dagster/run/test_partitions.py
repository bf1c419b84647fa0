"""The rows that belong to a partition."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from time import process_time
from typing import Any

import dagster as dg
import narwhals as nw
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.errors import ConfigError
from ondine_dagster import frames
from ondine_dagster.run import partitions as by_partition
from ondine_dagster.run.partitions import check_partition_by, shards

KINDS = pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table], ids=["pandas", "polars", "pyarrow"])
DAILY = dg.DailyPartitionsDefinition("2026-01-01")


def rows_by_partition(table: Any, *how: Any) -> dict[str, Any]:
    found = by_partition.rows_by_partition(frames.frame_of(table), *how)
    return {key: rows.to_native() for key, rows in found.items()}


def joined(tables: dict[str, Any], keys: Sequence[str]) -> tuple[Any, dict[str, int]]:
    whole, lengths = frames.concat_partitions(tables, keys)
    return whole.to_native(), lengths


def ids(table: Any) -> list[int]:
    return list(table["id"].to_pylist() if isinstance(table, pa.Table) else table["id"])


@KINDS
@pytest.mark.parametrize(
    "days",
    [
        [dt.date(2026, 1, 5), dt.date(2026, 1, 6), None],
        [dt.datetime.fromisoformat("2026-01-05T23:59"), dt.datetime.fromisoformat("2026-01-06"), None],
        ["2026-01-05T23:59:59Z", "2026-01-06", None],
        ["2026-01-06T01:00:00+02:00", "2026-01-05T23:00:00-01:00", None],
    ],
    ids=["dates", "date-times", "texts", "zones"],
)
def test_rows_belong_to_the_partition_of_their_time(make: Callable[..., Any], days: list[Any]) -> None:
    """Dates, date-times and texts fall into their day; a row without a value is in none; the frame's kind stays."""
    table = make({"id": [1, 2, 3], "at": days})
    found = rows_by_partition(table, "at", DAILY, ["2026-01-05", "2026-01-06", "2026-01-07"])
    assert [ids(rows) for rows in found.values()] == [[1], [2], []]
    assert {type(rows) for rows in found.values()} == {type(table)}


def test_the_last_nanosecond_of_a_day_belongs_to_it() -> None:
    """The end of a pandas period is not taken for the beginning of the next day."""
    ends = pd.PeriodIndex(["2026-01-05", "2026-01-06"], freq="D").end_time
    found = rows_by_partition(pd.DataFrame({"id": [1, 2], "at": ends}), "at", DAILY, ["2026-01-05", "2026-01-06"])
    assert [ids(rows) for rows in found.values()] == [[1], [2]]


def test_a_time_without_a_zone_is_in_that_of_the_partitions() -> None:
    """A day begins at midnight of that zone."""
    partitions = dg.DailyPartitionsDefinition("2026-01-01", timezone="America/New_York")
    table = pd.DataFrame({"id": [1, 2], "at": ["2026-01-05T23:00:00", "2026-01-06T04:59:00Z"]})
    assert ids(rows_by_partition(table, "at", partitions, ["2026-01-05"])["2026-01-05"]) == [1, 2]


@KINDS
def test_a_key_is_the_value_as_text(make: Callable[..., Any]) -> None:
    """Static and dynamic partitions have the rows whose value as text is their key."""
    table = make({"id": [1, 2, 3], "shop": [7, 8, 7]})
    for partitions in (dg.StaticPartitionsDefinition(["7", "8"]), dg.StaticPartitionsDefinition(["8", "7"])):
        found = rows_by_partition(table, "shop", partitions, ["7", "8"])
        assert [ids(rows) for rows in found.values()] == [[1, 3], [2]]


@KINDS
@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ([1.0, 2.0, None], ["1", "2"]),
        ([dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 2), None], ["2024-01-01", "2024-01-02"]),  # noqa: DTZ001
        ([dt.date(2024, 1, 1), dt.date(2024, 1, 2), None], ["2024-01-01", "2024-01-02"]),
        ([1.0, 2.5, None], ["1.0", "2.5"]),
    ],
    ids=["whole numbers", "midnights", "dates", "texts of floats"],
)
def test_null_in_a_column_does_not_change_the_keys(
    make: Callable[..., Any], values: list[Any], keys: list[str]
) -> None:
    """Integers that became floats and dates that became midnights still match."""
    found = rows_by_partition(make({"id": [1, 2, 3], "of": values}), "of", dg.StaticPartitionsDefinition(keys), keys)
    assert [ids(rows) for rows in found.values()] == [[1], [2]]


def test_exact_key_takes_precedence() -> None:
    """So no row is in two partitions."""
    keys = ["1", "1.0"]
    found = rows_by_partition(pd.DataFrame({"id": [1], "of": [1.0]}), "of", dg.StaticPartitionsDefinition(keys), keys)
    assert [ids(rows) for rows in found.values()] == [[], [1]]


@KINDS
def test_a_column_without_any_key_is_an_error(make: Callable[..., Any]) -> None:
    """The error has the type and some keys, but no value; a column without values or with other valid keys is valid."""
    partitions = dg.StaticPartitionsDefinition(["a", "b", "c", "d"])
    with pytest.raises(ConfigError, match=r"'of': no value of this .*the keys are 'a', 'b', 'c', \.\.\.") as caught:
        rows_by_partition(make({"id": [1, 2], "of": ["secret", None]}), "of", partitions, ["a"])
    assert "(string)" in str(caught.value).lower()
    assert "secret" not in str(caught.value)
    for there in (["b", "x"], []):
        table = make({"id": list(range(len(there))), "of": there})
        assert ids(rows_by_partition(table, "of", partitions, ["a"])["a"]) == []
    dynamic = dg.DynamicPartitionsDefinition(name="of")
    assert ids(rows_by_partition(make({"id": [1], "of": ["x"]}), "of", dynamic, ["a"])["a"]) == []


SHOPS = dg.StaticPartitionsDefinition(["a", "b"])


@pytest.mark.parametrize("keys", [["a"], ["a", "b"]])
def test_a_pandas_index_is_kept(keys: list[str]) -> None:
    """In a run of one partition and of several; a default index is renumbered."""
    table = pd.DataFrame({"id": [1, 2, 3], "shop": ["b", "a", "b"]}, index=pd.Index([7, 8, 9], name="ticket"))
    whole, _ = joined(rows_by_partition(table, "shop", SHOPS, keys), keys)
    assert (list(whole.index), whole.index.name) == ([8, 7, 9][: len(whole)], "ticket")
    whole, _ = joined(rows_by_partition(table.reset_index(drop=True), "shop", SHOPS, keys), keys)
    assert list(whole.index) == list(range(len(whole)))


def test_the_index_of_frames_by_partition_is_kept() -> None:
    """Like that of one frame."""
    tables = {
        key: pd.DataFrame({"id": [1]}, index=pd.DatetimeIndex([f"2026-01-0{n}"])) for n, key in ((1, "a"), (2, "b"))
    }
    whole, _ = joined(tables, ["a", "b"])
    assert whole.index.equals(pd.DatetimeIndex(["2026-01-01", "2026-01-02"]))


def test_several_dimensions_have_a_column_each() -> None:
    """A row belongs to a partition of day and shop if both match."""
    partitions = dg.MultiPartitionsDefinition({"day": DAILY, "shop": dg.StaticPartitionsDefinition(["a", "b"])})
    table = pd.DataFrame({"id": [1, 2, 3], "at": ["2026-01-05"] * 2 + ["2026-01-06"], "where": ["a", "b", "a"]})
    keys = [dg.MultiPartitionKey({"day": "2026-01-05", "shop": "b"}), "2026-01-06|a"]
    found = rows_by_partition(table, {"day": "at", "shop": "where"}, partitions, keys)
    assert [ids(rows) for rows in found.values()] == [[2], [3]]


@given(st.integers(1, 20), st.lists(st.integers() | st.text(), unique_by=str, max_size=50))
def test_every_row_is_in_one_shard(count: int, values: list[Any]) -> None:
    """Exactly one."""
    partitions = shards(count)
    table = pl.DataFrame({"id": list(range(len(values))), "key": [str(value) for value in values]})
    found = rows_by_partition(table, "key", partitions, list(partitions.get_partition_keys()))
    assert sorted(number for rows in found.values() for number in ids(rows)) == list(range(len(values)))


def test_shards_are_deterministic_and_balanced() -> None:
    """A row's shard follows from its value alone, and 1,000 rows are distributed evenly."""
    table = pd.DataFrame({"id": range(1000)})
    found = rows_by_partition(table, "id", shards(4), list(shards(4).get_partition_keys()))
    assert ids(found["1-of-4"])[:5] == [2, 5, 6, 10, 17]
    assert all(200 < len(rows) < 300 for rows in found.values())


@pytest.mark.parametrize(
    "partitions", [dg.StaticPartitionsDefinition(["1-of-3", "x"]), dg.DynamicPartitionsDefinition(name="x")]
)
def test_keys_of_other_partitions_may_look_like_those_of_shards(partitions: dg.PartitionsDefinition[Any]) -> None:
    """The rows have the key as their value: episodes of a series, for instance."""
    found = rows_by_partition(
        pd.DataFrame({"id": [1, 2], "part": ["1-of-3", "x"]}), "part", partitions, ["1-of-3", "x"]
    )
    assert {key: ids(rows) for key, rows in found.items()} == {"1-of-3": [1], "x": [2]}


def test_time_grows_little_with_the_partitions_of_a_run() -> None:
    """A single-run backfill of years, or of thousands of tenants, reads each row once and not once a partition."""
    tenants = dg.StaticPartitionsDefinition([f"tenant {number}" for number in range(2_000)])
    table = pl.DataFrame({"id": range(20_000), "tenant": [f"tenant {number % 2_000}" for number in range(20_000)]})
    keys = list(tenants.get_partition_keys())

    def seconds(count: int) -> float:
        began = process_time()
        found = rows_by_partition(table, "tenant", tenants, keys[:count])
        assert all(len(rows) == 10 for rows in found.values())
        return process_time() - began

    one = min(seconds(1) for _ in range(3))
    assert seconds(2_000) < 50 * one + 1


def test_several_partitions_become_one_table() -> None:
    """In the order of the partitions, whatever the order of the mapping."""
    tables = {"b": pl.DataFrame({"id": [3]}), "a": pl.DataFrame({"id": [1, 2]})}
    whole, lengths = joined(tables, ["a", "b", "c"])
    assert (ids(whole), lengths) == ([1, 2, 3], {"a": 2, "b": 1, "c": 0})


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
def test_columns_of_partitions_may_be_in_any_order(make: Callable[..., Any]) -> None:
    """The order is that of the first partition."""
    whole, _ = joined({"a": make({"id": [1], "text": ["x"]}), "b": make({"text": ["y"], "id": [2]})}, ["a", "b"])
    assert nw.from_native(whole, eager_only=True).rows() == [(1, "x"), (2, "y")]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: shards(0), "at least one"),
        (lambda: shards("4"), "at least one"),
        (lambda: shards(4.5), "at least one"),
        (lambda: check_partition_by("at", None), "needs a partitions_def"),
        (lambda: check_partition_by({"day": "at"}, DAILY), "name of one column"),
        (
            lambda: check_partition_by("at", dg.MultiPartitionsDefinition({"day": DAILY, "shard": shards(2)})),
            "'day', 'shard'",
        ),
        (lambda: rows_by_partition(pd.DataFrame({"id": [1]}), "at", DAILY, ["2026-01-05"]), "columns are 'id'"),
        (lambda: rows_by_partition(pd.DataFrame({"at": ["soon"]}), "at", DAILY, ["2026-01-05"]), "ISO 8601"),
        (lambda: rows_by_partition(pd.DataFrame({"at": [7]}), "at", DAILY, ["2026-01-05"]), r"ISO 8601 text \(int\)"),
        (lambda: joined({"x": pd.DataFrame()}, ["a", "b"]), "no table for any.*return an empty frame"),
        (lambda: joined({}, []), "no table for any.*return an empty frame"),
        (
            lambda: joined({"a": pd.DataFrame(), "b": pl.DataFrame()}, ["a", "b"]),
            "those of 'b' differ from those of 'a'",
        ),
        (
            lambda: joined(
                {day: pl.DataFrame({"n": [one]}) for day, one in {"a": 1, "b": 2, "c": "3"}.items()}, ["a", "b", "c"]
            ),
            "do not fit together.*those of 'c' differ from those of 'a'",
        ),
    ],
)
def test_rows_that_cannot_be_assigned_are_an_error(act: Callable[[], Any], message: str) -> None:
    """It names the column, the partitions or the dimensions, and no value of a row."""
    with pytest.raises(ConfigError, match=message) as caught:
        act()
    assert "soon" not in str(caught.value)
