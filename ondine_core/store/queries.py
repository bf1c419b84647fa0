"""What the command line asks of a store: how large it is, what was spent, what is old, and everything."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Literal, TypeAlias

import orjson

from ondine_core.store.database import Database, Row
from ondine_core.store.job_tables import prune_jobs, read_jobs
from ondine_core.store.origins import OF_ASSET, forget_unused
from ondine_core.store.records import DamagedRowError, clean, from_pico, to_failure, to_usage
from ondine_core.types.values import Failure, Key, Usage

__all__ = [
    "ANSWER_COLUMNS",
    "Column",
    "FailedPrompt",
    "Pruned",
    "Size",
    "Spending",
    "prune",
    "read_failed_prompts",
    "read_failure_counts",
    "read_size",
    "read_spending",
    "stream",
]

Column: TypeAlias = Literal["asset", "model", "day", "stage", "run"]
"""What spending can be told apart by."""

ANSWER_COLUMNS = ("key", "values", "model", "attempts", "batch_size", "cost_usd", "request_id", "answered_at")

_SPENDING = """
    SELECT {by}, SUM(calls), SUM(input_tokens), SUM(cached_input_tokens), SUM(output_tokens), SUM(reasoning_tokens),
    SUM(cache_write_tokens), SUM(pico_usd), SUM(unpriced_calls), SUM(at_most_calls), SUM(paid_twice)
    FROM ondine.ledger WHERE day >= ?{and_asset} GROUP BY {by}"""
_FAILED = """
    SELECT f.key, f.reason, f.detail, f.model, f.attempts, f.cost_usd, f.failed_at,
    COALESCE(o.asset, ''), COALESCE(o.partition, ''), COALESCE(o.run, ''),
    EXISTS (SELECT 1 FROM ondine.replies AS r WHERE r.key = f.key)
    FROM ondine.failures AS f LEFT JOIN ondine.origins AS o ON o.origin = f.origin"""
_DATED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("answers", "answered_at", ("key",)),
    ("failures", "failed_at", ("key",)),
    ("replies", "kept_at", ("key",)),
    ("ledger", "day", ("run", "asset", "partition", "model", "stage", "outcome", "day")),
)
"""Tables, the column that says how old a row is, and the primary key.

Calls of unknown outcome are not among them: budgets stay charged with them, and this is the record of why.
"""
_FORGET_RUNS = "DELETE FROM ondine.runs WHERE joined_at < ? AND run NOT IN (SELECT job FROM ondine.jobs)"
_DAY_S = 86400.0
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
        unknown: Calls whose outcome was not seen, or not yet, apart from requests of batch jobs.
        bytes: What it takes on disk.
        oldest: When the oldest answer came, seconds since the epoch; `None` when there is none.
        newest: When the newest answer came.
        jobs: Batch jobs that are under way.
        job_requests: Requests of these that have no outcome yet.
    """

    answers: int
    failures: int
    unknown: int
    bytes: int
    oldest: float | None
    newest: float | None
    jobs: int = 0
    job_requests: int = 0


