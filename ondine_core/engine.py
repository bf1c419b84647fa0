"""The one module that orchestrates: it asks what has no answer yet, keeps every answer, and reports on all rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from itertools import islice
from math import inf
from typing import Any

from ondine_core.agreement import Values
from ondine_core.asking import Asker, most_in_flight
from ondine_core.books import Origin
from ondine_core.calibration import Calibrated, calibrate
from ondine_core.calling import Caller
from ondine_core.cost_tracker import CostTracker
from ondine_core.definition import write_definition
from ondine_core.errors import ConfigError, FatalError, TransientError
from ondine_core.limits import AdaptiveConcurrency, AdmissionQueue
from ondine_core.other_runs import OtherRuns
from ondine_core.outcomes import Outcomes
from ondine_core.policy import Clock, Means, Policy
from ondine_core.ports import AnswerStore
from ondine_core.preparation import Treatment
from ondine_core.question import Question, address
from ondine_core.report import Progress, Report
from ondine_core.stages import dedup, render, restorer
from ondine_core.tally import Tally
from ondine_core.telemetry.feed import Feed
from ondine_core.values import Answer, Failure, Key, Outcome, Skipped

__all__ = ["look_up", "run"]

_KEYS_A_LOOK_UP = 10_000


async def run(  # noqa: PLR0913  (named at every call)
    question: Question,
    columns: Mapping[str, Sequence[Any]],
    rows: int,
    means: Means,
    *,
    policy: Policy,
    origin: Origin,
    partial: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    clock: Clock | None = None,
    feed: Feed | None = None,
) -> Report:
    """Answer every row, or say why not.

    Args:
        question: What is asked, of whom, and what an answer looks like.
        columns: The columns the prompt reads, each of length `rows`.
        rows: How many rows there are.
        means: Model, store, price, limiter and purse.
        policy: How hard to try.
        origin: For whom, in the books.
        partial: When the model fails for good, report so, with a failure for each row that it left unanswered, instead
            of raising.
        on_progress: Told after every batch, on the event loop; it must return quickly.
        clock: Time and chance.
        feed: Hears what becomes of batches and calls.

    Raises:
        FatalError: No request can succeed; calls in flight were awaited and their answers kept.
        BudgetExhaustedError: The cap on cost is reached; answers so far are kept.
        TransientError: The provider stayed unreachable; answers so far are kept.
        StoreError: Answers cannot be kept.
    """
    clock, feed = clock or Clock(), feed or Feed()
    started = clock.elapsed()
    treatment, key_of = Treatment(), address(question)
    texts = render(question.prompt, columns, range(rows), treatment.note, policy.on_missing)
    keys, first = dedup(texts, key_of)
    copies = {key: count for key, count in Counter(key for key in keys if isinstance(key, bytes)).items() if count > 1}
    tally = Tally(
        rows, copies, CostTracker(means.price, means.max_output_tokens), lambda: clock.elapsed() - started, on_progress
    )
    for key in keys:
        if isinstance(key, Failure):
            tally.unaskable()
        elif isinstance(key, Skipped):
            tally.skip()
    feed.rows_failed((key, 1) for key in keys if isinstance(key, Failure))
    others = OtherRuns(
        means.store,
        key_of(""),
        lambda some: look_up(means.store, policy, some, question),
        clock.elapsed,
        question.model.timeout_s,
        means.lease.name if means.lease else "",
        origin,
        write_definition(question),
    )
    named = means.limiter.requests_per_s if means.limiter else None
    limits = AdaptiveConcurrency(most_in_flight(means, policy), clock.elapsed(), named)
    caller = Caller(
        model=question.model.model,
        origin=origin,
        means=means,
        policy=policy,
        tracker=tally.tracker,
        gate=AdmissionQueue(limits, clock.elapsed, clock.sleep),
        clock=clock,
        others=others,
    )
    asker, calibrated, stopped_by = Asker(question, means, policy, caller, clock, feed, others), None, None
    async with others.joined():
        async for found in look_up(means.store, policy, first, question):
            tally.reuse(found)
            feed.rows_failed((known, tally.rows_of(key)) for key, known in found.items() if isinstance(known, Failure))
        try:
            if tally.rows_left:
                tally.tell()
                caller.unseen = set(await means.store.get_unseen())
                calibrated = await _calibrate(asker, question, columns, first, policy, tally, clock)
                size = calibrated.batch_size if calibrated else policy.batch_size
                pending = ((key, index) for key, index in first.items() if key not in tally.outcomes)
                await asker.ask_all(columns, pending, tally, batch_size=size)
        except (FatalError, TransientError) as error:
            if not partial:
                raise
            stopped_by = error
            failure = Failure("unreachable", str(error))
            tally.settle([(key, failure) for key in first if key not in tally.outcomes])
        finally:
            tally.tell()
    names = tuple(column.name for column in question.schema.columns)
    return Report(
        Outcomes(keys, tally.outcomes, restorer(question.prompt, columns)),
        names,
        tally.progress,
        len(first),
        sorted(tally.latencies_s),
        tuple(limits.history),
        await means.store.audit(origin.run),
        calibrated,
        stopped_by,
        treatment if question.prompt.preparation else None,
        {column.name: column.json_schema for column in question.schema.columns},
    )


async def look_up(
    store: AnswerStore, policy: Policy, keys: Iterable[Key], question: Question
) -> AsyncIterator[Mapping[Key, Outcome]]:
    """What the store knows of `keys` that `policy` takes, some at a time; not what lacks a column of `question`."""
    unique = iter(keys)
    names = {column.name for column in question.schema.columns}
    while policy.reuse_since < inf and (some := list(islice(unique, _KEYS_A_LOOK_UP))):
        found = await store.get(some)
        yield {
            key: answer
            for key, answer in found.items()
            if answer.answered_at >= policy.reuse_since and answer.values.keys() == names
        }
        if policy.retry_failed_rows is not True and not policy.reuse_since:
            failures = await store.get_failures([key for key in some if key not in found])
            yield {key: failure for key, failure in failures.items() if not policy.retries(failure.reason)}


async def _calibrate(  # noqa: PLR0913, PLR0917  (one caller)
    asker: Asker,
    question: Question,
    columns: Mapping[str, Sequence[Any]],
    first: Mapping[Key, int],
    policy: Policy,
    tally: Tally,
    clock: Clock,
) -> Calibrated | None:
    """Compare answers of rows asked alone, which are kept, with answers of the same rows asked together."""
    plan, size = policy.calibration, policy.batch_size
    if plan is None or size == "auto":
        return None

    async def ask(keys: Sequence[Key], batch_size: int) -> Mapping[Key, Values]:
        alone = batch_size == 1
        scratch = tally if alone else Tally(len(keys), {}, tally.tracker, lambda: 0.0, lambda _: None)
        rows = ((key, first[key]) for key in keys)
        await asker.ask_all(columns, rows, scratch, batch_size=batch_size, as_stage="calibrate", keep=alone)
        outcomes = zip(keys, Outcomes(keys, scratch.outcomes), strict=True)
        return {key: outcome.values if isinstance(outcome, Answer) else None for key, outcome in outcomes}

    unanswered = [key for key in first if key not in tally.outcomes]
    found = await calibrate(ask, unanswered, size, columns=question.schema.columns, plan=plan, rng=clock.rng)
    if found.stop:
        raise ConfigError(str(found.complaint))
    return found
