"""Puts requests into a batch job: into a file for the provider, and into the store, before anything is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from itertools import islice
from os import urandom
from pathlib import Path
from tempfile import gettempdir
from typing import BinaryIO

from ondine_core.engine.encoding import EncodedBatch, encode_batch, find_oversize_prompt
from ondine_core.engine.interpreting import BatchResult
from ondine_core.engine.jobs.context import JobContext, QueuedBatch, batch_of, write_batch
from ondine_core.engine.workers import reason_of
from ondine_core.errors import RefusedError, StoreError
from ondine_core.store import job_tables
from ondine_core.store.budget_state import units_of
from ondine_core.types.job_record import JobRecord
from ondine_core.types.ledger import CallStarted
from ondine_core.types.processes import this_process
from ondine_core.types.progress import add_usd
from ondine_core.types.values import Item, Key

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

    `at_most_usd` is the most that they can cost, `None` if that is not known; `lacks_units` what the next request may
    cost, in units of a budget, if it did not fit into one. Requests that another run had meanwhile leave gaps in the
    numbers.
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

    What does not fit stays in the queue of `context`. The file of requests is written into `folder`.

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


async def _fill(context: JobContext, new: NewRequests, max_requests: int) -> None:
    """Put batches into a job until it has `max_requests`, none waits any more, or the file or a budget is full."""
    has_media = bool(context.run.task.prompt.media_columns)
    at_once = _WITH_MEDIA_AT_ONCE if has_media else _REQUESTS_AT_ONCE
    with _explained(), new.file.open("wb") as file:
        while new.lacks_units is None and new.count < max_requests:
            batches = list(islice(iter(context.queue.take, None), min(at_once, max_requests - new.count)))
            if not batches:
                break
            if has_media:  # files are read
                written = await asyncio.to_thread(_write_requests, context, new, batches)
            else:
                written = _write_requests(context, new, batches)
            for result in written.ended:
                context.queue.put(*map(QueuedBatch, result.retry))
                context.run.settle(result.failures)
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
    budgets = context.run.runtime.budgets
    now = context.run.clock.now()
    record = JobRecord(
        urandom(8),
        context.run.others.own.task,
        context.run.origin,
        context.run.task.model.model,
        context.api.account,
        this_process(),
        now,
        context.run.policy.answer_by,
        tuple(budgets.cells if budgets else ()),
        changed_at=now,
    )
    await context.store.change(partial(job_tables.write, record=record))
    others = context.run.others
    # Without a process: the job goes on without one.
    await context.store.join(replace(others.own, run=record.job, process=(), lease=""))
    others.is_shared = True
    return record


@dataclass(slots=True)
class _WrittenRequests:
    """The result of writing batches.

    `ended` has the results of those that cannot be sent: a prompt does not fit into the model's window, or has an image
    or document that cannot be read any more. For those `left` the file has no room.
    """

    requests: list[_Request] = field(default_factory=list)
    ended: list[BatchResult] = field(default_factory=list)
    left: Sequence[QueuedBatch] = ()


def _write_requests(context: JobContext, new: NewRequests, batches: Sequence[QueuedBatch]) -> _WrittenRequests:
    """The requests of `batches`, up to the first for which the file has no room."""
    run, interpreter = context.run, context.run.interpreter
    written = _WrittenRequests()
    room = context.api.limits.bytes - new.bytes
    for place, queued in enumerate(batches):
        encoded = encode_batch(queued.batch, run.task, run.policy.strategy, run.clock.rng)
        oversize = find_oversize_prompt(encoded, run.task, run.policy, interpreter.window)
        if oversize is not None:
            written.ended.append(interpreter.fail(queued.batch, oversize))
            continue
        try:
            request = _write_request(context, new, queued, encoded)
        except RefusedError as error:  # of several, it is found out which cannot be read
            written.ended.append(interpreter.interpret(encoded, error, Decimal(0)))
            continue
        room -= len(request.line)
        is_first = not written.requests and not new.count
        if room < 0 and not is_first:  # one that is too long for any job is the provider's to refuse
            written.left = batches[place:]
            break
        written.requests.append(request)
        new.next_number += 1
    return written


def _write_request(context: JobContext, new: NewRequests, queued: QueuedBatch, encoded: EncodedBatch) -> _Request:
    run, number = context.run, new.next_number
    has_long_cache = run.task.model.prompt_cache == "1h"
    call = replace(encoded.call, tier="batch", cache_prefix=has_long_cache)
    keys = tuple(item.key for item in queued.batch.items)
    bound_usd = run.run_state.tracker.bound(call)
    sent = CallStarted(
        new.record.job + number.to_bytes(8),
        run.origin,
        run.task.model.model,
        reason_of(queued.batch, again=queued.not_run > 0),
        keys,
        run.clock.now(),
        bound_usd,
        run.others.own.task,
        is_shared=True,
        # Older answers are not taken when everything is asked anew.
        is_unanswered=run.policy.reuse_since > 0 or run.others.has_unreadable(keys),
        batch=write_batch(replace(queued, batch=encoded.batch), encoded.strategy.name),
    )
    line = context.api.write(call, f"{new.record.marker}-{number}") + b"\n"
    return _Request(queued, line, sent, 0 if bound_usd is None else units_of(bound_usd))


async def _add(context: JobContext, new: NewRequests, requests: Sequence[_Request], file: BinaryIO) -> None:
    """Hold what requests may cost, claim their prompts, and write those to the file that may be asked."""
    store, job = context.store, new.record.job
    budgets = context.run.runtime.budgets
    # The day may have changed since the job was begun; its budgets have not.
    cells = dict(zip(new.record.cells, budgets.cells.values() if budgets else (), strict=True))
    amounts = [request.units for request in requests]
    now = context.run.clock.now()
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
        context.run.others.in_jobs |= dict.fromkeys(request.sent.keys, job)
        new.count += 1
        new.bytes += len(request.line)
        new.at_most_usd = add_usd(new.at_most_usd, request.sent.at_most_usd)
    if lost_units:
        give_back = partial(job_tables.give_back, job=job, units=lost_units, at=context.run.clock.now())
        await store.change(give_back, new.record.cells)


async def _leave_to_others(context: JobContext, queued: QueuedBatch, taken: frozenset[Key]) -> None:
    """Queue the prompts of a batch that no other run has in flight, and wait for the others."""
    rest = tuple(item for item in queued.batch.items if item.key not in taken)
    if rest:
        context.queue.put(replace(queued, batch=replace(queued.batch, items=rest)))
    held: list[Item] = [item for item in queued.batch.items if item.key in taken]
    await context.run.others.leave_to_jobs([item.key for item in held])
    context.run.others.defer(item for item in held if item.key not in context.run.others.in_jobs)


async def discard(context: JobContext, job: bytes) -> None:
    """Forget a job that was not created, and have its prompts asked again."""
    records = await context.store.read(partial(job_tables.read_jobs, jobs=[job]))
    if not records:
        return
    calls = await context.store.read(partial(job_tables.read_calls, job=job))
    forget = partial(job_tables.discard, job=job, states=("preparing", "creating"))
    if await context.store.change(forget, records[0].cells):
        for call in calls:
            context.requeue(batch_of(call)[0])
