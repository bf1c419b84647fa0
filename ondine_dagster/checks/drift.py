"""Compares the distribution of a column's values with that of an earlier materialization.

The counts of each column with a closed set of values are metadata of every materialization, under one fixed key, also
without a check. So a check that is added later can compare with earlier materializations at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import pi, sqrt
from typing import Annotated, Any, ClassVar, TypeAlias

import dagster as dg
from pydantic import Field

from ondine_core.prompts.task import Task
from ondine_core.types.values import Json
from ondine_dagster.checks.check import (
    Check,
    CheckContext,
    CheckOutcome,
    check_closed,
    check_columns,
    check_share,
    closed_columns,
)
from ondine_dagster.checks.scores import as_label, shown
from ondine_dagster.reporting.metadata import partition_keys, table

DISTRIBUTION = "ondine/distribution"
"""Key of the metadata: `{column: [[value, rows], ...]}`."""

Counts: TypeAlias = Mapping[Json, int]
"""Rows by value."""

_VALUES_SHOWN = 20
_MAX_MATERIALIZATIONS = 50
"""Earlier materializations that are searched for one with counts of the column."""
_MAX_PARTITIONS = 10
"""Earlier partitions that are searched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftCheck(Check):
    """The values of `column` are distributed as before, up to a total variation distance of `max_distance`.

    The distance is half the sum of the differences between the shares of each value, 0 to 1: the share of rows that
    would need another value to make both distributions the same. It compares the answered rows of this materialization
    with those of an earlier one: of the latest earlier partition if partitions are times, otherwise of the same
    partition.

    Args:
        column: An output column with a closed set of values: an enum, a `Literal` or a boolean.
        max_distance: The largest distance allowed, 0 to 1.
    """

    type: ClassVar[str] = "drift"
    column: Annotated[str, Field(description="An output column with a closed set of values.")]
    max_distance: Annotated[
        float,
        Field(
            description="Share of rows, 0 to 1, that would need another value for both distributions to be the same."
        ),
    ]

    @property
    def named_columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def validate(self, task: Task) -> None:
        """Check the threshold, and that the column has a closed set of values."""
        check_share("max_distance", self.max_distance)
        check_columns(self.named_columns, task)
        check_closed(self.column, task)

    def describe(self) -> str:
        """The condition of the check, in a sentence."""
        return (
            f"{self.column!r} is distributed as before, but for a total variation distance of {self.max_distance:.4g}."
        )

    def evaluate(self, context: CheckContext) -> CheckOutcome:
        """Compare the distribution with that of an earlier materialization."""
        earlier = _find_before(context.step, self.column)
        now = Counter(context.answered(self.column))
        if earlier is None:
            return True, "There is no earlier materialization to compare with.", {}
        if not now:
            return True, "No row was answered.", {}
        name, before = earlier
        measured = distance(before, now)
        metadata = {
            "ondine/distance": round(measured, 6),
            "ondine/distance_by_chance": round(distance_by_chance(before, now), 6),
            "ondine/rows_before": sum(before.values()),
            "ondine/rows_now": now.total(),
            "ondine/shares": _share_table(before, now),
        }
        description = f"The distance from {name} is {measured:.4g}, at most {self.max_distance:g} is allowed."
        return measured <= self.max_distance, description, metadata


def _share_table(before: Counts, now: Counts) -> dg.TableMetadataValue:
    """The shares of each value before and now, the largest differences first."""
    shares = sorted(_shares(before, now).items(), key=lambda share: -abs(share[1][0] - share[1][1]))
    rows = ((shown(as_label(value)), round(was, 4), round(is_, 4)) for value, (was, is_) in shares[:_VALUES_SHOWN])
    return table(rows, value="string", before="float", now="float")


def distribution_metadata(context: CheckContext, rows: slice = slice(None)) -> dict[str, dg.MetadataValue[Any]]:
    """The counts of values in the answered ones of `rows`, for the columns with a closed set of values."""
    counts = {name: Counter(context.answered(name, rows)) for name in closed_columns(context.task)}
    pairs = {name: [[value, count] for value, count in values.most_common()] for name, values in counts.items()}
    return {DISTRIBUTION: dg.MetadataValue.json(pairs)} if pairs else {}


