"""Assigns the rows of a table to partitions: by the value of a column, or by a hash of it.

Each partition of an asset loads the whole table of an upstream asset without partitions, and this module selects the
rows of the partition. A table without natural partitions can be divided into shards, so several runs share the work.
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
from ondine_dagster.frames import concat_partitions, has_default_index
from ondine_dagster.reporting.metadata import partition_keys
from ondine_dagster.run.arguments import PartitionBy

if TYPE_CHECKING:
    import narwhals as nw

_KEYS_SHOWN = 3
_SHARD = re.compile(r"(\d+)-of-(\d+)")


def shards(count: int) -> dg.StaticPartitionsDefinition:
    """`count` partitions for a table without natural partitions: `"1-of-16"`, `"2-of-16"`, ...

    With `partition_by="id"`, a hash of a row's id decides its shard: the same one in every process and Python, and
    about as many rows in each shard. Another `count` distributes the rows anew, and asks nothing again.

    Raises:
        ConfigError: `count` is not at least 1.
    """
    if not is_whole(count, 1):
        raise ConfigError(f"shards({count!r}): there must be at least one.")
    return dg.StaticPartitionsDefinition([f"{number}-of-{count}" for number in range(1, count + 1)])


def check_partition_by(partition_by: PartitionBy | None, partitions: dg.PartitionsDefinition[Any] | None) -> None:
    """Refuse a `partition_by` that does not name a column for each dimension of `partitions`."""
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
    """The rows of `frame` in each of the partitions `keys`, in the order of `keys`.

    If partitions are times, the date, date-time or ISO 8601 text of a row decides; one without a time zone is in that
    of the partitions. Otherwise its value as a text is the key, where 1.0 also matches "1", and a midnight its date.
    Rows without a value, and rows of other partitions, are left out. A pandas index is kept, unless it only numbers the
    rows.

    Raises:
        ConfigError: `frame` has no such column, a value is not a time, or no value at all is a key of `partitions`.
    """
    import narwhals as nw

    is_numbered = has_default_index(frame)
    columns = _columns(partition_by, partitions)
    if isinstance(partitions, dg.MultiPartitionsDefinition) and not isinstance(partition_by, str):
        parts = [[_parts_of(partitions, key)[name] for name in partition_by] for key in keys]
    else:
        parts = [[key] for key in keys]
    rows_of: dict[tuple[str, ...], list[int]] = {tuple(part): [] for part in parts}
    finders = [_finder(kind, names) for (_, kind), names in zip(columns, zip(*parts, strict=True), strict=True)]
    marks = [_marks(frame, column, kind) for column, kind in columns]
    for number, row in enumerate(zip(*marks, strict=True)):
        if any(mark is None for mark in row):
            continue
        names_by_dimension = [find(mark) for find, mark in zip(finders, row, strict=True)]
        for part in product(*names_by_dimension):
            if part in rows_of:
                rows_of[part].append(number)
    frames = {}
    for key, names in zip(keys, parts, strict=True):
        numbers = rows_of[tuple(names)]
        rows = frame[numbers] if numbers else frame.head(0)
        frames[key] = nw.maybe_reset_index(rows) if is_numbered else rows
    return frames


def count_unassigned(
    frame: nw.DataFrame[Any],
    partition_by: PartitionBy,
    partitions: dg.PartitionsDefinition[Any],
    instance: dg.DagsterInstance | None = None,
) -> int:
    """The number of rows that belong to no partition, so that no run enriches them.

    They have no value, a value that is not a key, or a time outside of the partitions. If partitions of time have no
    end, later rows belong to future partitions. `instance` has the keys of dynamic partitions.
    """
    columns = _columns(partition_by, partitions)
    tests = [_exists(kind, instance) for _, kind in columns]
    marks = [_marks(frame, column, kind) for column, kind in columns]
    return sum(not all(test(mark) for test, mark in zip(tests, row, strict=True)) for row in zip(*marks, strict=True))


def _columns(
    partition_by: PartitionBy, partitions: dg.PartitionsDefinition[Any]
) -> list[tuple[str, dg.PartitionsDefinition[Any]]]:
    """The column and the partitions definition of each dimension."""
    if isinstance(partitions, dg.MultiPartitionsDefinition) and not isinstance(partition_by, str):
        definition_of = partitions.get_partitions_def_for_dimension
        return [(column, definition_of(name)) for name, column in partition_by.items()]
    return [(str(partition_by), partitions)]


def _parts_of(partitions: dg.MultiPartitionsDefinition, key: str) -> Mapping[str, str]:
    known = key if isinstance(key, dg.MultiPartitionKey) else partitions.get_partition_key_from_str(key)
    return known.keys_by_dimension


def _marks(frame: nw.DataFrame[Any], column: str, partitions: dg.PartitionsDefinition[Any]) -> list[Any]:
    """The mark of each row that decides its partition (a time, a hash, or possible keys); `None` without a value."""
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
        # Only the instance knows the keys of dynamic partitions.
        is_static = isinstance(partitions, dg.StaticPartitionsDefinition)
        known = frozenset(partitions.get_partition_keys() if is_static else ())
        mark = partial(_possible_keys, known=known)
    pairs = zip(series.to_list(), series.is_null().to_list(), strict=True)
    marks = [None if missing else mark(value) for value, missing in pairs]
    if known:
        _check_matches(marks, column, str(series.dtype), partitions.get_partition_keys())
    return marks


def _possible_keys(value: Any, known: frozenset[str]) -> tuple[str, ...]:
    """The keys that `value` may mean: its text, and if that is not `known`, the text of the whole number or date.

    In pandas, whole numbers in a column with a missing one become floats, and dates become timestamps.
    """
    text = str(value)
    if text in known:
        return (text,)
    if isinstance(value, float | Decimal) and isfinite(value) and value % 1 == 0:
        return text, str(int(value))
    if isinstance(value, dt.datetime) and value.time() == dt.time():
        return text, value.date().isoformat()
    return (text,)


def _check_matches(marks: Sequence[tuple[str, ...] | None], column: str, kind: str, keys: Sequence[str]) -> None:
    """Refuse a column without any key as a value, since all partitions would be empty without a reason."""
    texts = {text for mark in marks if mark is not None for text in mark}
    if texts and texts.isdisjoint(keys):
        examples = ", ".join(map(repr, keys[:_KEYS_SHOWN])) + (", ..." if len(keys) > _KEYS_SHOWN else "")
        raise ConfigError(
            f"partition_by={column!r}: no value of this column ({kind}) is a key of the partitions; "
            f"the keys are {examples}."
        )


def _is_sharded(partitions: dg.PartitionsDefinition[Any]) -> bool:
    keys = partitions.get_partition_keys() if isinstance(partitions, dg.StaticPartitionsDefinition) else ()
    return all(map(_SHARD.fullmatch, keys)) and bool(keys)


def _finder(partitions: dg.PartitionsDefinition[Any], names: Iterable[str]) -> Callable[[Any], Iterable[str]]:
    """A function that returns, from the mark of a row, its partitions among those with `names`."""
    if isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        return _window_finder(partitions, names)
    # The definition decides, since other keys may look like those of shards.
    return _shard_finder(names) if _is_sharded(partitions) else frozenset(names).intersection


def _window_finder(
    partitions: dg.TimeWindowPartitionsDefinition, names: Iterable[str]
) -> Callable[[float], Iterable[str]]:
    window_of = {name: partitions.time_window_for_partition_key(name) for name in names}
    windows = sorted((window.start.timestamp(), window.end.timestamp(), name) for name, window in window_of.items())

    def find(instant: float) -> Iterable[str]:
        index = bisect_right(windows, instant, key=itemgetter(0)) - 1
        if index < 0:
            return ()
        _, end, name = windows[index]
        return (name,) if instant < end else ()

    return find


def _shard_finder(names: Iterable[str]) -> Callable[[int], Iterable[str]]:
    names_by_count: dict[int, dict[int, str]] = {}
    for name in names:
        number, count = map(int, name.split("-of-"))
        names_by_count.setdefault(count, {})[number - 1] = name

    def find(digest: int) -> Iterable[str]:
        shard_names = (names_of.get(digest % count) for count, names_of in names_by_count.items())
        return [name for name in shard_names if name is not None]

    return find


def _exists(partitions: dg.PartitionsDefinition[Any], instance: dg.DagsterInstance | None) -> Callable[[Any], bool]:
    """A test whether a row with this mark belongs to a partition that exists or will exist."""
    if isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        return _is_covered(partitions)
    if _is_sharded(partitions):
        return lambda mark: mark is not None
    known = frozenset(partitions.get_partition_keys(dynamic_partitions_store=instance))
    return lambda mark: mark is not None and not known.isdisjoint(mark)


def _is_covered(partitions: dg.TimeWindowPartitionsDefinition) -> Callable[[float | None], bool]:
    """A test whether a window contains a time, or will contain it, if the partitions have no end yet."""
    first, last = partitions.get_first_partition_window(), partitions.get_last_partition_window()
    if first is None or last is None:
        return lambda mark: mark is not None and partitions.end is None
    begin, end = first.start.timestamp(), last.end.timestamp()
    is_open = partitions.end is None or partitions.end.timestamp() > time()
    windows = None
    if partitions.exclusions:
        all_windows = map(partitions.time_window_for_partition_key, partitions.get_partition_keys())
        windows = [(window.start.timestamp(), window.end.timestamp()) for window in all_windows]

    def test(mark: float | None) -> bool:
        if mark is None or mark < begin:
            return False
        if mark >= end:
            return is_open
        if windows is None:
            return True
        _, window_end = windows[bisect_right(windows, (mark, inf)) - 1]
        return mark < window_end

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
    # Windows begin at whole seconds; as a float, the last nanosecond of a day would be rounded up to the next day.
    moment = moment.replace(microsecond=0)
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()


def _digest(value: Any) -> int:
    return int.from_bytes(hashlib.blake2b(str(value).encode("utf-8", "surrogatepass"), digest_size=8).digest())


# -- several partitions in one run ---------------------------------------------------------------------------------


def joined_by_key(
    context: dg.AssetExecutionContext, tables: Mapping[str, Any], inputs: Iterable[str]
) -> tuple[nw.DataFrame[Any], dict[str, int]]:
    """One frame of the `tables` by partition, and the number of rows of each partition of the run, if that is known.

    The keys are partitions of the run, or upstream partitions that one of the `inputs` loads by a partition mapping (a
    week of days, a rolling window, all days of an asset without partitions). All rows of upstream partitions are used,
    in the order of the partitions.

    Raises:
        ConfigError: A key is neither; its rows would be lost.
    """
    own = partition_keys(context)
    keys = tables.keys()
    # A window that ends before each partition loads only partitions of the run itself for the first ones of the run.
    is_shifted = keys < set(own) and any(keys == set(_keys_of_input(context, name)) for name in inputs)
    if keys <= set(own) and not is_shifted:
        return concat_partitions(tables, own)
    upstream = dict.fromkeys(key for name in inputs for key in _keys_of_input(context, name))
    unknown = [key for key in tables if key not in upstream and key not in own]
    if unknown:
        raise ConfigError(
            f"The asset function returned a mapping with the key {unknown[0]!r}, which is a partition neither of this "
            "run nor of an upstream asset. Return one frame, such as pd.concat(tables.values()), or a mapping from "
            "partition key to frame."
        )
    whole, _ = concat_partitions(tables, list(dict.fromkeys((*upstream, *own))))
    return whole, {}


def _keys_of_input(context: dg.AssetExecutionContext, name: str) -> Sequence[str]:
    """The upstream partitions that an input loads, in their order; empty if its asset has no partitions.

    Dagster returns the keys of some mappings from a set, whose order differs from process to process.
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