@dataclass(frozen=True, slots=True)
class Spending:
    """What was spent.

    Args:
        calls: Calls whose outcome was seen.
        usage: Their tokens.
        usd: What they cost, apart from those without a price.
        unpriced: How many of them have no price.
        unknown: Calls whose outcome was not seen, or not yet, apart from requests of batch jobs.
        at_most_usd: What those may cost, apart from those without a price.
        paid_twice: Prompts that were paid for twice, or may have been.
        at_most_calls: Calls that are in `usd` with the most that they can have cost.
        in_jobs: Requests of batch jobs that have no outcome yet.
        in_jobs_at_most_usd: What those may cost, apart from those without a price.
    """

    calls: int = 0
    usage: Usage = Usage()
    usd: Decimal = Decimal(0)
    unpriced: int = 0
    unknown: int = 0
    at_most_usd: Decimal = Decimal(0)
    paid_twice: int = 0
    at_most_calls: int = 0
    in_jobs: int = 0
    in_jobs_at_most_usd: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows were removed.

    Args:
        answers: Answers.
        failures: Failures.
        replies: Replies of the model that were kept.
        ledger: Lines of the ledger.
        jobs: Batch jobs that are closed.
        waits: Materializations that waited for jobs of which none is under way.
    """

    answers: int
    failures: int
    replies: int
    ledger: int
    jobs: int = 0
    waits: int = 0


@dataclass(frozen=True, slots=True)
class FailedPrompt:
    """A prompt without an answer.

    Args:
        key: Its key.
        failure: Why, and what it took to find out.
        failed_at: When it was asked last, seconds since the epoch.
        asset: For which asset, empty if that is not known.
        partition: For which partition.
        run: By which run.
        has_reply: Whether the model's reply is kept.
    """

    key: Key
    failure: Failure
    failed_at: float
    asset: str
    partition: str
    run: str
    has_reply: bool


def read_size(database: Database) -> Size:
    """How much `database` holds."""

    def read() -> Size:
        answers, oldest, newest = database.select(
            "SELECT COUNT(*), MIN(answered_at), MAX(answered_at) FROM ondine.answers"
        )[0]
        ((failures,),) = database.select("SELECT COUNT(*) FROM ondine.failures")
        ((calls, job_requests),) = database.select("SELECT COUNT(*), COUNT(batch) FROM ondine.calls")
        jobs = len(read_jobs(database))
        unknown = calls - job_requests
        return Size(answers, failures, unknown, database.measure(), oldest, newest, jobs, job_requests)

    return database.read(read)


def read_spending(
    database: Database, *by: Column, since: float = 0.0, asset: str | None = None
) -> dict[tuple[str, ...], Spending]:
    """What was spent, for each combination of values of the columns `by`, in their order.

    Args:
        database: The store.
        by: What is told apart.
        since: Only calls from this day on, in seconds since the epoch; the ledger knows days (UTC).
        asset: Only calls for this asset.
    """
    and_asset = "" if asset is None else " AND asset = ?"
    own = [] if asset is None else [clean(asset)]
    since = _start_of_day(since)

    def read() -> dict[tuple[str, ...], Spending]:
        spent: dict[tuple[str, ...], Spending] = {}
        for row in database.select(_SPENDING.format(by=", ".join(by), and_asset=and_asset), [_day(since), *own]):
            calls, *tokens, pico_usd, unpriced, at_most_calls, paid_twice = map(int, row[len(by) :])
            group = row[: len(by)]
            usage, usd = to_usage(tokens), from_pico(pico_usd)
            spent[group] = Spending(calls, usage, usd, unpriced, at_most_calls=at_most_calls, paid_twice=paid_twice)
        names = ", ".join("sent_at" if name == "day" else name for name in by)
        unseen = f"SELECT {names}, at_most_pico_usd, batch IS NOT NULL FROM ondine.calls WHERE sent_at >= ?{and_asset}"  # noqa: S608
        for (*values, is_in_job), (number, usd) in _count_unseen(database.select(unseen, [since, *own]), by).items():
            group = tuple(values)
            old = spent.get(group, Spending())
            if is_in_job:
                spent[group] = replace(old, in_jobs=number, in_jobs_at_most_usd=usd)
            else:
                spent[group] = replace(old, unknown=number, at_most_usd=usd)
        return dict(sorted(spent.items()))

    return database.read(read)


def _count_unseen(rows: Iterable[Row], by: Sequence[Column]) -> dict[Row, tuple[int, Decimal]]:
    """How many calls there are, and the most that they can cost, by the columns `by` and whether a job has them.

    A large job has a million of them, so days are told of groups and not of calls.
    """
    day_at = by.index("day") if "day" in by else None
    numbers, pico_usd = Counter[Row](), Counter[Row]()
    for *values, at_most, is_in_job in rows:
        if day_at is not None:
            values[day_at] //= _DAY_S
        group = (*values, bool(is_in_job))
        numbers[group] += 1
        pico_usd[group] += at_most or 0
    found = {}
    for group, number in numbers.items():
        named = [_day(value * _DAY_S) if at == day_at else value for at, value in enumerate(group)]
        found[tuple(named)] = number, from_pico(pico_usd[group])
    return found


def read_failed_prompts(
    database: Database,
    *,
    since: float = 0.0,
    asset: str | None = None,
    keys: Sequence[Key] | None = None,
    limit: int,
) -> list[FailedPrompt]:
    """The prompts without an answer, the newest first; damaged rows are left out.

    Args:
        database: The store.
        since: Only those that were asked since this instant, in seconds since the epoch.
        asset: Only those that were asked for this asset last.
        keys: Only those with one of these keys, whatever since and asset.
        limit: Maximum number of rows.
    """
    where, values = _failed_where(since, asset)
    sql = f"{_FAILED} {where} ORDER BY f.failed_at DESC, f.key LIMIT {int(limit)}"
    if keys is None:
        rows = database.read(lambda: database.select(sql, values))
    else:
        rows = database.read(lambda: database.select_in(f"{_FAILED} WHERE f.key IN ?", keys))
    found: list[FailedPrompt] = []
    for *row, failed_at, asset_, partition, run, has_reply in rows:
        with suppress(DamagedRowError):
            key, failure = to_failure(tuple(row))
            found.append(FailedPrompt(key, failure, failed_at, asset_, partition, run, bool(has_reply)))
    return found


def read_failure_counts(database: Database, *, since: float = 0.0, asset: str | None = None) -> dict[str, int]:
    """How many prompts have no answer, by reason, the most frequent first; filtered as for `read_failed_prompts`."""
    where, values = _failed_where(since, asset)
    sql = f"SELECT f.reason, COUNT(*) FROM ondine.failures AS f {where} GROUP BY f.reason"  # noqa: S608
    counts = {str(reason): int(count) for reason, count in database.read(lambda: database.select(sql, values))}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _failed_where(since: float, asset: str | None) -> tuple[str, list[float | str]]:
    where = """WHERE f.failed_at >= ? AND NOT EXISTS (
        SELECT 1 FROM ondine.answers AS a WHERE a.key = f.key AND a.answered_at >= f.failed_at)"""
    return (where, [since]) if asset is None else (f"{where} AND f.{OF_ASSET}", [since, clean(asset)])


def prune(  # noqa: PLR0913  (by keyword)
    database: Database,
    before: float,
    *,
    asset: str | None = None,
    ledger: bool = True,
    dry_run: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Pruned:
    """Remove what is older than `before` (seconds since the epoch), in small transactions with pauses between them.

    So other processes that write wait for a moment only. One that is broken off has removed a part. What belongs to a
    batch job that is under way stays.

    Args:
        database: The store.
        before: Answers and failures of before this instant go, and days that ended before it.
        asset: Only what was asked for this asset.
        ledger: Whether lines of the ledger go, too, and batch jobs that are closed.
        dry_run: Only count.
        sleep: Waits for seconds.
    """
    removed = dict.fromkeys((table for table, _, _ in _DATED), 0)
    for table, column, key in _DATED:
        if table == "ledger" and not ledger:
            continue
        limit = _day(before) if column == "day" else before
        for rows in _old_rows(database, table, column, key, limit, asset):
            removed[table] += len(rows)
            if not dry_run:
                _remove(database, table, column, key, limit, rows, sleep)
    if ledger:
        removed |= prune_jobs(database, before, asset, dry_run=dry_run)
    if not dry_run:
        forget_unused(database, before)
    if not dry_run and asset is None:
        database.write(lambda: _forget_numbers(database, before))
        # Announced by a process of another machine that was killed; a batch job leaves when it is closed.
        database.write(lambda: database.run(_FORGET_RUNS, [before]))
    return Pruned(**removed)


def _old_rows(  # noqa: PLR0913, PLR0917  (one caller)
    database: Database, table: str, column: str, key: tuple[str, ...], limit: str | float, asset: str | None
) -> Iterator[list[Row]]:
    """The primary keys of old rows in their order, some at a time; nothing is held open between two reads."""
    names = ", ".join(key)
    places = ", ".join("?" * len(key))
    of_asset = "asset = ?" if table == "ledger" else OF_ASSET
    sql = (
        f"SELECT {names} FROM ondine.{table} WHERE {column} < ? AND ({names}) > ({places}) "  # noqa: S608
        f"{'' if asset is None else f'AND {of_asset} '}ORDER BY {names} LIMIT {_ROWS_A_TRANSACTION}"
    )
    own = [] if asset is None else [clean(asset)]
    last: Row = (b"",) if len(key) == 1 else ("",) * len(key)
    while rows := database.read(partial(database.select, sql, (limit, *last, *own))):
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


def stream(database: Database, *, since: float = 0.0, asset: str | None = None) -> Iterator[Row]:
    """The answers since an instant, and for an asset, in no order, each a row of `ANSWER_COLUMNS`."""
    columns = ", ".join(f'"{column}"' for column in ANSWER_COLUMNS)
    wanted = None if asset is None else database.read(lambda: _find_origins(database, asset))
    for *row, answered_at, origin in database.stream(f"SELECT {columns}, origin FROM ondine.answers"):  # noqa: S608
        # A damaged row may have anything for its time; it is for the caller to say so.
        is_old = isinstance(answered_at, float) and answered_at < since
        if not is_old and (wanted is None or origin in wanted):
            yield (*row, answered_at)


def _find_origins(database: Database, asset: str) -> frozenset[bytes]:
    found = database.select("SELECT origin FROM ondine.origins WHERE asset = ?", [clean(asset)])
    return frozenset(bytes(origin) for (origin,) in found)


def _start_of_day(at: float) -> float:
    return at - at % _DAY_S


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()
