"""Batch jobs in the store: begun before anything is sent, charged to budgets, settled request by request, closed.

The requests of a job are calls like others, so that the ledger counts them and no run asks their prompts meanwhile: the
job is announced as a run of its own, which is in no process and leaves when the job is closed. What a job holds of
budgets has an identity of its own, too; its calls and its budgets are settled in one transaction. Every function here
but the queries runs within a transaction, and does nothing if the state of the job does not allow it.
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
"""The host of the process that holds a job's share of a budget: none, so it is never taken to have ended."""

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
    """Replace what is kept of a job."""
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


def move(database: Database, job: bytes, of: Sequence[JobState], changed_at: float, **changes: Any) -> bool:
    """Change fields of what is kept of a job, if its state is one of `of`; returns whether it is."""
    record = _find_locked(database, job, of)
    if record is not None:
        write(database, replace(record, changed_at=changed_at, **changes))
    return record is not None


def discard(database: Database, job: bytes, of: Sequence[JobState]) -> bool:
    """Forget a job that was not created, if its state is one of `of`; frees its prompts and its share of budgets."""
    record = _find_locked(database, job, of)
    if record is None:
        return False
    database.run(f"DELETE FROM ondine.calls WHERE {_OF_JOB}", _range_of(job))  # noqa: S608
    claims.leave(database, [job])
    database.run("DELETE FROM ondine.jobs WHERE job = ?", [job])
    _change_budgets(database, record, partial(end_holding, process=job_process(job), spent=False))
    return True


def close(database: Database, job: bytes, state: JobState, at: float) -> int | None:
    """End a job: what is left of its requests may have been billed and stays charged at its bound.

    Returns:
        How many requests are left so; `None` if it was closed already.
    """
    record = _find_locked(database, job, OPEN_STATES)
    if record is None:
        return None
    (left,) = database.select(f"SELECT COUNT(*) FROM ondine.calls WHERE {_OF_JOB}", _range_of(job))[0]  # noqa: S608
    _end(database, replace(record, state=state, changed_at=at))
    return int(left)


def _end(database: Database, record: JobRecord) -> None:
    """Write a closed job, and detach from it what is left of its requests."""
    database.run(f"UPDATE ondine.calls SET batch = NULL WHERE {_OF_JOB}", _range_of(record.job))  # noqa: S608
    claims.leave(database, [record.job])
    write(database, record)
    _change_budgets(database, record, partial(end_holding, process=job_process(record.job), spent=True))


def read_jobs(database: Database, *, jobs: Sequence[bytes] | None = None, is_open: bool = True) -> list[JobRecord]:
    """The jobs of these identities, or all; the oldest first.

    With `is_open`, only those with requests in flight.
    """
    rows = database.select(_FIND) if jobs is None else database.select_in(f"{_FIND} WHERE job IN ?", jobs)
    records = sorted(map(_to_record, rows), key=lambda record: (record.created_at, record.job))
    return [record for record in records if record.state in OPEN_STATES or not is_open]


def prune_jobs(database: Database, before: float, asset: str | None, *, dry_run: bool) -> dict[str, int]:
    """Remove jobs that were closed before an instant, and waits that began before it and wait for no open job.

    Returns:
        How many there are, by table.
    """
    wanted = None if asset is None else clean(asset)

    def find() -> tuple[list[bytes], list[JobWait]]:
        records = read_jobs(database, is_open=False)
        is_open = {record.job for record in records if record.state in OPEN_STATES}
        old = [record for record in records if record.changed_at < before and wanted in (None, record.origin.asset)]
        waits = [one for one in read_waits(database) if one.since < before and wanted in (None, one.origin.asset)]
        idle = [one for one in waits if is_open.isdisjoint(one.jobs)]
        return [record.job for record in old if record.job not in is_open], idle

    def remove() -> tuple[list[bytes], list[JobWait]]:
        jobs, waits = find()
        database.run_in("DELETE FROM ondine.jobs WHERE job IN ?", jobs)
        for one in waits:
            key = (one.origin.asset, one.origin.partition, one.last_run)
            database.run("DELETE FROM ondine.job_waits WHERE asset = ? AND partition = ? AND last_run = ?", key)
        return jobs, waits

    jobs, waits = database.read(find) if dry_run else database.write(remove)
    return {"jobs": len(jobs), "job_waits": len(waits)}


def _find_locked(database: Database, job: bytes, of: Sequence[JobState]) -> JobRecord | None:
    """A job that no other transaction changes before this one ends, if its state is one of `of`."""
    database.hold(f"job:{job.hex()}")
    record = next(iter(read_jobs(database, jobs=[job], is_open=False)), None)
    return record if record is not None and record.state in of else None


def _to_record(row: Row) -> JobRecord:
    kept = dict(zip(_COLUMNS, row, strict=True))
    bound = kept.pop("at_most_pico_usd")
    return JobRecord(
        job=bytes(kept.pop("job")),
        task=bytes(kept.pop("question")),
        origin=Origin(kept.pop("run"), kept.pop("asset"), kept.pop("partition")),
        owner=tuple(orjson.loads(kept.pop("owner"))),
        cells=tuple(orjson.loads(kept.pop("cells"))),
        at_most_usd=None if bound is None else from_pico(bound),
        **kept,
    )


# -- requests ------------------------------------------------------------------------------------------------------


