"""Data frames at the edge: pandas, polars and pyarrow in, the same kind out, with the output columns joined on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from ondine_core.engine.report import Report
from ondine_core.errors import ConfigError
from ondine_core.prompts.json_schema import allowed_values
from ondine_core.prompts.output_schema import Column
from ondine_core.tables import new_column
from ondine_core.types.values import Answer

if TYPE_CHECKING:
    import narwhals as nw

__all__ = [
    "FAILED_COLUMNS",
    "as_one_table",
    "check_frame",
    "column_schema",
    "failed_rows",
    "frame_of",
    "is_only_numbered",
    "join",
    "joined",
    "names_of",
]

_VALUES_NAMED = 20


def names_of(value: Any) -> tuple[str, ...]:
    """The column names of a data frame, or of frames by partition; none for anything else."""
    import narwhals as nw

    if isinstance(value, Mapping):
        return tuple(dict.fromkeys(name for table in value.values() for name in names_of(table)))
    frame = nw.from_native(value, eager_only=True, pass_through=True)
    return tuple(frame.columns) if isinstance(frame, nw.DataFrame) else ()


def frame_of(table: Any) -> nw.DataFrame[Any]:
    """`table`, a data frame in memory of any kind, as one to work with.

    Raises:
        TypeError: It is none.
    """
    import narwhals as nw  # takes a tenth of a second, which loading definitions does not need

    return nw.from_native(table, eager_only=True)


def is_only_numbered(frame: nw.DataFrame[Any]) -> bool:
    """Whether no row has a label of its own: other than in pandas none ever has, there an index may be its key."""
    import narwhals as nw

    if not frame.implementation.is_pandas():
        return True
    import pandas as pd

    index = nw.maybe_get_index(frame)
    return isinstance(index, pd.RangeIndex) and (index.start, index.step, index.name) == (0, 1, None)


def check_frame(value: Any) -> None:
    """Check that `value` can be enriched and joined, before anything is paid.

    Raises:
        ConfigError: It is no frame in memory, or its columns are not named by different texts.
    """
    from narwhals.exceptions import DuplicateError

    try:
        names = list(frame_of(value).columns)
    except TypeError:
        raise ConfigError(
            f"The asset function returned a {type(value).__name__}, which is not a table; "
            "return a pandas, polars or pyarrow frame (collect lazy ones)."
        ) from None
    except DuplicateError as error:
        raise ConfigError(f"The rows have two columns of one name: {error}") from None
    odd = [name for name in names if not isinstance(name, str)]
    if odd:
        raise ConfigError(f"The rows have a column named {odd[0]!r}, which is not a text; rename it.")


def as_one_table(value: Any) -> Any:
    """A table as it is; tables by partition, as an input of several partitions comes, as one."""
    return joined(value, list(value))[0] if isinstance(value, Mapping) else value


def joined(tables: Mapping[str, Any], keys: Sequence[str]) -> tuple[Any, dict[str, int]]:
    """Tables by partition as one frame, in the order of `keys`, and how many rows each brought.

    A pandas index is kept, unless it only numbers the rows of each.

    Raises:
        ConfigError: There is no table for any of `keys`, or they are not of one kind and schema.
    """
    import narwhals as nw

    found = {key: tables[key] for key in keys if key in tables}
    if not found:
        raise ConfigError(f"The asset function returned no rows for any of the partitions {', '.join(keys)}.")
    for table in found.values():
        check_frame(table)
    frames = {key: frame_of(table) for key, table in found.items()}
    # An empty day often has columns of other types, or none.
    filled = [frame for frame in frames.values() if len(frame)] or list(frames.values())
    try:
        whole = nw.concat(filled)
        if all(map(is_only_numbered, filled)):
            whole = nw.maybe_reset_index(whole)
    except Exception as error:
        raise ConfigError(
            f"The rows of {len(found)} partitions do not fit together ({type(error).__name__}); "
            "return frames of one kind with the same columns."
        ) from error
    return whole.to_native(), {key: len(frame) for key, frame in frames.items()}


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
