"""Data frames at the edge: pandas, polars and pyarrow in, the same kind out, with the output columns joined on.

A missing value is null in a column of its declared type. pandas columns are built natively, because its plain integer
and boolean types cannot hold a null. A pandas column of nulls has a type, too, so that files of partitions can be read
together; but not one of lists or objects, which pandas cannot read again from a file that names Arrow's type for them.
Use polars or pyarrow where a whole partition of those may be null.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from ondine_core.report import Report
from ondine_core.schema import Column
from ondine_core.values import Answer, Json
from ondine_dagster.frames import frame_of

if TYPE_CHECKING:
    import narwhals as nw

__all__ = ["FAILED_COLUMNS", "column_schema", "failed_rows", "join"]


def join(  # noqa: PLR0913, PLR0917  (one caller)
    table: Any,
    report: Report,
    columns: Sequence[Column],
    error_column: str,
    on_row_error: Literal["null", "drop", "raise"],
    model_column: str | None = None,
) -> Any:
    """`table` with the output columns of `report`; its other columns, order and kind stay.

    Args:
        table: The frame that was asked about.
        report: One outcome a row of it.
        columns: The output columns.
        error_column: Name of the column that says why a row failed (with `on_row_error="null"`).
        on_row_error: `"drop"` leaves failed rows out; otherwise they have nulls.
        model_column: Name of the column that says which model answered, if one is wanted.
    """
    frame = frame_of(table)
    values = report.values()
    series = [_series(frame, column.name, values.pop(column.name), column.json_schema) for column in columns]
    if model_column is not None:
        models = [outcome.model if isinstance(outcome, Answer) else None for outcome in report.outcomes]
        series.append(_series(frame, model_column, models, {"type": "string"}))
    if on_row_error == "drop":
        answered = [failure is None for failure in report.outcomes.failures()]
        joined = frame.with_columns(*series)
        # narwhals takes an empty mask for no condition at all.
        return (joined.filter(answered) if answered else joined).to_native()
    series.append(_series(frame, error_column, report.errors(), {"type": "string"}))
    return frame.with_columns(*series).to_native()


FAILED_COLUMNS = {
    "error_reason": "Why the row has no answer, in a word.",
    "error_detail": "The same in a sentence.",
    "error_model": "The model that was asked last.",
    "error_attempts": "How often it was asked, repairs included.",
    "error_cost_usd": "USD it took; rows with the same prompt share it evenly.",
}
"""What is said of a failed row."""


def failed_rows(table: Any, report: Report) -> Any:
    """The rows of `table` that failed, with `FAILED_COLUMNS`, in the same kind of frame."""
    frame = frame_of(table)
    failures = list(report.outcomes.failures())
    mask = [failure is not None for failure in failures]
    frame = frame.filter(mask) if mask else frame
    failed = [failure for failure in failures if failure is not None]
    # Rows with the same prompt share one failure.
    rows = Counter(map(id, failed))
    costs = [None if one.cost_usd is None else float(one.cost_usd / rows[id(one)]) for one in failed]
    text = {"type": "string"}
    series = [
        _series(frame, "error_reason", [failure.reason for failure in failed], text),
        _series(frame, "error_detail", [failure.detail for failure in failed], text),
        _series(frame, "error_model", [failure.model or None for failure in failed], text),
        _series(frame, "error_attempts", [failure.attempts for failure in failed], {"type": "integer"}),
        _series(frame, "error_cost_usd", costs, {"type": "number"}),
    ]
    return frame.with_columns(*series).to_native()


def column_schema(table: Any, columns: Sequence[Column], error_column: str) -> dg.TableSchema:
    """The schema of an enriched frame, with the descriptions of its output columns."""
    said = {column.name: column.description for column in columns}
    said[error_column] = "Why the row has no answer."
    schema = frame_of(table).schema
    return dg.TableSchema([dg.TableColumn(name, str(kind).lower(), said.get(name)) for name, kind in schema.items()])


# -- columns of the frame's own kind -------------------------------------------------------------------------------

_PANDAS = {"integer": "Int64", "boolean": "boolean", "number": "Float64"}


def _series(frame: nw.DataFrame[Any], name: str, values: list[Any], json_schema: Mapping[str, Json]) -> Any:
    import narwhals as nw

    kind = _kind(json_schema)
    if kind == "date":
        values = [None if value is None else dt.date.fromisoformat(value) for value in values]
    elif kind == "date-time":
        values = [None if value is None else _utc(dt.datetime.fromisoformat(value)) for value in values]
    elif kind in ("array", "object", "mixed"):
        values = [_typed(value, json_schema) for value in values]
    if not frame.implementation.is_pandas():
        return nw.new_series(name, values, _dtype(json_schema), backend=frame.implementation)
    index = frame.to_native().index
    return nw.from_native(_pandas_series(name, values, json_schema, index), series_only=True)


def _pandas_series(name: str, values: list[Any], json_schema: Mapping[str, Json], index: Any) -> Any:
    import pandas as pd

    kind = _kind(json_schema)
    dtype = _PANDAS.get(kind, "object")
    if dtype == "object" and all(value is None for value in values):
        return pd.Series(values, index=index, name=name, dtype=_pandas_dtype_of_nulls(kind))
    native = pd.Series(values, index=index, name=name, dtype=dtype)
    # Texts and date-times take the type that the installed pandas gives them.
    return native.infer_objects() if kind != "array" else native


def _pandas_dtype_of_nulls(kind: str) -> Any:
    """The type of a column without a value, which in a file is that of one with values, as far as pandas has it."""
    import pandas as pd

    if kind in ("string", "mixed", "date-time"):
        value = dt.datetime(2026, 1, 1) if kind == "date-time" else ""  # noqa: DTZ001
        inferred = pd.Series([value], dtype="object").infer_objects().dtype
        return "string" if inferred == "object" else inferred  # pandas 2 infers no texts
    if kind == "date" and find_spec("pyarrow") is not None:
        return "date32[pyarrow]"
    return "object"


def _typed(value: Json, json_schema: Mapping[str, Json]) -> Json:
    """`value` with JSON text wherever its schema has no single type, so that it fits `_dtype`."""
    schema, kind = _without_null(json_schema), _kind(json_schema)
    if value is None:
        return None
    if kind == "array":
        return [_typed(item, schema["items"]) for item in value]
    if kind == "object":
        return {name: _typed(value.get(name), child) for name, child in schema["properties"].items()}
    return json.dumps(value, ensure_ascii=False) if kind == "mixed" else value


def _utc(value: dt.datetime) -> dt.datetime:
    """Frames hold one time zone a column, models write any: UTC, without a mark."""
    try:
        return value.astimezone(dt.UTC).replace(tzinfo=None) if value.tzinfo else value
    except OverflowError:  # the first or last day of the calendar, elsewhere
        return value.replace(tzinfo=None)


def _kind(json_schema: Mapping[str, Json]) -> str:
    """One of `_DTYPES`, `array`, `object`, or `mixed` for what no single column type holds."""
    match _without_null(json_schema):
        case {"type": "string", "format": "date" | "date-time" as form}:
            return str(form)
        case {"type": "string" | "integer" | "number" | "boolean" as kind}:
            return str(kind)
        case {"type": "array", "items": Mapping()}:
            return "array"
        case {"type": "object", "properties": Mapping() as properties} if properties:
            return "object"
        case _:
            return "mixed"


def _without_null(json_schema: Mapping[str, Json]) -> Mapping[str, Json]:
    options = [option for option in json_schema.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) == 1:
        return options[0]  # type: ignore[no-any-return]
    if isinstance(kinds := json_schema.get("type"), list):
        named = [kind for kind in kinds if kind != "null"]
        return {**json_schema, "type": named[0]} if len(named) == 1 else {}
    return json_schema


def _dtype(json_schema: Mapping[str, Json]) -> Any:
    import narwhals as nw

    schema, kind = _without_null(json_schema), _kind(json_schema)
    if kind == "array":
        return nw.List(_nested(schema["items"]))
    if kind == "object":
        return nw.Struct({name: _nested(child) for name, child in schema["properties"].items()})
    return _plain_dtypes().get(kind, nw.String())


@cache
def _plain_dtypes() -> Mapping[str, Any]:
    import narwhals as nw

    return {
        "string": nw.String(),
        "integer": nw.Int64(),
        "number": nw.Float64(),
        "boolean": nw.Boolean(),
        "date": nw.Date(),
        "date-time": nw.Datetime("us"),
    }


def _nested(json_schema: Mapping[str, Json]) -> Any:
    """Dates inside a list or an object stay the texts that JSON has for them."""
    import narwhals as nw

    return nw.String() if _kind(json_schema) in ("date", "date-time") else _dtype(json_schema)