def read_calls(database: Database, job: bytes, numbers: Sequence[int] | None = None) -> list[CallStarted]:
    """The requests of a job that are not settled, of these numbers or all."""
    if numbers is None:
        rows = database.select(f"{_CALLS} WHERE {_OF_JOB} AND batch IS NOT NULL", _range_of(job))
    else:
        calls = [job + number.to_bytes(8) for number in numbers]
        rows = database.select_in(f"{_CALLS} WHERE batch IS NOT NULL AND call IN ?", calls)
    return [_to_call(row) for row in rows]


def read_in_flight(database: Database) -> Mapping[bytes, UsageTotals]:
    """The requests of each job that have no outcome yet, and the most that they can cost."""
    found: defaultdict[bytes, UsageTotals] = defaultdict(UsageTotals)
    for job, requests, priced, pico_usd in database.select(_IN_FLIGHT):
        usd = from_pico(int(pico_usd)) if priced == requests else None
        found[bytes(job)] = UsageTotals(int(requests), usd=usd)
    return found


def count_lost(database: Database, job: bytes) -> int:
    """Requests of a closed job whose outcome was never seen."""
    lost = f"SELECT COUNT(*) FROM ondine.calls WHERE {_OF_JOB} AND batch IS NULL"  # noqa: S608
    return int(database.select(lost, _range_of(job))[0][0])


def number_in_job(call: CallStarted) -> int:
    """The number that a request has in its job."""
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
    """Settle requests of a job, in the ledger and in its budgets; with the last of them the job is closed.

    Those that were settled before, by another run that reads the job, are left as they are; returns the others.
    """
    record = _find_locked(database, job, OPEN_STATES)
    noted = settle_calls(database, [to_settled_rows(one) for one in settled])
    if record is None:
        return noted
    new = [one for one in settled if one.sent.call in noted]
    bound = sum(units_of(one.sent.at_most_usd) for one in new if one.sent.at_most_usd is not None)
    spent = sum(units_of((one.sent.at_most_usd or Decimal(0)) if one.usd is None else one.usd) for one in new)
    process = job_process(job)
    _change_budgets(database, record, lambda state: settle(state, process, bound, spent, at))
    if not database.select(f"SELECT 1 FROM ondine.calls WHERE {_OF_JOB} LIMIT 1", _range_of(job)):  # noqa: S608
        _end(database, replace(record, state="read", changed_at=at))
    return noted


# -- budgets -------------------------------------------------------------------------------------------------------


def job_process(job: bytes) -> Process:
    """The holder's id of a job's reservations."""
    return Process(JOB_HOST, float(int.from_bytes(job) >> 11), 0.0)  # a float holds 53 bits exactly


def hold_budgets(database: Database, job: bytes, cells: Mapping[str, int], amounts: Sequence[int], at: float) -> int:
    """Charge every budget with the first of `amounts` that fit together; returns how many.

    `cells` has the most units of each budget by the name of its numbers, `amounts` the units of each request.
    """
    states = _read_states(database, tuple(cells))
    room = min((most - states[cell].charged for cell, most in cells.items()), default=None)
    if room is None:
        return len(amounts)
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
    """Whether `units` would fit into each budget if batch jobs gave back all that they hold of it.

    `cells` has the most units of each budget by the name of its numbers.
    """
    for cell, state in _read_states(database, tuple(cells)).items():
        held = sum(holding.units for holding in state.holdings if holding.host == JOB_HOST)
        if state.charged - held + units > cells[cell]:
            return False
    return True


def give_back(database: Database, job: bytes, units: int, at: float) -> None:
    """Give back what a job holds for requests that do not become a part of it."""
    record = _find_locked(database, job, OPEN_STATES)
    if record is not None and units:
        process = job_process(job)
        _change_budgets(database, record, lambda state: settle(state, process, units, 0, at))


def _change_budgets(database: Database, record: JobRecord, change: Callable[[BudgetState], BudgetState]) -> None:
    """Replace the state of each budget that a job charges by `change` of it."""
    states = _read_states(database, record.cells)
    database.write_numbers({cell: orjson.dumps(write_state(change(state))) for cell, state in states.items()})


def _read_states(database: Database, cells: Sequence[str]) -> dict[str, BudgetState]:
    if not cells:
        return {}
    found = database.read_numbers(sorted(cells))
    numbers = {cell: held for cell, held in found.items() if held is not None}
    return {cell: read_state(tuple(orjson.loads(numbers[cell])) if cell in numbers else None) for cell in cells}


# -- materializations that wait ------------------------------------------------------------------------------------


def write_wait(database: Database, wait: JobWait) -> None:
    """Note that a materialization waits for jobs; if it waited before, its first run and the instant stay known."""
    origin = wait.origin
    names = map(clean, (origin.asset, origin.partition, origin.run, wait.last_run))
    database.run(_WAIT, (*names, orjson.dumps([job.hex() for job in wait.jobs]), wait.since))


def remove_wait(database: Database, origin: Origin) -> None:
    """Note that the materialization of `origin` waits no more."""
    whose = (clean(origin.asset), clean(origin.partition))
    database.run("DELETE FROM ondine.job_waits WHERE asset = ? AND partition = ?", whose)


def read_waits(database: Database, origin: Origin | None = None) -> list[JobWait]:
    """The materializations that wait, all or that of `origin`."""
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
