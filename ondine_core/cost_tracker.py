"""What a run has used and spent so far, in tokens and `Decimal` dollars, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import reduce
from operator import add

from ondine_core.books import Line, Stage
from ondine_core.pricing import Price
from ondine_core.values import Usage

__all__ = ["CostTracker", "Spend"]


@dataclass(frozen=True, slots=True)
class Spend:
    """Calls, tokens and money.

    Args:
        calls: Requests sent, retries included.
        answered: Requests that brought a reply.
        unknown: Requests that may have been billed although no reply was seen.
        usage: Tokens of the replies seen.
        usd: Their cost; `None` when the price of the model is unknown.
        stages: The requests that were billed, by why they were made.
    """

    calls: int = 0
    answered: int = 0
    unknown: int = 0
    usage: Usage = Usage()
    usd: Decimal | None = None
    stages: Mapping[Stage, Line] = field(default_factory=dict)

    def __add__(self, other: Spend) -> Spend:
        """Both together; the cost is known if both are."""
        known = self.usd is not None and other.usd is not None
        stages = {
            stage: self.stages.get(stage, Line()) + other.stages.get(stage, Line())
            for stage in dict.fromkeys((*self.stages, *other.stages))
        }
        return Spend(
            self.calls + other.calls,
            self.answered + other.answered,
            self.unknown + other.unknown,
            self.usage + other.usage,
            (self.usd or Decimal(0)) + (other.usd or Decimal(0)) if known else None,
            stages,
        )

    @property
    def refused(self) -> int:
        """Requests the provider turned away, or that are still on their way."""
        return self.calls - self.answered - self.unknown


class CostTracker:
    """Adds up the calls of one run.

    Args:
        price: Price of the model, `None` when unknown.
    """

    def __init__(self, price: Price | None) -> None:
        self._price = price
        self._calls = self._answered = self._unknown = 0
        self._stages: dict[Stage, Line] = {}

    def sent(self) -> None:
        """Count a request that leaves."""
        self._calls += 1

    def lost(self) -> None:
        """Count a request whose outcome was not seen."""
        self._unknown += 1

    def answered(self, stage: Stage, usage: Usage) -> Decimal | None:
        """Count a request that was billed, and return what it cost in USD."""
        self._answered += 1
        # Call by call: what a token costs may depend on how long its prompt was.
        usd = self._price.cost(usage) if self._price else None
        line = self._stages.get(stage, Line(usd=None if usd is None else Decimal(0)))
        total = None if usd is None or line.usd is None else line.usd + usd
        self._stages[stage] = Line(line.calls + 1, line.usage + usage, total)
        return usd

    @property
    def spend(self) -> Spend:
        """The sum so far."""
        # Asked for after every batch, and most runs have one stage only.
        total = reduce(add, self._stages.values()) if self._stages else Line(usd=Decimal(0) if self._price else None)
        return Spend(self._calls, self._answered, self._unknown, total.usage, total.usd, dict(self._stages))
