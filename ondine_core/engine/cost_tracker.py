"""Tracks what a run has used and spent so far, in tokens and `Decimal` dollars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from functools import reduce
from operator import add
from typing import get_args

from ondine_core.providers.charges import Charge, decide_charge
from ondine_core.providers.context_window import MAX_TOKENS_A_MESSAGE
from ondine_core.providers.media_tokens import max_tokens_anywhere
from ondine_core.providers.pricing import Price
from ondine_core.providers.wire_text import utf8_length
from ondine_core.types.ledger import CallReason, UsageTotals
from ondine_core.types.media import Media
from ondine_core.types.progress import Spend, add_usd
from ondine_core.types.values import Call, Tier, Usage


class CostTracker:
    """Computes the maximum cost and the cost of calls, and adds up the calls of one run.

    Args:
        price: Price of the model, `None` if unknown.
        max_output_tokens: Maximum number of tokens of one reply, `None` if unknown.
        tier_prices: Prices by tier; by default `price` at each tier.
        media_tokens: Returns the maximum number of tokens of an image or document.
    """

    def __init__(
        self,
        price: Price | None,
        max_output_tokens: int | None = None,
        tier_prices: Mapping[Tier, Price] | None = None,
        media_tokens: Callable[[Media], int] = max_tokens_anywhere,
    ) -> None:
        self._media_tokens = media_tokens
        self._price, self._max_output_tokens = price, max_output_tokens
        same = {} if price is None else dict.fromkeys(get_args(Tier), price)
        self._tier_prices = same if tier_prices is None else tier_prices
        self._calls = self._answered = self._unknown = 0
        self._unknown_usd: Decimal | None = Decimal(0)
        self._cache_saved_usd = Decimal(0)
        self._excess = Decimal(1)
        self._stages: dict[CallReason, UsageTotals] = {}

    def bound(self, call: Call) -> Decimal | None:
        """Maximum cost of `call` in USD, `None` if unknown."""
        bound = self._list_bound(call)
        return None if bound is None else bound * self._excess

    def exceeded(self, call: Call, usd: Decimal) -> None:
        """Record that `call` cost more than its bound; later bounds are larger by the same factor.

        Some providers do not count reasoning towards the bound on output tokens, or add text to the prompt.
        """
        bound = self._list_bound(call)
        if bound:
            self._excess = max(self._excess, usd / bound)

    def _list_bound(self, call: Call) -> Decimal | None:
        # A provider may answer a call at the standard tier instead, but not a request of a batch job.
        tiers: set[Tier] = {call.tier} if call.tier == "batch" else {call.tier, "standard"}
        prices = [self._tier_prices[tier] for tier in tiers if tier in self._tier_prices]
        if len(prices) < len(tiers):
            return None
        # No token of a byte-level tokenizer is shorter than a byte, so a text has at most as many tokens as bytes.
        texts = sum(utf8_length(message.content) + MAX_TOKENS_A_MESSAGE for message in call.messages)
        length = texts + len(call.json_schema or b"")
        if call.media:
            length += sum(map(self._media_tokens, call.shown_media))
        bounds = [price.at_most(length, self._max_output_tokens) for price in prices]
        known = [bound for bound in bounds if bound is not None]
        return max(known) if len(known) == len(bounds) else None

    def sent(self) -> None:
        """Count a call that leaves."""
        self._calls += 1

    def lost(self, bound_usd: Decimal | None) -> None:
        """Count a call of unknown outcome, which may have cost `bound_usd`."""
        self._unknown += 1
        self._unknown_usd = add_usd(self._unknown_usd, bound_usd)

    def charge(
        self,
        usage: Usage,
        *,
        stated_usd: Decimal | None = None,
        bound_usd: Decimal | None = None,
        tier: Tier | None = "standard",
    ) -> Charge:
        """The charge for a call that was billed; see `answered` for the arguments."""
        # Computed for each call, since the price of a token may depend on the length of the prompt.
        price = self._tier_prices.get(tier) if tier else None
        charge = decide_charge(usage, stated_usd, price, bound_usd)
        if charge.usd is None and price is None and self._tier_prices:
            charge = self._charge_highest(usage, bound_usd)
        return charge

    def answered(
        self,
        stage: CallReason,
        usage: Usage,
        *,
        stated_usd: Decimal | None = None,
        bound_usd: Decimal | None = None,
        tier: Tier | None = "standard",
    ) -> Charge:
        """Count a call that was billed, and return its charge.

        Args:
            stage: Why it was made.
            usage: Its tokens.
            stated_usd: Its cost as stated by the provider.
            bound_usd: Its maximum cost, from `bound`.
            tier: The price tier at which it was answered, `None` if unknown.
        """
        self._answered += 1
        charge = self.charge(usage, stated_usd=stated_usd, bound_usd=bound_usd, tier=tier)
        price = self._tier_prices.get(tier) if tier else None
        is_cached = usage.cached_input_tokens or usage.cache_write_tokens
        if is_cached and price is not None and stated_usd is None and usage.is_complete:
            uncached = replace(usage, cached_input_tokens=0, cache_write_tokens=0, cache_write_1h_tokens=0)
            self._cache_saved_usd += price.cost(uncached) - price.cost(usage)
        old = self._stages.get(stage)
        new = UsageTotals(1, usage, charge.usd, int(charge.at_most))
        self._stages[stage] = new if old is None else old + new
        return charge

    def include(self, other: CostTracker) -> None:
        """Add the calls that `other` counted at other prices."""
        self._calls += other._calls
        self._answered += other._answered
        self._unknown += other._unknown
        self._unknown_usd = add_usd(self._unknown_usd, other._unknown_usd)
        self._cache_saved_usd += other._cache_saved_usd
        for stage, totals in other._stages.items():
            self._stages[stage] = self._stages[stage] + totals if stage in self._stages else totals

    def _charge_highest(self, usage: Usage, bound_usd: Decimal | None) -> Charge:
        """The charge for a reply at a tier without a known price: the highest among the other tiers and the bound."""
        charges = [decide_charge(usage, None, price, bound_usd) for price in self._tier_prices.values()]
        known = [charge.usd for charge in charges if charge.usd is not None]
        return Charge(max((*known, bound_usd or Decimal(0)), default=None), at_most=True)

    @property
    def spend(self) -> Spend:
        """The calls, tokens and cost so far."""
        if self._stages:
            total = reduce(add, self._stages.values())
        else:
            total = UsageTotals(usd=Decimal(0) if self._price else None)
        return Spend(
            calls=self._calls,
            answered=self._answered,
            unknown=self._unknown,
            usage=total.usage,
            usd=total.usd,
            stages=dict(self._stages),
            at_most_calls=total.at_most_calls,
            unknown_usd=self._unknown_usd,
            cache_saved_usd=self._cache_saved_usd,
        )
