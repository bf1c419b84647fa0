"""A run by batch jobs: submits jobs, waits for them, reads them, and returns what is left for live calls.

Every step is in the store before the next one begins, so a later run continues where this one ends: because the time to
wait is over, or because it is killed.
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

_FIRST_PAUSE_S, _MAX_PAUSE_S, _PAUSE_FACTOR = 1.0, 60.0, 1.5
"""Between two looks at the jobs."""
_CANCEL_S = 1800.0
"""How long a cancelled job is waited for; OpenAI allows for ten minutes."""
_LOST_S = 120.0
"""How long the provider must not know a job before it is given up: a new one is not visible everywhere immediately."""
_FULL_PAUSE_S = 60.0
"""Pause before another job is submitted when the account's limit on jobs is reached."""
_LOOK_UP_AT_ONCE = 1000


@dataclass(slots=True)
class JobRun:
    """Asks the prompts of one table by batch jobs.

    Unless it `submits`, it only reads jobs that have prompts of the table.
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
        """Ask all that waits; returns the batches that are left for live calls.

        Raises:
            JobsUnderWayError: Jobs have not ended in the time that there is to wait.
            BudgetExhaustedError: The next request does not fit into the budgets.
            ProviderError: No job can be submitted or read; all answers so far are kept.
            StoreError: Something cannot be kept.
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
        """Whether what waits makes a job."""
        rows = self.context.queue.rows
        return self.submits and self._cancelled_at is None and rows >= self._run.policy.batch_min_rows

    async def _submit_jobs(self, folder: Path) -> None:
        """Submit jobs until too little waits for another one, the money is spent, or the account is full."""
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
            if self._run.others.in_jobs:  # whose rest comes back
                return
            held = partial(job_tables.is_held_by_jobs, cells=budgets.cells, units=new.lacks_units)
            if await self.context.store.change(held, tuple(budgets.cells)):
                self._full_until = self._run.clock.elapsed() + _FULL_PAUSE_S
                return
            # Calls of other runs hold it: they give it back, or the budget is exhausted.
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
        """The account has too much under way, or a job was too large: the next one is smaller, and comes later."""
        self._max_requests = max(1, min(self._max_requests, requests) // 2)
        wait_s = _FULL_PAUSE_S if retry_after_s is None else retry_after_s
        self._full_until = self._run.clock.elapsed() + wait_s

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def _find_jobs(self) -> list[JobRecord]:
        """The jobs that have prompts of the table; of those that are closed by now the prompts are looked up again."""
        jobs = set(self._run.others.in_jobs.values())
        records = await self.context.store.read(partial(job_tables.read_jobs, jobs=sorted(jobs))) if jobs else []
        for job in jobs - {record.job for record in records}:
            await self._release(job)
        return records

    async def _advance(self, jobs: Sequence[JobRecord]) -> bool:
        """Find out about every job, and read those that have ended; whether there were any."""
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
        """Say how far a job is, if that has changed."""
        if (status.state, status.done) != (record.status, record.done):
            done = f"{status.done:,} of {record.requests:,} requests done"
            self._run.runtime.on_job(f"Batch job {record.marker} ({record.job_id}): {status.state}, {done}.")

    async def _lose(self, record: JobRecord, error: JobLostError) -> bool:
        """Give up a job that the provider has not known for a while; whether it was given up.

        Raises:
            FatalError: It may be known to another account.
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
        """Look up prompts that a job does not have any more and that have no outcome here."""
        in_jobs = self._run.others.in_jobs
        keys = [key for key, one in in_jobs.items() if one == job]
        for key in keys:
            del in_jobs[key]
        for start in range(0, len(keys), _LOOK_UP_AT_ONCE):
            items = self.context.queue.find_items(keys[start : start + _LOOK_UP_AT_ONCE])
            await self._take(await self._run.others.look(tuple(items.values())))

    async def _take(self, looked: LookupResult) -> None:
        self._run.reuse(looked.found)
        self._run.others.defer(looked.held)
        self.context.queue.put(*map(QueuedBatch, self.context.pack(looked.free)))

    async def _wait(self, jobs: Sequence[JobRecord], wait_until: float) -> None:
        """Wait until it is time to look again; jobs are cancelled when answers are wanted by now.

        Raises:
            JobsUnderWayError: The time to wait is over.
        """
        clock = self._run.clock
        # A job's own time may be earlier than this run's, which began later.
        times = [self._run.policy.answer_by, *(record.answer_by for record in jobs)]
        answer_by = min((at for at in times if at is not None), default=None)
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
        """From `answer_by` on no job is submitted, open jobs are cancelled, and the rest is asked by live calls."""
        clock = self._run.clock
        if answer_by is not None and clock.now() >= answer_by and self._cancelled_at is None:
            self._cancelled_at = clock.elapsed()
            self._pause_s = _FIRST_PAUSE_S

    async def _cancel(self, jobs: Sequence[JobRecord]) -> None:
        """Have jobs cancelled; one that cannot be asked for now is cancelled later."""
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
        found = partial(job_tables.read_jobs, jobs=[record.job for record in jobs])
        jobs = await self.context.store.read(found)  # with the state that the provider has just reported
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
        """Keep in the store that the materialization waits for its jobs."""
        jobs = sorted(set(self._run.others.in_jobs.values()))
        run = self._run
        if run.origin.asset:
            wait = JobWait(replace(run.origin, run=run.budget_run), run.origin.run, tuple(jobs), run.started_at)
            await self.context.store.change(partial(job_tables.write_wait, wait=wait))
