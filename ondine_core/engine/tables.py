"""Reads tables of any kind as columns of Python values, and makes new columns for frames of any kind.

Missing values of each kind are read as `None`. A new column is of the kind of its frame (pandas, polars or pyarrow).
Its type follows from the JSON schema of its values, and missing values are null. pandas columns are built natively,
because the plain integer and boolean types of pandas have no null. A pandas column of nulls has a type, too, so that
the files of partitions can be read together. The exceptions are lists and objects, whose Arrow types pandas cannot read
back from a file: use polars or pyarrow if they may be null in a whole partition.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence, Sized
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ondine_core.errors import ConfigError
from ondine_core.types.values import Json

if TYPE_CHECKING:
    import narwhals as nw

_PANDAS = {"integer": "Int64", "boolean": "boolean", "number": "Float64"}


def read(table: Any, wanted: Sequence[str]) -> tuple[tuple[str, ...], int, dict[str, Sequence[Any]]]:
    """Read the column names of `table`, its number of rows, and the values of the `wanted` columns that it has.

    Raises:
        ConfigError: It is not a table, has two columns of one name, or a wanted column is its index.
    """
    if isinstance(table, Mapping):
        return _read_columns(table, wanted)
    if isinstance(table, Sequence) and all(isinstance(row, Mapping) for row in table):
        names = tuple(dict.fromkeys(name for row in table for name in row)) or tuple(wanted)
        return names, len(table), {name: [row.get(name) for row in table] for name in wanted}
    import narwhals as nw
    from narwhals.exceptions import DuplicateError

    try:
        frame = nw.from_native(table, eager_only=True)
    except DuplicateError as error:
        raise ConfigError(f"The table has two columns of one name: {error}") from None
    except TypeError:
        raise ConfigError(
            f"A {type(table).__name__} is not a table; give a pandas, polars or pyarrow frame (collect lazy ones), "
            f"a mapping of column to values, or a list of mappings{_wrong_item(table)}."
        ) from None
    index = nw.maybe_get_index(frame)  # only pandas has one
    for name in wanted:
        if index is not None and name in index.names and name not in frame.columns:
            raise ConfigError(f"{name!r} is the index of the rows and no column; reset_index() makes it one.")
    columns = {name: _values(frame.get_column(name)) for name in wanted if name in frame.columns}
    return tuple(frame.columns), len(frame), columns


def _wrong_item(table: Any) -> str:
    """Which item of a list is no mapping, for an error; its value is not shown."""
    items = table if isinstance(table, list) else []
    wrong = ((at, type(row).__name__) for at, row in enumerate(items) if not isinstance(row, Mapping))
    return next((f"; item {at} of yours is a {kind}" for at, kind in wrong), "")


def _read_columns(
    table: Mapping[str, Any], wanted: Sequence[str]
) -> tuple[tuple[str, ...], int, dict[str, Sequence[Any]]]:
    single = {name: type(values).__name__ for name, values in table.items() if not _is_column(values)}
    lengths = {name: single.get(name) or len(values) for name, values in table.items()}
    if single or len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name!r}: {length}" for name, length in lengths.items())
        raise ConfigError(f"The columns must be sequences of one length; they are {shown}.")
    # By position: a pandas Series would be read by label.
    columns: dict[str, Sequence[Any]] = {name: list(table[name]) for name in wanted if name in table}
    return tuple(table), max(map(len, table.values()), default=0), columns


def _is_column(values: Any) -> bool:
    return isinstance(values, Sized) and not isinstance(values, str | bytes)


def _values(series: Any) -> Sequence[Any]:
    """The values as Python objects; missing values of each kind are `None`."""
    values: list[Any] = series.to_list()
    if not series.null_count():
        return values
    return [None if missing else value for value, missing in zip(values, series.is_null().to_list(), strict=True)]


def new_column(frame: nw.DataFrame[Any], name: str, values: list[Any], json_schema: Mapping[str, Json]) -> Any:
    """Make a column of `values` for `frame`, one a row, with the type that `json_schema` describes.

    If values have another type, as from a user's serializer without a return type, the column has texts.
    """
    try:
        return _typed_column(frame, name, values, json_schema)
    except Exception:  # noqa: BLE001  (each library raises errors of its own)
        are_texts = all(isinstance(value, str | None) for value in values)
        return _typed_column(frame, name, values, {"type": "string"} if are_texts else {})


def _typed_column(frame: nw.DataFrame[Any], name: str, values: list[Any], json_schema: Mapping[str, Json]) -> Any:
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
    if kind in ("array", "object") and not any(values) and find_spec("pyarrow") is not None:
        # From empty lists and nulls alone, a file or a database cannot infer the type of the items.
        import narwhals as nw

        typed = nw.new_series(name, values, _dtype(json_schema), backend="pyarrow").to_native()
        return pd.Series(pd.arrays.ArrowExtensionArray(typed), index=index, name=name)
    if dtype == "object" and all(value is None for value in values):
        return pd.Series(values, index=index, name=name, dtype=_pandas_dtype_of_nulls(kind))
    native = pd.Series(values, index=index, name=name, dtype=dtype)
    # The installed version of pandas decides the types of texts and date-times.
    return native.infer_objects() if kind != "array" else native


def _pandas_dtype_of_nulls(kind: str) -> Any:
    """The type of a column of nulls: in a file, that of a column with values, if pandas has such a type."""
    import pandas as pd

    if kind in ("string", "mixed", "date-time"):
        value = dt.datetime(2026, 1, 1) if kind == "date-time" else ""  # noqa: DTZ001
        inferred = pd.Series([value], dtype="object").infer_objects().dtype
        return "string" if inferred == "object" else inferred  # pandas 2 does not infer a type for texts
    if kind == "date" and find_spec("pyarrow") is not None:
        return "date32[pyarrow]"
    return "object"


def _typed(value: Json, json_schema: Mapping[str, Json]) -> Json:
    """Convert the parts of `value` whose schema has no single type to JSON text, so that it fits `_dtype`."""
    schema, kind = _without_null(json_schema), _kind(json_schema)
    if value is None:
        return None
    if kind in ("array", "object") and not isinstance(value, list if kind == "array" else dict):
        raise TypeError(f"The value is not of the kind {kind!r}.")
    if kind == "array":
        return [_typed(item, schema["items"]) for item in value]
    if kind == "object":
        return {name: _typed(value.get(name), child) for name, child in schema["properties"].items()}
    return json.dumps(value, ensure_ascii=False) if kind == "mixed" else value


def _utc(value: dt.datetime) -> dt.datetime:
    """Convert to UTC without a time zone, since a column has one time zone and models write any."""
    try:
        return value.astimezone(dt.UTC).replace(tzinfo=None) if value.tzinfo else value
    except OverflowError:  # the first or last day of the calendar
        return value.replace(tzinfo=None)


def _kind(json_schema: Mapping[str, Json]) -> str:
    """A key of `_plain_dtypes`, `array`, `object`, or `mixed` for values of no single column type."""
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
    kinds = json_schema.get("type")
    if isinstance(kinds, list):
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
    """The type of a part of a list or an object; dates in them are texts as in JSON."""
    import narwhals as nw

    return nw.String() if _kind(json_schema) in ("date", "date-time") else _dtype(json_schema)
