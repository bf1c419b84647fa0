"""Partition files can be read together, whatever happened to their rows."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ondine_dagster.frames import failed_rows, frame_of, typed_as
from tests.dagster.reporting.test_tables import BY_KIND, FAILED, KINDS, ROWS, answered, joined, values

WITH_TYPE = pytest.mark.parametrize(
    ("json_schema", "value"),
    [kind[1:3] for kind in KINDS if kind[1].get("type") not in ("array", "object")],
    ids=[kind[0] for kind in KINDS if kind[1].get("type") not in ("array", "object")],
)


@WITH_TYPE
def test_pandas_partitions_can_be_read_together(json_schema: Any, value: Any, tmp_path: Path) -> None:
    """Partitions with only answers, only failures and no rows have one Parquet schema."""
    whole = pd.DataFrame({"id": ROWS["id"]})
    tables = {
        "good": joined(whole, answered(value, value, value), json_schema),
        "failed": joined(whole, answered(FAILED, FAILED, FAILED), json_schema),
        "empty": joined(whole[:0], answered(), json_schema),
    }
    for name, table in tables.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    for column in ("out", "out_error"):
        assert len({str(pq.read_schema(file).field(column).type) for file in tmp_path.iterdir()}) == 1
    for file in tmp_path.iterdir():
        assert values(pd.read_parquet(file), "out") == values(tables[file.stem], "out")
    together = pd.read_parquet(tmp_path)
    assert len(together) == 6
    assert together["out"].notna().sum() == 3
    assert values(together, "out_error").count("invalid: why") == 3


def test_failed_rows_of_partitions_can_be_read_together(tmp_path: Path) -> None:
    """Also those of a partition without any."""
    whole = frame_of(pd.DataFrame({"id": ROWS["id"]}))
    failed_rows(whole, answered(1, 2, 3)).to_native().to_parquet(tmp_path / "none.parquet")
    failed_rows(whole, answered(FAILED, 2, 3)).to_native().to_parquet(tmp_path / "one.parquet")
    assert values(pd.read_parquet(tmp_path), "error_reason") == ["invalid"]


def test_files_of_failed_rows_have_one_schema(tmp_path: Path) -> None:
    """Whether none failed, or one without a value or with: a table of Delta or Iceberg takes no other schema later."""
    objects = {"day": [dt.date(2026, 1, 5), None, dt.date(2026, 1, 6)], "usd": [Decimal("1.50"), None, None]}
    whole = frame_of(pd.DataFrame(ROWS | objects | {"odd": [1, None, "a"]}).astype({"review": "object"}))
    for name, outcomes in {"none": (1, 2, 3), "null": (1, FAILED, 3), "first": (FAILED, 2, 3)}.items():
        failed_rows(whole, answered(*outcomes)).to_native().drop(columns="odd").to_parquet(tmp_path / name)
    assert len({str(pq.read_schema(file).remove_metadata()) for file in tmp_path.iterdir()}) == 1


def test_an_empty_partition_keeps_the_types_of_its_table() -> None:
    """Of a pandas column of objects, which has no type itself; lists stay as they are."""
    whole = frame_of(pd.DataFrame({"day": [dt.date(2026, 1, 5)], "tags": [["a"]]}))
    part = typed_as(whole.head(0), whole).to_native()
    assert pa.Schema.from_pandas(part).field("day").type == pa.date32()
    assert part["tags"].dtype == "object"


@BY_KIND
def test_a_pandas_column_of_nulls_is_null(json_schema: Any, value: Any, shown: Any, dtypes: Any) -> None:
    """For every type, also after concatenation with a column that has values."""
    del shown, dtypes
    nulls = joined(pd.DataFrame(ROWS), answered(None, None, FAILED), json_schema)
    good = joined(pd.DataFrame(ROWS), answered(value, value, value), json_schema)
    assert nulls["out"].isna().all()
    assert pd.concat([good, nulls])["out"].dtype == good["out"].dtype
