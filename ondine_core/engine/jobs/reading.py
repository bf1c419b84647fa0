"""Keeps what came of the requests of a job that has ended; what has no outcome yet is asked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial

from ondine_core.batching.strategy import encode
from ondine_core.engine.call_request import BatchResult
from ondine_core.engine.jobs.context import JobContext, QueuedBatch, choose_strategy_of, read_batch
from ondine_core.errors import FatalError, InvalidReplyError, ProviderError, RefusedError, TransientError
from ondine_core.providers.charges import Charge, check_usage
from ondine_core.providers.job_api import JobProblem, JobReply, JobStatus
from ondine_core.providers.tiers import billed_tier
from ondine_core.store import job_tables
from ondine_core.store.job_tables import JobCall
from ondine_core.types.job_record import JobRecord, JobState
from ondine_core.types.ledger import CallFinished
from ondine_core.types.values import Call, Failure, Item, Key, Outcome, Reply, Usage

__all__ = ["read_job", "write_off"]

_REPLIES_AT_ONCE = 500
"""Replies that are settled in one transaction, and that are in memory at a time."""
_MAX_NOT_RUN = 3
"""Jobs that may end without running a request before its rows are given up for this run."""


async def read_job(context: JobContext, record: JobRecord, status: JobStatus) -> None:
    """Settle all requests of a job, and close it.

    Args:
        context: Takes the outcomes, and batches that are owed.
        record: The job, which has ended.
        status: What the provider says of it.

    Raises:
        JobLostError: There are no results any more.
        FatalError: No request can succeed; what came is kept.
        ProviderError: The results cannot be had at present; what was read is kept.
        StoreError: They cannot be kept.
    """
    reading = _Reading(context, record)
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
        context.warn(f"The results of the batch job {record.job_id} hold {reading.aliens:,} of other jobs, left out.")
    if reading.fatal is not None:
        raise reading.fatal


async def write_off(context: JobContext, record: JobRecord) -> None:
    """Close a job whose results the provider does not have: each request may have been billed, and is asked again."""
    await _close(context, record, "lost")
    context.warn(
        f"The provider knows no results of the batch job {record.job_id} (any more): its {record.requests:,} requests "
        "count with the most that they can have cost, and are asked again."
    )


async def _close(context: JobContext, record: JobRecord, state: JobState) -> None:
    """End a job; requests without an outcome may have been billed, and are owed again."""
    rest = await context.store.read(partial(job_tables.read_calls, job=record.job))
    close = partial(job_tables.close, job=record.job, state=state, at=context.clock.now())
    if await context.store.change(close, record.cells) is None:
        return
    for call in rest:
        context.run_state.tracker.sent()
        context.run_state.tracker.lost(call.sent.at_most_usd)
        context.unseen.update(call.sent.keys)
        _owe_again(context, _batch_of(call, {})[0])


def _batch_of(call: JobCall, items: Mapping[Key, Item]) -> tuple[QueuedBatch, str]:
    prompts = tuple(items.get(key) or Item(key, "") for key in call.sent.keys)
    return read_batch(call.sent.batch or b"", prompts)


def _owe_again(context: JobContext, queued: QueuedBatch) -> None:
    """Have a batch asked again that a job ended without running, unless that has happened too often."""
    not_run = queued.not_run + 1
    if not_run < _MAX_NOT_RUN:
        context.owe(replace(queued, not_run=not_run))
        return
    failure = Failure("unreachable", f"{not_run} batch jobs ended without an answer; set answer_by, or another tier")
    asked = [item.key for item in queued.batch.items if item.key in context.asked]
    for key in asked:
        context.others.in_jobs.pop(key, None)
    fail = context.interpreter.fail
    context.run_state.settle([(key, fail(queued.batch, key, failure, Decimal(0), context.paid)) for key in asked])


@dataclass(slots=True)
class _Reading:
    """The results of one job while they are read.

    Args:
        context: Takes the outcomes.
        record: The job.

    Attributes:
        aliens: Results that are not of this job.
        fatal: Why no request can succeed.
        was_full: Whether the job was not run since the account had too much under way.
    """

    context: JobContext
    record: JobRecord
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
        """Keep what came of some requests; those that were settled before are left as they are."""
        context, record = self.context, self.record
        if not replies:
            return
        calls = await context.store.read(partial(job_tables.read_calls, job=record.job, numbers=sorted(replies)))
        keys = [key for call in calls for key in call.sent.keys]
        items = context.queue.find_items(keys)
        settled = [self._settle_one(call, replies[call.number].came, items) for call in calls]
        await self._keep(settled)

    async def settle_rest(self, status: JobStatus) -> None:
        """Settle requests without a result, where that tells that they were not billed."""
        if status.bills_silence:
            return
        context = self.context
        rest = await context.store.read(partial(job_tables.read_calls, job=self.record.job))
        by_line = {problem.line: problem for problem in status.problems if problem.line is not None}
        self.was_full = any(problem.is_quota for problem in status.problems)
        for start in range(0, len(rest), _REPLIES_AT_ONCE):
            some = rest[start : start + _REPLIES_AT_ONCE]
            items = context.queue.find_items([key for call in some for key in call.sent.keys])
            came = [_came_of(by_line.get(number)) for number in range(start + 1, start + 1 + len(some))]
            await self._keep([self._settle_one(call, what, items) for call, what in zip(some, came, strict=True)])
        about_all = [problem for problem in status.problems if problem.line is None and not problem.is_quota]
        if about_all and not by_line:
            model = context.task.model.model
            self.fatal = FatalError(f"The provider refused a batch job of {model!r}: {about_all[0].message}")

    async def _keep(self, settled: Sequence[CallFinished]) -> None:
        context, record = self.context, self.record
        await context.store.change(
            partial(job_tables.settle_replies, job=record.job, settled=settled, at=context.clock.now()), record.cells
        )
        own: list[tuple[Key, Outcome]] = []
        for one in settled:
            own += [(key, answer) for key, answer in one.answers if key in context.asked]
            own += [(key, failure) for key, failure in one.failures if key in context.asked]
        for key, _ in own:
            context.others.in_jobs.pop(key, None)
        context.run_state.settle(own)
        context.run_state.tell()

    def _settle_one(self, call: JobCall, came: Reply | ProviderError | None, items: Mapping[Key, Item]) -> CallFinished:
        """What one request comes to; batches that it still owes are put into the queue."""
        context = self.context
        queued, strategy_name = _batch_of(call, items)
        batch = queued.batch
        sent = replace(call.sent, origin=context.origin)
        context.run_state.tracker.sent()
        if isinstance(came, FatalError):
            if came.fault == "account" or not context.run_state.any_answer:
                self.fatal = self.fatal or came
                context.owe(queued)
                return CallFinished(sent, "refused")
            came = RefusedError(came.refusal, fault="unclear")
        if came is None or (isinstance(came, TransientError) and not came.cost_unknown):
            if self.was_full:
                context.owe(queued)
            else:
                _owe_again(context, queued)
            return CallFinished(sent, "refused")
        reply, usage = _reply_of(came)
        charge = self._charge(call, reply, usage)
        if reply is None:
            _owe_again(context, queued)
            return CallFinished(sent, "answered", usage or Usage(), charge.usd, at_most=charge.at_most)
        strategy = choose_strategy_of(strategy_name, batch, context.policy)
        request = encode(strategy, batch, context.task)
        result = context.interpreter.interpret(batch, strategy, request, reply, charge.usd, context.paid)
        self._emit(call, queued, request, reply, charge.usd, result)
        for owed in result.retry:
            context.owe(QueuedBatch(owed))
        return CallFinished(
            sent,
            "refused" if usage is None else "answered",
            usage or Usage(),
            charge.usd,
            result.answers,
            result.failures,
            sum(key in context.unseen for key, _ in result.answers),
            context.policy.reuse_since,
            at_most=charge.at_most,
            replies=result.replies,
        )

    def _charge(self, call: JobCall, reply: Reply | RefusedError | None, usage: Usage | None) -> Charge:
        if usage is None:
            return Charge(Decimal(0))
        stated = None if reply is None else reply.stated_usd
        tier = billed_tier(None if reply is None else reply.tier, "batch")
        bound = call.sent.at_most_usd
        tracker = self.context.run_state.tracker
        return tracker.answered(call.sent.stage, usage, stated_usd=stated, bound_usd=bound, tier=tier)

    def _emit(  # noqa: PLR0913, PLR0917  (one caller)
        self,
        call: JobCall,
        queued: QueuedBatch,
        request: Call,
        reply: Reply | RefusedError,
        usd: Decimal | None,
        result: BatchResult,
    ) -> None:
        context = self.context
        observer = context.emitter.begin(queued.batch)
        took_s = max(0.0, context.clock.now() - call.sent.sent_at)
        is_ordinary = not (result.failures or result.retry)
        observer.sent(call.sent, request)
        observer.on_reply(reply, usd, took_s, ordinary=is_ordinary)
        rows_of = context.run_state.rows_of
        observer.rows_failed((failure, rows_of(key)) for key, failure in result.failures)
        owed = sum(len(batch.items) for batch in result.retry)
        observer.ended(len(result.answers), len(result.failures), owed)


def _reply_of(came: Reply | ProviderError) -> tuple[Reply | RefusedError | None, Usage | None]:
    """What there is to interpret, if anything, and the tokens that were billed (`None`: none)."""
    match came:
        case Reply():
            usage = check_usage(came.usage, came.text)
            return replace(came, usage=usage), usage
        case RefusedError():
            return came, None if came.usage is None else check_usage(came.usage, "")
        case InvalidReplyError():
            # Whether it is billed is not known.
            return came.reply, Usage(is_complete=False)
    return None, Usage(is_complete=False)


def _came_of(problem: JobProblem | None) -> ProviderError | None:
    """What it means for a request that the provider did not run its job, for that problem of its own or another's."""
    return None if problem is None else RefusedError(f"The provider refused the request: {problem.message}")
