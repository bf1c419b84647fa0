"""Answers in one SQLite file, written by one thread that commits whatever has piled up since its last commit.

Group commit by back-pressure needs no timer: while a commit runs, answers gather for the next. With the write-ahead log
and `synchronous=NORMAL` a committed answer survives a kill of the process; `FULL` survives a power cut as well.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Literal, TypeVar

import orjson

from ondine_core.errors import StoreError
from ondine_core.values import Answer, Key, Numbers

__all__ = ["SqliteStore"]

T = TypeVar("T")
Record = tuple[Key, bytes, str, int, int, str | None, str | None, float]

_VERSION = 1
_TABLES = """
CREATE TABLE answers (
    key BLOB PRIMARY KEY, "values" BLOB NOT NULL, model TEXT NOT NULL, attempts INTEGER NOT NULL,
    batch_size INTEGER NOT NULL, cost_usd TEXT, request_id TEXT, answered_at REAL NOT NULL
);
CREATE TABLE numbers (name TEXT PRIMARY KEY, numbers BLOB NOT NULL);
"""
_COLUMNS = 'key, "values", model, attempts, batch_size, cost_usd, request_id, answered_at'
_INSERT = f"INSERT OR REPLACE INTO answers ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_KEYS_A_QUERY = 1000
_BUSY_TIMEOUT_S = 30.0


class SqliteStore:
    """An `AnswerStore` in one SQLite file, which any number of processes of one machine may share.

    Args:
        path: The file; missing folders are made. `":memory:"` keeps nothing.
        durability: `"process"` survives kill -9; `"power"` survives a power cut too and commits slower.

    Raises:
        StoreError: The file cannot be created, is not a store, or was written by a newer version.
    """

    def __init__(self, path: str | Path, *, durability: Literal["process", "power"] = "process") -> None:
        self.path = str(path)
        self._gathering: list[tuple[list[Record], Future[None]]] = []
        self._lock = threading.Lock()  # guards _gathering, which any thread adds to
        # A SQLite connection belongs to one thread; this one does all reading and writing, in order.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ondine-store")
        try:
            self._database = self._thread.submit(self._guard, lambda: _connect(self.path, durability)).result()
        except StoreError:
            self._thread.shutdown()
            raise

    async def get(self, keys: Sequence[Key]) -> Mapping[Key, Answer]:
        """The answers known for `keys`; unknown keys are absent."""
        return await self._do(lambda: _read(self._database, keys))

    async def put(self, answers: Iterable[tuple[Key, Answer]]) -> None:
        """Keep `answers`; returns once they would survive a kill of the process.

        Answers whose caller is cancelled while it waits are kept all the same.

        Raises:
            StoreError: The file cannot be written (full disk, read-only folder).
        """
        records, kept = [_to_record(key, answer) for key, answer in answers], Future[None]()
        if not records:
            return
        with self._lock:
            self._gathering.append((records, kept))
        self._thread.submit(self._write_group)
        # Shielded: the group is written also when this caller waits for it no more.
        await asyncio.shield(asyncio.wrap_future(kept))

    async def update(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
        """Replace the numbers called `name` by `step` of them, atomically among all processes; returns the new ones."""
        return await self._do(lambda: _update(self._database, name, step))

    def close(self) -> None:
        """Write what is still gathered and let go of the file."""
        self._thread.submit(self._write_group).result()
        self._thread.submit(self._database.close).result()
        self._thread.shutdown()

    def _write_group(self) -> None:
        """On the store's thread: write whatever has gathered since the last time, by any number of callers."""
        with self._lock:
            group, self._gathering = self._gathering, []
        if not group:
            return
        try:
            self._guard(lambda: _write(self._database, [record for records, _ in group for record in records]))
        except Exception as error:  # noqa: BLE001  (whoever waits for the group raises it)
            for _, kept in group:
                kept.set_exception(error)
        else:
            for _, kept in group:
                kept.set_result(None)

    async def _do(self, work: Callable[[], T]) -> T:
        # Shielded: work that waits for the thread is done also when nobody waits for it any more.
        return await asyncio.shield(asyncio.wrap_future(self._thread.submit(self._guard, work)))

    def _guard(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (sqlite3.Error, OSError, UnicodeError) as error:
            raise StoreError(f"The answer store {self.path!r} failed: {error}.") from error


def _connect(path: str, durability: str) -> sqlite3.Connection:
    if path != ":memory:":
        file = Path(path).expanduser()
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Created before SQLite does, so that nobody else may ever read it; its journals take over the mode.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        path = str(file)
    database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
    try:
        _switch_to_wal(database)
        database.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
        with _transaction(database):
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                if database.execute("SELECT 1 FROM sqlite_master").fetchone():
                    raise StoreError(f"{path!r} is a SQLite database of something else; name another store.")
                for statement in filter(str.strip, _TABLES.split(";")):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {_VERSION}")
        if version > _VERSION:
            raise StoreError(
                f"The answer store {path!r} has format {version}, this version of Ondine reads up to {_VERSION}; "
                "upgrade ondine-dagster or name another store."
            )
    except BaseException:
        database.close()
        raise
    return database


def _switch_to_wal(database: sqlite3.Connection) -> None:
    # The one statement that does not wait for a lock by itself: of several that open a new file, all but one fail.
    until = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    # IMMEDIATE: a writer waits for the lock at once instead of failing half-way.
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _read(database: sqlite3.Connection, keys: Sequence[Key]) -> dict[Key, Answer]:
    found: dict[Key, Answer] = {}
    for start in range(0, len(keys), _KEYS_A_QUERY):
        some = keys[start : start + _KEYS_A_QUERY]
        query = f"SELECT {_COLUMNS} FROM answers WHERE key IN ({','.join('?' * len(some))})"  # noqa: S608
        for key, values, model, attempts, batch_size, cost, request_id, answered_at in database.execute(query, some):
            usd = None if cost is None else Decimal(cost)
            found[key] = Answer(orjson.loads(values), model, attempts, batch_size, usd, request_id, answered_at)
    return found


def _write(database: sqlite3.Connection, records: Sequence[Record]) -> None:
    with _transaction(database):
        database.executemany(_INSERT, records)


def _update(database: sqlite3.Connection, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
    with _transaction(database):
        found = database.execute("SELECT numbers FROM numbers WHERE name = ?", (name,)).fetchone()
        new = step(tuple(orjson.loads(found[0])) if found else None)
        database.execute("INSERT OR REPLACE INTO numbers VALUES (?, ?)", (name, orjson.dumps(new)))
    return new


def _to_record(key: Key, answer: Answer) -> Record:
    cost = None if answer.cost_usd is None else str(answer.cost_usd)
    how = (answer.model, answer.attempts, answer.batch_size, cost, answer.request_id, answer.answered_at)
    return (key, orjson.dumps(answer.values), *how)
