import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ondine_core.engine.cost_tracker import CostTracker
from ondine_core.engine.outcomes import Outcomes
from ondine_core.engine.report import Report
from ondine_core.engine.run_state import RunState
from ondine_core.prompts.output_schema import Column
from ondine_core.types.ledger import Audit
from ondine_core.types.progress import Progress, Spend
from ondine_core.types.values import Answer, Failure, Outcome
from ondine_dagster.frames import column_schema, frame_of, join, names_of
from ondine_dagster.reporting.markdown import preview

ROWS = {"id": [3, 1, 2], "review": ["a", "b", "c"]}
FAILED = Failure("invalid", "why")
Make = Callable[[dict[str, Any]], Any]
FRAMES = pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table], ids=["pandas", "polars", "pyarrow"])


def report(outcomes: Sequence[Outcome], names: Sequence[str] = ("out",)) -> Report:
    progress = Progress(len(outcomes), len(outcomes), 0, 0, Spend(), 1.0)
    keys = [number.to_bytes(16, "big") for number in range(len(outcomes))]
    run_state = RunState(len(outcomes), {}, CostTracker(None), lambda: 1.0, lambda _: None)
    run_state.settle(list(zip(keys, outcomes, strict=True)))
    return Report(Outcomes(keys, run_state.outcomes), tuple(names), progress, len(outcomes), (), (), Audit())


def answered(*values: Any) -> Report:
    return report([FAILED if value is FAILED else Answer({"out": value}, "m") for value in values])


def joined(table: Any, found: Report, json_schema: Any, on_row_error: Literal["null", "drop", "raise"] = "null") -> Any:
    error_column = None if on_row_error == "drop" else "out_error"
    return join(frame_of(table), found, [Column("out", json_schema)], error_column).to_native()


def values(table: Any, name: str) -> list[Any]:
    """A column as Python objects, every kind of missing as `None`."""
    if isinstance(table, pd.DataFrame):
        return [None if value is None or value is pd.NA or value != value else value for value in table[name]]  # noqa: PLR0124
    return table[name].to_pylist() if isinstance(table, pa.Table) else table[name].to_list()


def dtype(table: Any, name: str) -> str:
    return str(table.schema.field(name).type if isinstance(table, pa.Table) else table[name].dtype)


def names(table: Any) -> list[str]:
    return table.column_names if isinstance(table, pa.Table) else list(table.columns)


# -- kinds of frame ------------------------------------------------------------------------------------------------


@FRAMES
def test_frame_keeps_its_kind(make: Make) -> None:
    """Its own columns come first and unchanged, rows in order, then outputs and errors."""
    table = joined(make(ROWS), answered(1, FAILED, 3), {"type": "integer"})
    assert type(table) is type(make(ROWS))
    assert names(table) == ["id", "review", "out", "out_error"]
    assert {name: values(table, name) for name in names(table)} == {
        **ROWS,
        "out": [1, None, 3],
        "out_error": [None, "invalid: why", None],
    }


@FRAMES
def test_the_frame_given_is_not_changed(make: Make) -> None:
    """Enriching makes a new frame."""
    given = make(ROWS)
    joined(given, answered(1, 2, 3), {"type": "integer"})
    assert names(given) == ["id", "review"]


