"""The origin of answers and failures: their run and asset, the task, and kept replies."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ondine_core.store.database import Database
from ondine_core.store.dialects import insert, upsert
from ondine_core.store.records import clean, clean_origin
from ondine_core.types.ledger import Origin, RunStarted
from ondine_core.types.values import Key

REPLIES_KEPT_S = 30 * 86400.0
"""Maximum time that the reply to a prompt that failed is kept."""

OF_ASSET = "origin IN (SELECT origin FROM ondine.origins WHERE asset = ?)"
"""Condition: a row of answers, failures or replies was asked for an asset."""

_COLUMNS = ("origin", "run", "asset", "partition", "question", "began_at")
_NOTE = insert("origins", _COLUMNS, "ON CONFLICT (origin) DO NOTHING")
_DEFINE = upsert("definitions", ["question"], ["question", "definition"])
_TABLES = ("answers", "failures", "replies")
_FIND_OLD = """
    SELECT origin FROM ondine.origins WHERE began_at < ? AND origin NOT IN (SELECT run FROM ondine.runs)"""
_REMOVE = "DELETE FROM ondine.origins WHERE origin IN ?"
_REMOVE_DEFINITIONS = "DELETE FROM ondine.definitions WHERE question NOT IN (SELECT question FROM ondine.origins)"

_FIND_DEFINITIONS = """
    SELECT d.definition, MAX(o.began_at) AS latest FROM ondine.definitions AS d
    JOIN ondine.origins AS o ON o.question = d.question{where} GROUP BY d.question, d.definition ORDER BY latest DESC"""
_FIND_ORIGINS = """
    SELECT a.key, COALESCE(o.run, ''), COALESCE(o.asset, ''), COALESCE(o.partition, '')
    FROM ondine.answers AS a LEFT JOIN ondine.origins AS o ON o.origin = a.origin WHERE a.key IN ?"""
_FIND_REPLY = "SELECT reply, kept_at FROM ondine.replies WHERE key = ? AND kept_at >= ?"


def note(database: Database, started: RunStarted) -> None:
    """Store the origin and definition of a run, and remove expired replies, within a transaction."""
    now = time.time()
    database.run("DELETE FROM ondine.replies WHERE kept_at < ?", [now - REPLIES_KEPT_S])
    database.run(_NOTE, (started.run, *clean_origin(started.origin), started.task, now))
    if started.definition:
        database.run(_DEFINE, (started.task, started.definition))


def forget_unused(database: Database, before: float) -> None:
    """Remove the origins of runs that have ended, began before an instant and left no row; and unused definitions."""

    def find() -> list[bytes]:
        used = {
            origin
            for table in _TABLES
            for (origin,) in database.select(f"SELECT DISTINCT origin FROM ondine.{table}")  # noqa: S608
        }
        return sorted(origin for (origin,) in database.select(_FIND_OLD, [before]) if origin not in used)

    # Read before the transaction, since this may take long and a transaction blocks other writers.
    unused = database.read(find)

    def remove() -> None:
        database.run_in(_REMOVE, unused)
        database.run(_REMOVE_DEFINITIONS)

    database.write(remove)


def read_definitions(database: Database, asset: str | None) -> list[bytes]:
    """The definitions that were asked for `asset`, or for any asset, the latest first."""
    where, values = ("", []) if asset is None else (" WHERE o.asset = ?", [clean(asset)])
    rows = database.select(_FIND_DEFINITIONS.format(where=where), values)
    return [bytes(definition) for definition, _ in rows]


def find_definition(database: Database, task: bytes) -> bytes | None:
    """The definition of a task, `None` if unknown."""
    rows = database.select("SELECT definition FROM ondine.definitions WHERE question = ?", [task])
    return bytes(rows[0][0]) if rows else None


def read_origins(database: Database, keys: Sequence[Key]) -> dict[Key, Origin]:
    """The origins of the answers to `keys`; empty if unknown."""
    rows = database.select_in(_FIND_ORIGINS, keys)
    return {bytes(key): Origin(*names) for key, *names in rows}


def read_reply(database: Database, key: Key) -> tuple[str, float] | None:
    """The reply to a prompt that failed, and when it was stored; `None` if it is not stored, or too old."""
    rows = database.select(_FIND_REPLY, [key, time.time() - REPLIES_KEPT_S])
    return (str(rows[0][0]), float(rows[0][1])) if rows else None
