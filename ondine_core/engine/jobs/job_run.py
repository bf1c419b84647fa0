"""A run by batch jobs: submits jobs, waits for them, reads them, and returns the batches left for live calls.

Every step is stored before the next one begins. So if the time to wait is over, or the run is killed, a later run
continues where this one ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from ondine_core.engine.jobs.building import NewRequests, build, discard
from ondine_core.engine.jobs.context import JobContext, QueuedBatch
from ondine_core.engine.jobs.polling import ask_status
from ondine_core.engine.jobs.reading import read_job, write_off
from ondine_core.engine.jobs.submitting import recover, submit
from ondine_core.engine.other_runs import LookupResult
from ondine_core.engine.run_context import RunContext
from ondine_core.errors import (
    FatalError,
    JobLostError,
    JobsUnderWayError,
    ProviderError,
    RefusedError,
    TransientError,
)
from ondine_core.providers.job_api import JobStatus
from ondine_core.store import job_tables
from ondine_core.store.budget_state import usd_of
from ondine_core.types.job_record import JobRecord, JobWait
from ondine_core.types.values import Batch

_FIRST_PAUSE_S, _MAX_PAUSE_S = 1.0, 60.0
"""The first and the longest pause between two requests for the status of jobs."""
_PAUSE_FACTOR = 1.5
_CANCEL_S = 1800.0
"""Maximum time to wait for a cancelled job; OpenAI documents ten minutes."""
_LOST_S = 120.0
"""Time for which the provider must not know a job before it is given up, since a new job is not visible at once."""
_FULL_PAUSE_S = 60.0
"""Pause before another job is submitted when the account's limit on jobs is reached."""
_LOOK_UP_AT_ONCE = 1000


