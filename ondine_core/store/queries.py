"""Queries of the command line: the size of a store, spending, failed prompts, pruning, and export."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from functools import partial
from itertools import chain
from typing import Any, Literal, TypeAlias

import orjson

from ondine_core.store.database import Database, Row
from ondine_core.store.dialects import list_columns
from ondine_core.store.job_tables import prune_jobs, read_jobs
from ondine_core.store.origins import OF_ASSET, forget_unused
from ondine_core.store.records import (
    AMOUNT_COLUMNS,
    ANSWER_COLUMNS,
    DAY_S,
    LINE_COLUMNS,
    DamagedRowError,
    clean,
    day_of,
    from_pico,
    to_failure,
    to_usage,
)
from ondine_core.store.schema import IS_FAILED
from ondine_core.types.ledger import Origin
from ondine_core.types.values import Failure, Key, Usage

Column: TypeAlias = Literal["asset", "model", "day", "stage", "run"]
"""The columns by which spending can be grouped."""

EXPORTED_COLUMNS = ANSWER_COLUMNS[:-1]
"""All columns except the origin."""

_SUMS = ", ".join(f"SUM({name})" for name in AMOUNT_COLUMNS)
_FAILED = """
    SELECT f.key, f.reason, f.detail, f.model, f.attempts, f.cost_usd, f.failed_at,
    COALESCE(o.run, ''), COALESCE(o.asset, ''), COALESCE(o.partition, ''),
    EXISTS (SELECT 1 FROM ondine.replies AS r WHERE r.key = f.key)
    FROM ondine.failures AS f LEFT JOIN ondine.origins AS o ON o.origin = f.origin"""
_FORGET_RUNS = "DELETE FROM ondine.runs WHERE joined_at < ? AND run NOT IN (SELECT job FROM ondine.jobs)"
_KEYS_A_PAGE = 500
_ANSWERS_A_PAGE = 25
"""Few, since an answer may be large."""
_PAUSE_SHARE = 2.0
"""Pause between transactions, as a multiple of the duration of the last one, so that others can write."""
_TEMPORARY = ("lease:", "writer:")
"""Prefixes of the names of numbers that expire; the second number is the instant, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class _PrunedTable:
    """A table from which old rows are removed.

    `column` is the time of a row, `key` the primary key; `of_asset` is the condition that a row was asked for an asset.
    """

    table: str
    column: str
    key: tuple[str, ...] = ("key",)
    of_asset: str = OF_ASSET


