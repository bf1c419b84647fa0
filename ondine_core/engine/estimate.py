"""Estimates the rows, calls, tokens, money and time of a run, without asking the model.

It does everything that is free in a run: it renders the prompts, looks up known answers, packs batches, and counts the
tokens of the actual calls. Only the lengths of answers are unknown, so figures that depend on them are ranges. Packing
learns from replies; here it gets replies of the likely length that answer every row.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from operator import add
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import orjson

from ondine_core.batching.calibration import sample
from ondine_core.batching.prompt_window import find_window
from ondine_core.batching.strategy import BatchStrategy
from ondine_core.engine.adaptive_size import BatchSizes
from ondine_core.engine.encoding import encode_batch, find_oversize_prompt
from ondine_core.engine.options import Options
from ondine_core.engine.policy import Policy
from ondine_core.engine.run import find_prompts, look_up
from ondine_core.engine.runtime import Runtime, open_options_store, open_runtime
from ondine_core.engine.steps import dedup, items, render
from ondine_core.engine.tables import read
from ondine_core.engine.workers import max_workers
from ondine_core.limits.rates import Rates
from ondine_core.prompts.task import Task, cache_key, check_columns, check_media_model
from ondine_core.prompts.template import explain_uncacheable
from ondine_core.providers.context_window import USUAL_TOKENS_A_MESSAGE, explain_bound, make_up_answer
from ondine_core.providers.pricing import Price
from ondine_core.providers.reasoning import expected_reasoning_tokens
from ondine_core.providers.tiers import find_tiers
from ondine_core.providers.tokenizer import counter
from ondine_core.types.media import Media, remove_media
from ondine_core.types.protocols import ChatModel, TokenCounter
from ondine_core.types.values import Answer, Batch, Call, Failure, Key, Reply, Skipped, Tier, Usage

_BOUNDS = ((0.0, 0.5), (0.5, 1.0), (1.0, 2.0))
"""For the least, likely and most tokens: the rank of an option among choices sorted by length, from 0 to 1, and the
factor of the usual length of texts."""
_SPREAD = (0.8, 1.0, 1.25)
"""Length of answers relative to the mean of known answers: least, likely and most."""
_MAX_KNOWN = 200
"""Maximum number of known answers whose lengths are measured."""
_BLANKS = 1.3
"""Factor for models that write a blank after each comma and colon; applied to the most tokens."""
_AGAIN = Decimal("1.05")
"""Factor for calls that are made again, one in twenty; applied to the highest cost."""
_ID, _ENVELOPE = '"id": 100, ', '{"answers":[]}'
_BATCHES_AT_ONCE = 200
_ROWS_SHOWN = 3

T = TypeVar("T")
Count: TypeAlias = Callable[[Sequence[str]], Awaitable[Sequence[int]]]


class Range(NamedTuple, Generic[T]):
    """A figure that is not known beforehand; `least` and `most` bound what is plausible."""

    least: T
    likely: T
    most: T


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of a run.

    Args:
        rows: All rows.
        rows_reused: Rows whose answer is in the store.
        rows_unaskable: Rows of which no prompt can be made.
        rows_skipped: Rows that are not asked about, since a column is null or blank.
        prompts: Unique prompts among the rows.
        prompts_left: Unique prompts that would be asked.
        calls: Calls that would ask them if none fails, calibration included.
        input_tokens: Tokens of these calls.
        output_tokens: Tokens of their replies, reasoning included.
        usd: Cost of these calls, `None` if the price is unknown.
        least_s: Minimum duration in seconds by the rates that are set; 0 if there are none.
        sample: Calls about the first rows, as they would be sent.
        limited_by: Why calls carry fewer rows than the batch size, in a sentence; `None` if they do not.
        usd_by_tier: Cost of these calls at each price tier of the model, if known.
        advice: Which part of the prompt no prompt cache can reuse, and what to move; `None` if that is little.
        reasoning_tokens: The part of the output tokens that is reasoning.
    """

    rows: int
    rows_reused: int
    rows_unaskable: int
    rows_skipped: int
    prompts: int
    prompts_left: int
    calls: int
    input_tokens: int
    output_tokens: Range[int]
    usd: Range[Decimal] | None
    least_s: float
    sample: tuple[Call, ...] = field(default=(), repr=False)
    limited_by: str | None = None
    usd_by_tier: Mapping[Tier, Range[Decimal]] = field(default_factory=dict)
    advice: str | None = None
    reasoning_tokens: Range[int] = Range(0, 0, 0)