@FRAMES
def test_failed_rows_can_be_left_out(make: Make) -> None:
    """With `drop` only answered rows stay, in order, and there is no error column."""
    table = joined(make(ROWS), answered(FAILED, 2, None), {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "drop")
    assert {name: values(table, name) for name in names(table)} == {
        "id": [1, 2],
        "review": ["b", "c"],
        "out": [2, None],
    }


@FRAMES
def test_a_frame_without_rows_has_its_columns(make: Make) -> None:
    """With their usual types."""
    empty = make({"review": ["x"]})[:0]
    table = joined(empty, answered(), {"type": "integer"})
    assert names(table) == ["review", "out", "out_error"]
    assert dtype(table, "out").lower() == "int64"


@FRAMES
def test_several_outputs_keep_their_order(make: Make) -> None:
    """In the order of declaration, each with its own row's values."""
    outcomes = [Answer({"a": number, "b": -number}, "m") for number in range(3)]
    columns = [Column("b", {"type": "integer"}), Column("a", {"type": "integer"})]
    table = join(frame_of(make(ROWS)), report(outcomes, ["b", "a"]), columns, "e").to_native()
    assert names(table) == ["id", "review", "b", "a", "e"]
    assert (values(table, "b"), values(table, "a")) == ([0, -1, -2], [0, 1, 2])
    assert values(table, "e") == [None] * 3


INDICES = [
    pd.Index([7, 7, 3]),
    pd.Index(["x", None, "x"]),
    pd.DatetimeIndex(["2026-01-02", "2026-01-01", "2026-01-02"], name="day"),
    pd.MultiIndex.from_tuples([(1, "x"), (1, "x"), (0, "y")], names=["p", "q"]),
]


@pytest.mark.parametrize("index", INDICES, ids=["repeated", "texts", "dates", "levels"])
def test_a_pandas_index_is_kept_and_never_joined_on(index: pd.Index) -> None:
    """An unsorted, repeated or multi-level index stays, and every answer is in its own row."""
    table = joined(pd.DataFrame(ROWS, index=index), answered(1, FAILED, 3), {"type": "integer"})
    assert table.index.equals(index)
    assert table.index.names == index.names
    assert values(table, "out") == [1, None, 3]
    dropped = joined(pd.DataFrame(ROWS, index=index), answered(1, FAILED, 3), {"type": "integer"}, "drop")
    assert dropped.index.equals(index[[0, 2]])
    assert (values(dropped, "review"), values(dropped, "out")) == (["a", "c"], [1, 3])


# -- kinds of column -----------------------------------------------------------------------------------------------

TEXT: dict[str, Any] = {"type": "string"}
OBJECT = {"type": "object", "properties": {"k": TEXT, "day": {**TEXT, "format": "date"}}}
MOMENT = "2026-01-02T03:04:05"
KINDS: list[tuple[str, Any, Any, Any, tuple[str, str, str]]] = [
    # name, JSON schema, value in the answer, value in the frame, (pandas, polars, pyarrow) dtype
    ("text", TEXT, "x", "x", ("str", "String", "string")),
    ("choice", {**TEXT, "enum": ["x", "y"]}, "x", "x", ("str", "String", "string")),
    ("integer", {"type": "integer"}, 2**53 + 1, 2**53 + 1, ("Int64", "Int64", "int64")),
    ("constant", {"type": "integer", "const": 1}, 1, 1, ("Int64", "Int64", "int64")),
    ("number", {"type": "number"}, 1.5, 1.5, ("Float64", "Float64", "double")),
    ("boolean", {"type": "boolean"}, False, False, ("boolean", "Boolean", "bool")),
    ("date", {**TEXT, "format": "date"}, "2026-01-02", dt.date(2026, 1, 2), ("object", "Date", "date32[day]")),
    (
        "moment",
        {**TEXT, "format": "date-time"},
        MOMENT + "+02:00",
        dt.datetime(2026, 1, 2, 1, 4, 5),  # noqa: DTZ001
        ("datetime64[us]", "Datetime(time_unit='us', time_zone=None)", "timestamp[us]"),
    ),
    (
        "list",
        {"type": "array", "items": {"type": "integer"}},
        [1, 2],
        [1, 2],
        ("object", "List(Int64)", "list<item: int64>"),
    ),
    (
        "empty list",
        {"type": "array", "items": TEXT},
        [],
        [],
        ("list<item: string>[pyarrow]", "List(String)", "list<item: string>"),
    ),
    (
        "object",
        OBJECT,
        {"k": "x", "day": "2026-01-02"},
        {"k": "x", "day": "2026-01-02"},
        ("object", "Struct({'k': String, 'day': String})", "struct<k: string, day: string>"),
    ),
    (
        "list of objects",
        {"type": "array", "items": OBJECT},
        [{"k": "x", "day": None}],
        [{"k": "x", "day": None}],
        ("object", "List(Struct({'k': String, 'day': String}))", "list<item: struct<k: string, day: string>>"),
    ),
    ("mixed", {"anyOf": [TEXT, {"type": "integer"}]}, 5, "5", ("str", "String", "string")),
    ("mixed choice", {"enum": ["x", 1]}, "x", '"x"', ("str", "String", "string")),
    ("or null", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 3, 3, ("Int64", "Int64", "int64")),
    ("type or null", {"type": ["boolean", "null"]}, True, True, ("boolean", "Boolean", "bool")),
]
BY_KIND = pytest.mark.parametrize(
    ("json_schema", "value", "shown", "dtypes"), [k[1:] for k in KINDS], ids=[k[0] for k in KINDS]
)


@FRAMES
@BY_KIND
def test_a_column_with_nulls_has_its_type(
    make: Make, json_schema: Any, value: Any, shown: Any, dtypes: tuple[str, str, str]
) -> None:
    """The declared type, with null where the answer is null or the row failed."""
    table = joined(make(ROWS), answered(value, None, FAILED), json_schema)
    assert values(table, "out") == [shown, None, None]
    assert dtype(table, "out") == dtypes[[pd.DataFrame, pl.DataFrame, pa.Table].index(type(table))]


@pytest.mark.parametrize("make", [pl.DataFrame, pa.table], ids=["polars", "pyarrow"])
@BY_KIND
def test_a_column_of_nulls_has_its_type(
    make: Make, json_schema: Any, value: Any, shown: Any, dtypes: tuple[str, str, str]
) -> None:
    """Even if every row failed, so that partitions can be concatenated."""
    table = joined(make(ROWS), answered(None, None, FAILED), json_schema)
    assert values(table, "out") == [None] * 3
    assert dtype(table, "out") == dtypes[[pd.DataFrame, pl.DataFrame, pa.Table].index(type(table))]
    del value, shown


@pytest.mark.parametrize(("kind", "expected"), [("integer", "Int64"), ("number", "Float64"), ("boolean", "boolean")])
def test_a_pandas_column_of_nulls_has_its_type(kind: str, expected: str) -> None:
    """Numbers and booleans use pandas' nullable types."""
    table = joined(pd.DataFrame(ROWS), answered(None, None, FAILED), {"type": kind})
    assert dtype(table, "out") == expected
    assert table["out"].isna().all()


@pytest.mark.parametrize("outcomes", [([], None, FAILED), ([], [], []), (None, None, FAILED)])
def test_pandas_lists_without_items_are_written_with_the_type_of_their_items(outcomes: Any, tmp_path: Path) -> None:
    """A partition of empty lists comes first in a database, which creates the column from it."""
    integers = {"type": "array", "items": {"type": "integer"}}
    table = joined(pd.DataFrame(ROWS), answered(*outcomes), integers)
    table.to_parquet(tmp_path / "rows.parquet")
    assert pq.read_schema(tmp_path / "rows.parquet").field("out").type.value_type == pa.int64()
    both = pd.concat([table, joined(pd.DataFrame(ROWS), answered([1], None, FAILED), integers)])
    assert [value for value in both["out"] if isinstance(value, list) and value] == [[1]]


@FRAMES
def test_date_times_are_converted_to_utc(make: Make) -> None:
    """A date-time without a zone is unchanged."""
    found = answered(MOMENT, MOMENT + "Z", "2026-01-02T00:04:05-03:00")
    table = joined(make(ROWS), found, {**TEXT, "format": "date-time"})
    assert values(table, "out") == [dt.datetime.fromisoformat(MOMENT)] * 3


# -- schema and preview --------------------------------------------------------------------------------------------


@FRAMES
def test_schema_has_types_and_descriptions(make: Make) -> None:
    """Of every column, the outputs' from their model."""
    column = Column("out", {"type": "integer", "description": "how many"})
    schema = column_schema(join(frame_of(make(ROWS)), answered(1, None, 3), [column], "e"), [column], "e")
    assert [(c.name, c.type, c.description) for c in schema.columns] == [
        ("id", "int64", None),
        ("review", "string", None),
        ("out", "int64", "how many"),
        ("e", "string", "Why the row has no answer."),
    ]


@pytest.mark.parametrize(
    ("json_schema", "description"),
    [
        ({"enum": ["b", "a"]}, "One of: b, a."),
        ({"enum": ["b", "a"], "description": "The team."}, "The team. One of: b, a."),
        ({"anyOf": [{"enum": [1, 2]}, {"type": "null"}]}, "One of: 1, 2."),
        ({"enum": [str(n) for n in range(22)]}, f"One of: {', '.join(str(n) for n in range(20))}, and 2 more."),
        ({"type": "boolean"}, None),
        ({"type": "string"}, None),
    ],
    ids=repr,
)
def test_the_schema_names_the_values_of_a_closed_set(json_schema: dict[str, Any], description: str | None) -> None:
    """After the description; not for booleans, and up to a limit."""
    column = Column("out", json_schema)
    schema = column_schema(frame_of(pd.DataFrame({"out": [None]})), [column], "e")
    assert schema.columns[0].description == description


@FRAMES
def test_column_names_of_non_frames_are_unknown(make: Make) -> None:
    """Other upstream values have none."""
    assert names_of(make(ROWS)) == ("id", "review")
    assert [names_of(value) for value in (None, 3, "id", ROWS, [ROWS])] == [()] * 5


@FRAMES
@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("a|b", "a\\|b"),
        ("a\\|b", "a\\\\\\|b"),
        ("a\nb\r\n\tc", "a b c"),
        ("<img src=x>", r"\<img src=x\>"),
        ("see https://a.example/x", "see https:\u2060//a.example/x"),
        ("WWW.a.example", "WWW\u2060.a.example"),
        ("me@a.example", "me\u2060@a.example"),
        ("awww, 5 @ 3", "awww, 5 @ 3"),
        ("None", "None"),
        (None, ""),
        ("x" * 200, "x" * 159 + "…"),
    ],
    ids=repr,
)
def test_preview_escapes_cells(make: Make, value: Any, cell: str) -> None:
    """For any row text the preview is one Markdown table: markup escaped, lines joined, length bounded."""
    lines = preview(make({"a|b": [value, "z"], "n": [1, 2]}), ["a|b", "n"]).split("\n")
    assert lines == ["| a\\|b | n |", "| --- | --- |", f"| {cell} | 1 |", "| z | 2 |"]


