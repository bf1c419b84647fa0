"""Puts requests into a batch job: into a file for the provider, and into the store, before anything is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from os import urandom
from pathlib import Path
from tempfile import gettempdir
from typing import BinaryIO

from ondine_core.batching.strategy import draw_ids, encode
from ondine_core.engine.jobs.context import JobContext, QueuedBatch, read_batch, write_batch
from ondine_core.engine.workers import choose_strategy, find_oversize_prompt
from ondine_core.errors import RefusedError, StoreError
from ondine_core.store import job_tables
from ondine_core.store.budget_state import units_of
from ondine_core.types.job_record import JobRecord
from ondine_core.types.ledger import CallReason, CallStarted
from ondine_core.types.processes import this_process
from ondine_core.types.progress import add_usd
from ondine_core.types.values import Batch, Call, Item, Key

__all__ = ["NewRequests", "build", "discard"]

_REQUESTS_AT_ONCE = 500
"""Requests that are noted in one transaction, and that are in memory at a time."""
_WITH_MEDIA_AT_ONCE = 16
"""Each of these may have megabytes."""


@dataclass(frozen=True, slots=True)
class _Request:
    """One request on its way into a job."""

    queued: QueuedBatch
    line: bytes
    sent: CallStarted
    units: int


@dataclass(slots=True)
class NewRequests:
    """Requests that are in the store and in a file, and not with the provider.

    Args:
        record: The job, as it was begun.
        file: The requests, one a line.
        count: How many there are.
        bytes: How long the file is.
        at_most_usd: The most that they can cost, `None` if that is not known.
        lacks_units: What the next request may cost, in units of a budget, if it did not fit into one; otherwise `None`.
        next_number: Of the next request; those that another run had meanwhile leave gaps.
    """

    record: JobRecord
    file: Path
    count: int = 0
    bytes: int = 0
    at_most_usd: Decimal | None = Decimal(0)
    lacks_units: int | None = None
    next_number: int = 0


async def build(context: JobContext, folder: Path, max_requests: int) -> NewRequests:
    """Begin a job, and put as many of the batches that wait into it as fit.

    Args:
        context: What is asked, and how; what does not fit stays in its queue.
        folder: Where the file of requests is written.
        max_requests: Most requests of the job.

    Raises:
        StoreError: It cannot be kept; the next run clears away what was begun.
    """
    record = await _begin(context)
    new = NewRequests(record, folder / f"{record.marker}.jsonl")
    try:
        await _fill(context, new, min(max_requests, context.api.limits.requests))
    except BaseException:
        with suppress(StoreError):
            await asyncio.shield(discard(context, record.job))
        raise
    return new


async def _fill(context: JobContext, new: NewRequests, most: int) -> None:
    """Put batches into a job until it has `most` requests, nothing waits any more, or the file or a budget is full."""
    with _explained(), new.file.open("wb") as file:
        while new.lacks_units is None and new.count < most:
            at_once = _WITH_MEDIA_AT_ONCE if context.task.prompt.media_columns else _REQUESTS_AT_ONCE
            batches = _take(context, min(at_once, most - new.count))
            if not batches:
                break
            if context.task.prompt.media_columns:  # files are read
                written = await asyncio.to_thread(_write_requests, context, new, batches)
            else:
                written = _write_requests(context, new, batches)
            for batch, error in written.unreadable:
                _end_unreadable(context, batch, error)
            await _add(context, new, written.requests, file)
            context.queue.put_back(written.left)
            if written.left:  # the file is full
                break


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"The requests of a batch job cannot be written ({error.strerror}); they need room in {gettempdir()!r}."
        ) from error


async def _begin(context: JobContext) -> JobRecord:
    """Note the job, and announce it as a run of the task, so that no other run asks its prompts."""
    budgets = context.runtime.budgets
    now = context.clock.now()
    record = JobRecord(
        urandom(8),
        context.others.task,
        context.origin,
        context.task.model.model,
        context.api.account,
        this_process(),
        now,
        context.policy.answer_by,
        tuple(budgets.cells if budgets else ()),
        changed_at=now,
    )
    await context.store.change(partial(job_tables.begin, record=record))
    others = context.others
    await context.store.join(record.job, others.task, (), "", context.origin, others.definition)
    others.is_shared = True
    return record


def _take(context: JobContext, count: int) -> list[QueuedBatch]:
    """The next batches; a prompt that cannot fit into the model's window has failed."""
    batches: list[QueuedBatch] = []
    while len(batches) < count and (queued := context.queue.take()) is not None:
        batch = queued.batch
        failure = find_oversize_prompt(batch, context.task, context.policy, context.interpreter.window)
        if failure is None:
            batches.append(queued)
        else:
            key = batch.items[0].key
            failure = context.interpreter.fail(batch, key, failure, Decimal(0), context.paid)
            context.run_state.settle([(key, failure)])
            context.emitter.rows_failed([(failure, context.run_state.rows_of(key))])
    return batches


@dataclass(frozen=True, slots=True)
class _Written:
    """What came of writing batches.

    Args:
        requests: Those that were written.
        unreadable: Those with an image or document that cannot be read any more, and why.
        left: Those for which the file has no room.
    """

    requests: list[_Request]
    unreadable: list[tuple[Batch, RefusedError]]
    left: Sequence[QueuedBatch]


