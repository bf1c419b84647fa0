"""Asks a provider for the status of jobs, and records it in the store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import time
from typing import Any

from ondine_core.errors import JobLostError, TransientError
from ondine_core.providers.job_api import JobApi, JobStatus
from ondine_core.store import Store, job_tables
from ondine_core.types.job_record import JobRecord


async def ask_status(api: JobApi, store: Store, record: JobRecord, now: float) -> JobStatus:
    """Ask the provider for the status of a job whose id is known, and record it in the store.

    Raises:
        JobLostError: The account has no such job.
        ProviderError: The provider cannot be asked.
    """
    status = await api.get_status(record.job_id or "")
    is_known = (status.state, status.done) == (record.status, record.done)
    if is_known and status.has_ended == (record.state == "ended"):
        return status

    changes: dict[str, Any] = {"status": status.state, "done": status.done}
    if status.has_ended:
        changes["state"] = "ended"
    await store.change(
        partial(job_tables.move, job=record.job, states=("submitted", "ended"), changed_at=now, **changes)
    )
    return status


async def poll_jobs(api: JobApi, store: Store, jobs: Sequence[bytes]) -> bool:
    """Whether a run is needed: each of the jobs has ended, is lost or has no id, or one has passed its deadline.

    Raises:
        FatalError: The provider refuses this key.
    """
    now = time()
    records = await store.read(partial(job_tables.read_jobs, jobs=list(jobs)))
    if any(record.answer_by is not None and record.answer_by <= now for record in records):
        return True
    ready = True
    for record in records:
        if record.state != "submitted":
            continue
        try:
            status = await ask_status(api, store, record, now)
        except TransientError:
            ready = False
        except JobLostError:
            continue
        else:
            ready = ready and status.has_ended
    return ready