_DATED = (
    _PrunedTable("answers", "answered_at"),
    _PrunedTable("failures", "failed_at"),
    _PrunedTable("replies", "kept_at"),
    _PrunedTable("ledger", "day", LINE_COLUMNS, "asset = ?"),
)
"""Calls of unknown outcome are kept: they are the record of what budgets stay charged with."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is stored.

    `failures` counts prompts that failed for good, `unknown` calls without an outcome, or without one yet, except
    requests of batch jobs. `oldest` and `newest` are the times of answers, in seconds since the epoch.
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
        calls: Calls with an outcome.
        usage: Their tokens.
        usd: Cost of those with a price.
        unpriced: Number of those without a price.
        unknown: Calls without an outcome, or without one yet, except requests of batch jobs.
        at_most_usd: Maximum cost of those with a price.
        paid_twice: Prompts that were, or may have been, paid for twice.
        at_most_calls: Calls in `usd` at their maximum cost.
        in_jobs: Requests of batch jobs that have no outcome yet.
        in_jobs_at_most_usd: Maximum cost of those with a price.
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

    @property
    def known_usd(self) -> Decimal | None:
        """Cost of the calls with a price; `None` if there are calls and none of them has a price."""
        return None if 0 < self.calls == self.unpriced else self.usd

    def __add__(self, other: Spending) -> Spending:
        sums = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(Spending)}
        return Spending(**sums)


@dataclass(frozen=True, slots=True)
class FailedPrompt:
    """A prompt without an answer.

    `failed_at` is when it was last asked, in seconds since the epoch; `origin` is empty if unknown.
    """

    key: Key
    failure: Failure
    failed_at: float
    origin: Origin
    has_reply: bool


def read_size(database: Database) -> Size:
    """Count what `database` holds."""

    def read() -> Size:
        ((answers, oldest, newest),) = database.select(
            "SELECT COUNT(*), MIN(answered_at), MAX(answered_at) FROM ondine.answers"
        )
        ((failures,),) = database.select("SELECT COUNT(*) FROM ondine.failures")
        ((calls, job_requests),) = database.select("SELECT COUNT(*), COUNT(batch) FROM ondine.calls")
        return Size(
            answers=answers,
            failures=failures,
            unknown=calls - job_requests,
            bytes=database.measure(),
            oldest=oldest,
            newest=newest,
            jobs=len(read_jobs(database)),
            job_requests=job_requests,
        )

    return database.read(read)


def read_spending(
    database: Database, *by: Column, since: float = 0.0, asset: str | None = None
) -> dict[tuple[str, ...], Spending]:
    """Read what was spent, by the values of the columns `by`, in their order.

    Only calls for `asset` are counted, from the day (UTC) of `since` on: the ledger has sums of days.
    """
    and_asset, asset_value = _and_asset(asset, "asset = ?")
    columns = ", ".join(by)
    columns_of_calls = ", ".join("sent_at" if name == "day" else name for name in by)
    seen = f"SELECT {columns}, {_SUMS} FROM ondine.ledger WHERE day >= ?{and_asset} GROUP BY {columns}"  # noqa: S608
    unseen = f"""
        SELECT {columns_of_calls}, at_most_pico_usd, batch IS NOT NULL FROM ondine.calls
        WHERE sent_at >= ?{and_asset}"""  # noqa: S608

    def read() -> dict[tuple[str, ...], Spending]:
        spent: dict[tuple[str, ...], Spending] = {}
        for row in database.select(seen, [day_of(since), *asset_value]):
            calls, *tokens, pico_usd, unpriced, at_most_calls, paid_twice = map(int, row[len(by) :])
            spent[row[: len(by)]] = Spending(
                calls,
                to_usage(tokens),
                from_pico(pico_usd),
                unpriced,
                at_most_calls=at_most_calls,
                paid_twice=paid_twice,
            )
        rows = database.select(unseen, [since - since % DAY_S, *asset_value])
        for (*values, is_in_job), (count, usd) in _count_unseen(rows, by).items():
            group = tuple(values)
            settled = spent.get(group, Spending())
            if is_in_job:
                spent[group] = replace(settled, in_jobs=count, in_jobs_at_most_usd=usd)
            else:
                spent[group] = replace(settled, unknown=count, at_most_usd=usd)
        return dict(sorted(spent.items()))

    return database.read(read)


def _count_unseen(rows: Iterable[Row], by: Sequence[Column]) -> dict[Row, tuple[int, Decimal]]:
    """Count calls and add up their maximum costs, by the columns `by` and whether they are requests of a job.

    This is not done in SQL, since the databases have no common function that converts an instant to a day.
    """
    day_at = by.index("day") if "day" in by else None
    counts, pico_usd = Counter[Row](), Counter[Row]()
    for *values, at_most, is_in_job in rows:
        if day_at is not None:
            values[day_at] = day_of(values[day_at])
        group = (*values, bool(is_in_job))
        counts[group] += 1
        pico_usd[group] += at_most or 0
    return {group: (count, from_pico(pico_usd[group])) for group, count in counts.items()}


def read_failed_prompts(
    database: Database,
    *,
    since: float = 0.0,
    asset: str | None = None,
    keys: Sequence[Key] | None = None,
    limit: int,
) -> list[FailedPrompt]:
    """Read prompts without an answer, the newest first; damaged rows are left out.

    Without `keys`, at most `limit` of those that were last asked for `asset`, and since an instant (in seconds since
    the epoch). With `keys`, all those with one of these keys.
    """
    where, values = _failed_where(since, asset)
    sql = f"{_FAILED} {where} ORDER BY f.failed_at DESC, f.key LIMIT {int(limit)}"
    if keys is None:
        rows = database.read(lambda: database.select(sql, values))
    else:
        rows = database.read(lambda: database.select_in(f"{_FAILED} WHERE f.key IN ?", keys))
    prompts: list[FailedPrompt] = []
    for *row, failed_at, run, asset_name, partition, has_reply in rows:
        with suppress(DamagedRowError):
            key, failure = to_failure(tuple(row))
            prompts.append(FailedPrompt(key, failure, failed_at, Origin(run, asset_name, partition), bool(has_reply)))
    return prompts


def read_failure_counts(database: Database, *, since: float = 0.0, asset: str | None = None) -> dict[str, int]:
    """Count prompts without an answer by reason, the most frequent first; filtered as by `read_failed_prompts`."""
    where, values = _failed_where(since, asset)
    sql = f"SELECT f.reason, COUNT(*) FROM ondine.failures AS f {where} GROUP BY f.reason"  # noqa: S608
    counts = {str(reason): int(count) for reason, count in database.read(lambda: database.select(sql, values))}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _failed_where(since: float, asset: str | None) -> tuple[str, list[float | str]]:
    and_asset, asset_value = _and_asset(asset, f"f.{OF_ASSET}")
    return f"WHERE f.failed_at >= ? AND {IS_FAILED}{and_asset}", [since, *asset_value]


def _and_asset(asset: str | None, test: str = OF_ASSET) -> tuple[str, list[str]]:
    """The end of a query's condition, and its parameters: only rows that were asked for `asset`, if it is given."""
    return ("", []) if asset is None else (f" AND {test}", [clean(asset)])


