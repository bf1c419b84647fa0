"""Data frames at the edge: pandas, polars and pyarrow in, the same kind out, with the output columns joined on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import dagster as dg

from ondine_core.frame_columns import new_column
from ondine_core.json_schema import allowed_values
from ondine_core.report import Report
from ondine_core.schema import Column
from ondine_core.values import Answer
from ondine_dagster.frames import frame_of

__all__ = ["FAILED_COLUMNS", "column_schema", "failed_rows", "join"]

_VALUES_NAMED = 20


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
    series = [new_column(frame, column.name, values.pop(column.name), column.json_schema) for column in columns]
    if model_column is not None:
        models = [outcome.model if isinstance(outcome, Answer) else None for outcome in report.outcomes]
        series.append(new_column(frame, model_column, models, {"type": "string"}))
    if on_row_error == "drop":
        answered = [failure is None for failure in report.outcomes.failures()]
        joined = frame.with_columns(*series)
        # narwhals takes an empty mask for no condition at all.
        return (joined.filter(answered) if answered else joined).to_native()
    series.append(new_column(frame, error_column, report.errors(), {"type": "string"}))
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
        new_column(frame, "error_reason", [failure.reason for failure in failed], text),
        new_column(frame, "error_detail", [failure.detail for failure in failed], text),
        new_column(frame, "error_model", [failure.model or None for failure in failed], text),
        new_column(frame, "error_attempts", [failure.attempts for failure in failed], {"type": "integer"}),
        new_column(frame, "error_cost_usd", costs, {"type": "number"}),
    ]
    return frame.with_columns(*series).to_native()


def column_schema(table: Any, columns: Sequence[Column], error_column: str) -> dg.TableSchema:
    """The schema of an enriched frame, with the descriptions of its output columns."""
    said = {column.name: _description(column) for column in columns}
    said[error_column] = "Why the row has no answer."
    schema = frame_of(table).schema
    return dg.TableSchema([dg.TableColumn(name, str(kind).lower(), said.get(name)) for name, kind in schema.items()])


def _description(column: Column) -> str | None:
    """What a column says, and which values it takes if its type does not say so."""
    allowed = [value for value in allowed_values(column.json_schema) or () if not isinstance(value, bool | None)]
    if not allowed:
        return column.description
    others = len(allowed) - _VALUES_NAMED
    values = ", ".join(value if isinstance(value, str) else json.dumps(value) for value in allowed[:_VALUES_NAMED])
    named = f"One of: {values}{f', and {others} more' if others > 0 else ''}."
    return f"{column.description} {named}" if column.description else named
