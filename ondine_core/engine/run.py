"""Runs a task over a table: look up known answers, ask the rest, store every answer, report on all rows."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from math import inf
from os import urandom
from typing import Any

from ondine_core.batching.agreement import Values
from ondine_core.batching.calibration import CalibrationResult, calibrate, sample
from ondine_core.batching.prompt_window import find_window
from ondine_core.batching.strategy import report_first_error
from ondine_core.engine.cost_tracker import CostTracker
from ondine_core.engine.definition import write_definition
from ondine_core.engine.interpreting import Interpreter
from ondine_core.engine.jobs.asking import ask_pending, leave_to_jobs
from ondine_core.engine.jobs.orphans import read_orphans
from ondine_core.engine.jobs.submitting import forget_abandoned
from ondine_core.engine.options import Options
from ondine_core.engine.other_runs import OtherRuns
from ondine_core.engine.outcomes import Outcomes
from ondine_core.engine.policy import Policy
from ondine_core.engine.report import Report
from ondine_core.engine.run_context import RunContext
from ondine_core.engine.run_state import RunState
from ondine_core.engine.runtime import Runtime
from ondine_core.engine.steps import dedup, make_restorer, render
from ondine_core.engine.workers import Asker, max_in_flight
from ondine_core.errors import ConfigError, FatalError, OndineError, TransientError
from ondine_core.limits import AdaptiveConcurrency, AdmissionQueue
from ondine_core.preprocessing.media.fetching import fetch_cells
from ondine_core.preprocessing.preprocess import PreprocessedRow, PreprocessStats
from ondine_core.prompts.task import Task, cache_key
from ondine_core.types.ledger import RunStarted
from ondine_core.types.processes import this_process
from ondine_core.types.protocols import AnswerStore
from ondine_core.types.values import Answer, Failure, Key, Outcome, RowKey, Skipped

_KEYS_A_LOOK_UP = 10_000


async def run(
    task: Task, columns: Mapping[str, Sequence[Any]], runtime: Runtime, options: Options, *, may_end_early: bool = False
) -> Report:
    """Answer every row, or report why it has no answer.

    With `may_end_early`, a model that fails for good raises no error; each row that it left unanswered has a failure in
    the report.

    Raises:
        FatalError: No request can succeed; calls in flight were awaited and their answers are stored.
        BudgetExhaustedError: The cap on cost is reached; answers so far are stored.
        TransientError: The provider stayed unreachable; answers so far are stored.
        StoreError: Answers cannot be stored.
    """
    clock = options.clock
    store = runtime.store
    started = clock.elapsed()
    started_at = clock.now()
    preprocess_stats = PreprocessStats()
    policy = replace(options.policy, strategy=report_first_error(options.policy.strategy, runtime.on_warning))
    rows, first = await find_prompts(task, columns, options.policy, preprocess_stats.note)
    runtime.emitter.rows_failed((row, 1) for row in rows if isinstance(row, Failure))
    run_state = _new_state(rows, runtime, options, lambda: clock.elapsed() - started)
    context = RunContext(
        task=task,
        columns=columns,
        first=first,
        runtime=runtime,
        policy=policy,
        origin=options.origin,
        budget_run=options.budget_run or options.origin.run,
        clock=clock,
        others=_other_runs(task, runtime, options),
        interpreter=Interpreter(
            task, options.policy, options.policy.context_window or find_window(task.model), clock.now
        ),
        run_state=run_state,
        started_at=started_at,
    )
    named_per_s = runtime.limiter.requests_per_s if runtime.limiter else None
    limits = AdaptiveConcurrency(max_in_flight(runtime, options.policy), clock.elapsed(), named_per_s)
    asker = Asker(context, AdmissionQueue(limits, clock.elapsed, clock.sleep))
    calibrated: CalibrationResult | None = None
    stopped_by: OndineError | None = None
    await forget_abandoned(store, clock.now())
    async with context.others.joined():
        await _reuse_known(context)
        await read_orphans(context)
        try:
            if run_state.rows_left:
                run_state.report_progress()
                context.unseen.update(await store.get_unseen())
                calibrated = await _calibrate(context, asker)
                batch_size = calibrated.batch_size if calibrated else options.policy.batch_size
                await ask_pending(context, asker, batch_size)
        except (FatalError, TransientError) as error:
            if not may_end_early:
                raise
            stopped_by = error
            failure = Failure("unreachable", str(error))
            run_state.settle([(key, failure) for key in first if key not in run_state.outcomes])
        finally:
            run_state.report_progress()
    return Report(
        outcomes=Outcomes(rows, run_state.outcomes, make_restorer(task.prompt, columns)),
        columns=task.schema.names,
        progress=run_state.progress,
        prompts=len(first),
        latencies_s=sorted(run_state.latencies_s),
        concurrency=tuple(limits.history),
        audit=await store.audit(options.origin.run, options.origin.asset),
        calibrated=calibrated,
        stopped_by=stopped_by,
        preprocess_stats=preprocess_stats if task.prompt.preparation else None,
        json_schemas={column.name: column.json_schema for column in task.schema.columns},
    )


def _new_state(rows: Sequence[RowKey], runtime: Runtime, options: Options, elapsed_s: Callable[[], float]) -> RunState:
    """The state of a run at its start: rows that cannot be asked and skipped rows are done."""
    counts = Counter(row for row in rows if isinstance(row, bytes))
    copies = {key: count for key, count in counts.items() if count > 1}
    tracker = CostTracker(runtime.price, runtime.max_output_tokens, runtime.tier_prices, runtime.media_tokens)
    return RunState(
        len(rows),
        copies,
        tracker,
        elapsed_s,
        options.on_progress,
        unaskable=sum(isinstance(row, Failure) for row in rows),
        skipped=sum(isinstance(row, Skipped) for row in rows),
    )


def _other_runs(task: Task, runtime: Runtime, options: Options) -> OtherRuns:
    lease = runtime.lease.key if runtime.lease else ""
    own = RunStarted(urandom(8), cache_key(task)(""), this_process(), lease, options.origin, write_definition(task))
    find_known = partial(look_up, runtime.store, options.policy, task)
    return OtherRuns(runtime.store, own, find_known, options.clock.elapsed, task.model.max_call_s)


async def _reuse_known(context: RunContext) -> None:
    """Reuse the outcomes in the store, except failures of prompts that a batch job has in flight now."""
    await leave_to_jobs(context)
    in_jobs = context.others.in_jobs
    async for known in look_up(context.runtime.store, context.policy, context.task, context.first):
        reused = {key: outcome for key, outcome in known.items() if isinstance(outcome, Answer) or key not in in_jobs}
        for key in reused:
            in_jobs.pop(key, None)
        context.reuse(reused)


async def find_prompts(
    task: Task,
    columns: Mapping[str, Sequence[Any]],
    policy: Policy,
    note: Callable[[PreprocessedRow], None] = lambda _: None,
) -> tuple[list[RowKey], dict[Key, int]]:
    """Each row's key (or failure, or why it is skipped), and the first row that asks each unique prompt."""
    rows = len(next(iter(columns.values())))
    texts = render(task.prompt, columns, range(rows), note, policy.on_missing)
    if task.prompt.reader is None:
        return dedup(texts, cache_key(task))
    await fetch_cells(task.prompt.reader, [columns[name] for name in task.prompt.media_columns])
    # In a thread, since files are read.
    return await asyncio.to_thread(dedup, texts, cache_key(task))


