"""What the command line asks of a store: how large it is, what was spent, what is old, and everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Literal, TypeAlias

import orjson

from ondine_core.store.database import Database, Row
from ondine_core.store.records import from_pico, to_usage
from ondine_core.values import Usage

__all__ = ["ANSWER_COLUMNS", "Column", "Pruned", "Size", "Spending", "prune", "read_size", "read_spending", "stream"]

Column: TypeAlias = Literal["asset", "model", "day", "stage", "run"]
"""What spending can be told apart by."""

ANSWER_COLUMNS = ("key", "values", "model", "attempts", "batch_size", "cost_usd", "request_id", "answered_at")

_SPENDING = """
    SELECT {by}, SUM(calls), SUM(input_tokens), SUM(cached_input_tokens), SUM(output_tokens), SUM(reasoning_tokens),
    SUM(cache_write_tokens), SUM(pico_usd), SUM(unpriced_calls), SUM(at_most_calls), SUM(paid_twice)
    FROM ondine.ledger GROUP BY {by}"""
_DATED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("answers", "answered_at", ("key",)),
    ("failures", "failed_at", ("key",)),
    ("ledger", "day", ("run", "asset", "partition", "model", "stage", "outcome", "day")),
)
"""Tables, the column that says how old a row is, and the primary key.

Calls of unknown outcome are not among them: budgets stay charged with them, and this is the record of why.
"""
_ROWS_A_TRANSACTION = 500
_PAUSE_SHARE = 2.0
"""So many times what a transaction took, other processes get a chance to write."""
_PASSING = ("lease:", "writer:")
"""The second of the numbers of these names is in seconds since the epoch; they are of no use long after."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is stored.

    Args:
        answers: Prompts with an answer.
        failures: Prompts that failed for good.
        unknown: Calls whose outcome was not seen, or not yet.
        bytes: What it takes on disk.
        oldest: When the oldest answer came, seconds since the epoch; `None` when there is none.
        newest: When the newest answer came.
    """

    answers: int
    failures: int
    unknown: int
    bytes: int
    oldest: float | None
    newest: float | None


@dataclass(frozen=True, slots=True)
class Spending:
    """What was spent.

    Args:
        calls: Calls whose outcome was seen.
        usage: Their tokens.
        usd: What they cost, apart from those without a price.
        unpriced: How many of them have no price.
        unknown: Calls whose outcome was not seen, or not yet.
        at_most_usd: What those may cost, apart from those without a price.
        paid_twice: Prompts that were paid for twice, or may have been.
        at_most_calls: Calls that are in `usd` with the most that they can have cost.
    """

    calls: int = 0
    usage: Usage = Usage()
    usd: Decimal = Decimal(0)
    unpriced: int = 0
    unknown: int = 0
    at_most_usd: Decimal = Decimal(0)
    paid_twice: int = 0
    at_most_calls: int = 0


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows were too old: answers, failures, and lines of the ledger."""

    answers: int
    failures: int
    ledger: int


def read_size(database: Database) -> Size:
    """How much `database` holds."""

    def read() -> Size:
        answers, oldest, newest = database.select(
            "SELECT COUNT(*), MIN(answered_at), MAX(answered_at) FROM ondine.answers"
        )[0]
        failures, unknown = (
            database.select(f"SELECT COUNT(*) FROM ondine.{table}")[0][0]  # noqa: S608
            for table in ("failures", "calls")
        )
        return Size(answers, failures, unknown, database.measure(), oldest, newest)

    return database.read(read)


