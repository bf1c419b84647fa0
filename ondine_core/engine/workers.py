"""Workers that send batches to one model until every prompt has an outcome.

Workers share one lazy iterator of batches. A worker takes a batch, asks, retries what has no outcome yet in smaller
batches, then takes the next batch; there is no queue to shut down. There are more workers than concurrency slots, so
that a worker which waits before a retry leaves its slot to another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any, Literal

from ondine_core.batching.packing import pack
from ondine_core.batching.prompt_window import find_oversize, find_window
from ondine_core.batching.strategy import ONE_PER_CALL, BatchStrategy, draw_ids, encode
from ondine_core.engine.adaptive_size import Sizes
from ondine_core.engine.call import Caller
from ondine_core.engine.call_request import BatchResult, CallRequest
from ondine_core.engine.interpreting import Interpreter
from ondine_core.engine.other_runs import Looked, OtherRuns
from ondine_core.engine.policy import Policy
from ondine_core.engine.refusal_streak import RefusalStreak
from ondine_core.engine.run_state import RunState
from ondine_core.engine.runtime import Runtime
from ondine_core.engine.steps import items
from ondine_core.errors import BudgetExhaustedError, FatalError, RefusedError, TransientError
from ondine_core.limits.retry import retry
from ondine_core.prompts.task import Task
from ondine_core.providers.media_limits import find_unsendable
from ondine_core.providers.prompt_cache import Prefix, find_cache_rule, prefix_of
from ondine_core.telemetry.emitter import BatchObserver, EventEmitter
from ondine_core.types.clock import Clock
from ondine_core.types.ledger import CallReason
from ondine_core.types.values import Batch, Call, Failure, Key, Reply

__all__ = ["Asker", "choose_strategy", "find_oversize_prompt", "max_in_flight", "max_workers"]

_UNREACHABLE_BEFORE_GIVING_UP = 10
"""Prompts in a row without a reply, each after all its retries, after which the provider is taken to be gone."""
_UNUSUAL_CALLS_NOT_CACHED = 2
"""The first calls with one row among batches, or with several among single rows, are not cached: their prefix differs
from that of the other calls, and most runs have too few of them to repay what writing a cache entry costs."""
_WORKERS_A_CALL = 4
"""With three calls in ten failing, two of these wait at any time before they try again."""


class Asker:
    """Asks the prompts of one table.

    Args:
        task: What is asked.
        runtime: Model, store and so on.
        policy: How hard to try.
        caller: Makes the calls.
        clock: Time and chance.
        emitter: Emits the events of every batch.
        others: Other runs with the same task.
    """

    def __init__(  # noqa: PLR0913, PLR0917  (one caller)
        self,
        task: Task,
        runtime: Runtime,
        policy: Policy,
        caller: Caller,
        clock: Clock,
        emitter: EventEmitter,
        others: OtherRuns,
    ) -> None:
        self._task = task
        self._runtime = runtime
        self._policy = policy
        self._caller = caller
        self._clock = clock
        self._emitter, self._others = emitter, others
        self._window = policy.context_window or find_window(task.model)
        self._interpreter = Interpreter(task, policy, self._window, clock.now)
        self._workers = max_workers(runtime, policy)
        self._cache_rule = find_cache_rule(task.model)
        self._count_prefix = lru_cache(maxsize=64)(partial(_count_prefix, runtime.count))
        self._unreachable_in_a_row = 0
        self._unusual_calls = 0
        self._refusals = RefusalStreak()

    async def ask_all(  # noqa: PLR0913  (by keyword)
        self,
        columns: Mapping[str, Sequence[Any]],
        pending: Iterator[tuple[Key, int]],
        run_state: RunState,
        *,
        batch_size: int | Literal["auto"],
        as_stage: CallReason | None = None,
        keep: bool = True,
        ready: Iterable[Batch] = (),
    ) -> None:
        """Ask the prompts of some rows.

        Args:
            columns: The columns that the prompt reads.
            pending: Keys, and a row that asks for each.
            run_state: Takes what comes of it.
            batch_size: Most rows a call.
            as_stage: Why all of these calls are made, if it is for one reason.
            keep: Whether answers go to the store.
            ready: Batches to ask before these.

        Raises:
            OndineError: What ended the run.
        """
        sizes = Sizes(self._task, self._runtime, self._policy, batch_size)
        prompts = items(self._task, columns, pending, apart=sizes.several)
        batches = pack(prompts, sizes.take, self._policy.max_repairs, lambda: sizes.room)
        is_shared = run_state.rows_left > (1 if batch_size == "auto" else batch_size)
        part = _Part(batches, run_state, sizes, as_stage, keep, is_shared, batch_size != 1, deque(ready))
        self._caller.has_answers |= run_state.any_answer
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._workers, run_state.rows_left)):
                    group.create_task(self._work(part))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if self._caller.doubted is not None and not self._caller.has_answers:
            self._caller.stop(self._caller.doubted)
        stopped_by = self._caller.stopped_by
        if stopped_by is not None:
            if isinstance(stopped_by, BudgetExhaustedError):
                raise BudgetExhaustedError(
                    f"{stopped_by} {run_state.rows_left:,} rows have no answer yet."
                ) from stopped_by
            raise stopped_by

    async def _work(self, part: _Part) -> None:
        while self._caller.stopped_by is None and (batch := await self._next(part)) is not None:
            stack = [batch]
            while stack and self._caller.stopped_by is None:
                stack.extend(await self._ask(stack.pop(), part))

    async def _next(self, part: _Part) -> Batch | None:
        """The next batch to ask; when there is no other, prompts that other runs have let go of are waited for."""
        while self._caller.stopped_by is None:
            if part.keep and self._others.is_due():
                self._take(await self._others.look_again(), part)
            if part.ready:
                return part.ready.popleft()
            batch = await self._pack_next(part)
            if batch is None:
                return await self._wait_for_others(part) if part.keep else None
            if not (part.keep and self._others.is_shared):
                return batch
            # A call that may not leave would take its place in the rate, so it is looked first.
            looked = await self._others.look(batch.items)
            if looked.free == batch.items:
                return batch
            self._take(looked, part)
        return None

    async def _pack_next(self, part: _Part) -> Batch | None:
        """The next batch; one with images is made in a thread, since their files are looked at."""
        if self._task.prompt.reader is None:
            return next(part.batches, None)
        async with part.packing:
            return await asyncio.to_thread(next, part.batches, None)

    async def _wait_for_others(self, part: _Part) -> Batch | None:
        """The next batch of prompts that other runs have let go of; `None` when none is left to wait for."""
        async with self._others.lock:
            while self._others.is_waiting and not part.ready and self._caller.stopped_by is None:
                self._take(await self._others.look_again(), part)
                if self._others.is_waiting and not part.ready:
                    with suppress(FatalError):  # the run was stopped
                        await self._sleep(self._others.next_wait_s())
        return part.ready.popleft() if part.ready else None

    def _take(self, looked: Looked, part: _Part) -> None:
        """Keep what a look found, have asked what is free, and leave the rest for later."""
        part.run_state.reuse(looked.found)
        found = looked.found.items()
        self._emitter.rows_failed(
            (known, part.run_state.rows_of(key)) for key, known in found if isinstance(known, Failure)
        )
        if looked.found:
            part.run_state.tell()
        self._others.defer(looked.held)
        self._caller.unseen |= self._others.taken_over
        part.ready.extend(pack(looked.free, part.sizes.take, self._policy.max_repairs, lambda: part.sizes.room))

    async def _ask(self, batch: Batch, part: _Part) -> tuple[Batch, ...]:
        """Ask one batch and keep what comes of it; returns the batches still owed."""
        observer = self._emitter.begin(batch)
        why = None
        tried = _Tried()
        try:
            oversize = self._refuse_oversize(batch, part)
            if oversize is not None:
                conclusion = oversize
            else:
                conclusion = await retry(
                    lambda: self._attempt(batch, part, tried, observer),
                    self._policy.retry,
                    self._sleep,
                    self._clock.rng,
                )
        except (FatalError, BudgetExhaustedError) as error:
            observer.ended(0, 0, len(batch.items), error)
            self._caller.stop(error)
            return ()
        except TransientError as error:
            conclusion, why = self._give_up(batch, error, part), error
        if conclusion.taken:
            observer.ended(0, 0, len(batch.items))
            self._others.defer(item for item in batch.items if item.key in conclusion.taken)
            rest = tuple(item for item in batch.items if item.key not in conclusion.taken)
            return (replace(batch, items=rest),) if rest else ()
        part.run_state.settle((*conclusion.answers, *conclusion.failures))
        part.run_state.tell()
        if part.keep and conclusion.failures:
            observer.rows_failed((failure, part.run_state.rows_of(key)) for key, failure in conclusion.failures)
        owed = sum(len(batch.items) for batch in conclusion.retry)
        observer.ended(len(conclusion.answers), len(conclusion.failures), owed, why)
        return conclusion.retry

    def _refuse_oversize(self, batch: Batch, part: _Part) -> BatchResult | None:
        """The failure of a prompt that is alone in its call and cannot fit into the model's window."""
        failure = find_oversize_prompt(batch, self._task, self._policy, self._window)
        if failure is None:
            return None
        key = batch.items[0].key
        return BatchResult(failures=((key, self._interpreter.fail(batch, key, failure, Decimal(0), part.paid)),))

    async def _attempt(self, batch: Batch, part: _Part, tried: _Tried, observer: BatchObserver) -> BatchResult:
        """Make one attempt at a call, after those that were `tried`."""
        strategy = choose_strategy(batch, self._policy.strategy)
        batch = replace(batch, ids=draw_ids(len(batch.items), self._clock.rng))
        call = encode(strategy, batch, self._task)
        if self._caches(call, batch, part):
            call = replace(call, cache_prefix=True)
        stage = part.as_stage or _stage(batch, again=tried.calls > 0)
        if tried.calls:
            observer.retried()
        tried.calls += 1
        try:
            conclusion = await self._caller.make(
                CallRequest(
                    call,
                    tuple(item.key for item in batch.items),
                    stage,
                    lambda came, usd: self._interpret(batch, strategy, call, came, usd, part),
                    part.keep,
                    observer,
                )
            )
        except TransientError as error:
            tried.lost += error.cost_unknown
            error.times_lost = tried.lost
            raise
        self._unreachable_in_a_row = 0
        return conclusion

    def _caches(self, call: Call, batch: Batch, part: _Part) -> bool:
        """Whether other calls of the run begin like `call`, and that is long enough to be cached."""
        if self._cache_rule is None or not part.is_shared:
            return False
        if (len(batch.items) > 1) != part.together:
            self._unusual_calls += 1
            if self._unusual_calls <= _UNUSUAL_CALLS_NOT_CACHED:
                return False
        prefix = prefix_of(call)
        if _max_tokens(prefix) < self._cache_rule.min_tokens:  # which needs no tokenizer
            return False
        return self._count_prefix(prefix) >= self._cache_rule.min_tokens

    def _interpret(  # noqa: PLR0913, PLR0917  (one caller)
        self,
        batch: Batch,
        strategy: BatchStrategy,
        call: Call,
        came: Reply | RefusedError,
        usd: Decimal | None,
        part: _Part,
    ) -> BatchResult:
        """What a reply, or a refusal to give one, means for each prompt of its batch."""
        if isinstance(came, RefusedError):
            self._note_refusal(batch, came, part.run_state)
        else:
            self._refusals.end()
            part.run_state.latencies_s.append(came.latency_s)
        result = self._interpreter.interpret(batch, strategy, call, came, usd, part.paid)
        if isinstance(came, Reply):
            part.sizes.learn(batch, len(result.answers), came)
        return result

    def _note_refusal(self, batch: Batch, error: RefusedError, run_state: RunState) -> None:
        """Stop the run when refusals repeat, but for those that a smaller batch or an earlier run explains."""
        if error.fault == "size" and len(batch.items) > 1:
            return
        if error.refused_before and run_state.any_answer:
            return
        stop = self._refusals.add(error, any_answer=run_state.any_answer)
        if stop is not None:
            self._caller.stop(stop)

    def _give_up(self, batch: Batch, error: TransientError, part: _Part) -> BatchResult:
        self._unreachable_in_a_row += 1
        if self._unreachable_in_a_row >= max(self._workers, _UNREACHABLE_BEFORE_GIVING_UP):
            self._caller.stop(error)
        failure = Failure("unreachable", self._policy.retry.explain(error))
        lost = None if error.times_lost else Decimal(0)
        return BatchResult(
            failures=tuple(
                (item.key, self._interpreter.fail(batch, item.key, failure, lost, part.paid)) for item in batch.items
            )
        )

    async def _sleep(self, seconds: float) -> None:
        with self._caller.interruptible():
            await self._clock.sleep(seconds)


