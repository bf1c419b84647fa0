"""The one module that orchestrates: it asks what has no answer yet, keeps every answer, and reports on all rows.

Workers share one lazy iterator of batches. A worker takes a batch, asks, and when its answers are durable asks what is
still owed of it, then takes the next; there is no queue to shut down. There are more workers than calls in flight, so
that one which waits before it tries again leaves its place to another.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any

from ondine_core.batching import ONE_PER_CALL, Strategy, pack
from ondine_core.calling import Caller, Conclusion
from ondine_core.concurrency import Gate, Throttle
from ondine_core.cost_tracker import CostTracker
from ondine_core.errors import BudgetExhaustedError, FatalError, RefusedError, TransientError
from ondine_core.policy import Clock, Means, Policy
from ondine_core.question import Question, address
from ondine_core.report import Outcomes, Progress, Report, Tally
from ondine_core.retry import retrying
from ondine_core.stages import dedup, items, judge, render, shrink
from ondine_core.values import Answer, Batch, Failure, Key, Origin, Reply, Stage

__all__ = ["run"]

_KEYS_A_LOOK_UP = 10_000
_REFUSALS_BEFORE_GIVING_UP = 20
"""So many refusals and not one answer: it is the set-up that is refused, not the rows."""
_UNREACHABLE_BEFORE_GIVING_UP = 10
"""So many prompts in a row without a reply, each after all its retries: the provider is gone."""
_WORKERS_A_CALL = 4
"""With three calls in ten failing, two of these wait at any time before they try again."""


async def run(  # noqa: PLR0913  (named at every call)
    question: Question,
    columns: Mapping[str, Sequence[Any]],
    rows: int,
    means: Means,
    *,
    policy: Policy,
    origin: Origin,
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
        origin: For whom, in the books.
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
    copies = {key: count for key, count in Counter(key for key in keys if isinstance(key, bytes)).items() if count > 1}
    tally = Tally(rows, copies, CostTracker(means.price), lambda: clock.now() - started, on_progress)
    for key in keys:
        if isinstance(key, Failure):
            tally.unaskable()
    await _look_up(means, policy, first, tally)
    pending = ((key, index) for key, index in first.items() if key not in tally.outcomes)
    asker = _Asker(question=question, means=means, policy=policy, origin=origin, tally=tally, clock=clock)
    try:
        await asker.ask_all(columns, pending, len(first) - len(tally.outcomes))
    finally:
        tally.tell()
    names = tuple(column.name for column in question.schema.columns)
    return Report(
        Outcomes(keys, tally.outcomes),
        names,
        tally.progress,
        len(first),
        sorted(tally.latencies_s),
        tuple(asker.throttle.history),
        await means.store.audit(origin.run),
    )


async def _look_up(means: Means, policy: Policy, first: Mapping[Key, int], tally: Tally) -> None:
    """Take what the store knows already."""
    unique = iter(first)
    while policy.reuse and (some := list(islice(unique, _KEYS_A_LOOK_UP))):
        tally.reuse(await means.store.get(some))
        if not policy.retry_failed_rows:
            tally.reuse(await means.store.get_failures([key for key in some if key not in tally.outcomes]))


class _Asker:
    """Workers around one model."""

    def __init__(  # noqa: PLR0913  (by keyword)
        self, *, question: Question, means: Means, policy: Policy, origin: Origin, tally: Tally, clock: Clock
    ) -> None:
        self._question, self._means, self._policy, self._tally, self._clock = question, means, policy, tally, clock
        most = min(policy.max_concurrency, means.model.max_concurrency or policy.max_concurrency)
        self._size = min(policy.batch_size, means.model.max_batch_size or policy.batch_size)
        self._workers = _WORKERS_A_CALL * most
        self.throttle = Throttle(most, clock.now())
        gate = Gate(self.throttle, clock.now, clock.sleep)
        self._caller = Caller(
            model=question.model.model,
            origin=origin,
            means=means,
            policy=policy,
            tracker=tally.tracker,
            gate=gate,
            clock=clock,
        )
        self._retrying = retrying(policy.retry, self._sleep, clock.rng)
        self._unreachable_in_a_row = self._refused = 0

    async def ask_all(
        self, columns: Mapping[str, Sequence[Any]], pending: Iterator[tuple[Key, int]], count: int
    ) -> None:
        """Ask the prompts of the rows in `pending`, of which there are `count`."""
        if not count:
            return
        size = self._size
        prompts = items(self._question.prompt, columns, pending, apart=size > 1)
        batches = pack(prompts, lambda: size, self._policy.max_repairs)
        self._caller.unseen = set(await self._means.store.get_unseen())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._workers, -(-count // size))):
                    group.create_task(self._work(batches))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if (stopped_by := self._caller.stopped_by) is not None:
            if isinstance(stopped_by, BudgetExhaustedError):
                left = self._tally.rows_left
                raise BudgetExhaustedError(f"{stopped_by} {left:,} rows have no answer yet.") from stopped_by
            raise stopped_by

    async def _work(self, batches: Iterator[Batch]) -> None:
        for batch in batches:
            stack = [batch]
            while stack and self._caller.stopped_by is None:
                stack.extend(await self._ask(stack.pop()))
            if self._caller.stopped_by is not None:
                return

    async def _ask(self, batch: Batch) -> tuple[Batch, ...]:
        """Ask one batch and keep what comes of it; returns the batches still owed."""
        try:
            conclusion: Conclusion = await self._retrying(self._attempt, batch, Counter())
        except (FatalError, BudgetExhaustedError) as error:
            self._caller.stop(error)
            return ()
        except TransientError as error:
            conclusion = self._give_up(batch, error)
        self._tally.settle((*conclusion.answers, *conclusion.failures))
        self._tally.tell()
        return conclusion.retry

    async def _attempt(self, batch: Batch, tried: Counter[str]) -> Conclusion:
        """Make one attempt at a call; `tried` counts those before it, and those that may have been billed unseen."""
        strategy = ONE_PER_CALL if len(batch.items) == 1 else self._policy.strategy
        call = strategy.encode(batch, self._question)
        stage = _stage(batch, again=tried["calls"] > 0)
        tried["calls"] += 1
        try:
            conclusion = await self._caller.make(
                call,
                [item.key for item in batch.items],
                stage,
                lambda came, usd: self._conclude(batch, strategy, came, usd),
            )
        except TransientError as error:
            tried["lost"] += error.cost_unknown
            error.times_lost = tried["lost"]
            raise
        self._unreachable_in_a_row = 0
        return conclusion

    def _conclude(
        self, batch: Batch, strategy: Strategy, came: Reply | RefusedError, usd: Decimal | None
    ) -> Conclusion:
        """What a reply, or a refusal to give one, means for each prompt of its batch."""
        if isinstance(came, RefusedError):
            self._refused += 1
            if self._refused >= _REFUSALS_BEFORE_GIVING_UP and not self._tally.any_answer:
                self._caller.stop(FatalError(f"The first {self._refused} calls were all refused. {came}"))
            # One row may be what the whole batch was refused for.
            verdict = shrink(batch, Failure("refused", str(came)), self._policy.max_repairs)
            return Conclusion((), verdict.failures, verdict.retry)
        self._tally.latencies_s.append(came.latency_s)
        verdict = judge(batch, came, self._question, strategy, self._policy.max_repairs)
        share = None if usd is None else usd / len(batch.items)
        name, at, size = self._question.model.model, self._clock.now(), len(batch.items)
        answers = tuple(
            (key, Answer(values, name, batch.attempt, size, share, came.request_id, at))
            for key, values in verdict.answers
        )
        return Conclusion(answers, verdict.failures, verdict.retry)

    def _give_up(self, batch: Batch, error: TransientError) -> Conclusion:
        self._unreachable_in_a_row += 1
        if self._unreachable_in_a_row >= max(self._workers, _UNREACHABLE_BEFORE_GIVING_UP):
            self._caller.stop(error)
        failure = Failure("unreachable", self._policy.retry.explain(error))
        return Conclusion(failures=tuple((item.key, failure) for item in batch.items))

    async def _sleep(self, seconds: float) -> None:
        with self._caller.interruptible():
            await self._clock.sleep(seconds)


def _stage(batch: Batch, *, again: bool) -> Stage:
    if again:
        return "retry"
    if batch.attempt == 1:
        return "ask"
    return "repair" if batch.complaint else "split"