def read_spending(database: Database, *by: Column) -> dict[tuple[str, ...], Spending]:
    """What was spent, for each combination of values of the columns `by`, in their order."""

    def read() -> dict[tuple[str, ...], Spending]:
        spent: dict[tuple[str, ...], Spending] = {}
        for row in database.select(_SPENDING.format(by=", ".join(by))):
            calls, *tokens, pico_usd, unpriced, at_most_calls, paid_twice = map(int, row[len(by) :])
            group = row[: len(by)]
            usage, usd = to_usage(tokens), from_pico(pico_usd)
            spent[group] = Spending(calls, usage, usd, unpriced, at_most_calls=at_most_calls, paid_twice=paid_twice)
        names = ", ".join("sent_at" if name == "day" else name for name in by)
        for *values, at_most in database.select(f"SELECT {names}, at_most_pico_usd FROM ondine.calls"):  # noqa: S608
            group = tuple(_day(value) if name == "day" else value for name, value in zip(by, values, strict=True))
            old = spent.get(group, Spending())
            most = old.at_most_usd + from_pico(at_most or 0)
            spent[group] = replace(old, unknown=old.unknown + 1, at_most_usd=most)
        return dict(sorted(spent.items()))

    return database.read(read)


def prune(
    database: Database, before: float, *, dry_run: bool = False, sleep: Callable[[float], None] = time.sleep
) -> Pruned:
    """Remove what is older than `before` (seconds since the epoch), in small transactions with pauses between them.

    So other processes that write wait for a moment only. One that is broken off has removed a part.

    Args:
        database: The store.
        before: Answers and failures of before this instant go, and days that ended before it.
        dry_run: Only count.
        sleep: Waits for seconds.
    """
    removed: list[int] = []
    for table, column, key in _DATED:
        limit = _day(before) if column == "day" else before
        pages = _old_rows(database, table, column, key, limit)
        if dry_run:
            removed.append(sum(len(rows) for rows in pages))
            continue
        removed.append(0)
        for rows in pages:
            removed[-1] += len(rows)
            _remove(database, table, column, key, limit, rows, sleep)
    if not dry_run:
        database.write(lambda: _forget_numbers(database, before))
        # Announced by a process of another machine that was killed.
        database.write(lambda: database.run("DELETE FROM ondine.runs WHERE joined_at < ?", [before]))
    return Pruned(*removed)


def _old_rows(
    database: Database, table: str, column: str, key: tuple[str, ...], limit: str | float
) -> Iterator[list[Row]]:
    """The primary keys of old rows in their order, some at a time; nothing is held open between two reads."""
    names = ", ".join(key)
    places = ", ".join("?" * len(key))
    sql = (
        f"SELECT {names} FROM ondine.{table} WHERE {column} < ? AND ({names}) > ({places}) "  # noqa: S608
        f"ORDER BY {names} LIMIT {_ROWS_A_TRANSACTION}"
    )
    last: Row = (b"",) if len(key) == 1 else ("",) * len(key)
    while rows := database.read(partial(database.select, sql, (limit, *last))):
        yield rows
        last = rows[-1]


def _remove(  # noqa: PLR0913, PLR0917  (one caller)
    database: Database,
    table: str,
    column: str,
    key: tuple[str, ...],
    limit: str | float,
    rows: Sequence[Row],
    sleep: Callable[[float], None],
) -> None:
    """Remove rows by their primary keys, unless they were written anew meanwhile."""
    sql = f"DELETE FROM ondine.{table} WHERE {column} < ? AND {' AND '.join(f'{name} = ?' for name in key)}"  # noqa: S608
    began = time.monotonic()
    database.write(lambda: database.run_many(sql, [(limit, *row) for row in rows]))
    sleep(_PAUSE_SHARE * (time.monotonic() - began))


def _forget_numbers(database: Database, before: float) -> None:
    for name, numbers in database.select("SELECT name, numbers FROM ondine.numbers"):
        if name.startswith(_PASSING) and _ended_before(numbers, before):
            # Unless they have just been changed.
            database.run("DELETE FROM ondine.numbers WHERE name = ? AND numbers = ?", [name, numbers])


def _ended_before(numbers: bytes, before: float) -> bool:
    try:
        return bool(orjson.loads(numbers)[1] < before)
    except (IndexError, TypeError, ValueError):
        return True  # damaged, and of no use to anybody


def stream(database: Database) -> Iterator[Row]:
    """All answers, in no order, each a row of `ANSWER_COLUMNS`."""
    columns = ", ".join(f'"{column}"' for column in ANSWER_COLUMNS)
    return database.stream(f"SELECT {columns} FROM ondine.answers")  # noqa: S608


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()
