"""What a run has used and spent so far, in tokens and `Decimal` dollars."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

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
    """

    calls: int = 0
    answered: int = 0
    unknown: int = 0
    usage: Usage = Usage()
    usd: Decimal | None = None


class CostTracker:
    """Adds up the calls of one run.

    Args:
        price: Price of the model, `None` when unknown.
    """

    def __init__(self, price: Price | None) -> None:
        self._price = price
        self._calls = self._answered = self._unknown = 0
        self._usage = Usage()

    def sent(self) -> None:
        """Count a request that leaves."""
        self._calls += 1

    def lost(self) -> None:
        """Count a request whose outcome was not seen."""
        self._unknown += 1

    def answered(self, usage: Usage) -> Decimal | None:
        """Count a reply and return what it cost in USD."""
        self._answered += 1
        self._usage += usage
        return self._price.cost(usage) if self._price else None

    @property
    def spend(self) -> Spend:
        """The sum so far."""
        usd = self._price.cost(self._usage) if self._price else None
        return Spend(self._calls, self._answered, self._unknown, self._usage, usd)
