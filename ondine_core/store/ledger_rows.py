"""Reads and writes answers, failures, calls and the ledger, in statements that both databases run.

A call is recorded in `calls` before it leaves. When its outcome is seen it moves to the `ledger`, but only if it is
still in `calls`: otherwise it was counted before. So `calls` has the calls without an outcome, and the ledger is exact
after a kill at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, TypeVar

import orjson

from ondine_core.errors import StoreError
from ondine_core.store import claims
from ondine_core.store.database import Database, Row
from ondine_core.store.dialects import insert, list_columns, replace_existing, upsert
from ondine_core.store.records import (
    AMOUNT_COLUMNS,
    ANSWER_COLUMNS,
    CALL_COLUMNS,
    FAILURE_COLUMNS,
    LINE_COLUMNS,
    REPLY_COLUMNS,
    Change,
    DamagedRowError,
    Entry,
    SentRow,
    SettledRows,
    Update,
    clean,
    from_pico,
    split_keys,
    to_answer,
    to_failure,
    to_usage,
)
from ondine_core.store.schema import IS_ANSWERED, IS_FAILED
from ondine_core.types.ledger import Audit, UsageTotals
from ondine_core.types.protocols import Numbers
from ondine_core.types.values import Answer, Failure, Key

T = TypeVar("T")
_MAX_NAMED = 5
"""Maximum number of damaged rows that a warning lists."""

_SEND = insert("calls", CALL_COLUMNS, "ON CONFLICT (call) DO NOTHING")
_FIND_CALLS = "SELECT call FROM ondine.calls WHERE call IN ?"
_ANSWER = upsert("answers", ["key"], ANSWER_COLUMNS)
_REMOVE_FAILURES = "DELETE FROM ondine.failures WHERE key IN ?"
_FAIL = f"""
    INSERT INTO ondine.failures ({list_columns(FAILURE_COLUMNS)}) SELECT {", ".join("?" * len(FAILURE_COLUMNS))}
    WHERE NOT EXISTS (SELECT 1 FROM ondine.answers WHERE key = ? AND answered_at >= ?)
    {replace_existing(["key"], FAILURE_COLUMNS)}"""  # noqa: S608
_KEEP_REPLY = upsert("replies", ["key"], REPLY_COLUMNS)
_COUNT = insert(
    "ledger",
    LINE_COLUMNS + AMOUNT_COLUMNS,
    f"ON CONFLICT ({list_columns(LINE_COLUMNS)}) DO UPDATE SET "
    + ", ".join(f"{name} = old.{name} + excluded.{name}" for name in AMOUNT_COLUMNS),
)
_FIND_ANSWERS = f"""
    SELECT {list_columns(ANSWER_COLUMNS[:-1])} FROM ondine.answers AS a WHERE key IN ? AND {IS_ANSWERED}"""  # noqa: S608
_FIND_FAILURES = f"""
    SELECT {list_columns(FAILURE_COLUMNS[:-2])} FROM ondine.failures AS f WHERE key IN ? AND {IS_FAILED}"""  # noqa: S608


def _audit_of(where: str) -> str:
    return f"""
    SELECT outcome, {", ".join(f"SUM({name})" for name in AMOUNT_COLUMNS)} FROM ondine.ledger
    WHERE {where} GROUP BY outcome
    UNION ALL SELECT CASE WHEN batch IS NULL THEN 'unseen' ELSE 'in_jobs' END, COUNT(*), 0, 0, 0, 0, 0,
    COALESCE(SUM(at_most_pico_usd), 0), COUNT(*) - COUNT(at_most_pico_usd), 0, 0 FROM ondine.calls
    WHERE {where} GROUP BY batch IS NULL"""  # noqa: S608


_AUDIT = _audit_of("run = ?")
_AUDIT_OF_ASSET = _audit_of("run = ? AND asset = ?")


def write_entries(database: Database, entries: Sequence[Entry]) -> dict[int, Any]:
    """Write the entries of any number of callers, within a transaction.

    Returns:
        By index in `entries`: for each change its result; for each update the new numbers, or the error of its step,
        which changes nothing; for each call of a task that several runs ask, the prompts because of which it must not
        leave.
    """
    outcomes = {at: entry.work(database) for at, entry in enumerate(entries) if isinstance(entry, Change)}
    sent = {at: entry for at, entry in enumerate(entries) if isinstance(entry, SentRow)}
    settled = [entry for entry in entries if isinstance(entry, SettledRows)]
    if sent:
        database.run_many(_SEND, [entry.row for entry in sent.values()])
    if settled:
        settle_calls(database, settled)
    outcomes |= claims.claim(database, {at: entry.started for at, entry in sent.items()})
    return outcomes | _update(database, {at: entry for at, entry in enumerate(entries) if isinstance(entry, Update)})


def settle_calls(database: Database, settled: Sequence[SettledRows]) -> set[bytes]:
    """Move calls to the ledger and store their answers and failures, within a transaction.

    Returns:
        The ids of the calls that were still in `calls`; the others are not counted again.
    """
    # Rows are written in the order of their keys, so that two transactions on Postgres never wait for each other.
    calls = sorted({rows.call: rows for rows in settled}.items())
    unsettled = _find_calls(database, [call for call, _ in calls])
    database.run_in(claims.REMOVE_CALLS, sorted(unsettled))
    lines: dict[tuple[str, ...], tuple[int, ...]] = {}
    for call, rows in calls:
        if call in unsettled:
            sums = lines.get(rows.line)
            lines[rows.line] = rows.amounts if sums is None else tuple(map(int.__add__, sums, rows.amounts))
    answers = _sort_by_key(rows.answers for rows in settled)
    database.run_many(_ANSWER, answers)
    database.run_in(_REMOVE_FAILURES, [row[0] for row in answers])
    database.run_many(_FAIL, _sort_by_key(rows.failures for rows in settled))
    database.run_many(_KEEP_REPLY, _sort_by_key(rows.replies for rows in settled))
    database.run_many(_COUNT, [(*line, *lines[line]) for line in sorted(lines)])
    return unsettled


def _sort_by_key(groups: Iterable[Sequence[Row]]) -> list[Row]:
    """All rows in the order of their keys; of rows with the same key only the last."""
    rows = {row[0]: row for group in groups for row in group}
    return [rows[key] for key in sorted(rows)]


def _find_calls(database: Database, calls: Sequence[bytes]) -> set[bytes]:
    """The ids among `calls` that are in the table `calls`, usually all."""
    if database.has(_FIND_CALLS, calls, len(calls)):
        return set(calls)
    return {call for (call,) in database.select_in(_FIND_CALLS, calls)}


def _update(database: Database, updates: Mapping[int, Update]) -> dict[int, Numbers | BaseException]:
    if not updates:
        return {}
    rows = database.read_numbers(sorted({update.name for update in updates.values()}))
    stored = {name: row for name, row in rows.items() if row is not None}
    numbers: dict[str, Numbers] = {}
    outcomes: dict[int, Numbers | BaseException] = {}
    changed: dict[str, bytes] = {}
    for at, (name, step) in updates.items():
        try:
            if name in stored and name not in numbers:
                numbers[name] = _parse_numbers(name, stored[name], database.location)
            new = tuple(step(numbers.get(name)))
            if not all(map(isfinite, new)):
                raise ValueError(f"The numbers called {name!r} must be finite, not {new!r}.")
            changed[name] = orjson.dumps(new)
        except BaseException as error:  # noqa: BLE001  (the caller of this update raises it)
            # A future accepts any error except StopIteration.
            outcomes[at] = RuntimeError(repr(error)) if isinstance(error, StopIteration) else error
        else:
            outcomes[at] = numbers[name] = new
    database.write_numbers(changed)
    return outcomes


def _parse_numbers(name: str, stored: Any, location: str) -> Numbers:
    try:
        return tuple([float(number) for number in orjson.loads(stored)])
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"The numbers called {name!r} in the answer store {location!r} are damaged ({error}). Restore a backup, or "
            "remove that row of the table 'numbers': a rate or a lease starts anew then, a budget at nothing spent."
        ) from error


def read_answers(database: Database, keys: Sequence[Key], warn: Callable[[str], None]) -> dict[Key, Answer]:
    """The answers known for `keys`; damaged ones are listed in a warning and count as unknown."""
    return _parse_rows(database.select_in(_FIND_ANSWERS, keys), to_answer, "answers", database.location, warn)


def read_failures(database: Database, keys: Sequence[Key], warn: Callable[[str], None]) -> dict[Key, Failure]:
    """The failures of those of `keys` without an answer; damaged ones are listed in a warning and count as unknown."""
    return _parse_rows(database.select_in(_FIND_FAILURES, keys), to_failure, "failures", database.location, warn)


def _parse_rows(
    rows: Iterable[Row], parse: Callable[[Row], tuple[Key, T]], table: str, location: str, warn: Callable[[str], None]
) -> dict[Key, T]:
    values: dict[Key, T] = {}
    damaged: list[str] = []
    for row in rows:
        try:
            key, value = parse(row)
        except DamagedRowError as error:
            damaged.append(str(error))
        else:
            values[key] = value
    if damaged:
        named = ", ".join(damaged[:_MAX_NAMED]) + (", ..." if len(damaged) > _MAX_NAMED else "")
        warn(f"{len(damaged):,} rows of the table {table!r} in {location!r} are damaged and are asked again: {named}.")
    return values


def read_unseen(database: Database) -> frozenset[Key]:
    """The prompts of all calls without an outcome, except requests of batch jobs."""
    rows = database.select("SELECT keys FROM ondine.calls WHERE batch IS NULL")
    return frozenset(key for (keys,) in rows for key in split_keys(keys))


def read_audit(database: Database, run: str, asset: str | None = None) -> Audit:
    """The ledger of one run, or of one asset of it."""
    if asset is None:
        rows = database.select(_AUDIT, 2 * [clean(run)])
    else:
        rows = database.select(_AUDIT_OF_ASSET, 2 * [clean(run), clean(asset)])
    sums: dict[str, list[int]] = {outcome: amounts for outcome, *amounts in rows}
    return Audit(
        answered=_to_totals(sums.get("answered")),
        refused=_to_totals(sums.get("refused")),
        unknown=_to_totals(sums.get("unseen")),
        paid_twice=sum(int(amounts[-1]) for amounts in sums.values()),
        in_jobs=_to_totals(sums.get("in_jobs")),
    )


def _to_totals(amounts: Sequence[int] | None) -> UsageTotals:
    if amounts is None:
        return UsageTotals()
    calls, *tokens, pico_usd, unpriced, at_most, _ = map(int, amounts)
    return UsageTotals(calls, to_usage(tokens), None if unpriced else from_pico(pico_usd), at_most)