async def estimate(table: Any, task: Task, options: Options, model: ChatModel | None = None) -> Estimate:
    """Estimate what `answer` with the same arguments would take; nothing is asked, spent or stored.

    Fallbacks are not taken into account.
    """
    check_media_model(task.prompt, task.model)
    names, rows, columns = read(table, task.prompt.columns)
    check_columns(task, names)
    async with AsyncExitStack() as stack:
        store = open_options_store(options, stack)
        runtime = await open_runtime(task.model, store, options, stack, model)
        keys, first = await find_prompts(task, columns, options.policy)
        known: set[Key] = set()
        answers: list[Answer] = []
        async for outcomes in look_up(store, options.policy, task, first):
            known |= outcomes.keys()
            answers += [outcome for outcome in outcomes.values() if isinstance(outcome, Answer)]
            del answers[_MAX_KNOWN:]
        pending = [(key, index) for key, index in first.items() if key not in known]
        count = _counter(task, runtime)
        lengths = await _measure_answers(task, answers, count)
        batch_sizes = Counter[int]()
        tokens = 0
        limited_by = None
        oversize: set[Key] = set()
        window = options.policy.context_window or find_window(task.model)
        for part in _parts(pending, task, runtime, options, lengths):
            async for batches in _pack_in_thread(part.pack(task, columns)):
                calls = []
                for batch in batches:
                    encoded = encode_batch(batch, task, options.policy.strategy)
                    if find_oversize_prompt(encoded, task, options.policy, window):
                        oversize.add(batch.items[0].key)
                    else:
                        batch_sizes[len(batch.items)] += 1
                        calls.append(encoded.call)
                tokens += await _count_input(calls, count, runtime.media_tokens)
            limited_by = limited_by or part.explain()
    number = batch_sizes.total()
    reasoning = Range(*(tokens_a_call * number for tokens_a_call in expected_reasoning_tokens(task.model)))
    output = Range(*map(add, lengths.sum_replies(batch_sizes), reasoning))
    tier_prices = runtime.tier_prices or {}
    prices = {tier: tier_prices[tier] for tier in find_tiers(task.model) if tier in tier_prices}
    return Estimate(
        rows,
        rows_reused=sum(key in known for key in keys),
        rows_unaskable=sum(isinstance(key, Failure) or key in oversize for key in keys),
        rows_skipped=sum(isinstance(key, Skipped) for key in keys),
        prompts=len(first),
        prompts_left=len(pending) - len(oversize),
        calls=number,
        input_tokens=tokens,
        output_tokens=output,
        usd=None if runtime.price is None else _cost(runtime.price, number, tokens, output, reasoning),
        least_s=_least_s(options.rates, number, tokens + output.least),
        sample=_sample_calls(
            task, columns, pending or list(first.items()), options.policy.strategy, several_rows=part.sizes.several_rows
        ),
        limited_by=limited_by,
        advice=None if part.sizes.several_rows else explain_uncacheable(task.prompt, runtime.count),
        usd_by_tier={tier: _cost(price, number, tokens, output, reasoning) for tier, price in prices.items()},
        reasoning_tokens=reasoning,
    )


async def _pack_in_thread(batches: Iterator[Batch]) -> AsyncIterator[list[Batch]]:
    """The batches in groups; each group is packed in a thread."""
    while group := await asyncio.to_thread(lambda: list(islice(batches, _BATCHES_AT_ONCE))):
        yield group


def example_calls(table: Any, task: Task, policy: Policy) -> tuple[Call, ...]:
    """The calls that would ask the first prompts of `table`, as they would be sent; nothing is asked."""
    _, rows, columns = read(table, task.prompt.columns)
    texts = render(task.prompt, columns, range(rows), on_missing=policy.on_missing)
    _, first = dedup(texts, cache_key(task))
    return _sample_calls(task, columns, list(first.items()), policy.strategy, several_rows=policy.batch_size != 1)


def _sample_calls(
    task: Task,
    columns: Mapping[str, Sequence[Any]],
    asked: Sequence[tuple[Key, int]],
    strategy: BatchStrategy,
    *,
    several_rows: bool,
) -> tuple[Call, ...]:
    """The calls that would ask the first prompts, as they would be sent.

    `asked` has keys, each with a row that asks it; with `several_rows`, one call carries several prompts.
    """
    prompts = tuple(items(task, columns, asked[:_ROWS_SHOWN], with_fields=several_rows))
    batches = [Batch(prompts)] if several_rows and prompts else [Batch((prompt,)) for prompt in prompts]
    return tuple(encode_batch(batch, task, strategy).call for batch in batches)


def _counter(task: Task, runtime: Runtime) -> Count:
    """The model's own counter, or the best approximation: unlike a run, an estimate does not count cautiously."""
    if isinstance(runtime.model, TokenCounter):
        return runtime.model.count_tokens
    count = counter(task.model.listed_as, cautious=False)
    return lambda texts: asyncio.to_thread(lambda: list(map(count, texts)))


async def _count_input(calls: Sequence[Call], count: Count, media_tokens: Callable[[Media], int]) -> int:
    """Count the tokens of `calls`; texts that they have in common are counted once."""
    texts = [
        [remove_media(message.content, call.media) for message in call.messages] + [(call.json_schema or b"").decode()]
        for call in calls
    ]
    shown = sum(media_tokens(media) for call in calls for media in call.shown_media)
    unique = list({text for parts in texts for text in parts})
    tokens: Mapping[str, int] = dict(zip(unique, await count(unique), strict=True))
    return shown + sum(tokens[text] + USUAL_TOKENS_A_MESSAGE for parts in texts for text in parts)


