"""Batch jobs in the store: recorded before anything is sent, charged to budgets, settled by request, closed.

The requests of a job are calls like others, so the ledger counts them and no run asks their prompts meanwhile. For this
the job is announced as a run, which has no process and leaves when the job is closed. The job is also the holder of its
budget reservations; its calls and its reservations are settled in one transaction. Every function here except the
queries runs within a transaction, and does nothing if the state of the job does not allow it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any

import orjson

from ondine_core.store import claims
from ondine_core.store.budget_state import (
    BudgetState,
    charge,
    end_holding,
    read_state,
    settle,
    units_of,
    write_state,
)
from ondine_core.store.database import Database, Row
from ondine_core.store.dialects import list_columns, upsert
from ondine_core.store.ledger_rows import settle_calls
from ondine_core.store.records import (
    CALL_COLUMNS,
    ORIGIN_BYTES,
    clean,
    clean_origin,
    from_pico,
    split_keys,
    to_pico_bound,
    to_settled_rows,
)
from ondine_core.types.job_record import OPEN_STATES, JobRecord, JobState, JobWait
from ondine_core.types.ledger import CallFinished, CallStarted, Origin, UsageTotals
from ondine_core.types.processes import Process

JOB_HOST = -1.0
"""The host of the process that stands for a job as holder of reservations; it is never taken to have ended."""

_COLUMNS = (
    *("job", "question", "run", "asset", "partition", "model", "account", "owner", "created_at", "answer_by", "cells"),
    *("state", "changed_at", "job_id", "requests", "at_most_pico_usd", "status", "done"),
)
_WRITE = upsert("jobs", ["job"], _COLUMNS)
_FIND = f"SELECT {list_columns(_COLUMNS)} FROM ondine.jobs"  # noqa: S608
_CALLS = f"SELECT {list_columns(CALL_COLUMNS)} FROM ondine.calls"  # noqa: S608
_OF_JOB = "call >= ? AND call <= ?"
_IN_FLIGHT = f"""
    SELECT substr(call, 1, {ORIGIN_BYTES}), COUNT(*), COUNT(at_most_pico_usd), COALESCE(SUM(at_most_pico_usd), 0)
    FROM ondine.calls WHERE batch IS NOT NULL GROUP BY substr(call, 1, {ORIGIN_BYTES})"""  # noqa: S608
_WAIT = """
    INSERT INTO ondine.job_waits (asset, partition, first_run, last_run, jobs, since) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (asset, partition) DO UPDATE SET last_run = excluded.last_run, jobs = excluded.jobs"""


# -- jobs ----------------------------------------------------------------------------------------------------------


def write(database: Database, record: JobRecord) -> None:
    """Insert or replace the record of a job."""
    row = (
        record.job,
        record.task,
        *clean_origin(record.origin),
        clean(record.model),
        record.account,
        orjson.dumps(tuple(record.owner)),
        record.created_at,
        record.answer_by,
        orjson.dumps(record.cells),
        record.state,
        record.changed_at,
        record.job_id,
        record.requests,
        to_pico_bound(record.at_most_usd),
        clean(record.status),
        record.done,
    )
    database.run(_WRITE, row)


def move(database: Database, job: bytes, states: Sequence[JobState], changed_at: float, **changes: Any) -> bool:
    """Change fields of the record of a job, if its state is one of `states`; returns whether it is."""
    record = _find_locked(database, job, states)
    if record is not None:
        write(database, replace(record, changed_at=changed_at, **changes))
    return record is not None


def discard(database: Database, job: bytes, states: Sequence[JobState]) -> bool:
    """Remove a job that was not created, its calls and its reservations, if its state is one of `states`."""
    record = _find_locked(database, job, states)
    if record is None:
        return False
    database.run(f"DELETE FROM ondine.calls WHERE {_OF_JOB}", _range_of(job))  # noqa: S608
    claims.leave(database, [job])
    database.run("DELETE FROM ondine.jobs WHERE job = ?", [job])
    _change_budgets(database, record, partial(end_holding, process=job_process(job), spent=False))
    return True


def close(database: Database, job: bytes, state: JobState, at: float) -> int | None:
    """Close a job: its unsettled requests may have been billed and stay charged at their bounds.

    Returns:
        How many requests these are; `None` if the job was closed already.
    """
    record = _find_locked(database, job, OPEN_STATES)
    if record is None:
        return None
    ((unsettled,),) = database.select(f"SELECT COUNT(*) FROM ondine.calls WHERE {_OF_JOB}", _range_of(job))  # noqa: S608
    _end(database, replace(record, state=state, changed_at=at))
    return int(unsettled)


def _end(database: Database, record: JobRecord) -> None:
    """Write the record of a closed job, and make its unsettled requests ordinary calls of unknown outcome."""
    database.run(f"UPDATE ondine.calls SET batch = NULL WHERE {_OF_JOB}", _range_of(record.job))  # noqa: S608
    claims.leave(database, [record.job])
    write(database, record)
    _change_budgets(database, record, partial(end_holding, process=job_process(record.job), spent=True))


def read_jobs(database: Database, *, jobs: Sequence[bytes] | None = None, is_open: bool = True) -> list[JobRecord]:
    """The records of `jobs`, by default of all; the oldest first.

    With `is_open`, only those with requests in flight.
    """
    rows = database.select(_FIND) if jobs is None else database.select_in(f"{_FIND} WHERE job IN ?", jobs)
    records = sorted(map(_to_record, rows), key=lambda record: (record.created_at, record.job))
    return [record for record in records if record.state in OPEN_STATES or not is_open]


def prune_jobs(database: Database, before: float, asset: str | None, *, dry_run: bool) -> dict[str, int]:
    """Remove jobs that were closed before an instant, and waits that began before it and wait for no open job.

    Returns:
        Number of rows removed, or to be removed with `dry_run`, by table.
    """
    wanted = None if asset is None else clean(asset)

    def find() -> tuple[list[bytes], list[JobWait]]:
        records = read_jobs(database, is_open=False)
        open_jobs = {record.job for record in records if record.state in OPEN_STATES}
        old = [record for record in records if record.changed_at < before and wanted in (None, record.origin.asset)]
        waits = [wait for wait in read_waits(database) if wait.since < before and wanted in (None, wait.origin.asset)]
        idle = [wait for wait in waits if open_jobs.isdisjoint(wait.jobs)]
        return [record.job for record in old if record.job not in open_jobs], idle

    def remove() -> tuple[list[bytes], list[JobWait]]:
        jobs, waits = find()
        database.run_in("DELETE FROM ondine.jobs WHERE job IN ?", jobs)
        for wait in waits:
            key = (wait.origin.asset, wait.origin.partition, wait.last_run)
            database.run("DELETE FROM ondine.job_waits WHERE asset = ? AND partition = ? AND last_run = ?", key)
        return jobs, waits

    jobs, waits = database.read(find) if dry_run else database.write(remove)
    return {"jobs": len(jobs), "job_waits": len(waits)}


def _find_locked(database: Database, job: bytes, states: Sequence[JobState]) -> JobRecord | None:
    """Lock the record of a job until the end of the transaction, and return it if its state is one of `states`."""
    database.hold(f"job:{job.hex()}")
    record = next(iter(read_jobs(database, jobs=[job], is_open=False)), None)
    return record if record is not None and record.state in states else None


def _to_record(row: Row) -> JobRecord:
    columns = dict(zip(_COLUMNS, row, strict=True))
    bound = columns.pop("at_most_pico_usd")
    return JobRecord(
        job=bytes(columns.pop("job")),
        task=bytes(columns.pop("question")),
        origin=Origin(columns.pop("run"), columns.pop("asset"), columns.pop("partition")),
        owner=tuple(orjson.loads(columns.pop("owner"))),
        cells=tuple(orjson.loads(columns.pop("cells"))),
        at_most_usd=None if bound is None else from_pico(bound),
        **columns,
    )


# -- requests ------------------------------------------------------------------------------------------------------


def read_calls(database: Database, job: bytes, numbers: Sequence[int] | None = None) -> list[CallStarted]:
    """The unsettled requests of a job, all or those with `numbers` (see `number_in_job`)."""
    if numbers is None:
        rows = database.select(f"{_CALLS} WHERE {_OF_JOB} AND batch IS NOT NULL", _range_of(job))
    else:
        calls = [job + number.to_bytes(8) for number in numbers]
        rows = database.select_in(f"{_CALLS} WHERE batch IS NOT NULL AND call IN ?", calls)
    return [_to_call(row) for row in rows]


def read_in_flight(database: Database) -> Mapping[bytes, UsageTotals]:
    """For each job, the number of requests without an outcome and their maximum cost; 0 for other jobs."""
    in_flight: defaultdict[bytes, UsageTotals] = defaultdict(UsageTotals)
    for job, requests, priced, pico_usd in database.select(_IN_FLIGHT):
        usd = from_pico(int(pico_usd)) if priced == requests else None
        in_flight[bytes(job)] = UsageTotals(int(requests), usd=usd)
    return in_flight


def count_lost(database: Database, job: bytes) -> int:
    """Number of requests of a closed job whose outcome was never seen."""
    lost = f"SELECT COUNT(*) FROM ondine.calls WHERE {_OF_JOB} AND batch IS NULL"  # noqa: S608
    return int(database.select(lost, _range_of(job))[0][0])


def number_in_job(call: CallStarted) -> int:
    """The number of a request in its job."""
    return int.from_bytes(call.call[8:])


def _to_call(row: Row) -> CallStarted:
    call, run, asset, partition, model, stage, keys, sent_at, bound, batch = row
    usd = None if bound is None else from_pico(bound)
    origin = Origin(run, asset, partition)
    return CallStarted(
        bytes(call), origin, model, stage, tuple(split_keys(bytes(keys))), sent_at, usd, batch=bytes(batch)
    )


def _range_of(job: bytes) -> tuple[bytes, bytes]:
    return job + bytes(8), job + b"\xff" * 8


def settle_replies(database: Database, job: bytes, settled: Sequence[CallFinished], at: float) -> set[bytes]:
    """Settle requests of a job, in the ledger and in its budgets; the last one closes the job.

    Returns:
        The ids of the calls that were settled now; others were settled before, by another run that reads the job.
    """
    record = _find_locked(database, job, OPEN_STATES)
    newly_settled = settle_calls(database, [to_settled_rows(finished) for finished in settled])
    if record is None:
        return newly_settled
    bound = spent = 0
    for finished in settled:
        if finished.sent.call in newly_settled:
            at_most_usd = finished.sent.at_most_usd or Decimal(0)
            bound += units_of(at_most_usd)
            spent += units_of(at_most_usd if finished.usd is None else finished.usd)
    process = job_process(job)
    _change_budgets(database, record, lambda state: settle(state, process, bound, spent, at))
    if not database.select(f"SELECT 1 FROM ondine.calls WHERE {_OF_JOB} LIMIT 1", _range_of(job)):  # noqa: S608
        _end(database, replace(record, state="read", changed_at=at))
    return newly_settled


# -- budgets -------------------------------------------------------------------------------------------------------


def job_process(job: bytes) -> Process:
    """The process that stands for a job as holder of its reservations."""
    return Process(JOB_HOST, float(int.from_bytes(job) >> 11), 0.0)  # the store keeps floats, which hold 53 bits


def hold_budgets(database: Database, job: bytes, cells: Mapping[str, int], amounts: Sequence[int], at: float) -> int:
    """Charge every budget with as many of the first `amounts` as fit into all of them; returns how many.

    `cells` has the maximum units of each budget by the name of its numbers, `amounts` the units of each request.
    """
    if not cells:
        return len(amounts)
    states = _read_states(database, tuple(cells))
    room = min(max_units - states[cell].charged for cell, max_units in cells.items())
    units = count = 0
    for amount in amounts:
        if units + amount > room:
            break
        units += amount
        count += 1
    if units:
        process = job_process(job)
        database.write_numbers(
            {cell: orjson.dumps(write_state(charge(state, process, units, at))) for cell, state in states.items()}
        )
    return count


def is_held_by_jobs(database: Database, cells: Mapping[str, int], units: int) -> bool:
    """Whether `units` would fit into every budget if batch jobs gave back all that they hold.

    `cells` has the maximum units of each budget by the name of its numbers.
    """
    for cell, state in _read_states(database, tuple(cells)).items():
        held = sum(holding.units for holding in state.holdings if holding.host == JOB_HOST)
        if state.charged - held + units > cells[cell]:
            return False
    return True


def give_back(database: Database, job: bytes, units: int, at: float) -> None:
    """Give back `units` that a job holds for requests that are not sent with it."""
    record = _find_locked(database, job, OPEN_STATES)
    if record is not None and units:
        process = job_process(job)
        _change_budgets(database, record, lambda state: settle(state, process, units, 0, at))


def _change_budgets(database: Database, record: JobRecord, change: Callable[[BudgetState], BudgetState]) -> None:
    """Apply `change` to the state of each budget of a job."""
    states = _read_states(database, record.cells)
    database.write_numbers({cell: orjson.dumps(write_state(change(state))) for cell, state in states.items()})


def _read_states(database: Database, cells: Sequence[str]) -> dict[str, BudgetState]:
    if not cells:
        return {}
    numbers = database.read_numbers(sorted(cells))
    states: dict[str, BudgetState] = {}
    for cell in cells:
        stored = numbers.get(cell)
        states[cell] = read_state(None if stored is None else tuple(orjson.loads(stored)))
    return states


# -- materializations that wait ------------------------------------------------------------------------------------


def write_wait(database: Database, wait: JobWait) -> None:
    """Record that a materialization waits for jobs; if it waited before, `first_run` and `since` are kept."""
    origin = wait.origin
    names = map(clean, (origin.asset, origin.partition, origin.run, wait.last_run))
    database.run(_WAIT, (*names, orjson.dumps([job.hex() for job in wait.jobs]), wait.since))


def remove_wait(database: Database, origin: Origin) -> None:
    """Record that the materialization of `origin` does not wait any more."""
    key = (clean(origin.asset), clean(origin.partition))
    database.run("DELETE FROM ondine.job_waits WHERE asset = ? AND partition = ?", key)


def read_waits(database: Database, origin: Origin | None = None) -> list[JobWait]:
    """The waiting materializations, all or that of the asset and partition of `origin`."""
    rows: list[Any] = database.select(
        "SELECT asset, partition, first_run, last_run, jobs, since FROM ondine.job_waits ORDER BY since"
    )
    waits = [
        JobWait(Origin(first, asset, partition), last, tuple(map(bytes.fromhex, orjson.loads(jobs))), since)
        for asset, partition, first, last, jobs, since in rows
    ]
    if origin is None:
        return waits
    wanted = (clean(origin.asset), clean(origin.partition))
    return [wait for wait in waits if (wait.origin.asset, wait.origin.partition) == wanted]
