"""The one module that orchestrates: it asks what has no answer yet, keeps every answer, and reports on all rows.

Workers share one lazy iterator of batches. A worker takes a batch, asks, judges, keeps the answers, and only when they
are durable takes the next; what a verdict wants asked again it asks itself. So work in flight is bounded by the number
of workers, a kill costs at most their calls, and there is no queue to shut down.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any

from ondine_core.batching import ONE_PER_CALL, pack
from ondine_core.cost_tracker import CostTracker
from ondine_core.errors import (
    BudgetExhaustedError,
    FatalError,
    OndineError,
    RefusedError,
    TransientError,
)
from ondine_core.policy import Clock, Means, Policy
from ondine_core.question import Question, address
from ondine_core.report import Progress, Report, Tally
from ondine_core.retry import retrying
from ondine_core.stages import Verdict, dedup, fan_out, items, judge, render, shrink
from ondine_core.values import Answer, Batch, Call, Failure, Key, Reply, Usage

__all__ = ["run"]

_KEYS_A_LOOK_UP = 10_000
_REFUSALS_BEFORE_GIVING_UP = 20
"""So many refusals and not one answer: it is the set-up that is refused, not the rows."""
_UNREACHABLE_BEFORE_GIVING_UP = 10
"""So many prompts in a row without a reply, each after all its retries: the provider is gone."""


async def run(  # noqa: PLR0913  (named at every call)
    question: Question,
    columns: Mapping[str, Sequence[Any]],
    rows: int,
    means: Means,
    *,
    policy: Policy,
    on_progress: Callable[[Progress], None] = lambda _: None,
    clock: Clock | None = None,
) -> Report:
    """Answer every row, or say why not.

    Args:
        question: What is asked, of whom, and what an answer looks like.
        columns: The columns the prompt reads, each of length `rows`.
        rows: How many rows there are.
        means: Model, store, price, limiter and purse.
        policy: How hard to try.
        on_progress: Told after every batch, on the event loop; it must return quickly.
        clock: Time and chance.

    Raises:
        FatalError: No request can succeed; calls in flight were awaited and their answers kept.
        BudgetExhaustedError: The cap on cost is reached; answers so far are kept.
        TransientError: The provider stayed unreachable; answers so far are kept.
        StoreError: Answers cannot be kept.
    """
    clock = clock or Clock()
    started = clock.now()
    keys, first = dedup(render(question.prompt, columns, range(rows)), address(question))
    copies = Counter(key for key in keys if isinstance(key, bytes))
    tally = Tally(rows, copies, CostTracker(means.price), lambda: clock.now() - started, on_progress)
    for key in keys:
        if isinstance(key, Failure):
            tally.unaskable()
    if policy.reuse:
        unique = iter(first)
        while some := list(islice(unique, _KEYS_A_LOOK_UP)):
            tally.reuse(await means.store.get(some))
    asker = _Asker(question, means, policy, tally, clock)
    pending = [(key, index) for key, index in first.items() if key not in tally.outcomes]
    size = min(policy.batch_size, means.model.max_batch_size or policy.batch_size)
    repairs = policy.max_repairs if size == 1 else min(1, policy.max_repairs)
    batches = pack(items(question.prompt, columns, pending, apart=size > 1), size, repairs)
    try:
        await asker.ask_all(batches, -(-len(pending) // size))
    finally:
        tally.tell()
    outcomes = fan_out(keys, tally.outcomes)
    names = tuple(column.name for column in question.schema.columns)
    return Report(outcomes, names, tally.progress, len(first), sorted(tally.latencies_s))


class _Asker:
    """Workers around one model; `stopped_by` is the first error that ends the run."""

    def __init__(
        self,
        question: Question,
        means: Means,
        policy: Policy,
        tally: Tally,
        clock: Clock,
    ) -> None:
        self._question, self._means, self._policy, self._tally, self._clock = question, means, policy, tally, clock
        self._workers = min(policy.max_concurrency, means.model.max_concurrency or policy.max_concurrency)
        self._retrying = retrying(policy.retry, lambda seconds: self._unless_stopped(clock.sleep(seconds)), clock.rng)
        self._unreachable_in_a_row = self._refused = 0
        self._held_until = 0.0
        self._stopped = asyncio.Event()
        self._stopped_by: OndineError | None = None

    async def ask_all(self, batches: Iterator[Batch], count: int) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._workers, count)):
                    group.create_task(self._work(batches))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if self._stopped_by is not None:
            raise self._stopped_by

    async def _work(self, batches: Iterator[Batch]) -> None:
        for batch in batches:
            stack = [batch]
            while stack and self._stopped_by is None:
                stack.extend(await self._ask(stack.pop()))
            if self._stopped_by is not None:
                return

    async def _ask(self, batch: Batch) -> tuple[Batch, ...]:
        """Ask one batch and keep what comes of it; returns the batches still owed."""
        strategy = ONE_PER_CALL if len(batch.items) == 1 else self._policy.strategy
        try:
            reply: Reply = await self._retrying(self._call, strategy.encode(batch, self._question), Counter())
        except (FatalError, BudgetExhaustedError) as error:
            self._stop(error)
            return ()
        except (TransientError, RefusedError) as error:
            verdict = self._give_up(batch, error)
            await self._settle(batch, verdict, None)
            return verdict.retry
        self._unreachable_in_a_row = 0
        verdict = judge(batch, reply, self._question, strategy, self._policy.max_repairs)
        await self._settle(batch, verdict, reply)
        return verdict.retry

    async def _call(self, call: Call, lost: Counter[str]) -> Reply:
        """Make one attempt at a call; `lost` counts the attempts at it that may have been billed unseen."""
        try:
            return await self._call_charged(call)
        except TransientError as error:
            lost["calls"] += error.cost_unknown
            error.times_lost = lost["calls"]
            raise

    async def _call_charged(self, call: Call) -> Reply:
        """Make a call when purse and rate allow it, and charge it for what it cost."""
        purse = self._means.purse
        if purse is None:
            await self._admit(call)
            return await self._send(call)
        held = purse.bound(call)
        await self._unless_stopped(purse.budget.hold(held))
        spent: Decimal | None = Decimal(0)
        try:
            await self._admit(call)
            spent = None  # it leaves; from here on nobody knows, until somebody does
            reply = await self._send(call)
            spent = purse.price.cost(reply.usage)
        except TransientError as error:
            spent = None if error.cost_unknown else Decimal(0)
            raise
        except RefusedError as error:
            spent = purse.price.cost(error.usage or Usage())
            raise
        except FatalError:
            spent = Decimal(0)
            raise
        finally:
            await purse.budget.settle(held, spent)
        return reply

    async def _admit(self, call: Call) -> None:
        if self._means.limiter:
            await self._unless_stopped(self._means.limiter.admit(self._tokens(call)))
        while (wait_s := self._held_until - self._clock.now()) > 0:
            # Spread over another tenth, so that not all leave at once.
            await self._unless_stopped(self._clock.sleep(wait_s * (1 + self._clock.rng.random() / 10)))
        if self._stopped_by is not None:
            raise FatalError(str(self._stopped_by))

    async def _send(self, call: Call) -> Reply:
        self._tally.tracker.sent()
        try:
            return await self._means.model(call)
        except TransientError as error:
            if error.cost_unknown:
                self._tally.tracker.lost()
            await self._hold_off(error.retry_after_s or 0.0)
            raise
        except asyncio.CancelledError:
            self._tally.tracker.lost()
            raise

    async def _hold_off(self, seconds: float) -> None:
        """What a provider asks of one caller it asks of all: those of this run, and whoever shares its rate."""
        if 0 < seconds <= self._policy.retry.longest_retry_after_s:
            self._held_until = max(self._held_until, self._clock.now() + seconds)
            if self._means.limiter:
                await self._means.limiter.hold_off(seconds)

    def _stop(self, error: OndineError) -> None:
        """Calls in flight are paid for, so their workers finish them; whoever waits stops waiting, nobody asks anew."""
        self._stopped_by = self._stopped_by or error
        self._stopped.set()

    async def _unless_stopped(self, waiting: Awaitable[None]) -> None:
        wait, stop = asyncio.ensure_future(waiting), asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({wait, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not wait.done():
                raise FatalError(str(self._stopped_by))
            await wait
        finally:
            wait.cancel()
            stop.cancel()

    def _tokens(self, call: Call) -> int:
        """What the rate of tokens is booked for: four bytes a token, and the replies' mean length so far."""
        spend = self._tally.tracker.spend
        sent = sum(len(message.content.encode()) for message in call.messages) // 4
        return sent + (spend.usage.output_tokens // spend.answered if spend.answered else 0)

    def _give_up(self, batch: Batch, error: TransientError | RefusedError) -> Verdict:
        if isinstance(error, TransientError):
            self._unreachable_in_a_row += 1
            if self._unreachable_in_a_row >= max(self._workers, _UNREACHABLE_BEFORE_GIVING_UP):
                self._stop(error)
            failure = Failure("unreachable", self._policy.retry.explain(error))
            return Verdict(failures=tuple((item.key, failure) for item in batch.items))
        self._refused += 1
        if error.usage is not None:
            self._tally.tracker.answered(error.usage)
        if self._refused >= _REFUSALS_BEFORE_GIVING_UP and not self._tally.any_answer:
            self._stop(FatalError(f"The first {self._refused} calls were all refused. {error}"))
        # One row may be what the whole batch was refused for.
        return shrink(batch, Failure("refused", str(error)), self._policy.max_repairs)

    async def _settle(self, batch: Batch, verdict: Verdict, reply: Reply | None) -> None:
        answers: list[tuple[Key, Answer]] = []
        if reply is not None:
            cost = self._tally.tracker.answered(reply.usage)
            share = None if cost is None else cost / Decimal(len(batch.items))
            self._tally.latencies_s.append(reply.latency_s)
            name, at, size = self._question.model.model, self._clock.now(), len(batch.items)
            answers = [
                (key, Answer(values, name, batch.attempt, size, share, reply.request_id, at))
                for key, values in verdict.answers
            ]
            await self._means.store.put(answers)
        self._tally.settle(answers, verdict.failures)
        self._tally.tell()
