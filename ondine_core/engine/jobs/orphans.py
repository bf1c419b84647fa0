"""Reads batch jobs for which no run waits any more, because prompt, model or rows have changed since.

This records their cost, releases their budget reservations, and stores their answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ondine_core.batching.prompt_window import find_window
from ondine_core.engine.cost_tracker import CostTracker
from ondine_core.engine.definition import read_definition
from ondine_core.engine.jobs.context import BatchQueue, JobContext
from ondine_core.engine.jobs.polling import ask_status
from ondine_core.engine.jobs.reading import read_job
from ondine_core.engine.jobs.submitting import recover
from ondine_core.engine.run_context import RunContext
from ondine_core.engine.run_state import RunState
from ondine_core.errors import ConfigError, ProviderError, TransientError
from ondine_core.providers.pricing import find_unpriced_part
from ondine_core.providers.settings import another_model
from ondine_core.providers.tiers import find_tier_prices
from ondine_core.store import Store, job_tables
from ondine_core.store.database import Database
from ondine_core.store.origins import find_definition
from ondine_core.types.job_record import JobRecord

_MAX_S = 60.0
"""Maximum time for which a run reads such jobs; the next run reads the others."""


async def read_orphans(run: RunContext) -> None:
    """Read the jobs of the asset that have ended and for which no run waits.

    Without an asset, nothing is read: the store does not record waits then, so another program may wait for a job.
    """
    store = run.runtime.store
    if not isinstance(store, Store) or run.runtime.connect_jobs is None or not run.origin.asset:
        return
    orphans = await store.read(partial(_find_orphans, run=run))
    until = run.clock.elapsed() + _MAX_S
    for model in dict.fromkeys(record.model for record in orphans):
        reading = _without_rows(run, model)
        try:
            api = run.runtime.connect_jobs(reading.task.model)
        except ConfigError:  # the model has no batch API any more, as with another `base_url`
            continue
        context = JobContext(reading, api, store, lambda _: iter(()), BatchQueue(iter(()), 0, lambda _: {}))
        is_own = model == run.task.model.model
        jobs = [record for record in orphans if record.model == model and (is_own or record.account == api.account)]
        try:
            await _read_all(context, jobs, until)
        finally:
            await api.aclose()
        if not is_own:
            run.run_state.tracker.include(reading.run_state.tracker)


async def _read_all(context: JobContext, jobs: Sequence[JobRecord], until: float) -> None:
    run = context.run
    for record in jobs:
        if run.clock.elapsed() >= until:
            return
        try:
            await _read(context, record)
        except TransientError:
            continue
        except ProviderError as error:
            run.runtime.on_warning(
                f"The batch job {record.marker}, for which no run waits any more, cannot be read: {error} "
                f"To give it up: `python -m ondine_core.store STORE jobs forget {record.marker}`."
            )


def _without_rows(run: RunContext, model: str) -> RunContext:
    """A copy of `run` without rows, since the jobs have none of the table, and with `model` and its prices."""
    run = replace(run, first={})
    if model == run.task.model.model:
        return run
    spec = another_model(run.task.model, model)
    task = replace(run.task, model=spec)
    emitter = run.runtime.emitter
    endpoint = replace(emitter.endpoint, model=model.partition("/")[2])
    tracker = CostTracker(None, tier_prices={} if find_unpriced_part(spec) else find_tier_prices(spec))
    return replace(
        run,
        task=task,
        runtime=replace(run.runtime, emitter=replace(emitter, endpoint=endpoint)),
        interpreter=replace(run.interpreter, task=task, window=find_window(spec)),
        run_state=RunState(0, {}, tracker, lambda: 0.0, lambda _: None),
    )


def _find_orphans(database: Database, run: RunContext) -> list[JobRecord]:
    own = run.origin
    waited_for = set(run.others.in_jobs.values())
    for wait in job_tables.read_waits(database):
        if (wait.origin.asset, wait.origin.partition) != (own.asset, own.partition):
            waited_for.update(wait.jobs)
    return [
        record
        for record in job_tables.read_jobs(database)
        if record.origin.asset == own.asset
        and record.model.partition("/")[0] == run.task.model.dialect
        and record.job not in waited_for
    ]


async def _read(context: JobContext, record: JobRecord) -> None:
    if record.job_id is None:
        await recover(context, record)
        return
    status = await ask_status(context.api, context.store, record, context.run.clock.now())
    if status.has_ended:
        parses = await context.store.read(partial(_has_same_output, run=context.run, record=record))
        await read_job(context, record, status, parses=parses)


def _has_same_output(database: Database, run: RunContext, record: JobRecord) -> bool:
    """Whether the task of a job declares the same output as the run, so that its answers can be parsed."""
    if record.task == run.others.own.task:
        return True
    definition = find_definition(database, record.task)
    if definition is None:
        return False
    try:
        parts = read_definition(definition).parts
    except ConfigError:
        return False
    return parts is not None and parts[1] == run.task.schema.identity
