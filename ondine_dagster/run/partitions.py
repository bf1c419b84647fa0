"""Assigns the rows of a table to partitions: by the value of a column, or by a hash of it.

An upstream table without partitions is loaded whole by every partition of the asset that reads it; the rows of one are
picked here. A table without natural partitions can be cut into shards, so that several runs share the work.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from itertools import product
from math import inf, isfinite
from operator import itemgetter
from time import time
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import dagster as dg
from dagster_shared.check import CheckError

from ondine_core.errors import ConfigError
from ondine_core.types.numbers import is_whole
from ondine_dagster.frames import is_only_numbered, joined
from ondine_dagster.reporting.metadata import partition_keys
from ondine_dagster.run.arguments import PartitionBy

if TYPE_CHECKING:
    import narwhals as nw

_KEYS_SHOWN = 3
_SHARD = re.compile(r"(\d+)-of-(\d+)")


def shards(count: int) -> dg.StaticPartitionsDefinition:
    """`count` partitions for a table without natural partitions: `"1-of-16"`, `"2-of-16"`, ...

    With `partition_by="id"`, a hash of a row's id decides its shard: the same in every process and
    Python, and about as many rows in each. Another `count` deals the rows anew; no answer is asked again for it.

    Raises:
        ConfigError: `count` is not at least 1.
    """
    if not is_whole(count, 1):
        raise ConfigError(f"shards({count!r}): there must be at least one.")
    return dg.StaticPartitionsDefinition([f"{number}-of-{count}" for number in range(1, count + 1)])


def check_partition_by(partition_by: PartitionBy | None, partitions: dg.PartitionsDefinition[Any] | None) -> None:
    """Check that `partition_by` names a column for each dimension of `partitions`."""
    if partition_by is None:
        if any(map(_is_sharded, _dimensions(partitions))):
            raise ConfigError(
                "shards(...) needs partition_by, the column whose hash deals the rows, as in partition_by='id'; "
                "without it every shard would be the whole table."
            )
        return
    if partitions is None:
        raise ConfigError(f"partition_by={partition_by!r} needs a partitions_def.")
    if isinstance(partitions, dg.MultiPartitionsDefinition):
        names = {dimension.name for dimension in partitions.partitions_defs}
        if isinstance(partition_by, str) or set(partition_by) != names:
            raise ConfigError(
                f"partition_by={partition_by!r} must name a column for each of the dimensions "
                f"{', '.join(map(repr, sorted(names)))}, as in {{'day': 'created_at'}}."
            )
    elif not isinstance(partition_by, str):
        raise ConfigError(f"partition_by={partition_by!r} must be the name of one column.")


def _dimensions(partitions: dg.PartitionsDefinition[Any] | None) -> list[dg.PartitionsDefinition[Any]]:
    if isinstance(partitions, dg.MultiPartitionsDefinition):
        return [dimension.partitions_def for dimension in partitions.partitions_defs]
    return [] if partitions is None else [partitions]


def rows_by_partition(
    frame: nw.DataFrame[Any],
    partition_by: PartitionBy,
    partitions: dg.PartitionsDefinition[Any],
    keys: Sequence[str],
) -> dict[str, nw.DataFrame[Any]]:
    """The rows of `frame` that belong to each of the partitions `keys`, in their order.

    With partitions of time a row belongs where its date, date-time or ISO 8601 text falls (one without a time zone is
    taken to be in that of the partitions); with others, where its value as a text is the key; 1.0 reads like "1", too,
    and a midnight like its date. Rows that belong to no partition of `keys`, those without a value among them, are in
    none. A pandas index is kept, unless it only numbers the rows.

    Raises:
        ConfigError: `frame` has no such column, a value is not an instant, or no value at all is a key of `partitions`.
    """
    import narwhals as nw

    numbered = is_only_numbered(frame)
    columns = _columns(partition_by, partitions)
    if isinstance(partitions, dg.MultiPartitionsDefinition) and not isinstance(partition_by, str):
        parts = [[_parts_of(partitions, key)[name] for name in partition_by] for key in keys]
    else:
        parts = [[key] for key in keys]
    rows_of: dict[tuple[str, ...], list[int]] = {tuple(part): [] for part in parts}
    find = [_finder(kind, names) for (_, kind), names in zip(columns, zip(*parts, strict=True), strict=True)]
    marks = [_marks(frame, column, kind) for column, kind in columns]
    for number, row in enumerate(zip(*marks, strict=True)):
        if any(mark is None for mark in row):
            continue
        for place in product(*(find_of(mark) for find_of, mark in zip(find, row, strict=True))):
            if place in rows_of:
                rows_of[place].append(number)
    found = {}
    for key, part in zip(keys, parts, strict=True):
        numbers = rows_of[tuple(part)]
        rows = frame[numbers] if numbers else frame.head(0)
        found[key] = nw.maybe_reset_index(rows) if numbered else rows
    return found


def count_unassigned(
    frame: nw.DataFrame[Any],
    partition_by: PartitionBy,
    partitions: dg.PartitionsDefinition[Any],
    instance: dg.DagsterInstance | None = None,
) -> int:
    """The number of rows that belong to no partition at all, so that no run enriches them.

    They have no value, or one that is not a key, or one outside the time that the partitions cover. Where partitions of
    time have no end, a later row belongs to one that is yet to come.

    `instance` knows the keys of dynamic partitions.
    """
    columns = _columns(partition_by, partitions)
    tests = [_exists(kind, instance) for _, kind in columns]
    marks = [_marks(frame, column, kind) for column, kind in columns]
    return sum(not all(test(mark) for test, mark in zip(tests, row, strict=True)) for row in zip(*marks, strict=True))


def _columns(
    partition_by: PartitionBy, partitions: dg.PartitionsDefinition[Any]
) -> list[tuple[str, dg.PartitionsDefinition[Any]]]:
    """The column of each dimension, and the dimension."""
    if isinstance(partitions, dg.MultiPartitionsDefinition) and not isinstance(partition_by, str):
        dimensions = partitions.get_partitions_def_for_dimension
        return [(column, dimensions(name)) for name, column in partition_by.items()]
    return [(str(partition_by), partitions)]


def _parts_of(partitions: dg.MultiPartitionsDefinition, key: str) -> Mapping[str, str]:
    known = key if isinstance(key, dg.MultiPartitionKey) else partitions.get_partition_key_from_str(key)
    return known.keys_by_dimension


def _marks(frame: nw.DataFrame[Any], column: str, partitions: dg.PartitionsDefinition[Any]) -> list[Any]:
    """What decides where each row belongs, `None` where it has no value."""
    if column not in frame.columns:
        raise ConfigError(
            f"partition_by names the column {column!r}, which the rows do not have; "
            f"the columns are {', '.join(map(repr, frame.columns))}."
        )
    series = frame.get_column(column)
    known: frozenset[str] = frozenset()
    if isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        zone = ZoneInfo(partitions.timezone)
        mark: Callable[[Any], Any] = lambda value: _instant(value, column, zone)  # noqa: E731
    elif _is_sharded(partitions):
        mark = _digest
    else:
        # Those of dynamic partitions are the instance's to know.
        listed = isinstance(partitions, dg.StaticPartitionsDefinition)
        known = frozenset(partitions.get_partition_keys() if listed else ())
        mark = partial(_readings, known=known)
    pairs = zip(series.to_list(), series.is_null().to_list(), strict=True)
    marks = [None if missing else mark(value) for value, missing in pairs]
    if known:
        _check_hits(marks, column, str(series.dtype), partitions.get_partition_keys())
    return marks


def _readings(value: Any, known: frozenset[str]) -> tuple[str, ...]:
    """The keys that `value` may stand for: itself as a text; if that is not `known`, the whole number or date it is.

    A column of numbers that lacks one, and one of dates in pandas, has values of another type than was written.
    """
    text = str(value)
    if text in known:
        return (text,)
    if isinstance(value, float | Decimal) and isfinite(value) and value % 1 == 0:
        return text, str(int(value))
    if isinstance(value, dt.datetime) and value.time() == dt.time():
        return text, value.date().isoformat()
    return (text,)


def _check_hits(marks: Sequence[tuple[str, ...] | None], column: str, kind: str, keys: Sequence[str]) -> None:
    """Refuse a column of which no value is a key: every partition would be empty, and nothing would say why."""
    readings = {text for mark in marks if mark is not None for text in mark}
    if readings and readings.isdisjoint(keys):
        examples = ", ".join(map(repr, keys[:_KEYS_SHOWN])) + (", ..." if len(keys) > _KEYS_SHOWN else "")
        raise ConfigError(
            f"partition_by={column!r}: no value of this column ({kind}) is a key of the partitions; "
            f"the keys are {examples}."
        )


def _is_sharded(partitions: dg.PartitionsDefinition[Any]) -> bool:
    keys = partitions.get_partition_keys() if isinstance(partitions, dg.StaticPartitionsDefinition) else ()
    return all(map(_SHARD.fullmatch, keys)) and bool(keys)


def _finder(partitions: dg.PartitionsDefinition[Any], names: Iterable[str]) -> Callable[[Any], Iterable[str]]:
    """Finds the partitions, of those with `names`, that a row belongs to by its mark."""
    if isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        return _window_finder(partitions, names)
    # Keys of other partitions may look like those of shards.
    return _shard_finder(names) if _is_sharded(partitions) else frozenset(names).intersection


def _window_finder(
    partitions: dg.TimeWindowPartitionsDefinition, names: Iterable[str]
) -> Callable[[float], Iterable[str]]:
    found = {name: partitions.time_window_for_partition_key(name) for name in names}
    windows = sorted((window.start.timestamp(), window.end.timestamp(), name) for name, window in found.items())

    def find(mark: float) -> Iterable[str]:
        at = bisect_right(windows, mark, key=itemgetter(0)) - 1
        return windows[at][2:] if at >= 0 and mark < windows[at][1] else ()

    return find


def _shard_finder(names: Iterable[str]) -> Callable[[int], Iterable[str]]:
    numbers: dict[int, dict[int, str]] = {}
    for name in names:
        number, count = map(int, name.split("-of-"))
        numbers.setdefault(count, {})[number - 1] = name
    return lambda mark: [of_count[mark % count] for count, of_count in numbers.items() if mark % count in of_count]


def _exists(partitions: dg.PartitionsDefinition[Any], instance: dg.DagsterInstance | None) -> Callable[[Any], bool]:
    """A test of a row's mark: whether there is a partition, or will be one, that it belongs to."""
    if isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        return _is_covered(partitions)
    if _is_sharded(partitions):
        return lambda mark: mark is not None
    known = frozenset(partitions.get_partition_keys(dynamic_partitions_store=instance))
    return lambda mark: mark is not None and not known.isdisjoint(mark)


