"""Workers around one model: they take batches, ask what is owed of them until nothing is, and keep what comes of it.

Workers share one lazy iterator of batches. A worker takes a batch, asks, and when its answers are durable asks what is
still owed of it, then takes the next; there is no queue to shut down. There are more workers than calls in flight, so
that one which waits before it tries again leaves its place to another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal

from ondine_core.batching import ONE_PER_CALL, Strategy, draw_ids
from ondine_core.books import Stage
from ondine_core.calling import Caller
from ondine_core.deferral import Deferral
from ondine_core.errand import Conclusion, Errand
from ondine_core.errors import BudgetExhaustedError, FatalError, RefusedError, TransientError
from ondine_core.packing import pack
from ondine_core.policy import Clock, Means, Policy
from ondine_core.prompt_window import find_cut_prompt, find_oversize, find_window
from ondine_core.question import Question
from ondine_core.refusals import RefusalStreak
from ondine_core.retry import retry
from ondine_core.sizes import Sizes
from ondine_core.stages import Verdict, items, judge, shrink
from ondine_core.tally import Tally
from ondine_core.telemetry.feed import Feed, Told
from ondine_core.values import Answer, Batch, Call, Failure, Item, Key, Outcome, Reply

__all__ = ["Asker", "choose_strategy", "most_in_flight"]

_UNREACHABLE_BEFORE_GIVING_UP = 10
"""So many prompts in a row without a reply, each after all its retries: the provider is gone."""
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.1, 2.0
"""Pauses between looks at the answers of other runs."""
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
        feed: Hears what becomes of every batch.
    """

    def __init__(  # noqa: PLR0913, PLR0917  (one caller)
        self, question: Question, means: Means, policy: Policy, caller: Caller, clock: Clock, feed: Feed
    ) -> None:
        self._question, self._means, self._policy, self._caller, self._clock = question, means, policy, caller, clock
        self._feed = feed
        self._window = policy.context_window or find_window(question.model)
        self._workers = _WORKERS_A_CALL * most_in_flight(means, policy)
        self._unreachable_in_a_row = 0
        self._refusals = RefusalStreak()

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
        part = _Part(batches, tally, sizes, as_stage, keep, Deferral(self._question, self._means.store, self._policy))
        self._caller.has_answers |= tally.any_answer
        await self._run_workers(part)
        while self._caller.stopped_by is None and (deferred := await self._await_others(part)):
            batches = pack(iter(deferred), sizes.take, self._policy.max_repairs, lambda: sizes.room)
            await self._run_workers(replace(part, batches=batches))
        if self._caller.doubted is not None and not self._caller.has_answers:
            self._caller.stop(self._caller.doubted)
        if (stopped_by := self._caller.stopped_by) is not None:
            if isinstance(stopped_by, BudgetExhaustedError):
                raise BudgetExhaustedError(f"{stopped_by} {tally.rows_left:,} rows have no answer yet.") from stopped_by
            raise stopped_by

    async def _run_workers(self, part: _Part) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._workers, part.tally.rows_left)):
                    group.create_task(self._work(part))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _work(self, part: _Part) -> None:
        for batch in part.batches:
            stack = [batch]
            while stack and self._caller.stopped_by is None:
                owed = stack.pop()
                left = await self._leave_out_taken(owed, part) if part.deferral.overlaps else owed
                if left is not None:
                    stack.extend(await self._ask(left, part))
            if self._caller.stopped_by is not None:
                return

    async def _leave_out_taken(self, batch: Batch, part: _Part) -> Batch | None:
        """What is left of a batch without the prompts that other runs have answered or have in flight."""
        keys = {item.key for item in batch.items}
        taken = await part.deferral.find_taken(keys)
        found = await self._find(keys, part)
        held = {key: call for key, call in taken.items() if key not in found}
        if taken or found:
            part.deferral.add(batch.items, held, self._clock.elapsed())
        return _without(batch, taken.keys() | found.keys())

    async def _find(self, keys: Collection[Key], part: _Part) -> Mapping[Key, Outcome]:
        """Take the outcomes that other runs have stored meanwhile."""
        found = await part.deferral.find(keys)
        part.tally.reuse(found)
        part.deferral.forget(found)
        failures = [(known, part.tally.rows_of(key)) for key, known in found.items() if isinstance(known, Failure)]
        self._feed.rows_failed(failures)
        if found:
            part.tally.tell()
        return found

    async def _await_others(self, part: _Part) -> list[Item]:
        """Wait for the calls of other runs; returns the deferred prompts that are to be asked here after all."""
        deferral, pause_s = part.deferral, _FIRST_LOOK_S
        while deferral.items:
            found = await self._find(list(deferral.items), part)
            freed, maybe_paid = await deferral.free(self._clock.elapsed())
            self._caller.unseen |= maybe_paid
            if freed:
                return freed
            pause_s = _FIRST_LOOK_S if found else min(1.5 * pause_s, _LONGEST_LOOK_S)
            if deferral.items:
                await self._clock.sleep(pause_s)
        return []

    async def _ask(self, batch: Batch, part: _Part) -> tuple[Batch, ...]:
        """Ask one batch and keep what comes of it; returns the batches still owed."""
        told, why, tried = self._feed.begin(batch), None, _Tried()
        try:
            oversize = self._refuse_oversize(batch, part)
            if oversize is not None:
                conclusion = oversize
            else:
                conclusion = await retry(
                    lambda: self._attempt(batch, part, tried, told), self._policy.retry, self._sleep, self._clock.rng
                )
        except (FatalError, BudgetExhaustedError) as error:
            told.ended(0, 0, len(batch.items), error)
            self._caller.stop(error)
            return ()
        except TransientError as error:
            conclusion, why = self._give_up(batch, error, part), error
        part.tally.settle((*conclusion.answers, *conclusion.failures))
        part.tally.tell()
        if part.keep and conclusion.failures:
            told.rows_failed((failure, part.tally.rows_of(key)) for key, failure in conclusion.failures)
        owed = sum(len(batch.items) for batch in conclusion.retry)
        told.ended(len(conclusion.answers), len(conclusion.failures), owed, why)
        return conclusion.retry

    def _refuse_oversize(self, batch: Batch, part: _Part) -> Conclusion | None:
        """The failure of a prompt that is alone in its call and cannot fit into the model's window."""
        if self._window is None or len(batch.items) > 1:
            return None
        call = choose_strategy(batch, self._policy.strategy).encode(batch, self._question)
        # The user's figure is for prompt and reply together; many listed ones are for the prompt alone.
        reserved = self._question.model.max_output_tokens or 0 if self._policy.context_window else 0
        failure = find_oversize(call, self._window, reserved)
        if failure is None:
            return None
        key = batch.items[0].key
        return Conclusion(failures=((key, self._fail(batch, key, failure, Decimal(0), part)),))

    async def _attempt(self, batch: Batch, part: _Part, tried: _Tried, told: Told) -> Conclusion:
        """Make one attempt at a call, after those that were `tried`."""
        strategy = choose_strategy(batch, self._policy.strategy)
        batch = replace(batch, ids=draw_ids(len(batch.items), self._clock.rng))
        call = strategy.encode(batch, self._question)
        stage = part.as_stage or _stage(batch, again=tried.calls > 0)
        if tried.calls:
            told.retried()
        tried.calls += 1
        try:
            conclusion = await self._caller.make(
                Errand(
                    call,
                    tuple(item.key for item in batch.items),
                    stage,
                    lambda came, usd: self._conclude(batch, strategy, call, came, usd, part),
                    part.keep,
                    told,
                    part.deferral.claim if part.keep else None,
                )
            )
        except TransientError as error:
            tried.lost += error.cost_unknown
            error.times_lost = tried.lost
            raise
        if conclusion.taken:
            part.deferral.add(batch.items, conclusion.taken, self._clock.elapsed())
            rest = _without(batch, conclusion.taken.keys())
            return Conclusion(retry=() if rest is None else (rest,))
        self._unreachable_in_a_row = 0
        return conclusion

    def _conclude(  # noqa: PLR0913, PLR0917  (one caller)
        self, batch: Batch, strategy: Strategy, call: Call, came: Reply | RefusedError, usd: Decimal | None, part: _Part
    ) -> Conclusion:
        """What a reply, or a refusal to give one, means for each prompt of its batch."""
        if isinstance(came, RefusedError):
            self._note_refusal(batch, came, part.tally)
            # One row may be what the whole batch was refused for.
            verdict = shrink(batch, Failure("refused", str(came)), self._policy.max_repairs)
            return self._charge(batch, verdict, usd, part)
        self._refusals.end()
        part.tally.latencies_s.append(came.latency_s)
        cut = find_cut_prompt(call, came.usage, self._question.model.provider, self._window)
        if cut is None:
            verdict = judge(batch, came, self._question, strategy, self._policy.max_repairs)
        else:
            verdict = shrink(batch, cut, self._policy.max_repairs)
        part.sizes.learn(batch, len(verdict.answers), came)
        return self._charge(batch, verdict, usd, part, came.request_id)

    def _note_refusal(self, batch: Batch, error: RefusedError, tally: Tally) -> None:
        """Stop the run when refusals repeat, but for those that a smaller batch or an earlier run explains."""
        if error.fault == "size" and len(batch.items) > 1:
            return
        if error.refused_before and tally.any_answer:
            return
        if (stop := self._refusals.add(error, any_answer=tally.any_answer)) is not None:
            self._caller.stop(stop)

    def _charge(
        self, batch: Batch, verdict: Verdict, usd: Decimal | None, part: _Part, request_id: str | None = None
    ) -> Conclusion:
        """A verdict with what it took: answers bear the cost of the call that brought them, failures that of all."""
        name, at, size = self._question.model.model, self._clock.now(), len(batch.items)
        share = None if usd is None else usd / size
        answers = tuple(
            [(key, Answer(values, name, batch.attempt, size, share, request_id, at)) for key, values in verdict.answers]
        )
        if part.paid:
            for key, _ in answers:
                part.paid.pop(key, None)
        for item in (item for owed in verdict.retry for item in owed.items):
            part.paid[item.key] = _sum(part.paid.get(item.key, Decimal(0)), share)
        failures = tuple((key, self._fail(batch, key, failure, share, part)) for key, failure in verdict.failures)
        return Conclusion(answers, failures, verdict.retry)

    def _fail(self, batch: Batch, key: Key, failure: Failure, share: Decimal | None, part: _Part) -> Failure:
        cost = _sum(part.paid.pop(key, Decimal(0)), share)
        return replace(failure, model=self._question.model.model, attempts=batch.attempt, cost_usd=cost)

    def _give_up(self, batch: Batch, error: TransientError, part: _Part) -> Conclusion:
        self._unreachable_in_a_row += 1
        if self._unreachable_in_a_row >= max(self._workers, _UNREACHABLE_BEFORE_GIVING_UP):
            self._caller.stop(error)
        failure = Failure("unreachable", self._policy.retry.explain(error))
        lost = None if error.times_lost else Decimal(0)
        return Conclusion(
            failures=tuple((item.key, self._fail(batch, item.key, failure, lost, part)) for item in batch.items)
        )

    async def _sleep(self, seconds: float) -> None:
        with self._caller.interruptible():
            await self._clock.sleep(seconds)


@dataclass(frozen=True, slots=True)
class _Part:
    """Prompts to be asked, and what is done with what comes of it."""

    batches: Iterator[Batch]
    tally: Tally
    sizes: Sizes
    as_stage: Stage | None
    keep: bool
    deferral: Deferral
    paid: dict[Key, Decimal | None] = field(default_factory=dict)
    """What the prompts that are asked again have cost so far; `None` where that is not known."""


def _without(batch: Batch, keys: AbstractSet[Key]) -> Batch | None:
    rest = tuple(item for item in batch.items if item.key not in keys)
    return replace(batch, items=rest) if rest else None


def _sum(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return None if one is None or other is None else one + other


@dataclass(slots=True)
class _Tried:
    """Attempts at a call so far, and how many of them may have been billed unseen."""

    calls: int = 0
    lost: int = 0


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
