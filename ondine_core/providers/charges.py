"""Decides what a reply cost, from the provider's figures and the most that the call can cost.

A cost that the provider states is used. Otherwise tokens are priced; if their counts are missing or contradict each
other, the call is charged at its bound, or at the certain part of the counts if that is more. A figure that cannot be
true is a mistake of a server: it loses no answer, ends no run, and is never taken for 0.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, NamedTuple

from ondine_core.providers.pricing import Price
from ondine_core.types.values import Usage

MAX_TOKENS = 2 * 10**7
"""The most tokens that one call may report: twice the largest context window there is."""
MAX_USD = Decimal(1000)
"""The most that one call may state as its cost: ten times the most expensive call that any price list allows."""


class Charge(NamedTuple):
    """USD that a call is charged, `None` if that is not known; `at_most` if the true cost may be less."""

    usd: Decimal | None
    at_most: bool = False


def decide_charge(usage: Usage, stated_usd: Decimal | None, price: Price | None, bound_usd: Decimal | None) -> Charge:
    """The charge for a call.

    `usage` comes from `check_usage`, and `bound_usd` is the most that the call can cost; `None` means not known.
    """
    is_stated = stated_usd is not None and stated_usd.is_finite() and 0 <= stated_usd <= MAX_USD
    # Gateways that do not know a cost write 0, often without counts.
    if is_stated and (stated_usd or usage.is_complete):
        return Charge(stated_usd)
    if price is None:
        return Charge(None)
    if usage.is_complete and not usage.unexplained_tokens:
        return Charge(price.cost(usage))
    most = price.cost(usage) if usage.is_complete else bound_usd
    if most is None:
        return Charge(None)
    if bound_usd is not None:
        most = min(most, bound_usd)
    usd = max(most, price.proven(usage))
    return Charge(usd, at_most=usd > 0)


def check_usage(usage: Usage | None, text: str) -> Usage:
    """`usage` of a reply with this text if it can be true, else its plausible part, marked as incomplete."""
    if usage is None:
        return Usage(is_complete=False)
    counts = (
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.cache_write_1h_tokens,
        usage.reasoning_tokens,
        usage.unexplained_tokens,
    )
    if not all(map(is_count, counts)):
        return _plausible_part(usage)
    is_reported = usage.input_tokens > 0 and (usage.output_tokens > 0 or not text)
    adds_up = (
        usage.cached_input_tokens + usage.cache_write_tokens <= usage.input_tokens
        and usage.cache_write_1h_tokens <= usage.cache_write_tokens
        and usage.reasoning_tokens + usage.unexplained_tokens <= usage.output_tokens
    )
    return usage if is_reported and adds_up else _plausible_part(usage)


def _plausible_part(usage: Usage) -> Usage:
    """`usage` without impossible counts, each total at least the sum of its parts."""
    read, written = _sane(usage.cached_input_tokens), _sane(usage.cache_write_tokens)
    thought, unexplained = _sane(usage.reasoning_tokens), _sane(usage.unexplained_tokens)
    sent = max(_sane(usage.input_tokens), read + written)
    received = max(_sane(usage.output_tokens), thought + unexplained)
    long_lived = min(_sane(usage.cache_write_1h_tokens), written)
    return Usage(
        sent, read, received, thought, written, unexplained, is_complete=False, cache_write_1h_tokens=long_lived
    )


def _sane(count: int) -> int:
    return count if is_count(count) else 0


def is_count(value: Any) -> bool:
    """Whether `value` can be a number of tokens of one call."""
    return type(value) is int and 0 <= value <= MAX_TOKENS
