"""Estimates the cost of many rows by model, price tier, prompt cache and rows a call, from the installed price data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from ondine_core.providers.pricing import FREE, Price
from ondine_core.providers.prompt_cache import find_cache_rule
from ondine_core.providers.tiers import find_tier_prices, find_tiers
from ondine_core.types.values import ModelSpec, Tier, Usage

_BATCH_INSTRUCTIONS, _ROW_OVERHEAD, _ANSWER_OVERHEAD = 60, 8, 6
"""Additional tokens of a call with several rows: for the instruction how to reply, for each row, for each answer."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The number of rows of a table, and the tokens of a row and of an answer.

    `prefix_tokens` are the tokens that are the same for every row: system message, instructions, examples, schema.
    """

    rows: int
    input_tokens: int
    output_tokens: int
    prefix_tokens: int


@dataclass(frozen=True, slots=True)
class CostLine:
    """The cost of a workload with one model at one tier.

    `usd` has, by rows a call, the cost without and with the prompt cache; the latter is `None` if the prefix is too
    short or no cache is known.
    """

    model: str
    tier: Tier
    usd: Mapping[int, tuple[Decimal, Decimal | None]]


def compare_costs(specs: Iterable[ModelSpec], work: Workload, batch_sizes: Iterable[int]) -> Iterator[CostLine]:
    """The cost of `work` with each model and tier that is billed by the token and has a known price."""
    sizes = tuple(batch_sizes)
    for spec in specs:
        prices, rule = find_tier_prices(spec), find_cache_rule(spec)
        for tier in find_tiers(spec):
            price = prices.get(tier)
            if price is None or price == FREE:
                continue
            usd = {}
            for size in sizes:
                is_cached = rule is not None and _prefix(work, size) >= rule.min_tokens
                cached = cost_of(work, price, size, cached=True) if is_cached else None
                usd[size] = cost_of(work, price, size, cached=False), cached
            yield CostLine(spec.model, tier, usd)


def cost_of(work: Workload, price: Price, batch_size: int, *, cached: bool) -> Decimal:
    """USD for `work` at one price, `batch_size` rows a call; with `cached`, calls after the first read the prefix."""
    full_calls, rows_left = divmod(work.rows, batch_size)
    prefix = _prefix(work, batch_size)
    read = prefix if cached else 0
    total = Decimal(0)
    for rows, calls in ((batch_size, full_calls), (rows_left, 1)):
        if rows and calls:
            total += calls * price.cost(_usage(work, rows, batch_size, read=read))
    if cached and work.rows:  # the first call writes the prefix and does not read it
        total += price.cost(Usage(prefix, 0, 0, 0, prefix)) - price.cost(Usage(prefix, prefix))
    return total


def _prefix(work: Workload, batch_size: int) -> int:
    return work.prefix_tokens + (_BATCH_INSTRUCTIONS if batch_size > 1 else 0)


def _usage(work: Workload, rows: int, batch_size: int, *, read: int) -> Usage:
    """The tokens of a call with `rows` rows, `read` of them from the cache."""
    around = (_ROW_OVERHEAD, _ANSWER_OVERHEAD) if batch_size > 1 else (0, 0)
    sent = _prefix(work, batch_size) + rows * (work.input_tokens + around[0])
    return Usage(sent, read, rows * (work.output_tokens + around[1]))