@dataclass(slots=True)
class JobRun:
    """Asks the prompts of one table by batch jobs.

    Unless `submits`, it only reads jobs that have prompts of the table in flight.
    """

    context: JobContext
    submits: bool
    _max_requests: int = 2**31
    _full_until: float = 0.0
    _pause_s: float = _FIRST_PAUSE_S
    _lost_since: dict[bytes, float] = field(default_factory=dict)
    _cancelled_at: float | None = None

    @property
    def _run(self) -> RunContext:
        return self.context.run

    async def ask(self) -> Iterator[Batch]:
        """Ask all queued batches; returns the batches that are left for live calls.

        Raises:
            JobsUnderWayError: Jobs have not ended within `Policy.batch_wait_s`.
            BudgetExhaustedError: The next request does not fit into the budgets.
            ProviderError: No job can be submitted or read; all answers so far are stored.
            StoreError: The store failed.
        """
        wait_until = self._run.clock.elapsed() + self._run.policy.batch_wait_s
        try:
            with TemporaryDirectory(prefix="ondine-jobs-") as folder:
                while True:
                    others = self._run.others
                    if others.is_due():
                        await self._take(await others.look_again())
                    self._check_deadline(self._run.policy.answer_by)
                    await self._submit_jobs(Path(folder))
                    jobs = await self._find_jobs()
                    if not jobs and not self._has_enough:
                        return self.context.queue.drain()
                    if await self._advance(jobs):
                        self._pause_s = _FIRST_PAUSE_S
                    else:
                        await self._wait(jobs, wait_until)
        except asyncio.CancelledError:
            if self._run.policy.cancel_on_terminate:
                await asyncio.shield(self._cancel(await self._find_jobs()))
            raise

    # -- submitting ------------------------------------------------------------------------------------------------

    @property
    def _has_enough(self) -> bool:
        """Whether enough rows are queued for a job, and jobs are still submitted."""
        rows = self.context.queue.rows
        return self.submits and self._cancelled_at is None and rows >= self._run.policy.batch_min_rows

    async def _submit_jobs(self, folder: Path) -> None:
        """Submit jobs until too few rows are queued for another one, or a budget or the account is full."""
        while self._has_enough and self._run.clock.elapsed() >= self._full_until:
            new = await build(self.context, folder, self._max_requests)
            try:
                if new.count:
                    await self._submit(new)
                else:
                    await discard(self.context, new.record.job)
            finally:
                new.file.unlink(missing_ok=True)
            budgets = self._run.runtime.budgets
            if new.lacks_units is None or budgets is None:
                continue
            if self._run.others.in_jobs:  # these jobs will give back a part of their reservations
                return
            held = partial(job_tables.is_held_by_jobs, cells=budgets.cells, units=new.lacks_units)
            if await self.context.store.change(held, tuple(budgets.cells)):
                self._full_until = self._run.clock.elapsed() + _FULL_PAUSE_S
                return
            # Calls of other runs hold the rest: wait until they give it back, or the budget is exhausted.
            await budgets.settle(await budgets.hold(usd_of(new.lacks_units)), usd_of(0))

    async def _submit(self, new: NewRequests) -> None:
        try:
            await submit(self.context, new)
        except TransientError as error:
            if error.kind != "limited":
                raise
            self._note_full(new.count, error.retry_after_s)
        except RefusedError as error:
            if error.fault != "size" or new.count == 1:
                raise FatalError(f"The provider refused a batch job: {error}") from None
            self._note_full(new.count, 0.0)
        else:
            await self._note_wait()
            model = self._run.task.model.model
            self._run.runtime.on_job(f"Batch job {new.record.marker}: {new.count:,} requests submitted to {model!r}.")

    def _note_full(self, requests: int, retry_after_s: float | None = None) -> None:
        """Make the next job smaller and later, since the account is full or a job was too large."""
        self._max_requests = max(1, min(self._max_requests, requests) // 2)
        wait_s = _FULL_PAUSE_S if retry_after_s is None else retry_after_s
        self._full_until = self._run.clock.elapsed() + wait_s

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def _find_jobs(self) -> list[JobRecord]:
        """The open jobs that have prompts of the table in flight; prompts of closed jobs are looked up again."""
        jobs = set(self._run.others.in_jobs.values())
        records = await self.context.store.read(partial(job_tables.read_jobs, jobs=sorted(jobs))) if jobs else []
        for job in jobs - {record.job for record in records}:
            await self._release(job)
        return records

    async def _advance(self, jobs: Sequence[JobRecord]) -> bool:
        """Ask for the status of every job, and read those that have ended; returns whether there were any."""
        any_read = False
        for record in jobs:
            if record.job_id is None:
                await recover(self.context, record)
                continue
            try:
                status = await ask_status(self.context.api, self.context.store, record, self._run.clock.now())
                self._report_status(record, status)
                if status.has_ended:
                    await read_job(self.context, record, status)
            except (TransientError, RefusedError):
                continue
            except JobLostError as error:
                any_read |= await self._lose(record, error)
                continue
            self._lost_since.pop(record.job, None)
            if status.has_ended:
                any_read = True
                await self._release(record.job)
                if any(problem.is_quota for problem in status.problems):
                    self._note_full(record.requests)
        return any_read

    def _report_status(self, record: JobRecord, status: JobStatus) -> None:
        """Report the progress of a job, if it has changed."""
        if (status.state, status.done) != (record.status, record.done):
            done = f"{status.done:,} of {record.requests:,} requests done"
            self._run.runtime.on_job(f"Batch job {record.marker} ({record.job_id}): {status.state}, {done}.")

    async def _lose(self, record: JobRecord, error: JobLostError) -> bool:
        """Give up a job that the provider has not known for `_LOST_S`; returns whether it was given up.

        Raises:
            FatalError: The job was submitted by another account.
        """
        now = self._run.clock.elapsed()
        since = self._lost_since.setdefault(record.job, now)
        if now - since < _LOST_S:
            return False
        if record.account != self.context.api.account:
            raise FatalError(
                f"{error} It was submitted with another key or at another address than these. Run with those again, or "
                f"give it up with `python -m ondine_core.store STORE jobs forget {record.marker}`."
            )
        await write_off(self.context, record)
        await self._release(record.job)
        return True

    async def _release(self, job: bytes) -> None:
        """Look up the prompts that are left of a closed job."""
        in_jobs = self._run.others.in_jobs
        keys = [key for key, holder in in_jobs.items() if holder == job]
        for key in keys:
            del in_jobs[key]
        for start in range(0, len(keys), _LOOK_UP_AT_ONCE):
            items = self.context.queue.find_items(keys[start : start + _LOOK_UP_AT_ONCE])
            await self._take(await self._run.others.look(tuple(items.values())))

    async def _take(self, lookup: LookupResult) -> None:
        """Reuse outcomes that were found, defer held prompts, and queue free ones."""
        self._run.reuse(lookup.found)
        self._run.others.defer(lookup.held)
        self.context.queue.put(*map(QueuedBatch, self.context.pack(lookup.free)))

    async def _wait(self, jobs: Sequence[JobRecord], wait_until: float) -> None:
        """Pause before the next request for the status of jobs; cancel the jobs if their deadline has passed.

        Raises:
            JobsUnderWayError: The time to wait is over.
        """
        clock = self._run.clock
        # The deadline of a job may be earlier than that of this run, which began later.
        deadlines = [self._run.policy.answer_by, *(record.answer_by for record in jobs)]
        answer_by = min((at for at in deadlines if at is not None), default=None)
        self._check_deadline(answer_by)
        if self._cancelled_at is not None:
            wait_until = self._cancelled_at + _CANCEL_S
            await self._cancel(jobs)
        left_s = wait_until - clock.elapsed()
        if left_s <= 0:
            raise await self._under_way(jobs)
        if answer_by is not None and self._cancelled_at is None:
            left_s = min(left_s, answer_by - clock.now())
        await clock.sleep(max(0.0, min(left_s, self._pause_s)))
        self._pause_s = min(_PAUSE_FACTOR * self._pause_s, _MAX_PAUSE_S)

    def _check_deadline(self, answer_by: float | None) -> None:
        """From `answer_by` on, submit no job, cancel open jobs, and leave the rest to live calls."""
        clock = self._run.clock
        if answer_by is not None and clock.now() >= answer_by and self._cancelled_at is None:
            self._cancelled_at = clock.elapsed()
            self._pause_s = _FIRST_PAUSE_S

    async def _cancel(self, jobs: Sequence[JobRecord]) -> None:
        """Ask the provider to cancel jobs; if a request fails, it is made again later."""
        for record in jobs:
            if record.job_id is not None and record.state == "submitted":
                with suppress(ProviderError):
                    await self.context.api.cancel(record.job_id)

    async def _under_way(self, jobs: Sequence[JobRecord]) -> JobsUnderWayError:
        rows = self._run.run_state.rows_left
        model = self._run.task.model.model
        await self._note_wait()
        if not jobs:
            return JobsUnderWayError(
                f"The account has too much under way for another batch job of {model!r}, or jobs of other runs hold "
                f"a budget; {rows:,} rows have no answer yet. Run again later, by hand or by batch_sensor.",
                rows_left=rows,
            )
        read = partial(job_tables.read_jobs, jobs=[record.job for record in jobs])
        jobs = await self.context.store.read(read)  # with the status that the provider has just reported
        requests = sum(record.requests for record in jobs)
        done = sum(record.done for record in jobs)
        return JobsUnderWayError(
            f"{len(jobs):,} batch {'job' if len(jobs) == 1 else 'jobs'} of {model!r} under way: {done:,} of "
            f"{requests:,} requests are done, and "
            f"{rows:,} rows have no answer yet. Run again later, by hand or by batch_sensor: that run reads the "
            "results and asks nothing twice.",
            jobs,
            rows,
        )

    async def _note_wait(self) -> None:
        """Record in the store that the materialization waits for its jobs."""
        jobs = sorted(set(self._run.others.in_jobs.values()))
        run = self._run
        if run.origin.asset:
            wait = JobWait(replace(run.origin, run=run.budget_run), run.origin.run, tuple(jobs), run.started_at)
            await self.context.store.change(partial(job_tables.write_wait, wait=wait))
