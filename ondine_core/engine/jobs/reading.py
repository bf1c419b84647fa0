"""Stores the results of a job that has ended; prompts without an outcome are asked again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from ondine_core.batching.strategy import encode
from ondine_core.engine.encoding import EncodedBatch
from ondine_core.engine.interpreting import BatchResult
from ondine_core.engine.jobs.context import JobContext, QueuedBatch, find_strategy, to_batch
from ondine_core.engine.settlement import charge_call, end_batch, finish_call
from ondine_core.errors import FatalError, InvalidReplyError, ProviderError, RefusedError, TransientError
from ondine_core.providers.charges import check_usage
from ondine_core.providers.job_api import JobReply, JobStatus
from ondine_core.store import job_tables
from ondine_core.types.job_record import JobRecord, JobState
from ondine_core.types.ledger import CallFinished, CallStarted
from ondine_core.types.values import Failure, Item, Key, Outcome, Reply, Usage

_REPLIES_AT_ONCE = 500
"""Replies that are settled in one transaction, and that are in memory at a time."""
_MAX_NOT_RUN = 3
"""Number of jobs that may end without running a request before its rows fail in this run."""


async def read_job(context: JobContext, record: JobRecord, status: JobStatus, *, parses: bool = True) -> None:
    """Settle all requests of a job, and close it; unless `parses`, only their costs are recorded.

    Raises:
        JobLostError: The provider has no results.
        FatalError: No request can succeed; all answers so far are stored.
        ProviderError: The results cannot be read at present; those read so far are stored.
        StoreError: They cannot be stored.
    """
    reading = _ResultReader(context, record, parses)
    waiting: dict[int, JobReply] = {}
    async for reply in context.api.read_results(record.job_id or ""):
        number = reading.number_of(reply.custom_id)
        if number is not None:
            waiting.setdefault(number, reply)
        if len(waiting) >= _REPLIES_AT_ONCE:
            await reading.settle(waiting)
            waiting = {}
    await reading.settle(waiting)
    await reading.settle_rest(status)
    await _close(context, record, "read")
    if reading.aliens:
        context.run.runtime.on_warning(
            f"The results of the batch job {record.job_id} hold {reading.aliens:,} of other jobs, left out."
        )
    if reading.fatal is not None:
        raise reading.fatal


async def write_off(context: JobContext, record: JobRecord) -> None:
    """Close a job whose results the provider does not have: each request may have been billed, and is asked again."""
    await _close(context, record, "lost")
    context.run.runtime.on_warning(
        f"The provider knows no results of the batch job {record.job_id} (any more): its {record.requests:,} requests "
        "count with the most that they can have cost, and are asked again."
    )


async def _close(context: JobContext, record: JobRecord, state: JobState) -> None:
    """Close a job; requests without an outcome may have been billed, and are asked again."""
    rest = await context.store.read(partial(job_tables.read_calls, job=record.job))
    close = partial(job_tables.close, job=record.job, state=state, at=context.run.clock.now())
    if await context.store.change(close, record.cells) is None:
        return
    for call in rest:
        context.run.run_state.tracker.sent()
        context.run.run_state.tracker.lost(call.at_most_usd)
        context.run.unseen.update(call.keys)
        _ask_again(context, to_batch(call)[0])


def _ask_again(context: JobContext, queued: QueuedBatch) -> None:
    """Queue a batch again that a job ended without running; it fails if that has happened `_MAX_NOT_RUN` times."""
    not_run = queued.not_run + 1
    if not_run < _MAX_NOT_RUN:
        context.requeue(replace(queued, not_run=not_run))
        return
    failure = Failure("unreachable", f"{not_run} batch jobs ended without an answer; set answer_by, or another tier")
    context.run.settle(context.run.interpreter.fail(context.release(queued.batch), failure).failures)


class _SettledRequest(NamedTuple):
    """The ledger entry of a request, the reply and usage to charge, and a function that reports it to observers."""

    finished: CallFinished
    reply: Reply | RefusedError | None = None
    usage: Usage | None = None
    report: Callable[[], None] = lambda: None


@dataclass(slots=True)
class _ResultReader:
    """Reads the results of one job.

    Attributes:
        parses: Whether the replies answer what this run asks; otherwise only their costs are recorded.
        aliens: Number of results of other jobs.
        fatal: Why no request can succeed, if so.
        was_full: Whether the job was not run since the account had too many requests in jobs.
    """

    context: JobContext
    record: JobRecord
    parses: bool
    aliens: int = 0
    fatal: FatalError | None = None
    was_full: bool = False

    def number_of(self, custom_id: str) -> int | None:
        """The number of a request, `None` if it is not of this job."""
        marker, _, number = custom_id.partition("-")
        if marker == self.record.marker and number.isdecimal() and len(number) < 19:  # noqa: PLR2004  (64 bits)
            return int(number)
        self.aliens += 1
        return None

    async def settle(self, replies: Mapping[int, JobReply]) -> None:
        """Store the results of some requests; requests that were settled before are unchanged."""
        if replies:
            find = partial(job_tables.read_calls, job=self.record.job, numbers=sorted(replies))
            calls = await self.context.store.read(find)
            await self._settle([(call, replies[job_tables.number_in_job(call)].outcome) for call in calls])

    async def settle_rest(self, status: JobStatus) -> None:
        """Settle the requests without a result, if the provider does not bill them."""
        if status.bills_silence:
            return
        rest = await self.context.store.read(partial(job_tables.read_calls, job=self.record.job))
        by_line = {
            problem.line: RefusedError(f"The provider refused the request: {problem.message}")
            for problem in status.problems
            if problem.line is not None
        }
        self.was_full = any(problem.is_quota for problem in status.problems)
        for start in range(0, len(rest), _REPLIES_AT_ONCE):
            lines = enumerate(rest[start : start + _REPLIES_AT_ONCE], start + 1)
            await self._settle([(call, by_line.get(line)) for line, call in lines])
        about_all = [problem for problem in status.problems if problem.line is None and not problem.is_quota]
        if about_all and not by_line:
            model = self.context.run.task.model.model
            self.fatal = FatalError(f"The provider refused a batch job of {model!r}: {about_all[0].message}")

    async def _settle(self, outcomes: Sequence[tuple[CallStarted, Reply | ProviderError | None]]) -> None:
        """Store the outcomes of requests, and settle their prompts if they are in the table."""
        context = self.context
        run = context.run
        items = context.queue.find_items([key for call, _ in outcomes for key in call.keys])
        requests = [self._settle_one(call, outcome, items) for call, outcome in outcomes]
        settled = [request.finished for request in requests]
        keep = partial(job_tables.settle_replies, job=self.record.job, settled=settled, at=run.clock.now())
        newly_settled = await context.store.change(keep, self.record.cells)
        state = run.run_state
        for finished, reply, usage, report in requests:
            if finished.sent.call in newly_settled:
                state.tracker.sent()
                count = partial(state.tracker.answered, finished.sent.stage)
                charge_call(count, finished.sent, reply, usage, "batch")
                report()
            else:  # another run has read and counted it
                run.runtime.emitter.rows_failed((failure, state.rows_of(key)) for key, failure in finished.failures)
        in_table: list[tuple[Key, Outcome]] = []
        for finished in settled:
            in_table += [(key, answer) for key, answer in finished.answers if key in run.first]
            in_table += [(key, failure) for key, failure in finished.failures if key in run.first]
        for key, _ in in_table:
            run.others.in_jobs.pop(key, None)
        state.settle(in_table)
        state.report_progress()

    def _settle_one(
        self, call: CallStarted, outcome: Reply | ProviderError | None, items: Mapping[Key, Item]
    ) -> _SettledRequest:
        """Make the entry of one request, without counting it; prompts without an outcome are queued again."""
        context = self.context
        run = context.run
        queued, strategy_name = to_batch(call, items)
        batch = queued.batch
        sent = call._replace(origin=run.origin)
        if isinstance(outcome, FatalError):
            if outcome.fault == "account" or not run.run_state.any_answer:
                self.fatal = self.fatal or outcome
                context.requeue(queued)
                return _SettledRequest(CallFinished(sent, "refused"))
            outcome = RefusedError(outcome.refusal, fault="unclear")
        if outcome is None or (isinstance(outcome, TransientError) and not outcome.cost_unknown):
            if self.was_full:
                context.requeue(queued)
            else:
                _ask_again(context, queued)
            return _SettledRequest(CallFinished(sent, "refused"))
        reply, usage = _to_reply(outcome)
        charge = charge_call(run.run_state.tracker.charge, call, reply, usage, "batch")
        if reply is None:
            _ask_again(context, queued)
            return _SettledRequest(finish_call(run, sent, usage, charge, BatchResult()), reply, usage)
        strategy = find_strategy(strategy_name, batch, run.policy)
        encoded = EncodedBatch(batch, strategy, encode(strategy, batch, run.task))
        result = run.interpreter.interpret(encoded, reply, charge.usd) if self.parses else BatchResult()
        for retried in result.retry:
            context.requeue(QueuedBatch(retried))

        def report() -> None:
            observer = run.runtime.emitter.begin(batch)
            took_s = max(0.0, run.clock.now() - call.sent_at)
            is_ordinary = not (result.failures or result.retry)
            observer.sent(call, encoded.call)
            observer.on_reply(reply, charge.usd, took_s, ordinary=is_ordinary)
            end_batch(run, observer, result)

        return _SettledRequest(finish_call(run, sent, usage, charge, result), reply, usage, report)


def _to_reply(outcome: Reply | ProviderError) -> tuple[Reply | RefusedError | None, Usage | None]:
    """The reply or refusal to interpret, if there is one, and the tokens that were billed, `None` for none."""
    match outcome:
        case Reply():
            usage = check_usage(outcome.usage, outcome.text)
            return replace(outcome, usage=usage), usage
        case RefusedError():
            return outcome, None if outcome.usage is None else check_usage(outcome.usage, "")
        case InvalidReplyError():
            # Whether it is billed is unknown.
            return outcome.reply, Usage(is_complete=False)
    return None, Usage(is_complete=False)
