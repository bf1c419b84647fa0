"""What a run has used and spent so far, in tokens and `Decimal` dollars, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import reduce
from operator import add

from ondine_core.books import Line, Stage
from ondine_core.charges import Charge, decide_charge
from ondine_core.pricing import Price
from ondine_core.values import Call, Usage

__all__ = ["CostTracker", "Spend", "add_usd"]

_TOKENS_A_MESSAGE = 16
"""More than any chat format adds around a message."""


@dataclass(frozen=True, slots=True)
class Spend:
    """Calls, tokens and money.

    Args:
        calls: Requests sent, retries included.
        answered: Requests that brought a reply.
        unknown: Requests that may have been billed although no reply was seen.
        usage: Tokens of the replies seen.
        usd: Their cost; `None` when it is not known of all of them.
        stages: The requests that were billed, by why they were made.
        at_most_calls: How many of them are in `usd` with the most that they can cost, since the provider did not say.
        unknown_usd: The most that the unknown ones may have cost, in addition; `None` when that is not known.
    """

    calls: int = 0
    answered: int = 0
    unknown: int = 0
    usage: Usage = Usage()
    usd: Decimal | None = None
    stages: Mapping[Stage, Line] = field(default_factory=dict)
    at_most_calls: int = 0
    unknown_usd: Decimal | None = Decimal(0)

    def __add__(self, other: Spend) -> Spend:
        """Both together; a cost is known if both are."""
        stages = {
            stage: self.stages.get(stage, Line()) + other.stages.get(stage, Line())
            for stage in dict.fromkeys((*self.stages, *other.stages))
        }
        return Spend(
            self.calls + other.calls,
            self.answered + other.answered,
            self.unknown + other.unknown,
            self.usage + other.usage,
            add_usd(self.usd, other.usd),
            stages,
            self.at_most_calls + other.at_most_calls,
            add_usd(self.unknown_usd, other.unknown_usd),
        )

    def __str__(self) -> str:
        """The cost in words."""
        cost = "of unknown cost" if self.usd is None else f"{'at most ' if self.at_most_calls else ''}${self.usd:.4f}"
        if not self.unknown:
            return cost
        most = "an unknown amount" if self.unknown_usd is None else f"${self.unknown_usd:.4f}"
        return f"{cost}, and at most {most} for {self.unknown:,} lost calls"

    @property
    def refused(self) -> int:
        """Requests the provider turned away, or that are still on their way."""
        return self.calls - self.answered - self.unknown


class CostTracker:
    """Says what calls can cost at most and what they did cost, and adds up those of one run.

    Args:
        price: Price of the model, `None` when unknown.
        max_output_tokens: The most tokens that one reply can have, `None` when unknown.
    """

    def __init__(self, price: Price | None, max_output_tokens: int | None = None) -> None:
        self._price, self._max_output_tokens = price, max_output_tokens
        self._calls = self._answered = self._unknown = 0
        self._unknown_usd: Decimal | None = Decimal(0)
        self._excess = Decimal(1)
        self._stages: dict[Stage, Line] = {}

    def bound(self, call: Call) -> Decimal | None:
        """The most USD that `call` can cost, `None` when that is not known."""
        bound = self._list_bound(call)
        return None if bound is None else bound * self._excess

    def exceeded(self, call: Call, usd: Decimal) -> None:
        """Take note that `call` cost more than its bound: of a provider that does so, later bounds are as much larger.

        Some count reasoning apart from the bound on output tokens, or add to the prompt what was not sent.
        """
        if bound := self._list_bound(call):
            self._excess = max(self._excess, usd / bound)

    def _list_bound(self, call: Call) -> Decimal | None:
        if self._price is None:
            return None
        # No token of a byte-level tokenizer is shorter than a byte, so a text has at most as many tokens as bytes.
        texts = sum(_length(message.content) + _TOKENS_A_MESSAGE for message in call.messages)
        return self._price.at_most(texts + len(call.json_schema or b""), self._max_output_tokens)

    def sent(self) -> None:
        """Count a request that leaves."""
        self._calls += 1

    def lost(self, bound_usd: Decimal | None) -> None:
        """Count a request whose outcome was not seen, and that may have cost so much."""
        self._unknown += 1
        self._unknown_usd = add_usd(self._unknown_usd, bound_usd)

    def answered(
        self, stage: Stage, usage: Usage, *, stated_usd: Decimal | None = None, bound_usd: Decimal | None = None
    ) -> Charge:
        """Count a request that was billed.

        Args:
            stage: Why it was made.
            usage: Its tokens.
            stated_usd: What the provider says it costs.
            bound_usd: What `bound` said of it.
        """
        self._answered += 1
        # Call by call: what a token costs may depend on how long its prompt was.
        charge = decide_charge(usage, stated_usd, self._price, bound_usd)
        old = self._stages.get(stage, Line())
        self._stages[stage] = old + Line(1, usage, charge.usd, int(charge.at_most))
        return charge

    @property
    def spend(self) -> Spend:
        """The sum so far."""
        # Asked for after every batch, and most runs have one stage only.
        total = reduce(add, self._stages.values()) if self._stages else Line(usd=Decimal(0) if self._price else None)
        return Spend(
            self._calls,
            self._answered,
            self._unknown,
            total.usage,
            total.usd,
            dict(self._stages),
            total.at_most_calls,
            self._unknown_usd,
        )


def add_usd(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    """The sum of two amounts, `None` if one is not known."""
    return None if one is None or other is None else one + other


def _length(text: str) -> int:
    """Bytes of `text` in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
