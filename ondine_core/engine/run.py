"""Runs a task over a table: look up known answers, ask the rest, store every answer, report on all rows."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from itertools import islice
from math import inf
from typing import Any

from ondine_core.batching.agreement import Values
from ondine_core.batching.calibration import Calibrated, calibrate, sample
from ondine_core.engine.call import Caller
from ondine_core.engine.cost_tracker import CostTracker
from ondine_core.engine.definition import write_definition
from ondine_core.engine.jobs.asking import Work, ask_pending, leave_to_jobs
from ondine_core.engine.jobs.submitting import forget_abandoned
from ondine_core.engine.other_runs import OtherRuns
from ondine_core.engine.outcomes import Outcomes
from ondine_core.engine.policy import Policy
from ondine_core.engine.report import Report
from ondine_core.engine.run_state import RunState
from ondine_core.engine.runtime import Runtime
from ondine_core.engine.steps import dedup, render, restorer
from ondine_core.engine.workers import Asker, max_in_flight
from ondine_core.errors import ConfigError, FatalError, TransientError
from ondine_core.limits import AdaptiveConcurrency, AdmissionQueue
from ondine_core.preprocessing.media.fetching import fetch_cells
from ondine_core.preprocessing.preprocess import Prepared, PreprocessStats
from ondine_core.prompts.task import Task, cache_key
from ondine_core.providers.prompt_cache import find_cache_rule
from ondine_core.telemetry.emitter import EventEmitter
from ondine_core.types.clock import Clock
from ondine_core.types.ledger import Origin
from ondine_core.types.progress import Progress
from ondine_core.types.protocols import AnswerStore
from ondine_core.types.values import Answer, Failure, Key, Outcome, Skipped

__all__ = ["find_prompts", "look_up", "run"]

_KEYS_A_LOOK_UP = 10_000


async def run(  # noqa: PLR0913  (named at every call)
    task: Task,
    columns: Mapping[str, Sequence[Any]],
    rows: int,
    runtime: Runtime,
    *,
    policy: Policy,
    origin: Origin,
    partial: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    clock: Clock | None = None,
    emitter: EventEmitter | None = None,
) -> Report:
    """Answer every row, or say why not.

    Args:
        task: What is asked, of whom, and what an answer looks like.
        columns: The columns the prompt reads, each of length `rows`.
        rows: How many rows there are.
        runtime: Model, store, price, limiter and budgets.
        policy: How hard to try.
        origin: Run, asset and partition, for the ledger.
        partial: When the model fails for good, report so, with a failure for each row that it left unanswered, instead
            of raising.
        on_progress: Told after every batch, on the event loop; it must return quickly.
        clock: Time and chance.
        emitter: Emits the events of batches and calls.

    Raises:
        FatalError: No request can succeed; calls in flight were awaited and their answers kept.
        BudgetExhaustedError: The cap on cost is reached; answers so far are kept.
        TransientError: The provider stayed unreachable; answers so far are kept.
        StoreError: Answers cannot be kept.
    """
    clock, emitter = clock or Clock(), emitter or EventEmitter()
    started, started_at = clock.elapsed(), clock.now()
    preprocess_stats, key_of = PreprocessStats(), cache_key(task)
    keys, first = await find_prompts(task, columns, rows, policy, preprocess_stats.note)
    copies = {key: count for key, count in Counter(key for key in keys if isinstance(key, bytes)).items() if count > 1}
    run_state = RunState(
        rows,
        copies,
        CostTracker(runtime.price, runtime.max_output_tokens, runtime.tier_prices, runtime.media_tokens),
        lambda: clock.elapsed() - started,
        on_progress,
    )
    for key in keys:
        if isinstance(key, Failure):
            run_state.unaskable()
        elif isinstance(key, Skipped):
            run_state.skip()
    emitter.rows_failed((key, 1) for key in keys if isinstance(key, Failure))
    others = OtherRuns(
        runtime.store,
        key_of(""),
        lambda some: look_up(runtime.store, policy, some, task),
        clock.elapsed,
        task.model.max_call_s,
        runtime.lease.name if runtime.lease else "",
        origin,
        write_definition(task),
    )
    named = runtime.limiter.requests_per_s if runtime.limiter else None
    limits = AdaptiveConcurrency(max_in_flight(runtime, policy), clock.elapsed(), named)
    caller = Caller(
        model=task.model.model,
        origin=origin,
        runtime=runtime,
        policy=policy,
        tracker=run_state.tracker,
        admission=AdmissionQueue(limits, clock.elapsed, clock.sleep),
        clock=clock,
        others=others,
        tier="standard" if task.model.tier == "batch" else task.model.tier,
        cache_life_s=rule.life_s if (rule := find_cache_rule(task.model)) else None,
    )
    asker = Asker(task, runtime, policy, caller, clock, emitter, others)
    calibrated = None
    stopped_by = None
    await forget_abandoned(runtime.store, clock.now())
    async with others.joined():
        work = Work(task, columns, first, runtime, policy, clock, origin, emitter, others, run_state, started_at)
        await leave_to_jobs(work)
        async for known in look_up(runtime.store, policy, first, task):
            # What failed before and is in a batch job now has not failed.
            found = {
                key: outcome
                for key, outcome in known.items()
                if isinstance(outcome, Answer) or key not in others.in_jobs
            }
            run_state.reuse(found)
            emitter.rows_failed(
                (outcome, run_state.rows_of(key)) for key, outcome in found.items() if isinstance(outcome, Failure)
            )
        try:
            if run_state.rows_left:
                run_state.tell()
                caller.unseen = work.unseen
                caller.unseen |= await runtime.store.get_unseen()
                calibrated = await _calibrate(work, asker)
                await ask_pending(work, asker, calibrated.batch_size if calibrated else policy.batch_size)
        except (FatalError, TransientError) as error:
            if not partial:
                raise
            stopped_by = error
            failure = Failure("unreachable", str(error))
            run_state.settle([(key, failure) for key in first if key not in run_state.outcomes])
        finally:
            run_state.tell()
    names = tuple(column.name for column in task.schema.columns)
    return Report(
        Outcomes(keys, run_state.outcomes, restorer(task.prompt, columns)),
        names,
        run_state.progress,
        len(first),
        sorted(run_state.latencies_s),
        tuple(limits.history),
        await runtime.store.audit(origin.run),
        calibrated,
        stopped_by,
        preprocess_stats if task.prompt.preparation else None,
        {column.name: column.json_schema for column in task.schema.columns},
    )


async def find_prompts(
    task: Task,
    columns: Mapping[str, Sequence[Any]],
    rows: int,
    policy: Policy,
    note: Callable[[Prepared], None] = lambda _: None,
) -> tuple[list[Key | Failure | Skipped], dict[Key, int]]:
    """Each row's key (or failure, or why it is skipped), and the first row that asks each unique prompt."""
    texts = render(task.prompt, columns, range(rows), note, policy.on_missing)
    if task.prompt.reader is None:
        return dedup(texts, cache_key(task))
    await fetch_cells(task.prompt.reader, [columns[name] for name in task.prompt.media_columns])
    # Files are read, and that may take long.
    return await asyncio.to_thread(dedup, texts, cache_key(task))


