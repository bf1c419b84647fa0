"""Workers around one model: they take batches, ask what is owed of them until nothing is, and keep what comes of it.

Workers share one lazy iterator of batches. A worker takes a batch, asks, and when its answers are durable asks what is
still owed of it, then takes the next; there is no queue to shut down. There are more workers than calls in flight, so
that one which waits before it tries again leaves its place to another.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal

from ondine_core.batch_size import AdaptiveSize, adapt, start_size, take_rows
from ondine_core.batching import ONE_PER_CALL, Strategy, find_room, pack
from ondine_core.calling import Caller, Conclusion
from ondine_core.context_limits import Room, learn_answer_tokens
from ondine_core.errors import BudgetExhaustedError, FatalError, RefusedError, TransientError
from ondine_core.policy import Clock, Means, Policy
from ondine_core.question import Question
from ondine_core.report import Tally
from ondine_core.retry import retrying
from ondine_core.stages import Verdict, items, judge, shrink
from ondine_core.values import Answer, Batch, Failure, Key, Reply, Stage

__all__ = ["Asker", "Sizes", "choose_strategy", "most_in_flight"]

_REFUSALS_BEFORE_GIVING_UP = 20
"""So many refusals and not one answer: it is the set-up that is refused, not the rows."""
_UNREACHABLE_BEFORE_GIVING_UP = 10
"""So many prompts in a row without a reply, each after all its retries: the provider is gone."""
_WORKERS_A_CALL = 4
"""With three calls in ten failing, two of these wait at any time before they try again."""


class Asker:
    """Asks the prompts of one table.

    Args:
        question: What is asked.
        means: Model, store and so on.
        policy: How hard to try.
        caller: Makes the calls.
        clock: Time and chance.
    """

    def __init__(self, question: Question, means: Means, policy: Policy, caller: Caller, clock: Clock) -> None:
        self._question, self._means, self._policy, self._caller, self._clock = question, means, policy, caller, clock
        self._workers = _WORKERS_A_CALL * most_in_flight(means, policy)
        self._retrying = retrying(policy.retry, self._sleep, clock.rng)
        self._unreachable_in_a_row = self._refused = 0

    async def ask_all(  # noqa: PLR0913  (by keyword)
        self,
        columns: Mapping[str, Sequence[Any]],
        pending: Iterator[tuple[Key, int]],
        tally: Tally,
        *,
        batch_size: int | Literal["auto"],
        as_stage: Stage | None = None,
        keep: bool = True,
    ) -> None:
        """Ask the prompts of some rows.

        Args:
            columns: The columns that the prompt reads.
            pending: Keys, and a row that asks for each.
            tally: Takes what comes of it.
            batch_size: Most rows a call.
            as_stage: Why all of these calls are made, if it is for one reason.
            keep: Whether answers go to the store.

        Raises:
            OndineError: What ended the run.
        """
        sizes = Sizes(self._question, self._means, self._policy, batch_size)
        prompts = items(self._question.prompt, columns, pending, apart=sizes.several)
        batches = pack(prompts, sizes.take, self._policy.max_repairs, lambda: sizes.room)
        errand = _Errand(batches, tally, sizes, as_stage, keep)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._workers, tally.rows_left)):
                    group.create_task(self._work(errand))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if (stopped_by := self._caller.stopped_by) is not None:
            if isinstance(stopped_by, BudgetExhaustedError):
                raise BudgetExhaustedError(f"{stopped_by} {tally.rows_left:,} rows have no answer yet.") from stopped_by
            raise stopped_by

    async def _work(self, errand: _Errand) -> None:
        for batch in errand.batches:
            stack = [batch]
            while stack and self._caller.stopped_by is None:
                stack.extend(await self._ask(stack.pop(), errand))
            if self._caller.stopped_by is not None:
                return

    async def _ask(self, batch: Batch, errand: _Errand) -> tuple[Batch, ...]:
        """Ask one batch and keep what comes of it; returns the batches still owed."""
        try:
            conclusion: Conclusion = await self._retrying(self._attempt, batch, errand, Counter())
        except (FatalError, BudgetExhaustedError) as error:
            self._caller.stop(error)
            return ()
        except TransientError as error:
            conclusion = self._give_up(batch, error, errand)
        errand.tally.settle((*conclusion.answers, *conclusion.failures))
        errand.tally.tell()
        return conclusion.retry

    async def _attempt(self, batch: Batch, errand: _Errand, tried: Counter[str]) -> Conclusion:
        """Make one attempt at a call; `tried` counts those before it, and those that may have been billed unseen."""
        strategy = choose_strategy(batch, self._policy.strategy)
        call = strategy.encode(batch, self._question)
        stage = errand.as_stage or _stage(batch, again=tried["calls"] > 0)
        tried["calls"] += 1
        try:
            conclusion = await self._caller.make(
                call,
                [item.key for item in batch.items],
                stage,
                lambda came, usd: self._conclude(batch, strategy, came, usd, errand),
                keep=errand.keep,
            )
        except TransientError as error:
            tried["lost"] += error.cost_unknown
            error.times_lost = tried["lost"]
            raise
        self._unreachable_in_a_row = 0
        return conclusion

    def _conclude(
        self, batch: Batch, strategy: Strategy, came: Reply | RefusedError, usd: Decimal | None, errand: _Errand
    ) -> Conclusion:
        """What a reply, or a refusal to give one, means for each prompt of its batch."""
        if isinstance(came, RefusedError):
            self._refused += 1
            if self._refused >= _REFUSALS_BEFORE_GIVING_UP and not errand.tally.any_answer:
                self._caller.stop(FatalError(f"The first {self._refused} calls were all refused. {came}"))
            # One row may be what the whole batch was refused for.
            verdict = shrink(batch, Failure("refused", str(came)), self._policy.max_repairs)
            return self._charge(batch, verdict, usd, errand)
        errand.tally.latencies_s.append(came.latency_s)
        verdict = judge(batch, came, self._question, strategy, self._policy.max_repairs)
        errand.sizes.learn(batch, len(verdict.answers), came)
        return self._charge(batch, verdict, usd, errand, came.request_id)

    def _charge(
        self, batch: Batch, verdict: Verdict, usd: Decimal | None, errand: _Errand, request_id: str | None = None
    ) -> Conclusion:
        """A verdict with what it took: answers bear the cost of the call that brought them, failures that of all."""
        name, at, size = self._question.model.model, self._clock.now(), len(batch.items)
        share = None if usd is None else usd / size
        answers = tuple(
            (key, Answer(values, name, batch.attempt, size, share, request_id, at)) for key, values in verdict.answers
        )
        for key, _ in answers:
            errand.paid.pop(key, None)
        for item in (item for owed in verdict.retry for item in owed.items):
            errand.paid[item.key] = _sum(errand.paid.get(item.key, Decimal(0)), share)
        failures = tuple((key, self._fail(batch, key, failure, share, errand)) for key, failure in verdict.failures)
        return Conclusion(answers, failures, verdict.retry)

    def _fail(self, batch: Batch, key: Key, failure: Failure, share: Decimal | None, errand: _Errand) -> Failure:
        cost = _sum(errand.paid.pop(key, Decimal(0)), share)
        return replace(failure, model=self._question.model.model, attempts=batch.attempt, cost_usd=cost)

    def _give_up(self, batch: Batch, error: TransientError, errand: _Errand) -> Conclusion:
        self._unreachable_in_a_row += 1
        if self._unreachable_in_a_row >= max(self._workers, _UNREACHABLE_BEFORE_GIVING_UP):
            self._caller.stop(error)
        failure = Failure("unreachable", self._policy.retry.explain(error))
        lost = None if error.times_lost else Decimal(0)
        return Conclusion(
            failures=tuple((item.key, self._fail(batch, item.key, failure, lost, errand)) for item in batch.items)
        )

    async def _sleep(self, seconds: float) -> None:
        with self._caller.interruptible():
            await self._clock.sleep(seconds)


@dataclass(frozen=True, slots=True)
class _Errand:
    """Prompts to be asked, and what is done with what comes of it."""

    batches: Iterator[Batch]
    tally: Tally
    sizes: Sizes
    as_stage: Stage | None
    keep: bool
    paid: dict[Key, Decimal | None] = field(default_factory=dict)
    """What the prompts that are asked again have cost so far; `None` where that is not known."""


class Sizes:
    """How many rows the next call may carry, and what there is room for in it; learns from replies."""

    def __init__(self, question: Question, means: Means, policy: Policy, batch_size: int | Literal["auto"]) -> None:
        most = means.model.max_batch_size
        self._adaptive: AdaptiveSize | None = None
        if batch_size == "auto":
            timeout_s = question.model.timeout_s
            self._adaptive = start_size(most, timeout_s) if most else start_size(timeout_s=timeout_s)
            self._fixed = 1
        else:
            self._fixed = min(batch_size, most or batch_size)
        self.several = self._fixed > 1 or (self._adaptive is not None and self._adaptive.most > 1)
        self.room: Room | None = None
        if self.several:
            self.room = find_room(policy.strategy, question, means.count, policy.context_window)

    def take(self) -> int:
        """Rows for the next call."""
        if self._adaptive is None:
            return self._fixed
        rows, self._adaptive = take_rows(self._adaptive)
        return rows

    def settle(self) -> None:
        """Take the size as found: the largest."""
        if self._adaptive is not None:
            self._fixed, self._adaptive = self._adaptive.most, None

    def learn(self, batch: Batch, answered: int, reply: Reply) -> None:
        """Take account of the reply to a batch."""
        rows = len(batch.items)
        if self.room:
            cut = reply.finish_reason == "length"
            self.room = learn_answer_tokens(self.room, rows, reply.usage.output_tokens, cut=cut)
        if self._adaptive and batch.attempt == 1:
            self._adaptive = adapt(self._adaptive, rows=rows, owed=rows - answered, latency_s=reply.latency_s)


def _sum(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return None if one is None or other is None else one + other


def most_in_flight(means: Means, policy: Policy) -> int:
    """Calls at once that neither the user nor the model wants exceeded."""
    return min(policy.max_concurrency, means.model.max_concurrency or policy.max_concurrency)


def choose_strategy(batch: Batch, strategy: Strategy) -> Strategy:
    """How `batch` travels: by `strategy`, but a prompt that is alone as it is."""
    return ONE_PER_CALL if len(batch.items) == 1 else strategy


def _stage(batch: Batch, *, again: bool) -> Stage:
    if again:
        return "retry"
    if batch.attempt == 1:
        return "ask"
    return "repair" if batch.complaint else "split"
