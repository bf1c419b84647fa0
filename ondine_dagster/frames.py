"""Converts data frames: pandas, polars or pyarrow in, the same kind out, with the output columns added."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import dagster as dg

from ondine_core.engine.report import Report
from ondine_core.engine.tables import new_column
from ondine_core.errors import ConfigError
from ondine_core.prompts.json_schema import allowed_values
from ondine_core.prompts.output_schema import Column
from ondine_core.prompts.task import Task
from ondine_core.types.values import Answer

if TYPE_CHECKING:
    import narwhals as nw

_VALUES_NAMED = 20


@dataclass(frozen=True, slots=True)
class AskedRows:
    """The rows of a step, and their outcomes.

    `error_column` is the column with the reason why a row failed; `None` if failed rows are left out.
    """

    frame: nw.DataFrame[Any]
    task: Task
    report: Report
    error_column: str | None

    def part(self, rows: slice) -> AskedRows:
        """The part with these rows and their outcomes; the other figures of the report stay those of the run."""
        report = replace(self.report, outcomes=self.report.outcomes.part(rows))
        return replace(self, frame=self.frame[rows], report=report)


def names_of(value: Any) -> tuple[str, ...]:
    """The column names of a data frame, or of frames by partition; an empty result for any other value."""
    import narwhals as nw

    if isinstance(value, Mapping):
        return tuple(dict.fromkeys(name for table in value.values() for name in names_of(table)))
    frame = nw.from_native(value, pass_through=True)
    return tuple(frame.columns) if isinstance(frame, nw.DataFrame | nw.LazyFrame) else ()


def frame_of(table: Any) -> nw.DataFrame[Any]:
    """`table`, a data frame of any kind, as a Narwhals frame in memory."""
    import narwhals as nw  # here, since it takes a tenth of a second and loading definitions does not need it

    return nw.from_native(_collected(table), eager_only=True)


def _collected(table: Any) -> Any:
    """`table`, in memory if it is a lazy frame of polars, as some IO managers load; anything else unchanged."""
    import narwhals as nw

    frame = nw.from_native(table, pass_through=True)
    is_lazy = isinstance(frame, nw.LazyFrame) and frame.implementation.is_polars()
    return frame.collect().to_native() if is_lazy else table


def has_default_index(frame: nw.DataFrame[Any]) -> bool:
    """Whether the index only numbers the rows; a pandas index may have labels, other frames have no index."""
    import narwhals as nw

    if not frame.implementation.is_pandas():
        return True
    import pandas as pd

    index = nw.maybe_get_index(frame)
    return isinstance(index, pd.RangeIndex) and (index.start, index.step, index.name) == (0, 1, None)


def checked_frame(value: Any, place: str = "") -> nw.DataFrame[Any]:
    """Check that `value` is a frame that can be enriched, before anything is paid.

    Raises:
        ConfigError: It is not; the message has `place`, which names the table if it is one of several.
    """
    from narwhals.exceptions import DuplicateError

    try:
        frame = frame_of(value)
        names = list(frame.columns)
    except TypeError:
        raise ConfigError(
            f"The asset function returned a {type(value).__name__}{place}, which is not a table; "
            "return a pandas, polars or pyarrow frame."
        ) from None
    except DuplicateError as error:
        raise ConfigError(f"The rows{place} have two columns of one name: {error}") from None
    invalid = [name for name in names if not isinstance(name, str)]
    if invalid:
        raise ConfigError(f"The rows{place} have a column named {invalid[0]!r}, which is not a text; rename it.")
    return frame


def as_one_table(value: Any) -> Any:
    """One table of the tables by partition that Dagster loads for several partitions; any other table in memory."""
    return concat_partitions(value, list(value))[0].to_native() if isinstance(value, Mapping) else _collected(value)


def concat_partitions(tables: Mapping[str, Any], keys: Sequence[str]) -> tuple[nw.DataFrame[Any], dict[str, int]]:
    """One frame of the tables by partition, in the order of `keys`, and the number of rows of each partition.

    A partition without a table has no rows. A pandas index is kept, unless it only numbers the rows of each table.

    Raises:
        ConfigError: There is no table, or the tables have different columns or types.
    """
    import narwhals as nw

    existing = {key: tables[key] for key in keys if key in tables}
    if not existing:
        raise ConfigError(
            "There is no table for any of the partitions. If they have no rows, return an empty frame with the columns "
            "of the rows."
        )
    frames = {key: checked_frame(table, f" for the partition {key!r}") for key, table in existing.items()}
    # An empty partition often has columns of other types, or no columns.
    filled = {key: frame for key, frame in frames.items() if len(frame)} or frames
    try:
        columns = next(iter(filled.values())).columns
        # The order of columns may differ from partition to partition.
        ordered = [frame.select(columns) if set(frame.columns) == set(columns) else frame for frame in filled.values()]
        whole = nw.concat(ordered)
        if all(map(has_default_index, filled.values())):
            whole = nw.maybe_reset_index(whole)
    except Exception as error:
        raise ConfigError(
            f"The rows of {len(existing)} partitions do not fit together "
            f"({type(error).__name__}){_difference(filled)}; return frames of one kind with the same columns."
        ) from error
    return whole, {key: len(frames.get(key, ())) for key in keys}


def _difference(frames: Mapping[str, nw.DataFrame[Any]]) -> str:
    """Names the first frame that differs from the first one, in kind or columns, else in types; `""` if none does."""
    names = {key: (frame.implementation, set(frame.columns)) for key, frame in frames.items()}
    types = {key: dict(frame.schema) for key, frame in frames.items()}
    first = next(iter(frames))
    for traits in (names, types):
        for key in frames:
            if traits[key] != traits[first]:
                return f": those of {key!r} differ from those of {first!r}"
    return ""


def filter_rows(frame: nw.DataFrame[Any], mask: list[bool]) -> nw.DataFrame[Any]:
    """The rows of `frame` for which `mask` is true; a pandas index that only numbers the rows numbers those anew."""
    import narwhals as nw

    rows = frame.filter(mask) if mask else frame  # narwhals takes an empty mask for no condition
    # Arrow would store the numbers as a column more than other partitions have.
    return nw.maybe_reset_index(rows) if has_default_index(frame) else rows


def typed_as(part: nw.DataFrame[Any], whole: nw.DataFrame[Any]) -> nw.DataFrame[Any]:
    """`part`, some rows of `whole`, with the types of `whole` in columns of objects that have no value in `part`.

    Without a type, a table of Delta that begins with such a part refuses later values, and Iceberg refuses the part.
    Lists, objects and extension types stay without one, since pandas cannot read such columns from files.
    """
    if not part.implementation.is_pandas() or find_spec("pyarrow") is None:
        return part
    import narwhals as nw
    import pandas as pd
    import pyarrow as pa

    simple = (pa.types.is_primitive, pa.types.is_decimal, pa.types.is_string, pa.types.is_binary)
    table, types = part.to_native(), {}
    for name in part.columns:
        if table[name].dtype == "object" and table[name].isna().all():
            with suppress(pa.ArrowException, OverflowError):  # values of no single type
                kind = pa.Array.from_pandas(whole.to_native()[name]).type
                if any(is_kind(kind) for is_kind in simple):
                    types[name] = pd.ArrowDtype(kind)
    return nw.from_native(table.astype(types), eager_only=True)


def partition_slices(lengths: Mapping[str, int]) -> Iterator[tuple[str, slice]]:
    """Each partition with its slice of the rows of one frame, from the number of rows of each."""
    start = 0
    for partition, length in lengths.items():
        yield partition, slice(start, start + length)
        start += length


def join(
    frame: nw.DataFrame[Any],
    report: Report,
    columns: Sequence[Column],
    error_column: str | None,
    model_column: str | None = None,
) -> nw.DataFrame[Any]:
    """Add the output columns of `report` to `frame`, whose other columns, order and kind stay.

    `error_column` gets the reason why a row failed; if it is `None`, failed rows are left out. `model_column` gets the
    model that answered.
    """
    values = report.values()
    series = [new_column(frame, column.name, values.pop(column.name), column.json_schema) for column in columns]
    if model_column is not None:
        models = [outcome.model if isinstance(outcome, Answer) else None for outcome in report.outcomes]
        series.append(new_column(frame, model_column, models, {"type": "string"}))
    if error_column is not None:
        series.append(new_column(frame, error_column, report.errors(), {"type": "string"}))
        return frame.with_columns(*series)
    return filter_rows(frame.with_columns(*series), [failure is None for failure in report.outcomes.failures()])


FAILED_COLUMNS = {
    "error_reason": "The reason why the row has no answer, as a word.",
    "error_detail": "The same in a sentence.",
    "error_model": "The model that was asked last.",
    "error_attempts": "How often it was asked, repairs included.",
    "error_cost_usd": "USD it took; rows with the same prompt share it evenly.",
}
"""Columns that describe a failed row, with their descriptions."""


def failed_rows(frame: nw.DataFrame[Any], report: Report) -> nw.DataFrame[Any]:
    """The rows of `frame` that failed, with `FAILED_COLUMNS`."""
    failures = list(report.outcomes.failures())
    frame = typed_as(filter_rows(frame, [failure is not None for failure in failures]), frame)
    failed = [failure for failure in failures if failure is not None]
    # Rows with the same prompt share one failure.
    rows = Counter(map(id, failed))
    costs = [None if failure.cost_usd is None else float(failure.cost_usd / rows[id(failure)]) for failure in failed]
    text = {"type": "string"}
    series = [
        new_column(frame, "error_reason", [failure.reason for failure in failed], text),
        new_column(frame, "error_detail", [failure.detail for failure in failed], text),
        new_column(frame, "error_model", [failure.model or None for failure in failed], text),
        new_column(frame, "error_attempts", [failure.attempts for failure in failed], {"type": "integer"}),
        new_column(frame, "error_cost_usd", costs, {"type": "number"}),
    ]
    return frame.with_columns(*series)


def column_schema(
    frame: nw.DataFrame[Any], columns: Sequence[Column], error_column: str | None = None
) -> dg.TableSchema:
    """The schema of an enriched frame, with the descriptions of its output columns."""
    descriptions = {column.name: _description(column) for column in columns}
    if error_column is not None:
        descriptions[error_column] = "Why the row has no answer."
    return dg.TableSchema(
        [dg.TableColumn(name, str(kind).lower(), descriptions.get(name)) for name, kind in frame.schema.items()]
    )


def _description(column: Column) -> str | None:
    """The description of a column, with its possible values unless they are only true, false and null."""
    allowed = [value for value in allowed_values(column.json_schema) or () if not isinstance(value, bool | None)]
    if not allowed:
        return column.description
    values = [value if isinstance(value, str) else json.dumps(value) for value in allowed[:_VALUES_NAMED]]
    if len(allowed) > _VALUES_NAMED:
        values.append(f"and {len(allowed) - _VALUES_NAMED} more")
    choice = f"One of: {', '.join(values)}."
    return f"{column.description} {choice}" if column.description else choice
