"""What may be asked of an enriched table: checks as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import dagster as dg

from ondine_core.errors import ConfigError

__all__ = ["Check", "CostPerRowCheck", "DriftCheck", "ErrorRateCheck", "GoldenCheck", "Metric", "NullRateCheck"]

Metric: TypeAlias = Literal["accuracy", "f1"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Check:
    """What all checks have.

    Args:
        blocking: Whether a failed check stops what is downstream. It is then an error, otherwise a warning.
        name: What the check is called; by default what it is about.
    """

    type: ClassVar[str]
    blocking: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.blocking, bool):
            raise ConfigError(f"blocking={self.blocking!r} must be true or false.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRateCheck(_Check):
    """At most the share `max_rate` (0 to 1) of the rows failed. It is answered also when they fail the step."""

    type: ClassVar[str] = "error_rate"
    max_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NullRateCheck(_Check):
    """Of the answered rows, at most the share `max_rate` (0 to 1) is null in each of `columns`, by default in all."""

    type: ClassVar[str] = "null_rate"
    max_rate: float
    columns: str | Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CostPerRowCheck(_Check):
    """The rows that a materialization asked cost at most `max_usd` each, repairs included; it needs a known price."""

    type: ClassVar[str] = "cost_per_row"
    max_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftCheck(_Check):
    """The values of `column` are distributed as they were before, but for a total variation distance `max_distance`.

    The distance is half the sum of the differences between the shares of each value, 0 to 1: the share of rows that
    would need another value for the two distributions to be the same. What is compared is the answered rows of this
    materialization and of the one before: of the latest earlier partition where partitions are times, of the same
    partition where they are not.

    Args:
        column: An output column with a closed set of values: an enum, a `Literal` or a boolean.
        max_distance: 0 to 1.
    """

    type: ClassVar[str] = "drift"
    column: str
    max_distance: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GoldenCheck(_Check):
    """Rows with known answers, asked as the asset's own are, get them.

    Args:
        rows: The labelled rows: a frame, a mapping of column to values, a list of mappings; or the key of an asset that
            has them. They have the columns that the prompt reads and, under the names of the output columns, labels.
        columns: The output columns that count; by default those that the rows have labels for.
        min_score: The score that each column has to reach, 0 to 1.
        metric: `"accuracy"`, the share of labels that were met; or `"f1"`, the arithmetic mean of the F1 scores of all
            labels (a column with a closed set of values only).
    """

    type: ClassVar[str] = "golden"
    rows: Any = field(repr=False)
    min_score: float
    columns: str | Sequence[str] | None = None
    metric: Metric = "accuracy"

    @property
    def upstream(self) -> dg.AssetKey | None:
        """The asset that has the rows, if they are not here."""
        match self.rows:
            case str():
                return dg.AssetKey.from_user_string(self.rows)
            case dg.AssetKey():
                return self.rows
            case dg.AssetsDefinition() | dg.AssetSpec():
                return self.rows.key
            case [str(), *_]:
                return dg.AssetKey(self.rows)
            case _:
                return None


Check: TypeAlias = ErrorRateCheck | NullRateCheck | CostPerRowCheck | DriftCheck | GoldenCheck
