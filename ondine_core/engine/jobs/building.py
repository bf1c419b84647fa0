"""Puts requests into a batch job: into the store and into a file for the provider, before anything is sent."""

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
from ondine_core.engine.jobs.context import JobContext, QueuedBatch, to_batch, write_batch
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
"""Requests that are recorded in one transaction, and that are in memory at a time."""
_WITH_MEDIA_AT_ONCE = 16
"""The same for requests with images or documents, which may have megabytes each."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that is to be put into a job; `line` is its text in the file, `units` its bound in budgets."""

    queued: QueuedBatch
    line: bytes
    sent: CallStarted
    units: int


@dataclass(slots=True)
class NewRequests:
    """The requests of a job that are in the store and in a file, and not yet sent to the provider.

    Args:
        record: The record of the job.
        file: The file.
        count: Number of requests in the file.
        bytes: Size of the file.
        at_most_usd: Maximum cost of the requests, `None` if unknown.
        lacks_units: Bound of the next request in budget units, if it did not fit into a budget; otherwise `None`.
        next_number: Number of the next request; a request that another run has in flight leaves a gap.
    """

    record: JobRecord
    file: Path
    count: int = 0
    bytes: int = 0
    at_most_usd: Decimal | None = Decimal(0)
    lacks_units: int | None = None
    next_number: int = 0