async def look_up(
    store: AnswerStore, policy: Policy, task: Task, keys: Iterable[Key]
) -> AsyncIterator[Mapping[Key, Outcome]]:
    """The outcomes of `keys` in the store that `policy` reuses, in groups; answers must have the columns of `task`."""
    if policy.reuse_since == inf:
        return
    remaining = iter(keys)
    names = set(task.schema.names)
    while group := list(islice(remaining, _KEYS_A_LOOK_UP)):
        answers = await store.get(group)
        yield {
            key: answer
            for key, answer in answers.items()
            if answer.answered_at >= policy.reuse_since and answer.values.keys() == names
        }
        if policy.retry_failed_rows is not True and not policy.reuse_since:
            failures = await store.get_failures([key for key in group if key not in answers])
            yield {key: failure for key, failure in failures.items() if not policy.retries(failure.reason)}


async def _calibrate(context: RunContext, asker: Asker) -> CalibrationResult | None:
    """Compare answers of rows asked alone, which are stored, with answers of the same rows asked together.

    Raises:
        ConfigError: They differ too much, and the plan stops the run then.
    """
    plan = context.policy.calibration
    size = context.policy.batch_size
    if plan is None or size == "auto":
        return None
    run_state = context.run_state

    async def ask(keys: Sequence[Key], batch_size: int) -> Mapping[Key, Values]:
        scratch = None
        if batch_size > 1:
            scratch = RunState(len(keys), {}, run_state.tracker, lambda: 0.0, lambda _: None)
        rows = ((key, context.first[key]) for key in keys)
        await asker.ask_all(rows, batch_size, reason="calibrate", scratch=scratch)
        outcomes = zip(keys, Outcomes(keys, (scratch or run_state).outcomes), strict=True)
        return {key: outcome.values if isinstance(outcome, Answer) else None for key, outcome in outcomes}

    unanswered = [key for key, _ in context.pending()]
    chosen = sample(unanswered, max(plan.rows, size), context.clock.rng)
    result = await calibrate(ask, chosen, size, context.task.schema.columns, plan)
    if result.stop:
        raise ConfigError(str(result.complaint))
    return result
