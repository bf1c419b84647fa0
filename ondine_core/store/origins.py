"""Where answers and failures come from: for which run, asset and partition they were asked, and what was asked."""

from __future__ import annotations

import time

from ondine_core.store.database import Database
from ondine_core.store.records import Joined, clean

__all__ = ["OF_ASSET", "forget_unused", "note"]

OF_ASSET = "origin IN (SELECT origin FROM ondine.origins WHERE asset = ?)"
"""Whether a row of answers, failures or replies was asked for an asset."""

_NOTE = """
    INSERT INTO ondine.origins (origin, run, asset, partition, question, began_at) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (origin) DO NOTHING"""
_DEFINE = """
    INSERT INTO ondine.definitions (question, definition) VALUES (?, ?)
    ON CONFLICT (question) DO UPDATE SET definition = excluded.definition"""
_TABLES = ("answers", "failures", "replies")
_FIND_OLD = """
    SELECT origin FROM ondine.origins WHERE began_at < ? AND origin NOT IN (SELECT run FROM ondine.runs)"""
_REMOVE = "DELETE FROM ondine.origins WHERE origin IN ?"
_REMOVE_DEFINITIONS = "DELETE FROM ondine.definitions WHERE question NOT IN (SELECT question FROM ondine.origins)"


def note(database: Database, joined: Joined) -> None:
    """Keep for whom a run asks and what it asks, within a transaction."""
    origin = joined.origin
    names = (clean(origin.run), clean(origin.asset), clean(origin.partition))
    database.run_many(_NOTE, [(joined.run, *names, joined.question, time.time())])
    if joined.definition:
        database.run_many(_DEFINE, [(joined.question, joined.definition)])


def forget_unused(database: Database, before: float) -> None:
    """Remove runs that ended, began before an instant and left nothing; and definitions without a run."""

    def find() -> list[bytes]:
        used = {
            origin
            for table in _TABLES
            for (origin,) in database.select(f"SELECT DISTINCT origin FROM ondine.{table}")  # noqa: S608
        }
        return sorted(origin for (origin,) in database.select(_FIND_OLD, [before]) if origin not in used)

    # Read beforehand, since that may take long and nobody else may write meanwhile.
    unused = database.read(find)

    def remove() -> None:
        database.run_in(_REMOVE, unused)
        database.run(_REMOVE_DEFINITIONS)

    database.write(remove)