async def build(context: JobContext, folder: Path, max_requests: int) -> NewRequests:
    """Begin a job, and put as many of the queued batches into it as fit; the others stay in the queue of `context`.

    The file of requests is written into `folder`.

    Raises:
        StoreError: The job cannot be stored, or the file cannot be written; the next run removes what was stored.
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
    """Put batches into a job until it has `max_requests`, the queue is empty, or the file or a budget is full."""
    has_media = bool(context.run.task.prompt.media_columns)
    at_once = _WITH_MEDIA_AT_ONCE if has_media else _REQUESTS_AT_ONCE
    with _explained(), new.file.open("wb") as file:
        while new.lacks_units is None and new.count < max_requests:
            batches = list(islice(iter(context.queue.take, None), min(at_once, max_requests - new.count)))
            if not batches:
                break
            if has_media:  # in a thread, since files are read
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
    """Raise an `OSError` of the body as a `StoreError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"The requests of a batch job cannot be written ({error.strerror}); they need room in {gettempdir()!r}."
        ) from error


async def _begin(context: JobContext) -> JobRecord:
    """Record the job, and announce it as a run of the task, so that no other run asks its prompts."""
    budgets = context.run.runtime.budgets
    now = context.run.clock.now()
    record = JobRecord(
        job=urandom(8),
        task=context.run.others.own.task,
        origin=context.run.origin,
        model=context.run.task.model.model,
        account=context.api.account,
        owner=this_process(),
        created_at=now,
        answer_by=context.run.policy.answer_by,
        cells=tuple(budgets.cells if budgets else ()),
        changed_at=now,
    )
    await context.store.change(partial(job_tables.write, record=record))
    others = context.run.others
    # Without a process, since the job continues when this process ends.
    await context.store.join(replace(others.own, run=record.job, process=(), lease=""))
    others.is_shared = True
    return record


@dataclass(slots=True)
class _WrittenRequests:
    """The result of writing batches.

    `ended` has the results of batches that cannot be sent, since a prompt does not fit into the model's context window,
    or has an image or document that cannot be read. `left` are the batches for which the file has no room.
    """

    requests: list[_Request] = field(default_factory=list)
    ended: list[BatchResult] = field(default_factory=list)
    left: Sequence[QueuedBatch] = ()


def _write_requests(context: JobContext, new: NewRequests, batches: Sequence[QueuedBatch]) -> _WrittenRequests:
    """Write the requests of `batches`, up to the first for which the file has no room."""
    run = context.run
    interpreter = run.interpreter
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
        except RefusedError as error:  # a batch is halved until the prompt that cannot be read is found
            written.ended.append(interpreter.interpret(encoded, error, Decimal(0)))
            continue
        room -= len(request.line)
        is_first = not written.requests and not new.count
        if room < 0 and not is_first:  # a single request that is too long is sent, and the provider refuses it
            written.left = batches[place:]
            break
        written.requests.append(request)
        new.next_number += 1
    return written


def _write_request(context: JobContext, new: NewRequests, queued: QueuedBatch, encoded: EncodedBatch) -> _Request:
    run = context.run
    number = new.next_number
    has_long_cache = run.task.model.prompt_cache == "1h"
    call = replace(encoded.call, tier="batch", cache_prefix=has_long_cache)
    keys = tuple(item.key for item in queued.batch.items)
    bound_usd = run.run_state.tracker.bound(call)
    sent = CallStarted(
        call=new.record.job + number.to_bytes(8),
        origin=run.origin,
        model=run.task.model.model,
        stage=reason_of(queued.batch, again=queued.not_run > 0),
        keys=keys,
        sent_at=run.clock.now(),
        at_most_usd=bound_usd,
        task=run.others.own.task,
        is_shared=True,
        ignores_answers=run.policy.reuse_since > 0 or run.others.has_unreadable(keys),
        batch=write_batch(replace(queued, batch=encoded.batch), encoded.strategy.name),
    )
    line = context.api.write(call, f"{new.record.marker}-{number}") + b"\n"
    return _Request(queued, line, sent, 0 if bound_usd is None else units_of(bound_usd))


async def _add(context: JobContext, new: NewRequests, requests: Sequence[_Request], file: BinaryIO) -> None:
    """Reserve the maximum cost of requests, claim their prompts, and write those that were not taken to the file."""
    store = context.store
    job = new.record.job
    budgets = context.run.runtime.budgets
    # The budgets are those of the day on which the job was begun, even if it has changed.
    cells = dict(zip(new.record.cells, budgets.cells.values() if budgets else (), strict=True))
    amounts = [request.units for request in requests]
    now = context.run.clock.now()
    hold = partial(job_tables.hold_budgets, job=job, cells=cells, amounts=amounts, at=now)
    affordable = await store.change(hold, tuple(cells))
    new.lacks_units = amounts[affordable] if affordable < len(requests) else None
    context.queue.put_back([request.queued for request in requests[affordable:]])
    requests = requests[:affordable]
    taken = await asyncio.gather(*[store.send(request.sent) for request in requests])
    unused_units = 0
    for request, keys in zip(requests, taken, strict=True):
        if keys:
            unused_units += request.units
            await _leave_to_others(context, request.queued, keys)
            continue
        file.write(request.line)
        context.run.others.in_jobs |= dict.fromkeys(request.sent.keys, job)
        new.count += 1
        new.bytes += len(request.line)
        new.at_most_usd = add_usd(new.at_most_usd, request.sent.at_most_usd)
    if unused_units:
        give_back = partial(job_tables.give_back, job=job, units=unused_units, at=context.run.clock.now())
        await store.change(give_back, new.record.cells)


async def _leave_to_others(context: JobContext, queued: QueuedBatch, taken: frozenset[Key]) -> None:
    """Queue the prompts of a batch that are not `taken`, and defer the others."""
    rest = tuple(item for item in queued.batch.items if item.key not in taken)
    if rest:
        context.queue.put(replace(queued, batch=replace(queued.batch, items=rest)))
    held: list[Item] = [item for item in queued.batch.items if item.key in taken]
    await context.run.others.leave_to_jobs([item.key for item in held])
    context.run.others.defer(item for item in held if item.key not in context.run.others.in_jobs)


async def discard(context: JobContext, job: bytes) -> None:
    """Remove a job that was not created from the store, and queue its prompts again."""
    records = await context.store.read(partial(job_tables.read_jobs, jobs=[job]))
    if not records:
        return
    calls = await context.store.read(partial(job_tables.read_calls, job=job))
    forget = partial(job_tables.discard, job=job, states=("preparing", "creating"))
    if await context.store.change(forget, records[0].cells):
        for call in calls:
            context.requeue(to_batch(call)[0])