def _is_covered(partitions: dg.TimeWindowPartitionsDefinition) -> Callable[[float | None], bool]:
    """A test of an instant: whether a window contains it, or, where the partitions have no end yet, will contain it."""
    first, last = partitions.get_first_partition_window(), partitions.get_last_partition_window()
    if first is None or last is None:
        return lambda mark: mark is not None and partitions.end is None
    begin, end = first.start.timestamp(), last.end.timestamp()
    is_open = partitions.end is None or partitions.end.timestamp() > time()
    windows = None
    if partitions.exclusions:
        found = map(partitions.time_window_for_partition_key, partitions.get_partition_keys())
        windows = [(window.start.timestamp(), window.end.timestamp()) for window in found]

    def test(mark: float | None) -> bool:
        if mark is None or mark < begin:
            return False
        if mark >= end:
            return is_open
        if windows is None:
            return True
        at = bisect_right(windows, (mark, inf)) - 1
        return mark < windows[at][1]

    return test


def _instant(value: Any, column: str, zone: ZoneInfo) -> float:
    try:
        moment = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(moment, dt.datetime):
            moment = dt.datetime.combine(moment, dt.time())
    except (TypeError, ValueError):
        raise ConfigError(
            f"partition_by={column!r} has a value that is not a date, date-time or ISO 8601 text "
            f"({type(value).__name__})."
        ) from None
    # Windows begin at whole seconds; a float would round the last nanosecond of a day up into the next one.
    moment = moment.replace(microsecond=0)
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()