@dataclass(frozen=True, slots=True)
class _Part:
    """Prompts to be asked, and what is done with what comes of it."""

    batches: Iterator[Batch]
    run_state: RunState
    sizes: Sizes
    as_stage: CallReason | None
    keep: bool
    is_shared: bool
    """Whether there is more than one call."""
    together: bool
    """Whether calls carry several rows."""
    ready: deque[Batch] = field(default_factory=deque)
    """Batches of prompts that another run had in flight and does not have any more."""
    paid: dict[Key, Decimal | None] = field(default_factory=dict)
    """What the prompts that are asked again have cost so far; `None` where that is not known."""
    packing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a batch is made in a thread."""


@dataclass(slots=True)
class _Tried:
    """Attempts at a call so far, and how many of them may have been billed unseen."""

    calls: int = 0
    lost: int = 0


def _max_tokens(prefix: Prefix) -> int:
    """A bound on the tokens of `prefix`: no token is shorter than a byte, and no character longer than four."""
    characters = sum(len(message.content) for message in prefix.messages) + len(prefix.start)
    return 4 * characters + len(prefix.json_schema or b"")


def _count_prefix(count: Callable[[str], int], prefix: Prefix) -> int:
    """Tokens of the part that calls have in common."""
    texts = [*(message.content for message in prefix.messages), prefix.start, (prefix.json_schema or b"").decode()]
    return sum(map(count, texts))


def max_in_flight(runtime: Runtime, policy: Policy) -> int:
    """Calls at once that neither the user nor the model wants exceeded."""
    return min(policy.max_concurrency, runtime.model.max_concurrency or policy.max_concurrency)


def max_workers(runtime: Runtime, policy: Policy) -> int:
    """Batches that are taken at once."""
    return _WORKERS_A_CALL * max_in_flight(runtime, policy)


def find_oversize_prompt(batch: Batch, task: Task, policy: Policy, window: int | None) -> Failure | None:
    """The failure of a prompt that is alone in its call and cannot be sent, or not fit into the model's window."""
    has_media = bool(batch.items[0].media)
    if (window is None and not has_media) or len(batch.items) > 1:
        return None
    call = encode(choose_strategy(batch, policy.strategy), batch, task)
    unsendable = find_unsendable(call, task.model) if has_media else None
    if unsendable is not None:
        return Failure("prompt", unsendable)
    # The user's figure is for prompt and reply together; many listed ones are for the prompt alone.
    reserved = task.model.max_output_tokens or 0 if policy.context_window else 0
    return find_oversize(call, window, reserved)


def choose_strategy(batch: Batch, strategy: BatchStrategy) -> BatchStrategy:
    """How `batch` travels: by `strategy`, but a prompt that is alone as it is."""
    return ONE_PER_CALL if len(batch.items) == 1 else strategy


def _stage(batch: Batch, *, again: bool) -> CallReason:
    if again:
        return "retry"
    if batch.attempt == 1:
        return "ask"
    return "repair" if batch.complaint else "split"