async def look_up(
    store: AnswerStore, policy: Policy, keys: Iterable[Key], task: Task
) -> AsyncIterator[Mapping[Key, Outcome]]:
    """What the store knows of `keys` that `policy` takes, some at a time; not what lacks a column of `task`."""
    unique = iter(keys)
    names = {column.name for column in task.schema.columns}
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


async def _calibrate(work: Work, asker: Asker) -> Calibrated | None:
    """Compare answers of rows asked alone, which are kept, with answers of the same rows asked together."""
    plan, size = work.policy.calibration, work.policy.batch_size
    if plan is None or size == "auto":
        return None
    first, run_state = work.first, work.run_state

    async def ask(keys: Sequence[Key], batch_size: int) -> Mapping[Key, Values]:
        alone = batch_size == 1
        scratch = run_state if alone else RunState(len(keys), {}, run_state.tracker, lambda: 0.0, lambda _: None)
        rows = ((key, first[key]) for key in keys)
        await asker.ask_all(work.columns, rows, scratch, batch_size=batch_size, as_stage="calibrate", keep=alone)
        outcomes = zip(keys, Outcomes(keys, scratch.outcomes), strict=True)
        return {key: outcome.values if isinstance(outcome, Answer) else None for key, outcome in outcomes}

    unanswered = [key for key in first if key not in run_state.outcomes and key not in work.others.in_jobs]
    chosen = sample(unanswered, max(plan.rows, size), work.clock.rng)
    found = await calibrate(ask, chosen, size, work.task.schema.columns, plan)
    if found.stop:
        raise ConfigError(str(found.complaint))
    return found
