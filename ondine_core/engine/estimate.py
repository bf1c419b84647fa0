"""Estimates what a run would take without asking the model: rows, calls, tokens, money and time.

It does what a run does as far as that is free: the same prompts, look-up of known answers, packing, and tokens of the
actual calls. Only the length of answers is unknown, so what depends on it is a range. Packing learns from replies; here
it gets replies of the likely length that answer every row.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
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
"""Of choices the shortest, the middle and the longest option; of texts half, once and twice the usual length."""
_SPREAD = (0.8, 1.0, 1.25)
"""How much longer or shorter than those that are known the other answers may be."""
_SEEN = 200
"""Known answers whose lengths are taken as a sample."""
_BLANKS = 1.3
"""Models that write a blank after each comma and colon take this many times the tokens, at the most that is likely."""
_AGAIN = Decimal("1.05")
"""One call in twenty is made again, at the most that is likely."""
_ID, _AROUND = '"id": 100, ', '{"answers":[]}'
_BATCHES_AT_ONCE = 200
_ROWS_SHOWN = 3

T = TypeVar("T")
Count: TypeAlias = Callable[[Sequence[str]], Awaitable[Sequence[int]]]


class Range(NamedTuple, Generic[T]):
    """A figure that is not known beforehand."""

    least: T
    likely: T
    most: T


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would take; of three figures the middle one is the likely one, and the others bound what is plausible.

    Args:
        rows: All rows.
        rows_reused: Rows whose answer is in the store.
        rows_unaskable: Rows that no prompt can be made of.
        rows_skipped: Rows that are not asked about, since a column is null or blank.
        prompts: Unique prompts among the rows.
        prompts_left: Those of them that would be asked.
        calls: Calls that would carry them if all went well, those that calibrate among them.
        input_tokens: Of these calls.
        output_tokens: Of their replies, thinking included.
        usd: What they cost, `None` when the price is unknown.
        least_s: Seconds that they take at least, by the rates that are set; 0 without any.
        sample: Calls about the first rows, as they would be sent.
        limited_by: What makes calls carry fewer rows than asked for, in a sentence; `None` if nothing does.
        usd_by_tier: What they cost at each price tier that the model has, as far as that is known.
        advice: What of the prompt no prompt cache can reuse, and what to move; `None` if that is little.
        reasoning_tokens: Which of the output tokens are thinking.
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
    """What `answer` with the same arguments would take; nothing is asked, spent or kept.

    The arguments are those of `answer`; fallbacks are not taken into account.
    """
    check_media_model(task.prompt, task.model)
    names, rows, columns = read(table, task.prompt.columns)
    check_columns(task, names)
    async with AsyncExitStack() as stack:
        store = open_options_store(options, stack)
        runtime = await open_runtime(task.model, store, options, stack, model)
        keys, first = await find_prompts(task, columns, options.policy)
        known: set[Key] = set()
        seen: list[Answer] = []
        async for found in look_up(store, options.policy, task, first):
            known |= found.keys()
            seen += [one for one in found.values() if isinstance(one, Answer)][: _SEEN - len(seen)]
        pending = [(key, index) for key, index in first.items() if key not in known]
        count = _counter(task, runtime)
        lengths = await _measure_answers(task, seen, count)
        packed = Counter[int]()
        tokens = 0
        limited_by = None
        oversize: set[Key] = set()
        window = options.policy.context_window or find_window(task.model)
        for part in _parts(pending, task, runtime, options, lengths):
            batches = part.pack(task, columns)
            while some := await asyncio.to_thread(lambda: list(islice(batches, _BATCHES_AT_ONCE))):  # noqa: B023
                calls = []
                for encoded in (encode_batch(batch, task, options.policy.strategy) for batch in some):
                    if find_oversize_prompt(encoded, task, options.policy, window):
                        oversize.add(encoded.batch.items[0].key)
                    else:
                        packed[len(encoded.batch.items)] += 1
                        calls.append(encoded.call)
                tokens += await _count_input(calls, count, runtime.media_tokens)
            limited_by = limited_by or part.explain()
    number = packed.total()
    thoughts = Range(*(thought * number for thought in expected_reasoning_tokens(task.model)))
    output = Range(*map(add, lengths.total(packed), thoughts))
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
        usd=_cost(runtime.price, number, tokens, output, thoughts),
        least_s=_least_s(options.rates, number, tokens + output.least),
        sample=_sample_calls(
            task, columns, pending or list(first.items()), options.policy.strategy, several_rows=part.sizes.several_rows
        ),
        limited_by=limited_by,
        advice=None if part.sizes.several_rows else explain_uncacheable(task.prompt, runtime.count),
        usd_by_tier={
            tier: usd
            for tier in find_tiers(task.model)
            if (usd := _cost((runtime.tier_prices or {}).get(tier), number, tokens, output, thoughts)) is not None
        },
        reasoning_tokens=thoughts,
    )


def example_calls(table: Any, task: Task, policy: Policy) -> tuple[Call, ...]:
    """The calls that carry the first prompts of `table`, as they are sent; nothing is asked."""
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
    """The calls that would carry the first prompts, as they would be sent.

    `asked` has keys, and a row that asks for each; with `several_rows`, one call carries several prompts.
    """
    prompts = tuple(items(task, columns, asked[:_ROWS_SHOWN], with_fields=several_rows))
    batches = [Batch(prompts)] if several_rows and prompts else [Batch((prompt,)) for prompt in prompts]
    return tuple(encode_batch(batch, task, strategy).call for batch in batches)


def _counter(task: Task, runtime: Runtime) -> Count:
    """Counts as the model does, or as near as can be: a run is on the safe side, an estimate is in the middle."""
    if isinstance(runtime.model, TokenCounter):
        return runtime.model.count_tokens
    count = counter(task.model.listed_as, cautious=False)
    return lambda texts: asyncio.to_thread(lambda: list(map(count, texts)))


async def _count_input(calls: Sequence[Call], count: Count, media_tokens: Callable[[Media], int]) -> int:
    """The tokens of `calls`; what is the same in all of them is counted once."""
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
    """Tokens of one answer in a batch, of the number of its id, and of what stands around the answers of a batch."""

    answers: Range[float]
    number: int
    around: int

    def of_reply(self, rows: int, length: float) -> float:
        """Tokens of a reply with `rows` answers; one that comes alone has neither an id nor anything around it."""
        return max(1, length - self.number) if rows == 1 else self.around + rows * length

    def total(self, packed: Counter[int]) -> Range[int]:
        """Tokens of all replies, from the number of batches of each size."""
        least, likely, most = (
            sum(self.of_reply(rows, length) * batches for rows, batches in packed.items()) for length in self.answers
        )
        return Range(int(least), int(likely), int(most * _BLANKS))


async def _measure_answers(task: Task, seen: Sequence[Answer], count: Count) -> _Lengths:
    """The tokens of an answer, by those that were seen or else by the schema."""
    number, around = await count([_ID, _AROUND])
    if not seen:
        schema = task.schema.json_schema
        made_up = await count([make_up_answer(schema, rank, texts) for rank, texts in _BOUNDS])
        return _Lengths(Range(*made_up), number, around)
    counts = await count([orjson.dumps({"id": 100, **answer.values}).decode() for answer in seen])
    return _Lengths(Range(*(sum(counts) / len(counts) * share for share in _SPREAD)), number, around)


@dataclass(slots=True)
class _Part:
    """Prompts that a run asks in one go, and what it takes.

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
                tokens = self.lengths.of_reply(rows, self.lengths.answers.likely)
                self.sizes.learn(replied, rows, Reply("", Usage(output_tokens=round(tokens))))
            yield batch

    def explain(self) -> str | None:
        """Why there were more calls than the batch size takes, if there were."""
        size, capacity = self.sizes.fixed_size, self.sizes.capacity
        if size is None or capacity is None or self.calls <= -(-len(self.pending) // size):
            return None
        bound = explain_bound(size, capacity, self.row_tokens) or f"batch_size={size} is reached only gradually"
        return f"{bound}; calls carry {len(self.pending) / self.calls:.1f} rows on average."


def _parts(
    pending: Sequence[tuple[Key, int]], task: Task, runtime: Runtime, options: Options, lengths: _Lengths
) -> Iterator[_Part]:
    """What a run asks one after the other: a sample alone and in batches, if it calibrates, and then the rest."""
    policy = options.policy
    plan, size = policy.calibration, policy.batch_size

    def part(some: Sequence[tuple[Key, int]], batch_size: int | Literal["auto"]) -> _Part:
        workers = min(max_workers(runtime, policy), max(1, len(some)))
        return _Part(some, BatchSizes(task, runtime, policy, batch_size), workers, lengths)

    if plan is not None and size != "auto":
        chosen = set(sample([key for key, _ in pending], max(plan.rows, size), options.clock.rng))
        sample_size = min(size, len(chosen))
        if sample_size > 1:
            sampled = [(key, row) for key, row in pending if key in chosen]
            yield part(sampled, 1)
            yield part(sampled, sample_size)
            pending = [(key, row) for key, row in pending if key not in chosen]
    yield part(pending, size)


def _cost(
    price: Price | None, calls: int, tokens: int, replies: Range[int], thoughts: Range[int]
) -> Range[Decimal] | None:
    if price is None:
        return None
    if not calls:
        return Range(Decimal(0), Decimal(0), Decimal(0))
    # A price may depend on the length of a call, so it is that of the mean call, as often as there are calls.
    least, likely, most = (
        price.cost(Usage(-(-tokens // calls), 0, -(-reply // calls), thought // calls)) * calls
        for reply, thought in zip(replies, thoughts, strict=True)
    )
    return Range(least, likely, most * _AGAIN)


def _least_s(rates: Rates, calls: int, tokens: int) -> float:
    requests_s, tokens_s = rates.per_second
    return max(calls / requests_s if requests_s else 0.0, tokens / tokens_s if tokens_s else 0.0)
