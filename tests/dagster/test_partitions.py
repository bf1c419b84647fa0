"""Which rows belong to a partition."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.errors import ConfigError
from ondine_dagster.partitions import check_partition_by, joined, rows_by_partition, shards

KINDS = pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table], ids=["pandas", "polars", "pyarrow"])
DAILY = dg.DailyPartitionsDefinition("2026-01-01")


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
def test_time_decides(make: Callable[..., Any], days: list[Any]) -> None:
    """Dates, date-times and texts fall into their day; who has no value belongs to none; the kind of frame stays."""
    table = make({"id": [1, 2, 3], "at": days})
    found = rows_by_partition(table, "at", DAILY, ["2026-01-05", "2026-01-06", "2026-01-07"])
    assert [ids(rows) for rows in found.values()] == [[1], [2], []]
    assert {type(rows) for rows in found.values()} == {type(table)}


def test_a_time_without_a_zone_is_in_that_of_the_partitions() -> None:
    """A day begins when it begins there."""
    partitions = dg.DailyPartitionsDefinition("2026-01-01", timezone="America/New_York")
    table = pd.DataFrame({"id": [1, 2], "at": ["2026-01-05T23:00:00", "2026-01-06T04:59:00Z"]})
    assert ids(rows_by_partition(table, "at", partitions, ["2026-01-05"])["2026-01-05"]) == [1, 2]


@KINDS
def test_a_key_is_the_value_as_text(make: Callable[..., Any]) -> None:
    """Static and dynamic partitions take the rows whose value reads like their key."""
    table = make({"id": [1, 2, 3], "shop": [7, 8, 7]})
    for partitions in (dg.StaticPartitionsDefinition(["7", "8"]), dg.StaticPartitionsDefinition(["8", "7"])):
        found = rows_by_partition(table, "shop", partitions, ["7", "8"])
        assert [ids(rows) for rows in found.values()] == [[1, 3], [2]]


def test_several_dimensions_have_a_column_each() -> None:
    """A row belongs to a partition of days and shops if both its day and its shop do."""
    partitions = dg.MultiPartitionsDefinition({"day": DAILY, "shop": dg.StaticPartitionsDefinition(["a", "b"])})
    table = pd.DataFrame({"id": [1, 2, 3], "at": ["2026-01-05"] * 2 + ["2026-01-06"], "where": ["a", "b", "a"]})
    keys = [dg.MultiPartitionKey({"day": "2026-01-05", "shop": "b"}), "2026-01-06|a"]
    found = rows_by_partition(table, {"day": "at", "shop": "where"}, partitions, keys)
    assert [ids(rows) for rows in found.values()] == [[2], [3]]


@given(st.integers(1, 20), st.lists(st.integers() | st.text(), unique_by=str, max_size=50))
def test_every_row_is_in_one_shard(count: int, values: list[Any]) -> None:
    """Shards lose no row and have none twice."""
    partitions = shards(count)
    table = pl.DataFrame({"id": list(range(len(values))), "key": [str(value) for value in values]})
    found = rows_by_partition(table, "key", partitions, list(partitions.get_partition_keys()))
    assert sorted(number for rows in found.values() for number in ids(rows)) == list(range(len(values)))


def test_shards_are_the_same_everywhere_and_about_as_large() -> None:
    """Where a row belongs follows from its value alone, and 1,000 rows are dealt evenly."""
    table = pd.DataFrame({"id": range(1000)})
    found = rows_by_partition(table, "id", shards(4), list(shards(4).get_partition_keys()))
    assert ids(found["1-of-4"])[:5] == [2, 5, 6, 10, 17]
    assert all(200 < len(rows) < 300 for rows in found.values())


def test_several_partitions_become_one_table() -> None:
    """Frames by partition are joined in the order of the partitions, whatever the order they come in."""
    tables = {"b": pl.DataFrame({"id": [3]}), "a": pl.DataFrame({"id": [1, 2]})}
    whole, lengths = joined(tables, ["a", "b", "c"])
    assert (ids(whole), lengths) == ([1, 2, 3], {"a": 2, "b": 1})


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: shards(0), "at least one"),
        (lambda: check_partition_by("at", None), "needs a partitions_def"),
        (lambda: check_partition_by({"day": "at"}, DAILY), "name of one column"),
        (
            lambda: check_partition_by("at", dg.MultiPartitionsDefinition({"day": DAILY, "shard": shards(2)})),
            "'day', 'shard'",
        ),
        (lambda: rows_by_partition(pd.DataFrame({"id": [1]}), "at", DAILY, ["2026-01-05"]), "columns are 'id'"),
        (lambda: rows_by_partition(pd.DataFrame({"at": ["soon"]}), "at", DAILY, ["2026-01-05"]), "ISO 8601"),
        (lambda: rows_by_partition(pd.DataFrame({"at": [7]}), "at", DAILY, ["2026-01-05"]), r"ISO 8601 text \(int\)"),
        (lambda: joined({"x": pd.DataFrame()}, ["a", "b"]), "partitions a, b"),
        (lambda: joined({"a": pd.DataFrame(), "b": pl.DataFrame()}, ["a", "b"]), "do not fit together"),
    ],
)
def test_what_cannot_be_dealt_is_an_error(act: Callable[[], Any], message: str) -> None:
    """The message names the column, the partitions or the dimensions, and no value of a row."""
    with pytest.raises(ConfigError, match=message) as caught:
        act()
    assert "soon" not in str(caught.value)
