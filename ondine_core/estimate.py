"""What a run would take, found out without asking anybody: rows, calls, tokens, money and time.

It goes the way of a run as far as that costs nothing: the same prompts, the same look-up of known answers, the same
packing, and the tokens of the very calls that would leave. How long answers get is the one thing that nobody knows
beforehand, so what follows from it is a range.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any

from ondine_core.asking import choose_strategy
from ondine_core.batching import Strategy
from ondine_core.context_limits import TOKENS_A_MESSAGE, estimate_answer_tokens
from ondine_core.engine import look_up
from ondine_core.options import Options, open_means, open_options_store
from ondine_core.packing import pack
from ondine_core.policy import Means
from ondine_core.ports import ChatModel, TokenCounter
from ondine_core.pricing import Price
from ondine_core.question import Question, address, check_columns
from ondine_core.rates import Rates
from ondine_core.reading import read
from ondine_core.sizes import Sizes
from ondine_core.stages import dedup, items, render
from ondine_core.values import Batch, Key, Usage

__all__ = ["Estimate", "estimate"]

_SHORTEST, _LONGEST = Decimal("0.5"), Decimal(2)
"""Answers turn out half to twice as long as their schema makes expect; one call in twenty is made again."""
_AGAIN = Decimal("1.05")
_BATCHES_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would take; of a pair the first is the least and the second the most that is likely.

    Args:
        rows: All rows.
        rows_reused: Rows whose answer is in the store.
        rows_unaskable: Rows that no prompt can be made of.
        prompts: Unique prompts among the rows.
        prompts_left: Those of them that would be asked.
        calls: Calls that would carry them if all went well.
        input_tokens: Of these calls.
        output_tokens: Of their replies.
        usd: What they cost, `None` when the price is unknown.
        least_s: Seconds that they take at least, by the rates that are set; 0 without any.
    """

    rows: int
    rows_reused: int
    rows_unaskable: int
    prompts: int
    prompts_left: int
    calls: int
    input_tokens: int
    output_tokens: tuple[int, int]
    usd: tuple[Decimal, Decimal] | None
    least_s: float


async def estimate(table: Any, question: Question, options: Options, model: ChatModel | None = None) -> Estimate:
    """What `answer` with the same arguments would take; nothing is asked, spent or kept.

    Args:
        table: As for `answer`.
        question: What would be asked; of fallbacks nothing is assumed.
        options: As for `answer`.
        model: As for `answer`.

    Raises:
        ConfigError: As for `answer`.
    """
    names, rows, columns = read(table, question.prompt.columns)
    check_columns(question, names)
    async with AsyncExitStack() as stack:
        store = open_options_store(options, stack)
        means = await open_means(question.model, store, options, stack, model)
        keys, first = dedup(render(question.prompt, columns, range(rows)), address(question))
        known: set[Key] = set()
        async for found in look_up(store, options.policy, first):
            known |= found.keys()
        pending = [(key, index) for key, index in first.items() if key not in known]
        sizes = Sizes(question, means, options.policy, options.policy.batch_size)
        sizes.settle()
        prompts = items(question.prompt, columns, pending, apart=sizes.several)
        batches = pack(prompts, sizes.take, options.policy.max_repairs, lambda: sizes.room)
        calls = tokens = 0
        while some := await asyncio.to_thread(lambda: list(islice(batches, _BATCHES_AT_ONCE))):
            calls += len(some)
            tokens += await _count(some, question, options.policy.strategy, means)
    answers = len(pending) * estimate_answer_tokens(question.schema.json_schema, means.count)
    replies = int(answers * _SHORTEST), int(answers * _LONGEST)
    return Estimate(
        rows,
        rows_reused=sum(key in known for key in keys),
        rows_unaskable=sum(not isinstance(key, bytes) for key in keys),
        prompts=len(first),
        prompts_left=len(pending),
        calls=calls,
        input_tokens=tokens,
        output_tokens=replies,
        usd=_cost(means.price, calls, tokens, replies),
        least_s=_least_s(options.rates, calls, tokens + replies[0]),
    )


async def _count(batches: Sequence[Batch], question: Question, strategy: Strategy, means: Means) -> int:
    """The input tokens of the calls that carry `batches`; what is the same in all of them is counted once."""
    calls = [choose_strategy(batch, strategy).encode(batch, question) for batch in batches]
    texts = [[message.content for message in call.messages] + [(call.json_schema or b"").decode()] for call in calls]
    unique = list({text for parts in texts for text in parts})
    if isinstance(means.model, TokenCounter):
        counts = await means.model.count_tokens(unique)
    else:
        counts = await asyncio.to_thread(lambda: list(map(means.count, unique)))
    tokens: Mapping[str, int] = dict(zip(unique, counts, strict=True))
    return sum(tokens[text] + TOKENS_A_MESSAGE for parts in texts for text in parts)


def _cost(price: Price | None, calls: int, tokens: int, replies: tuple[int, int]) -> tuple[Decimal, Decimal] | None:
    if price is None:
        return None
    if not calls:
        return Decimal(0), Decimal(0)
    # A price may depend on the length of a call, so it is that of the mean call, as often as there are calls.
    least, most = (price.cost(Usage(-(-tokens // calls), 0, -(-reply // calls))) * calls for reply in replies)
    return least, most * _AGAIN


def _least_s(rates: Rates, calls: int, tokens: int) -> float:
    requests_s, tokens_s = rates.per_second
    return max(calls / requests_s if requests_s else 0.0, tokens / tokens_s if tokens_s else 0.0)