def distance(one: Counts, other: Counts) -> float:
    """The total variation distance of two distributions, 0 to 1: half the sum of the differences of their shares.

    Each distribution has at least one row. D. A. Levin, Y. Peres, "Markov Chains and Mixing Times", 2nd edition (2017),
    proposition 4.2. Unlike the population stability index, it needs no special case for a value that one of them lacks.
    """
    return sum(abs(left - right) for left, right in _shares(one, other).values()) / 2


def distance_by_chance(one: Counts, other: Counts) -> float:
    """The expected distance of two samples of these sizes from one distribution, for which both are pooled.

    The difference of two shares is about normally distributed, and the mean of its absolute value is its standard
    deviation times sqrt(2 / pi).
    """
    pooled = Counter(one) + Counter(other)
    rows = pooled.total()
    scatter = 1 / sum(one.values()) + 1 / sum(other.values())
    shares = [count / rows for count in pooled.values()]
    return sum(sqrt(share * (1 - share) * scatter) for share in shares) / sqrt(2 * pi)


def _shares(one: Counts, other: Counts) -> dict[Json, tuple[float, float]]:
    first, second = sum(one.values()), sum(other.values())
    return {value: (one.get(value, 0) / first, other.get(value, 0) / second) for value in {**one, **other}}


# -- earlier runs --------------------------------------------------------------------------------------------------


def _find_before(context: dg.AssetExecutionContext, column: str) -> tuple[str, Counts] | None:
    """The name (partition or run) of the materialization to compare with, and its counts of `column`.

    If partitions are times, it is that of the latest earlier partition, otherwise the one before of the same partition.
    A range of partitions counts as its first one.
    """
    key = context.asset_key_for_output()
    for partitions in _partitions_before(context, key):
        records_filter = dg.AssetRecordsFilter(asset_key=key, asset_partitions=partitions)
        for record in context.instance.fetch_materializations(records_filter, limit=_MAX_MATERIALIZATIONS).records:
            materialization = record.asset_materialization
            entry = materialization.metadata.get(DISTRIBUTION) if materialization else None
            pairs = entry.value.get(column) if isinstance(entry, dg.JsonMetadataValue) else None  # type: ignore[union-attr]
            if pairs:
                return record.partition_key or f"run {record.run_id[:8]}", dict(pairs)
    return None


def _partitions_before(context: dg.AssetExecutionContext, key: dg.AssetKey) -> Iterator[list[str] | None]:
    """The partitions to search, in order; `None` is the asset as a whole."""
    keys = partition_keys(context)
    if not keys:
        yield None
        return
    partition, definition = keys[0], context.assets_def.partitions_def
    earlier = _earlier_keys(definition, partition)
    if earlier is None:
        yield [partition]
        return
    materialized = context.instance.get_materialized_partitions(key)
    candidates = [name for name in reversed(earlier) if name in materialized]
    for name in candidates[:_MAX_PARTITIONS]:
        yield [name]


def _earlier_keys(definition: dg.PartitionsDefinition[Any] | None, partition: str) -> list[str] | None:
    """The partitions before this one in time that agree in the other dimensions, oldest first; `None` without times."""
    if isinstance(definition, dg.TimeWindowPartitionsDefinition):
        keys = definition.get_partition_keys()
        return list(keys[: keys.index(partition)]) if partition in keys else list(keys)
    if isinstance(definition, dg.MultiPartitionsDefinition) and isinstance(partition, dg.MultiPartitionKey):
        for dimension in definition.partitions_defs:
            now = partition.keys_by_dimension
            earlier = _earlier_keys(dimension.partitions_def, now[dimension.name])
            if earlier is not None:
                return [str(dg.MultiPartitionKey({**now, dimension.name: name})) for name in earlier]
    return None