def prune(
    database: Database,
    before: float | None,
    *,
    asset: str | None = None,
    dry_run: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Counter[str]:
    """Remove rows from before an instant, in small transactions with pauses, so that other processes can write.

    If it is interrupted, a part of the rows is removed. Rows of open batch jobs are kept.

    Args:
        database: The database.
        before: Seconds since the epoch. Answers, failures and replies from before it are removed, days of the ledger
            that ended before it, jobs that were closed before it, and waits that began before it and wait for no open
            job. `None` removes all answers, failures and replies; the ledger, which explains what a budget was spent
            on, and batch jobs are kept.
        asset: Only rows that were asked for this asset.
        dry_run: Only count the rows.
        sleep: Waits for a number of seconds.

    Returns:
        Number of rows, by table.
    """
    instant = time.time() if before is None else before
    removed = Counter[str]()
    for dated in _DATED:
        if dated.table == "ledger" and before is None:
            continue
        limit = day_of(instant) if dated.column == "day" else instant
        and_asset, asset_value = _and_asset(asset, dated.of_asset)
        old = f"SELECT {list_columns(dated.key)} FROM ondine.{dated.table} WHERE {dated.column} < ?{and_asset}"  # noqa: S608
        for rows in _read_in_pages(database, old, [limit, *asset_value], dated.key, _KEYS_A_PAGE):
            removed[dated.table] += len(rows)
            if not dry_run:
                began = time.monotonic()
                database.write(partial(_remove, database, dated, limit, rows))
                sleep(_PAUSE_SHARE * (time.monotonic() - began))
    if before is not None:
        removed.update(prune_jobs(database, before, asset, dry_run=dry_run))
    if not dry_run:
        forget_unused(database, instant)
    if not dry_run and asset is None:
        database.write(lambda: _forget_numbers(database, instant))
        # Runs of killed processes of other machines; a batch job leaves when it is closed.
        database.write(lambda: database.run(_FORGET_RUNS, [instant]))
    return removed


def _read_in_pages(
    database: Database, sql: str, values: Sequence[Any], key: Sequence[str], size: int
) -> Iterator[list[Row]]:
    """The rows of a query in the order of their primary key, in pages; each page is a transaction of its own.

    `sql` selects the columns `key` of the primary key first.
    """
    names, parameters = list_columns(key), ", ".join("?" * len(key))
    end = f"ORDER BY {names} LIMIT {size}"
    rows = database.read(partial(database.select, f"{sql} {end}", values))
    while rows:
        yield rows
        last = rows[-1][: len(key)]
        sql_of_rest = f"{sql} AND ({names}) > ({parameters}) {end}"
        rows = database.read(partial(database.select, sql_of_rest, (*values, *last)))


def _remove(database: Database, dated: _PrunedTable, limit: float | str, rows: Sequence[Row]) -> None:
    """Remove rows by their primary keys, unless they were rewritten since they were read."""
    key = f"({list_columns(dated.key)}) = ({', '.join('?' * len(dated.key))})"
    sql = f"DELETE FROM ondine.{dated.table} WHERE {dated.column} < ? AND {key}"  # noqa: S608
    database.run_many(sql, [(limit, *row) for row in rows])


def _forget_numbers(database: Database, before: float) -> None:
    for name, numbers in database.select("SELECT name, numbers FROM ondine.numbers"):
        if name.startswith(_TEMPORARY) and _ended_before(numbers, before):
            # Compared with the numbers, which may just have been changed.
            database.run("DELETE FROM ondine.numbers WHERE name = ? AND numbers = ?", [name, numbers])


def _ended_before(numbers: bytes, before: float) -> bool:
    try:
        return bool(orjson.loads(numbers)[1] < before)
    except (IndexError, TypeError, ValueError):
        return True  # damaged


def read_all_answers(database: Database, *, since: float = 0.0, asset: str | None = None) -> Iterator[Row]:
    """The answers since an instant and for an asset, in the order of their keys, as rows of `EXPORTED_COLUMNS`."""
    and_asset, asset_value = _and_asset(asset)
    # If the time of a damaged row is text or bytes, SQLite sorts it after every number, so the row is included.
    sql = f"SELECT {list_columns(EXPORTED_COLUMNS)} FROM ondine.answers WHERE answered_at >= ?{and_asset}"  # noqa: S608
    return chain.from_iterable(_read_in_pages(database, sql, [since, *asset_value], ["key"], _ANSWERS_A_PAGE))
