"""Tables of any kind as columns of Python values, each kind of missing value as `None`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ondine_core.errors import ConfigError

__all__ = ["read"]


def read(table: Any, wanted: Sequence[str]) -> tuple[tuple[str, ...], int, dict[str, Sequence[Any]]]:
    """The column names of `table`, its length, and the values of the `wanted` columns that it has."""
    if isinstance(table, Mapping):
        return _read_columns(table, wanted)
    if isinstance(table, Sequence) and all(isinstance(row, Mapping) for row in table):
        names = tuple(dict.fromkeys(name for row in table for name in row)) or tuple(wanted)
        return names, len(table), {name: [row.get(name) for row in table] for name in wanted}
    import narwhals as nw

    try:
        frame = nw.from_native(table, eager_only=True)
    except TypeError:
        raise ConfigError(
            f"A {type(table).__name__} is not a table; give a pandas, polars or pyarrow frame (collect lazy ones), "
            "a mapping of column to values, or a list of mappings."
        ) from None
    columns = {name: _values(frame.get_column(name)) for name in wanted if name in frame.columns}
    return tuple(frame.columns), len(frame), columns


def _read_columns(
    table: Mapping[str, Any], wanted: Sequence[str]
) -> tuple[tuple[str, ...], int, dict[str, Sequence[Any]]]:
    lengths = {name: -1 if isinstance(values, str | bytes) else len(values) for name, values in table.items()}
    if len(set(lengths.values())) > 1 or -1 in lengths.values():
        shown = ", ".join(f"{name!r}: {'a text' if n < 0 else n}" for name, n in lengths.items())
        raise ConfigError(f"The columns must be sequences of one length; they are {shown}.")
    # By position: a pandas Series would be read by label.
    columns: dict[str, Sequence[Any]] = {name: list(table[name]) for name in wanted if name in table}
    return tuple(table), next(iter(lengths.values()), 0), columns


def _values(series: Any) -> Sequence[Any]:
    """The values as Python objects, every kind of missing as `None`."""
    values: list[Any] = series.to_list()
    if not series.null_count():
        return values
    return [None if missing else value for value, missing in zip(values, series.is_null().to_list(), strict=True)]