def _digest(value: Any) -> int:
    return int.from_bytes(hashlib.blake2b(str(value).encode("utf-8", "surrogatepass"), digest_size=8).digest())


# -- several partitions in one run ---------------------------------------------------------------------------------


def joined_by_key(
    context: dg.AssetExecutionContext, tables: Mapping[str, Any], inputs: Iterable[str]
) -> tuple[nw.DataFrame[Any], dict[str, int]]:
    """Tables by partition as one frame, and how many rows each partition of the run brought, where that is known.

    The keys are those of the run's partitions, or those of upstream partitions that a mapping gave to the run (a week
    of days, a rolling window, all days of an asset without partitions). Of upstream partitions every row counts, in the
    order of the partitions; a key of neither kind is refused, since its rows would be lost.

    The partitions of `inputs` may be keys, too.
    """
    own = partition_keys(context)
    keys = tables.keys()
    # A window that ends before each partition has, at the first ones, some of the run's own partitions for others.
    shifted = keys < set(own) and any(keys == set(_keys_of_input(context, name)) for name in inputs)
    if keys <= set(own) and not shifted:
        return joined(tables, own)
    upstream = dict.fromkeys(key for name in inputs for key in _keys_of_input(context, name))
    unknown = [key for key in tables if key not in upstream and key not in own]
    if unknown:
        raise ConfigError(
            f"The asset function returned a mapping with the key {unknown[0]!r}, which is a partition neither of this "
            "run nor of an upstream asset. Return one frame, such as pd.concat(tables.values()), or a mapping from "
            "partition key to frame."
        )
    whole, _ = joined(tables, list(dict.fromkeys((*upstream, *own))))
    return whole, {}


def _keys_of_input(context: dg.AssetExecutionContext, name: str) -> Sequence[str]:
    """The upstream partitions that an input loads, in their order; empty if its asset has no partitions.

    Dagster takes those of some mappings from a set, whose order differs from process to process.
    """
    try:
        keys: Sequence[str] = context.asset_partition_keys_for_input(name)
        partitions = context.asset_partitions_def_for_input(name)
    except CheckError:
        return ()
    order = {
        key: number
        for number, key in enumerate(partitions.get_partition_keys(dynamic_partitions_store=context.instance))
    }
    return sorted(keys, key=lambda key: order.get(key, len(order)))
