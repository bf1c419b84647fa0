"""Submits a job exactly once, and finds a job whose id was not received.

The store records the state "creating" before the request that creates a job is sent, and the request carries the job's
marker. So a job whose id was never received, as after a kill, is looked up by its marker. It counts as never created
only when the request cannot arrive any more.
"""

from __future__ import annotations

import asyncio
from functools import partial

from ondine_core.engine.jobs.building import NewRequests, discard
from ondine_core.engine.jobs.context import JobContext
from ondine_core.errors import ProviderError, StoreError, TransientError
from ondine_core.limits.retry import retry
from ondine_core.providers.job_api import NewJob
from ondine_core.store import Store, job_tables
from ondine_core.types.job_record import JobRecord, JobState
from ondine_core.types.processes import Process, has_ended
from ondine_core.types.protocols import AnswerStore

_ABANDONED_S = 3600.0
"""Time after which a job that is still being prepared counts as abandoned, if its process cannot be seen."""


async def submit(context: JobContext, new: NewRequests) -> None:
    """Create a job at the provider; if it is unknown whether it was created, `recover` finds out later.

    If it was not created, it is removed from the store, and its batches are queued again.

    Raises:
        TransientError: It was not created, and may be later.
        ProviderError: It cannot be created.
        StoreError: Its state cannot be stored.
    """
    run = context.run
    job = new.record.job
    new_job = NewJob(new.record.marker, new.file, new.count)

    async def create(_attempt: int) -> str | None:
        try:
            return await context.api.submit(new_job, partial(_mark_creating, context, new))
        except TransientError as error:
            if _may_exist(error, await _read_state(context, job)):
                return None
            raise

    try:
        job_id = await retry(create, run.policy.retry, run.clock.sleep, run.clock.rng)
    except asyncio.CancelledError:
        if await asyncio.shield(_read_state(context, job)) == "preparing":
            await asyncio.shield(discard(context, job))
        raise
    except ProviderError:
        await discard(context, job)
        raise
    if job_id is not None:
        await _note_id(context, job, job_id)


def _may_exist(error: TransientError, state: JobState | None) -> bool:
    """Whether a job may have been created although the request for it failed."""
    return state == "creating" and (error.cost_unknown or error.kind != "limited") and error.cause != "connection"


async def _mark_creating(context: JobContext, new: NewRequests) -> None:
    mark_creating = partial(
        job_tables.move,
        job=new.record.job,
        states=("preparing", "creating"),
        changed_at=context.run.clock.now(),
        state="creating",
        requests=new.count,
        at_most_usd=new.at_most_usd,
    )
    if not await context.store.change(mark_creating):
        raise StoreError("Another run took this process for dead and gave up its batch job; run again.")


async def _note_id(context: JobContext, job: bytes, job_id: str) -> None:
    now = context.run.clock.now()
    note = partial(
        job_tables.move, job=job, states=("creating", "submitted"), changed_at=now, state="submitted", job_id=job_id
    )
    await context.store.change(note)


def _is_abandoned(record: JobRecord, now: float) -> bool:
    """Whether the process that was preparing a job has ended, or seems to have."""
    return has_ended(Process(*record.owner)) or now - record.changed_at > _ABANDONED_S


async def forget_abandoned(store: AnswerStore, now: float) -> None:
    """Remove jobs that were being prepared when their process was killed, and their budget reservations."""
    if not isinstance(store, Store):
        return
    for record in await store.read(job_tables.read_jobs):
        if record.state == "preparing" and _is_abandoned(record, now):
            await store.change(partial(job_tables.discard, job=record.job, states=("preparing",)), record.cells)


async def recover(context: JobContext, record: JobRecord) -> None:
    """Look up a job without an id by its marker, and remove it if it was never created.

    If this cannot be decided yet, nothing changes.

    Raises:
        ProviderError: The provider cannot be asked.
    """
    now = context.run.clock.now()
    if record.state == "preparing":
        if _is_abandoned(record, now):
            await discard(context, record.job)
        return
    try:
        job_id = await context.api.find(record.marker, record.changed_at, record.requests)
    except TransientError:
        return
    if job_id is not None:
        await _note_id(context, record.job, job_id)
    elif now - record.changed_at > context.api.create_timeout_s:
        await discard(context, record.job)


async def _read_state(context: JobContext, job: bytes) -> JobState | None:
    records = await context.store.read(partial(job_tables.read_jobs, jobs=[job], is_open=False))
    return records[0].state if records else None