@FRAMES
def test_a_preview_of_long_rows_has_fewer(make: Make) -> None:
    """Dagster hides over 999 characters behind a link, so rows are left out, but never all."""
    lines = preview(make({"text": ["x" * 150] * 10}), ["text"])
    assert len(lines) < 1000
    assert lines.count("\n") == 1 + 6
    wide = {f"column {number}": ["x" * 150] * 3 for number in range(9)}
    assert preview(make(wide), list(wide)).count("\n") == 2


@FRAMES
@pytest.mark.parametrize(("rows", "shown"), [(0, 0), (9, 9), (10, 10), (11, 10), (1000, 10)])
def test_a_preview_is_ten_rows_at_most(make: Make, rows: int, shown: int) -> None:
    """From the first row on, with the requested columns only."""
    lines = preview(make({"n": list(range(rows)), "unasked": ["x"] * rows}), ["n"]).split("\n")
    assert lines == ["| n |", "| --- |", *(f"| {number} |" for number in range(shown))]


@FRAMES
@pytest.mark.parametrize("on_row_error", ["null", "drop"])
def test_empty_partition_has_its_columns(make: Make, on_row_error: Literal["null", "drop"]) -> None:
    """No rows in, no rows out, with the columns there."""
    table = joined(make({"review": []}), answered(), {"type": "integer"}, on_row_error)
    assert names(table)[:2] == ["review", "out"]
    assert len(table) == 0


@FRAMES
def test_mixed_values_in_lists_are_json_text(make: Make) -> None:
    """Lists of mixed types and free mappings keep every value."""
    mixed = {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}
    table = joined(make(ROWS), answered(["x", 1], [], FAILED), mixed)
    assert [list(found) if found is not None else None for found in values(table, "out")[:2]] == [['"x"', "1"], []]
    free = {"type": "object", "additionalProperties": {"type": "integer"}}
    table = joined(make(ROWS), answered({"z": 1}, {"w": 2}, FAILED), free)
    assert values(table, "out")[:2] == ['{"z": 1}', '{"w": 2}']


@FRAMES
def test_date_time_outside_the_utc_calendar_is_kept_without_its_zone(make: Make) -> None:
    """A date-time whose UTC lies outside of the calendar is kept without its zone."""
    moment = {"type": "string", "format": "date-time"}
    table = joined(make(ROWS), answered("0001-01-01T00:00:00+14:00", FAILED, FAILED), moment)
    assert str(values(table, "out")[0]).startswith("0001-01-01")
