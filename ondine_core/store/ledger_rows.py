"""What is written and read in a store, in statements that both databases run.

A call is noted in `calls` before it leaves. When its outcome is seen it moves to the `ledger`, and only if the note is
there: otherwise it was counted before. So what remains in `calls` are the calls whose outcome was not seen, and the
ledger is right after a kill, whenever it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, TypeVar

import orjson

from ondine_core.errors import StoreError
from ondine_core.store import claims, origins
from ondine_core.store.database import Database, Row
from ondine_core.store.records import (
    Change,
    DamagedRowError,
    Entry,
    Left,
    Released,
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
from ondine_core.types.ledger import Audit, RunStarted, UsageTotals
from ondine_core.types.protocols import Numbers
from ondine_core.types.values import Answer, Failure, Key

__all__ = ["read_answers", "read_audit", "read_failures", "read_unseen", "settle_calls", "write_entries"]

T = TypeVar("T")
_MOST_NAMED = 5
"""Damaged rows in one warning; it also says how many there are."""

_ANSWERS = 'key, "values", model, attempts, batch_size, cost_usd, request_id, answered_at'
_ANSWER_ROW = f"{_ANSWERS}, origin"
_LINE = ("run", "asset", "partition", "model", "stage", "outcome", "day")
_AMOUNTS = (
    *("calls", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens", "cache_write_tokens"),
    *("pico_usd", "unpriced_calls", "at_most_calls", "paid_twice"),
)

_SEND = """
    INSERT INTO ondine.calls (call, run, asset, partition, model, stage, keys, sent_at, at_most_pico_usd, batch)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (call) DO NOTHING"""
_COUNT_CALLS = "SELECT COUNT(*) FROM ondine.calls WHERE call IN ?"
_FIND_CALLS = "SELECT call FROM ondine.calls WHERE call IN ?"
_REMOVE_CALLS = "DELETE FROM ondine.calls WHERE call IN ?"
_ANSWER = f"""
    INSERT INTO ondine.answers ({_ANSWER_ROW}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
    "values" = excluded."values", model = excluded.model, attempts = excluded.attempts,
    batch_size = excluded.batch_size, cost_usd = excluded.cost_usd, request_id = excluded.request_id,
    answered_at = excluded.answered_at, origin = excluded.origin"""  # noqa: S608
_REMOVE_FAILURES = "DELETE FROM ondine.failures WHERE key IN ?"
_FAIL = """
    INSERT INTO ondine.failures (key, reason, detail, failed_at, model, attempts, cost_usd, origin)
    SELECT ?, ?, ?, ?, ?, ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM ondine.answers WHERE key = ? AND answered_at >= ?)
    ON CONFLICT (key) DO UPDATE SET reason = excluded.reason, detail = excluded.detail, failed_at = excluded.failed_at,
    model = excluded.model, attempts = excluded.attempts, cost_usd = excluded.cost_usd, origin = excluded.origin"""
_COUNT = f"""
    INSERT INTO ondine.ledger AS old ({", ".join(_LINE + _AMOUNTS)}) VALUES ({", ".join("?" * len(_LINE + _AMOUNTS))})
    ON CONFLICT ({", ".join(_LINE)}) DO UPDATE SET
    {", ".join(f"{name} = old.{name} + excluded.{name}" for name in _AMOUNTS)}"""  # noqa: S608
# A prompt has an answer and a failure when it was asked anew in vain, or when two processes asked it; the later counts.
_FIND_ANSWERS = f"""
    SELECT {_ANSWERS} FROM ondine.answers AS a WHERE key IN ?
    AND NOT EXISTS (SELECT 1 FROM ondine.failures AS f WHERE f.key = a.key AND f.failed_at > a.answered_at)"""  # noqa: S608
_FIND_FAILURES = """
    SELECT key, reason, detail, model, attempts, cost_usd FROM ondine.failures AS f WHERE key IN ?
    AND NOT EXISTS (SELECT 1 FROM ondine.answers AS a WHERE a.key = f.key AND a.answered_at >= f.failed_at)"""
_AUDIT = f"""
    SELECT outcome, {", ".join(f"SUM({name})" for name in _AMOUNTS)} FROM ondine.ledger
    WHERE run = ? GROUP BY outcome
    UNION ALL SELECT CASE WHEN batch IS NULL THEN 'unseen' ELSE 'in_jobs' END, COUNT(*), 0, 0, 0, 0, 0,
    COALESCE(SUM(at_most_pico_usd), 0), COUNT(*) - COUNT(at_most_pico_usd), 0, 0 FROM ondine.calls
    WHERE run = ? GROUP BY batch IS NULL"""  # noqa: S608


def write_entries(database: Database, entries: Sequence[Entry]) -> dict[int, Any]:
    """Write what any number of callers want written, within a transaction.

    Returns:
        By place in `entries`: for each update the new numbers, or what its step raised, and then nothing changed; for
        each run that joins the others of its question; for each call of such a question the prompts that keep it from
        leaving.
    """
    outcomes: dict[int, Any] = {}
    sent = {at: entry for at, entry in enumerate(entries) if isinstance(entry, SentRow)}
    settled = [entry for entry in entries if isinstance(entry, SettledRows)]
    for at, entry in enumerate(entries):
        match entry:
            case RunStarted():
                outcomes[at] = claims.join(database, entry)
                origins.note(database, entry)
            case Left(runs):
                claims.leave(database, runs)
            case Released(calls):
                claims.release(database, calls)
    if sent:
        database.run_many(_SEND, [entry.row for entry in sent.values()])
    if settled:
        settle_calls(database, settled)
    outcomes |= claims.claim(database, sent)
    outcomes |= _update(database, {at: entry for at, entry in enumerate(entries) if isinstance(entry, Update)})
    for at, entry in enumerate(entries):
        if isinstance(entry, Change):
            outcomes[at] = entry.work(database)
    return outcomes


def settle_calls(database: Database, settled: Sequence[SettledRows]) -> set[bytes]:
    """Move calls to the ledger and keep what they brought, within a transaction; returns those that were noted."""
    # Rows are written in the order of their keys, so that two transactions on Postgres never wait for each other.
    calls = sorted({one.call: one for one in settled}.items())
    noted = _find_calls(database, [call for call, _ in calls])
    database.run_in(_REMOVE_CALLS, sorted(noted))
    lines: dict[tuple[str, ...], tuple[int, ...]] = {}
    for call, one in calls:
        if call in noted:
            old = lines.get(one.line)
            lines[one.line] = one.amounts if old is None else tuple(map(int.__add__, old, one.amounts))
    answers = {row[0]: row for one in settled for row in one.answers}
    failures = {row[0]: row for one in settled for row in one.failures}
    database.run_many(_ANSWER, [answers[key] for key in sorted(answers)])
    database.run_in(_REMOVE_FAILURES, sorted(answers))
    database.run_many(_FAIL, [failures[key] for key in sorted(failures)])
    replies = {row[0]: row for one in settled for row in one.replies}
    if replies:
        database.run_many(origins.KEEP_REPLY, [replies[key] for key in sorted(replies)])
    database.run_many(_COUNT, [(*line, *lines[line]) for line in sorted(lines)])
    return noted


def _find_calls(database: Database, calls: Sequence[bytes]) -> set[bytes]:
    """Those of `calls` that are noted; mostly all are, so they are counted first, which takes one row."""
    if database.counts_to(_COUNT_CALLS, calls, len(calls)):
        return set(calls)
    return {call for (call,) in database.select_in(_FIND_CALLS, calls)}


def _update(database: Database, updates: Mapping[int, Update]) -> dict[int, Numbers | BaseException]:
    if not updates:
        return {}
    found = database.read_numbers(sorted({update.name for update in updates.values()}))
    held = {name: numbers for name, numbers in found.items() if numbers is not None}
    numbers: dict[str, Numbers] = {}
    outcomes: dict[int, Numbers | BaseException] = {}
    changed: dict[str, bytes] = {}
    for at, (name, step) in updates.items():
        try:
            if name in held and name not in numbers:
                numbers[name] = _parse_numbers(name, held[name], database.place)
            new = tuple(step(numbers.get(name)))
            if not all(map(isfinite, new)):
                raise ValueError(f"The numbers called {name!r} must be finite, not {new!r}.")
            changed[name] = orjson.dumps(new)
        except BaseException as error:  # noqa: BLE001  (its own caller raises it)
            # A future takes any error but this one.
            outcomes[at] = RuntimeError(repr(error)) if isinstance(error, StopIteration) else error
        else:
            outcomes[at] = numbers[name] = new
    database.write_numbers(changed)
    return outcomes


def _parse_numbers(name: str, held: Any, place: str) -> Numbers:
    try:
        return tuple([float(number) for number in orjson.loads(held)])
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"The numbers called {name!r} in the answer store {place!r} are damaged ({error}). Restore a backup, or "
            "remove that row of the table 'numbers': a rate or a lease starts anew then, a budget at nothing spent."
        ) from error


def read_answers(database: Database, keys: Sequence[Key], warn: Callable[[str], None]) -> dict[Key, Answer]:
    """The answers known for `keys`; damaged ones are named in a warning and count as unknown."""
    return _parse_rows(database.select_in(_FIND_ANSWERS, keys), to_answer, "answers", database.place, warn)


def read_failures(database: Database, keys: Sequence[Key], warn: Callable[[str], None]) -> dict[Key, Failure]:
    """How prompts failed that have no answer; damaged rows are named in a warning and count as unknown."""
    return _parse_rows(database.select_in(_FIND_FAILURES, keys), to_failure, "failures", database.place, warn)


def _parse_rows(
    rows: Iterable[Row], parse: Callable[[Row], tuple[Key, T]], table: str, place: str, warn: Callable[[str], None]
) -> dict[Key, T]:
    found: dict[Key, T] = {}
    damaged: list[str] = []
    for row in rows:
        try:
            key, value = parse(row)
        except DamagedRowError as error:
            damaged.append(str(error))
        else:
            found[key] = value
    if damaged:
        named = ", ".join(damaged[:_MOST_NAMED]) + (", ..." if len(damaged) > _MOST_NAMED else "")
        warn(f"{len(damaged):,} rows of the table {table!r} in {place!r} are damaged and are asked again: {named}.")
    return found


def read_unseen(database: Database) -> frozenset[Key]:
    """The prompts of all calls whose outcome was not seen; what batch jobs have in flight is not among them."""
    unseen = database.select("SELECT keys FROM ondine.calls WHERE batch IS NULL")
    return frozenset(key for (keys,) in unseen for key in split_keys(keys))


def read_audit(database: Database, run: str) -> Audit:
    """The ledger of one run."""
    seen: dict[str, list[int]] = {outcome: amounts for outcome, *amounts in database.select(_AUDIT, 2 * [clean(run)])}
    return Audit(
        _line(seen.get("answered")),
        _line(seen.get("refused")),
        _line(seen.get("unseen")),
        sum(int(amounts[-1]) for amounts in seen.values()),
        _line(seen.get("in_jobs")),
    )


def _line(amounts: Sequence[int] | None) -> UsageTotals:
    if amounts is None:
        return UsageTotals()
    calls, *tokens, pico_usd, unpriced, at_most, _ = map(int, amounts)
    return UsageTotals(calls, to_usage(tokens), None if unpriced else from_pico(pico_usd), at_most)