@dataclass(frozen=True, slots=True)
class _Lengths:
    """Tokens of one answer in a batch (its id included), of an id, and of the JSON around the answers of a batch."""

    answers: Range[float]
    id: int
    envelope: int

    def reply_tokens(self, rows: int, length: float) -> float:
        """Tokens of a reply with `rows` answers of a length; a single answer has neither an id nor an envelope."""
        return max(1, length - self.id) if rows == 1 else self.envelope + rows * length

    def sum_replies(self, batch_sizes: Counter[int]) -> Range[int]:
        """Tokens of all replies, from the number of batches of each size."""
        least, likely, most = (
            sum(self.reply_tokens(rows, length) * batches for rows, batches in batch_sizes.items())
            for length in self.answers
        )
        return Range(int(least), int(likely), int(most * _BLANKS))


async def _measure_answers(task: Task, known: Sequence[Answer], count: Count) -> _Lengths:
    """Measure the tokens of an answer by known answers, or else by the schema."""
    id_tokens, envelope_tokens = await count([_ID, _ENVELOPE])
    if not known:
        schema = task.schema.json_schema
        made_up = await count([make_up_answer(schema, rank, texts) for rank, texts in _BOUNDS])
        return _Lengths(Range(*made_up), id_tokens, envelope_tokens)
    counts = await count([orjson.dumps({"id": 100, **answer.values}).decode() for answer in known])
    mean = sum(counts) / len(counts)
    return _Lengths(Range(*(mean * factor for factor in _SPREAD)), id_tokens, envelope_tokens)


@dataclass(slots=True)
class _Part:
    """Prompts that a run asks with one batch size, and the calls that this takes.

    A run takes `workers` batches before it sees the first reply. A row of the first batch adds `row_tokens` to a call.
    """

    pending: Sequence[tuple[Key, int]]
    sizes: BatchSizes
    workers: int
    lengths: _Lengths
    calls: int = 0
    row_tokens: int = 0

    def pack(self, task: Task, columns: Mapping[str, Sequence[Any]]) -> Iterator[Batch]:
        """The batches as a run packs them when replies have the likely length and come in the order of their calls."""
        prompts = items(task, columns, self.pending, with_fields=self.sizes.several_rows)
        in_flight: deque[Batch] = deque()
        first_capacity = self.sizes.capacity
        for batch in self.sizes.pack(prompts):
            if first_capacity and not self.calls:
                self.row_tokens = sum(map(first_capacity.weigh, batch.items)) // len(batch.items)
            self.calls += 1
            in_flight.append(batch)
            if len(in_flight) >= self.workers:
                replied = in_flight.popleft()
                rows = len(replied.items)
                tokens = self.lengths.reply_tokens(rows, self.lengths.answers.likely)
                self.sizes.learn(replied, rows, Reply("", Usage(output_tokens=round(tokens))))
            yield batch

    def explain(self) -> str | None:
        """Why there are more calls than the batch size requires, if there are."""
        size = self.sizes.fixed_size
        capacity = self.sizes.capacity
        if size is None or capacity is None or self.calls <= -(-len(self.pending) // size):
            return None
        bound = explain_bound(size, capacity, self.row_tokens) or f"batch_size={size} is reached only gradually"
        return f"{bound}; calls carry {len(self.pending) / self.calls:.1f} rows on average."


def _parts(
    pending: Sequence[tuple[Key, int]], task: Task, runtime: Runtime, options: Options, lengths: _Lengths
) -> Iterator[_Part]:
    """The parts of a run, in order: if it calibrates, a sample alone and in batches; then the rest."""
    policy = options.policy
    plan = policy.calibration
    size = policy.batch_size

    def make_part(prompts: Sequence[tuple[Key, int]], batch_size: int | Literal["auto"]) -> _Part:
        workers = min(max_workers(runtime, policy), max(1, len(prompts)))
        return _Part(prompts, BatchSizes(task, runtime, policy, batch_size), workers, lengths)

    if plan is not None and size != "auto":
        chosen = set(sample([key for key, _ in pending], max(plan.rows, size), options.clock.rng))
        sample_size = min(size, len(chosen))
        if sample_size > 1:
            sampled = [(key, row) for key, row in pending if key in chosen]
            yield make_part(sampled, 1)
            yield make_part(sampled, sample_size)
            pending = [(key, row) for key, row in pending if key not in chosen]
    yield make_part(pending, size)


def _cost(price: Price, calls: int, tokens: int, output: Range[int], reasoning: Range[int]) -> Range[Decimal]:
    if not calls:
        return Range(Decimal(0), Decimal(0), Decimal(0))
    # A price may depend on the length of a call, so the cost of the mean call is multiplied.
    least, likely, most = (
        price.cost(Usage(-(-tokens // calls), 0, -(-output_tokens // calls), reasoning_tokens // calls)) * calls
        for output_tokens, reasoning_tokens in zip(output, reasoning, strict=True)
    )
    return Range(least, likely, most * _AGAIN)


def _least_s(rates: Rates, calls: int, tokens: int) -> float:
    requests_s, tokens_s = rates.per_second
    return max(calls / requests_s if requests_s else 0.0, tokens / tokens_s if tokens_s else 0.0)
