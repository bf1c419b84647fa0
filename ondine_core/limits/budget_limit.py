"""Budget limits: an amount, its users and its period; amounts are counted in whole nano-dollars.

The store keeps floats, which hold whole nano-dollars exactly up to nine million dollars. Costs are rounded up and caps
are rounded down, so a cap can be a nano-dollar lower than configured, never higher.
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
        name: Runs with the same name, on the same store, share one budget; empty for a budget per run.
        period: The time for which the amount is: one run, one day or month (UTC), or all time.
        warn_at: Shares of the amount, more than 0 and at most 1; a warning is given once when each is spent.
    """

    max_cost_usd: Decimal
    name: str = ""
    period: Period = "run"
    warn_at: tuple[float, ...] = (0.75, 0.9)

    def __post_init__(self) -> None:
        try:
            usd = Decimal(str(self.max_cost_usd))  # Decimal(0.1) would be the binary fraction nearest to 0.1
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
        if not isinstance(shares, list | tuple) or not all(share and is_number(share, 0, 1) for share in shares):
            raise ConfigError(f"warn_at={self.warn_at!r} must be shares of the cap, more than 0 and at most 1.")
        check_types(self, ConfigError)

    def __str__(self) -> str:
        if not self.name:
            return f"max_cost_usd={self.max_cost_usd:f}"
        scope = {"run": "a run", "day": "a day", "month": "a month", "ever": "in all"}[self.period]
        return f"max_cost_usd={self.max_cost_usd:f} {scope} of the budget {self.name!r}"

    def cell(self, run: str, now: float) -> str:
        """The name of its numbers in the store at the instant `now` (seconds since the epoch)."""
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


@dataclass(slots=True)
class Reservation:
    """Units charged to the numbers called `cell` until they are settled there, even if that is on another day."""

    cell: str
    units: int
    is_settled: bool = False
