"""What a run has used and spent so far, in tokens and `Decimal` dollars, and on what."""

from __future__ import annotations

from decimal import Decimal
from functools import reduce
from operator import add

from ondine_core.providers.charges import Charge, decide_charge
from ondine_core.providers.pricing import Price
from ondine_core.types.ledger import CallReason, UsageTotals
from ondine_core.types.progress import Spend, add_usd
from ondine_core.types.values import Call, Usage

__all__ = ["CostTracker"]

_TOKENS_A_MESSAGE = 16
"""More than any chat format adds around a message."""


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
        self._stages: dict[CallReason, UsageTotals] = {}

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
        self, stage: CallReason, usage: Usage, *, stated_usd: Decimal | None = None, bound_usd: Decimal | None = None
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
        old = self._stages.get(stage, UsageTotals())
        self._stages[stage] = old + UsageTotals(1, usage, charge.usd, int(charge.at_most))
        return charge

    @property
    def spend(self) -> Spend:
        """The sum so far."""
        # Asked for after every batch, and most runs have one stage only.
        total = (
            reduce(add, self._stages.values()) if self._stages else UsageTotals(usd=Decimal(0) if self._price else None)
        )
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


def _length(text: str) -> int:
    """Bytes of `text` in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
