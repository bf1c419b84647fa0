"""Budget limits: an amount, its users and its period; amounts are counted in whole nano-dollars.

A float, which is what the store keeps, holds these exactly up to nine million dollars. What is to be paid is rounded up
and what may be paid is rounded down, so a cap can be a nano-dollar stricter than asked, never looser.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import quote

from ondine_core.errors import ConfigError
from ondine_core.store.budget_state import UNIT_USD
from ondine_core.types.field_types import check_types
from ondine_core.types.numbers import is_number

Period: TypeAlias = Literal["run", "day", "month", "ever"]

_MAX_UNITS = 2**53


@dataclass(frozen=True, slots=True)
class BudgetLimit:
    """How much may be spent, by which users, and in which period.

    Args:
        max_cost_usd: USD, more than 0.
        name: All users of the name, on the same store, draw from one budget; empty for a budget per run.
        period: What the amount is for: one run, one day or month (UTC), or all time.
        warn_at: Shares of it, 0 to 1; a warning is given once when each is spent.
    """

    max_cost_usd: Decimal
    name: str = ""
    period: Period = "run"
    warn_at: tuple[float, ...] = (0.75, 0.9)

    def __post_init__(self) -> None:
        try:
            usd = Decimal(str(self.max_cost_usd))  # the decimal text of a number, not its nearest binary fraction
        except InvalidOperation:
            raise ConfigError(f"max_cost_usd={self.max_cost_usd!r} is not a number of USD.") from None
        object.__setattr__(self, "max_cost_usd", usd)
        if not (usd.is_finite() and UNIT_USD <= usd < _MAX_UNITS * UNIT_USD):
            raise ConfigError(f"max_cost_usd={str(usd)!r} must be more than 0 and less than nine million.")
        if self.period not in get_args(Period):
            raise ConfigError(f"period={self.period!r}; valid are {', '.join(map(repr, get_args(Period)))}.")
        if self.period != "run" and not self.name:
            raise ConfigError(f"A budget with period={self.period!r} needs a name, by which others find it.")
        shares: Any = self.warn_at
        if not isinstance(shares, list | tuple) or not all(one and is_number(one, 0, 1) for one in shares):
            raise ConfigError(f"warn_at={self.warn_at!r} must be shares of the cap, more than 0 and at most 1.")
        check_types(self, ConfigError)

    def __str__(self) -> str:
        if not self.name:
            return f"max_cost_usd={self.max_cost_usd:f}"
        scope = {"run": "a run", "day": "a day", "month": "a month", "ever": "in all"}[self.period]
        return f"max_cost_usd={self.max_cost_usd:f} {scope} of the budget {self.name!r}"

    def cell(self, run: str, now: float) -> str:
        """Under which name the store keeps its numbers at the instant `now` (seconds since the epoch)."""
        match self.period:
            case "run":
                stamp = quote(run, safe="")
            case "day" | "month":
                today = dt.datetime.fromtimestamp(now, dt.UTC).date().isoformat()
                stamp = today if self.period == "day" else today[: len("2026-01")]
            case "ever":
                stamp = ""
        return f"budget:{self.period}:{stamp}:{self.name}"

    @property
    def units(self) -> int:
        """The amount in whole units, rounded down."""
        return int(self.max_cost_usd / UNIT_USD)


@dataclass(frozen=True, slots=True)
class Reservation:
    """An amount that is charged until it is settled, and where; that it is another day by then does not matter."""

    cell: str
    units: int