def _write_requests(context: JobContext, new: NewRequests, batches: Sequence[QueuedBatch]) -> _Written:
    """The requests of `batches`, up to the first for which the file has no room."""
    written = _Written([], [], [])
    requests = written.requests
    room = context.api.limits.bytes - new.bytes
    for place, queued in enumerate(batches):
        try:
            request = _write_request(context, new, queued, new.next_number + len(requests))
        except RefusedError as error:
            written.unreadable.append((queued.batch, error))
            continue
        room -= len(request.line)
        is_first = not requests and not new.count
        if room < 0 and not is_first:  # one that is too long for any job is the provider's to refuse
            written = replace(written, left=batches[place:])
            break
        requests.append(request)
    new.next_number += len(requests)
    return written


def _end_unreadable(context: JobContext, batch: Batch, error: RefusedError) -> None:
    """Fail a prompt whose image cannot be read any more; of several, find out which."""
    strategy = choose_strategy(batch, context.policy.strategy)
    call = Call(())  # it was not made
    result = context.interpreter.interpret(batch, strategy, call, error, Decimal(0), context.paid)
    for owed in result.retry:
        context.queue.put(QueuedBatch(owed))
    context.run_state.settle(result.failures)
    context.emitter.rows_failed((failure, context.run_state.rows_of(key)) for key, failure in result.failures)


def _write_request(context: JobContext, new: NewRequests, queued: QueuedBatch, number: int) -> _Request:
    ids = draw_ids(len(queued.batch.items), context.clock.rng)
    queued = replace(queued, batch=replace(queued.batch, ids=ids))
    strategy = choose_strategy(queued.batch, context.policy.strategy)
    has_long_cache = context.task.model.prompt_cache == "1h"
    call = replace(encode(strategy, queued.batch, context.task), tier="batch", cache_prefix=has_long_cache)
    keys = tuple(item.key for item in queued.batch.items)
    bound_usd = context.run_state.tracker.bound(call)
    sent = CallStarted(
        new.record.job + number.to_bytes(8),
        context.origin,
        context.task.model.model,
        _reason(queued),
        keys,
        context.clock.now(),
        bound_usd,
        context.others.task,
        is_shared=True,
        # Older answers are not taken when everything is asked anew.
        is_unanswered=context.policy.reuse_since > 0 or context.others.is_known_unanswered(keys),
        batch=write_batch(queued, strategy.name),
    )
    line = context.api.write(call, f"{new.record.marker}-{number}") + b"\n"
    return _Request(queued, line, sent, 0 if bound_usd is None else units_of(bound_usd))


def _reason(queued: QueuedBatch) -> CallReason:
    if queued.not_run:
        return "retry"
    if queued.batch.attempt == 1:
        return "ask"
    return "repair" if queued.batch.complaint else "split"


async def _add(context: JobContext, new: NewRequests, requests: Sequence[_Request], file: BinaryIO) -> None:
    """Hold what requests may cost, claim their prompts, and write those to the file that may be asked."""
    store, job = context.store, new.record.job
    cells = _cells_of(context, new.record)
    amounts = [request.units for request in requests]
    now = context.clock.now()
    hold = partial(job_tables.hold_budgets, job=job, cells=cells, amounts=amounts, at=now)
    affordable = await store.change(hold, tuple(cells))
    new.lacks_units = amounts[affordable] if affordable < len(requests) else None
    context.queue.put_back([request.queued for request in requests[affordable:]])
    requests = requests[:affordable]
    taken = await asyncio.gather(*[store.send(request.sent) for request in requests])
    lost_units = 0
    for request, keys in zip(requests, taken, strict=True):
        if keys:
            lost_units += request.units
            await _leave_to_others(context, request.queued, keys)
            continue
        file.write(request.line)
        context.others.in_jobs |= dict.fromkeys(request.sent.keys, job)
        new.count += 1
        new.bytes += len(request.line)
        new.at_most_usd = add_usd(new.at_most_usd, request.sent.at_most_usd)
    if lost_units:
        give_back = partial(job_tables.give_back, job=job, units=lost_units, at=context.clock.now())
        await store.change(give_back, new.record.cells)


def _cells_of(context: JobContext, record: JobRecord) -> Mapping[str, int]:
    """The most that each budget of the job has; the day may have changed since it was begun, its budgets have not."""
    budgets = context.runtime.budgets
    if budgets is None:
        return {}
    return dict(zip(record.cells, budgets.cells.values(), strict=True))


async def _leave_to_others(context: JobContext, queued: QueuedBatch, taken: frozenset[Key]) -> None:
    """Queue the prompts of a batch that no other run has in flight, and wait for the others."""
    rest = tuple(item for item in queued.batch.items if item.key not in taken)
    if rest:
        context.queue.put(replace(queued, batch=replace(queued.batch, items=rest)))
    held: list[Item] = [item for item in queued.batch.items if item.key in taken]
    await context.others.leave_to_jobs([item.key for item in held])
    context.others.defer(item for item in held if item.key not in context.others.in_jobs)


async def discard(context: JobContext, job: bytes) -> None:
    """Forget a job that was not created, and have its prompts asked again."""
    records = await context.store.read(partial(job_tables.read_jobs, jobs=[job]))
    if not records:
        return
    calls = await context.store.read(partial(job_tables.read_calls, job=job))
    forget = partial(job_tables.discard, job=job, of=("preparing", "creating"))
    if await context.store.change(forget, records[0].cells):
        for call in calls:
            prompts = tuple(Item(key, "") for key in call.sent.keys)
            context.owe(read_batch(call.sent.batch or b"", prompts)[0])
