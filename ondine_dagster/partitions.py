"""Which rows of a table belong to a partition: by the value of a column, or by chance that is always the same.

An upstream table without partitions is loaded whole by every partition of the asset that reads it; this is what picks
the rows of one. A table with no natural partitions can be cut into shards, so that several runs share the work.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias
from zoneinfo import ZoneInfo

import dagster as dg

from ondine_core.errors import ConfigError
from ondine_dagster.frames import frame_of

if TYPE_CHECKING:
    import narwhals as nw

__all__ = ["PartitionBy", "check_partition_by", "joined", "rows_by_partition", "shards"]

PartitionBy: TypeAlias = str | Mapping[str, str]
"""The column that says which partition a row belongs to; with several dimensions, the column of each."""

_SHARD = re.compile(r"(\d+)-of-(\d+)")


def shards(count: int) -> dg.StaticPartitionsDefinition:
    """`count` partitions for a table that has none by nature: `"1-of-16"`, `"2-of-16"`, ...

    With `partition_by="id"`, a row belongs to the shard that a hash of its id says: the same in every process and
    Python, and about as many rows in each. Another `count` deals the rows anew; no answer is asked again for it.

    Raises:
        ConfigError: `count` is not at least 1.
    """
    if count < 1:
        raise ConfigError(f"shards({count!r}): there must be at least one.")
    return dg.StaticPartitionsDefinition([f"{number}-of-{count}" for number in range(1, count + 1)])


def check_partition_by(partition_by: PartitionBy, partitions: dg.PartitionsDefinition[Any] | None) -> None:
    """Check that `partition_by` says of each dimension of `partitions` where rows belong.

    Raises:
        ConfigError: There are no partitions, or it names other dimensions than they have.
    """
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


def rows_by_partition(
    table: Any, partition_by: PartitionBy, partitions: dg.PartitionsDefinition[Any], keys: Sequence[str]
) -> dict[str, Any]:
    """The rows of `table` that belong to each of the partitions `keys`, in their order; a frame of the same kind each.

    With partitions of time a row belongs where its date, date-time or ISO 8601 text falls (one without a time zone is
    taken to be in that of the partitions); with others, where its value as a text is the key. Rows that belong to no
    partition of `keys`, those without a value among them, are in none.

    Raises:
        ConfigError: `table` has no such column, or a value is no instant.
    """
    frame = frame_of(table)
    if isinstance(partitions, dg.MultiPartitionsDefinition) and not isinstance(partition_by, str):
        names = list(partition_by)
        dimensions = [partitions.get_partitions_def_for_dimension(name) for name in names]
        columns = list(partition_by.values())
        parts = [[_parts_of(partitions, key)[name] for name in names] for key in keys]
    else:
        dimensions, columns, parts = [partitions], [str(partition_by)], [[key] for key in keys]
    marks = [_marks(frame, column, kind) for column, kind in zip(columns, dimensions, strict=True)]
    found = {}
    for key, part in zip(keys, parts, strict=True):
        belongs = [_belongs(kind, name) for kind, name in zip(dimensions, part, strict=True)]
        mask = [all(test(mark) for test, mark in zip(belongs, row, strict=True)) for row in zip(*marks, strict=True)]
        # narwhals takes an empty mask for no condition at all.
        found[key] = (frame.filter(mask) if mask else frame).to_native()
    return found


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
    if isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        zone = ZoneInfo(partitions.timezone)
        mark: Callable[[Any], Any] = lambda value: _instant(value, column, zone)  # noqa: E731
    else:
        mark = _digest if _is_sharded(partitions) else str
    pairs = zip(series.to_list(), series.is_null().to_list(), strict=True)
    return [None if missing else mark(value) for value, missing in pairs]


def _is_sharded(partitions: dg.PartitionsDefinition[Any]) -> bool:
    keys = partitions.get_partition_keys() if isinstance(partitions, dg.StaticPartitionsDefinition) else ()
    return all(map(_SHARD.fullmatch, keys)) and bool(keys)


def _belongs(partitions: dg.PartitionsDefinition[Any], key: str) -> Callable[[Any], bool]:
    if isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        window = partitions.time_window_for_partition_key(key)
        start, end = window.start.timestamp(), window.end.timestamp()
        return lambda mark: mark is not None and start <= mark < end
    if shard := _SHARD.fullmatch(key):
        number, count = int(shard[1]) - 1, int(shard[2])
        return lambda mark: mark is not None and mark % count == number
    return lambda mark: bool(mark == key)


def _instant(value: Any, column: str, zone: ZoneInfo) -> float:
    try:
        moment = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(moment, dt.datetime):
            moment = dt.datetime.combine(moment, dt.time())
    except (TypeError, ValueError):
        raise ConfigError(
            f"partition_by={column!r} has a value that is no date, date-time or ISO 8601 text ({type(value).__name__})."
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()


def _digest(value: Any) -> int:
    return int.from_bytes(hashlib.blake2b(str(value).encode("utf-8", "surrogatepass"), digest_size=8).digest())


# -- several partitions in one run ---------------------------------------------------------------------------------


def joined(tables: Mapping[str, Any], keys: Sequence[str]) -> tuple[Any, dict[str, int]]:
    """Tables by partition as one frame, in the order of `keys`, and how many rows each brought.

    Raises:
        ConfigError: There is no table for any of `keys`, or they are not of one kind and schema.
    """
    import narwhals as nw

    found = {key: tables[key] for key in keys if key in tables}
    if not found:
        raise ConfigError(f"The asset function returned no rows for any of the partitions {', '.join(keys)}.")
    try:
        frames = [frame_of(table) for table in found.values()]
        # The rows of each had numbers of their own in pandas.
        whole = nw.maybe_reset_index(nw.concat(frames))
    except Exception as error:
        raise ConfigError(
            f"The rows of {len(found)} partitions do not fit together ({type(error).__name__}); "
            "return frames of one kind with the same columns."
        ) from error
    return whole.to_native(), {key: len(frame) for key, frame in zip(found, frames, strict=True)}
