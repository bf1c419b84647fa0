"""Lists the budget reservations for calls in flight, and settles those whose holder has ended.

Runs settle the reservations of processes that they can see have ended. Whether a process of another machine, of a
container or of an earlier boot has ended, only the user knows; these are settled by the age of their last call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

import orjson

from ondine_core.store.budget_state import (
    BudgetState,
    Holding,
    read_state,
    settle_holdings,
    usd_of,
    write_state,
)
from ondine_core.store.database import Database
from ondine_core.store.job_tables import JOB_HOST, job_process, read_jobs
from ondine_core.store.ledger_rows import write_entries
from ondine_core.store.records import Update
from ondine_core.types.processes import Process, has_ended, this_process
from ondine_core.types.protocols import Numbers

_NUMBERS = "SELECT name, numbers FROM ondine.numbers ORDER BY name"


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one process holds of one budget, and when this last changed, in seconds since the epoch."""

    budget: str
    usd: Decimal
    holder: str
    changed_at: float


def list_reservations(database: Database) -> list[Reservation]:
    """The reservations of all budgets."""
    states, jobs = database.read(lambda: (list(_states(database)), read_jobs(database)))
    markers = {job_process(record.job): record.marker for record in jobs}
    return [
        Reservation(budget_name(name), usd_of(holding.units), _name_holder(holding, markers), holding.changed_at)
        for name, state in states
        for holding in state.holdings
    ]


def settle_reservations(database: Database, before: float | None = None) -> Decimal:
    """Count what ended processes hold as spent; returns how much that is, in USD.

    With `before` (in seconds since the epoch), also holdings that last changed before it, of processes that cannot be
    seen from here. The holdings of a batch job are settled when the job is closed.
    """

    def is_over(holding: Holding) -> bool:
        if holding.host == JOB_HOST:
            return False
        if has_ended(holding.process):
            return True
        return before is not None and holding.changed_at < before and not _is_visible(holding)

    def step(numbers: Numbers | None) -> Numbers:
        return write_state(settle_holdings(read_state(numbers), is_over))

    settled = Decimal(0)
    for name, old in database.read(lambda: list(_states(database))):
        new = database.write(partial(write_entries, database, [Update(name, step)]), [name])[0]
        if isinstance(new, BaseException):
            raise new
        settled += usd_of(read_state(new).settled - old.settled)
    return settled


def budget_name(cell: str) -> str:
    """The name and period of a budget, from the name of its numbers."""
    _, period, stamp, name = cell.split(":", 3)
    return " ".join(filter(None, (name, period, stamp)))


def _states(database: Database) -> Iterator[tuple[str, BudgetState]]:
    for name, numbers in database.select(_NUMBERS):
        if name.startswith("budget:"):
            yield name, read_state(tuple(orjson.loads(numbers)))


def _is_visible(holding: Holding) -> bool:
    """Whether this process could see that the holder has ended."""
    return holding.process.host == this_process().host


def _name_holder(holding: Holding, markers: Mapping[Process, str]) -> str:
    if holding.host == JOB_HOST:
        return f"batch job {markers.get(holding.process, '?')}"
    process = f"process {holding.process.id:.0f}"
    if has_ended(holding.process):
        return f"{process}, which has ended"
    return f"{process}, running" if _is_visible(holding) else f"{process} elsewhere"
