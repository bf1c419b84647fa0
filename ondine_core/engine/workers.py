"""Workers that send batches to one model until every prompt has an outcome.

Workers share one lazy iterator of batches. A worker takes a batch, asks it, asks prompts without an outcome again in
smaller batches, then takes the next batch; there is no queue to shut down. There are more workers than concurrency
slots, so that a worker that waits before a retry leaves its slot to another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from typing import Literal

from ondine_core.engine.adaptive_size import BatchSizes
from ondine_core.engine.cached_prefix import CacheableCalls
from ondine_core.engine.call import Caller, PendingCall
from ondine_core.engine.encoding import EncodedBatch, encode_batch, find_oversize_prompt
from ondine_core.engine.interpreting import BatchResult
from ondine_core.engine.other_runs import LookupResult
from ondine_core.engine.policy import Policy
from ondine_core.engine.provider_health import ProviderHealth
from ondine_core.engine.run_context import RunContext
from ondine_core.engine.run_state import RunState
from ondine_core.engine.runtime import Runtime
from ondine_core.engine.settlement import end_batch
from ondine_core.engine.steps import items
from ondine_core.errors import BudgetExhaustedError, FatalError, RefusedError, TransientError
from ondine_core.limits import AdmissionQueue
from ondine_core.limits.retry import retry
from ondine_core.telemetry.emitter import BatchObserver
from ondine_core.types.ledger import CallReason
from ondine_core.types.values import Batch, Failure, Key, Reply

_UNREACHABLE_BEFORE_GIVING_UP = 10
"""Number of batches in a row without a reply, each after all its retries, after which the provider is unreachable."""
_WORKERS_A_CALL = 4
"""Workers for each concurrency slot: if three calls in ten fail, two of these wait at any time before a retry."""


class Asker:
    """Asks the prompts of one table."""

    def __init__(self, run: RunContext, admission: AdmissionQueue) -> None:
        self._run = run
        self._health = ProviderHealth(run, admission.limits)
        self._caller = Caller(run, admission, self._health)
        self._cacheable = CacheableCalls(run.task.model, run.runtime.count)
        self._workers = max_workers(run.runtime, run.policy)

    async def ask_all(
        self,
        pending: Iterable[tuple[Key, int]],
        batch_size: int | Literal["auto"],
        *,
        ready: Iterable[Batch] = (),
        reason: CallReason | None = None,
        scratch: RunState | None = None,
    ) -> None:
        """Ask `ready` batches, and then the `pending` keys, each with a row that asks it.

        Args:
            pending: Keys and rows.
            batch_size: Maximum number of prompts in one call.
            ready: Batches to ask first.
            reason: The reason of all calls; by default it follows from each batch.
            scratch: Receives the outcomes instead of the run and the store; the ledger has the calls anyway.

        Raises:
            BudgetExhaustedError: The cap on cost is reached.
            FatalError: No request can succeed.
            TransientError: The provider stayed unreachable.
        """
        run = self._run
        run_state = scratch or run.run_state
        sizes = BatchSizes(run.task, run.runtime, run.policy, batch_size)
        prompts = items(run.task, run.columns, pending, with_fields=sizes.several_rows)
        part = _Part(
            sizes.pack(prompts),
            run_state,
            sizes,
            reason,
            keep=scratch is None,
            several_calls=run_state.rows_left > (1 if batch_size == "auto" else batch_size),
            several_rows=batch_size != 1,
            ready=deque(ready),
        )
        self._health.has_answers |= run_state.any_answer
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._workers, run_state.rows_left)):
                    group.create_task(self._work(part))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        self._health.end_without_permission()
        error = run.stop.error
        if isinstance(error, BudgetExhaustedError):
            unanswered = f"{run_state.rows_left:,} rows have no answer yet."
            raise BudgetExhaustedError(f"{error} {unanswered}{_explain_bound(run)}") from error
        if error is not None:
            raise error

    async def _work(self, part: _Part) -> None:
        stop = self._run.stop
        while stop.error is None:
            batch = await self._next(part)
            if batch is None:
                return
            stack = [batch]
            while stack and stop.error is None:
                stack.extend(await self._ask(stack.pop(), part))

    # -- the next batch --------------------------------------------------------------------------------------------

    async def _next(self, part: _Part) -> Batch | None:
        """The next batch to ask; if there is none, wait for prompts that other runs release."""
        others = self._run.others
        while self._run.stop.error is None:
            if part.keep and others.is_due():
                self._take(await others.look_again(), part)
            if part.ready:
                return part.ready.popleft()
            batch = await self._pack_next(part)
            if batch is None:
                return await self._wait_for_others(part) if part.keep else None
            if not (part.keep and others.is_shared):
                return batch
            # Looked up before the call is made, since a call that must not leave would use up a part of the rate.
            lookup = await others.look(batch.items)
            if lookup.free == batch.items:
                return batch
            self._take(lookup, part)
        return None

    async def _pack_next(self, part: _Part) -> Batch | None:
        """The next batch; if rows have images, it is made in a thread, because their files are read."""
        if self._run.task.prompt.reader is None:
            return next(part.batches, None)
        async with part.packing:
            return await asyncio.to_thread(next, part.batches, None)

    async def _wait_for_others(self, part: _Part) -> Batch | None:
        """The next batch of prompts that other runs release; `None` if there are none to wait for."""
        others = self._run.others
        async with others.lock:
            while others.is_waiting and not part.ready and self._run.stop.error is None:
                self._take(await others.look_again(), part)
                if others.is_waiting and not part.ready:
                    with suppress(FatalError):  # the run was stopped
                        await self._sleep(others.next_wait_s())
        return part.ready.popleft() if part.ready else None

    def _take(self, lookup: LookupResult, part: _Part) -> None:
        """Reuse outcomes that were found, ask free prompts next, and defer held ones."""
        run = self._run
        run.reuse(lookup.found)
        if lookup.found:
            run.run_state.report_progress()
        run.others.defer(lookup.held)
        run.unseen.update(run.others.taken_over)
        part.ready.extend(part.sizes.pack(lookup.free))

    # -- one batch -------------------------------------------------------------------------------------------------

    async def _ask(self, batch: Batch, part: _Part) -> tuple[Batch, ...]:
        """Ask one batch and record its outcomes; returns the batches to ask again."""
        run = self._run
        observer = run.runtime.emitter.begin(batch)
        error: TransientError | None = None
        encoded = encode_batch(batch, run.task, run.policy.strategy, run.clock.rng)
        oversize = find_oversize_prompt(encoded, run.task, run.policy, run.interpreter.window)
        try:
            if oversize is not None:
                result = run.interpreter.fail(batch, oversize)
            else:
                attempt = partial(self._attempt, encoded, part, observer)
                policy = self._health.retry_policy(tuple([item.key for item in batch.items]))
                result = await retry(attempt, policy, self._sleep, run.clock.rng)
        except (FatalError, BudgetExhaustedError) as fatal:
            observer.ended(0, 0, len(batch.items), fatal)
            run.stop.stop(fatal)
            return ()
        except TransientError as transient:
            error = transient
            result = self._give_up(batch, transient)
        if result.taken:
            observer.ended(0, 0, len(batch.items))
            run.others.defer(item for item in batch.items if item.key in result.taken)
            rest = tuple(item for item in batch.items if item.key not in result.taken)
            return (replace(batch, items=rest),) if rest else ()
        part.run_state.settle((*result.answers, *result.failures))
        part.run_state.report_progress()
        end_batch(run, observer, result, keep=part.keep, error=error)
        return result.retry

    async def _attempt(self, encoded: EncodedBatch, part: _Part, observer: BatchObserver, attempt: int) -> BatchResult:
        """Make one attempt at a call; outages and waits for capacity do not count as attempts."""
        again = attempt > 1
        if again:
            observer.retried()
        batch, call = encoded.batch, encoded.call
        is_unusual = (len(batch.items) > 1) != part.several_rows
        if part.several_calls and self._cacheable.takes(call, is_unusual=is_unusual):
            call = replace(call, cache_prefix=True)
        keys = tuple([item.key for item in batch.items])
        reason = part.reason or reason_of(batch, again=again)
        refused = 0
        while True:
            try:
                return await self._call(PendingCall(call, keys, reason, part.keep, observer), encoded, part)
            except TransientError as error:
                refused += error.cause == "capacity"
                wait_s = self._health.find_wait_s(error, keys, refused)
                if wait_s is None:
                    raise
            await self._sleep(wait_s)
            observer.retried()

    async def _call(self, pending: PendingCall, encoded: EncodedBatch, part: _Part) -> BatchResult:
        """Make a call and store its outcomes."""
        try:
            sent = await self._caller.start(pending)
            if pending.taken:
                return BatchResult(taken=pending.taken)
            reply = await self._caller.send(pending, sent)
            if isinstance(reply, RefusedError):
                self._health.note_refusal(reply, len(encoded.batch.items), any_answer=part.run_state.any_answer)
            result = self._run.interpreter.interpret(encoded, reply, pending.charge.usd)
            if isinstance(reply, Reply):
                part.run_state.latencies_s.append(reply.latency_s)
                part.sizes.learn(encoded.batch, len(result.answers), reply)
            await self._caller.settle(pending, sent, reply, result)
            return result
        finally:
            await self._caller.end(pending)

    def _give_up(self, batch: Batch, error: TransientError) -> BatchResult:
        """After the last attempt, halve a batch if one of its rows may be the cause; otherwise its prompts fail."""
        self._health.note_unreachable(error, max(self._workers, _UNREACHABLE_BEFORE_GIVING_UP))
        keys = tuple([item.key for item in batch.items])
        failure = Failure("unreachable", self._health.retry_policy(keys).explain(error))
        usd = None if error.times_lost else Decimal(0)
        if self._health.should_halve(keys, error):
            self._health.note_halved(keys, error)
            return self._run.interpreter.halve(batch, failure, usd)
        return self._run.interpreter.fail(batch, failure, usd)

    async def _sleep(self, seconds: float) -> None:
        with self._run.stop.interruptible():
            await self._run.clock.sleep(seconds)


@dataclass(frozen=True, slots=True)
class _Part:
    """Prompts that are asked with one batch size, and how their outcomes are treated."""

    batches: Iterator[Batch]
    run_state: RunState
    sizes: BatchSizes
    reason: CallReason | None
    keep: bool
    several_calls: bool
    """Whether there is more than one call, so that caching their prefix may pay."""
    several_rows: bool
    """Whether most calls carry several rows."""
    ready: deque[Batch]
    """Batches to ask first, such as prompts that another run has released."""
    packing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a batch is made in a thread."""


def _explain_bound(run: RunContext) -> str:
    """A sentence about `max_output_tokens`, if calls are reserved at the model's longest reply; otherwise empty."""
    listed = run.runtime.max_output_tokens
    if listed is None or run.task.model.max_output_tokens is not None:
        return ""
    return f" A call is reserved at its longest reply, {listed:,} tokens; a lower max_output_tokens reserves less."


def max_in_flight(runtime: Runtime, policy: Policy) -> int:
    """The maximum number of calls in flight that both the user and the model allow."""
    return min(policy.max_concurrency, runtime.model.max_concurrency or policy.max_concurrency)


def max_workers(runtime: Runtime, policy: Policy) -> int:
    """The maximum number of batches that are worked on at the same time."""
    return _WORKERS_A_CALL * max_in_flight(runtime, policy)


def reason_of(batch: Batch, *, again: bool) -> CallReason:
    """Why a call is made with `batch`; `again` if an earlier call with it failed."""
    if again:
        return "retry"
    if batch.attempt == 1:
        return "ask"
    return "repair" if batch.complaint else "split"
