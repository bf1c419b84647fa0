"""A store in one SQLite file, which any number of processes of one machine may share.

What was committed survives a kill of the process. With `synchronous=NORMAL` the write-ahead log is synced at most a
second later, so a power cut costs no more than that; with `FULL` every commit is synced, and nothing is lost.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from ondine_core.errors import StoreError
from ondine_core.store.database import FIND_NUMBERS, Database, Durability, Row
from ondine_core.store.dialects import to_sqlite
from ondine_core.store.schema import check_version
from ondine_core.store.sqlite_files import LogSync, identify, make_new_file, make_private, prepare, resolve, store_files
from ondine_core.types.forking import close_in_forks, make_lock

T = TypeVar("T")

_MAX_IN_A_LIST = 1024
_MAX_ROWS = 256
_PAGES_A_CHECKPOINT = 4000
"""Keys are random, so a page is written again and again: the fewer checkpoints, the fewer copies and syncs."""
_PAGES_GIVEN_BACK = 256
"""In one transaction, so that other processes wait for a moment only."""
_WRITES_A_CHECKPOINT = 200
"""Number of small writes after which the next one leaves the checkpoint to `write`; each fills about one page."""


class SqliteDatabase(Database):
    """A `Database` in one file; `open_store` explains the arguments."""

    def __init__(self, path: str | Path, *, durability: Durability, wait_timeout_s: float, create: bool) -> None:
        self.location = str(path)
        self._wait_timeout_s = wait_timeout_s
        self._syncs_commits = durability == "power"
        self._small_writes = 0
        self._waits: bool | None = None
        self._file: Path | None = None
        self._files: tuple[Path, ...] = ()
        self._log_sync: LogSync | None = None
        self._saved: Path | None = None
        self._lost = ""
        self._in_use = make_lock()  # SQLite has locks of its own, which a fork would copy
        with self._explained():
            if self.location != ":memory:":
                self._file = resolve(path)
                self._files = store_files(self._file)
                self._log_sync = None if self._syncs_commits else LogSync(self._files[1])
                prepare(self._file, create=create)
            # The store opens it on one thread and uses it on another, never at once.
            self._connection = sqlite3.connect(
                self._file or ":memory:",
                timeout=wait_timeout_s,
                isolation_level=None,
                check_same_thread=False,
                factory=_Connection,
            )
            # With it, a forked process takes locks for its own that its parent holds.
            close_in_forks(self._connection)
        try:
            with self._explained():
                # A database of something else, which `migrate` refuses, stays as it is.
                if self.read_format() is not None:
                    make_private(self._files)
                    self._connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file
                    self._switch_to_wal()
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if self._syncs_commits else 'NORMAL'}")
                if self._syncs_commits:
                    self._connection.execute("PRAGMA fullfsync = ON")  # macOS; without effect elsewhere
                self._set_waiting(waits=True)
                self._connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # now log and index exist
                self._identity = identify(self._files)
        except BaseException:
            self._connection.close()
            raise

    def read(self, work: Callable[[], T]) -> T:
        """The result of `work`, which selects."""
        with self._explained():
            self._set_waiting(waits=True)
            return work()

    def write(self, work: Callable[[], T], locks: Iterable[str] = ()) -> T:
        """The result of `work`, whose statements take effect together or not at all; SQLite has one writer anyway."""
        del locks
        with self._explained():
            self._set_waiting(waits=True)
            # IMMEDIATE: a writer waits for the lock at once instead of failing half-way.
            self._connection.execute("BEGIN IMMEDIATE")
            return self._finish(work)

    def write_at_once(self, work: Callable[[], T], locks: Iterable[str] = ()) -> T | None:
        """`write`; `None` if another process writes, the disk would be synced, or it is time to look after the log."""
        del locks
        self._small_writes += 1
        if self._syncs_commits or self._small_writes % _WRITES_A_CHECKPOINT == 0:
            return None
        with self._explained():
            self._set_waiting(waits=False)
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                return None
            return self._finish(work)

    def _finish(self, work: Callable[[], T]) -> T:
        try:
            self._check_format()
            result = work()
            self._connection.execute("COMMIT")
        except BaseException:
            # SQLite ends the transaction itself after some errors, a full disk among them.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._check_files()  # which would explain it better
            raise
        self._check_files()
        if self._log_sync is not None:
            self._log_sync.note_commit()
        return result

    def _check_format(self) -> None:
        """Refuse to use tables that a newer version of Ondine has migrated meanwhile."""
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        check_version(version, self.location)

    def _check_files(self) -> None:
        """Check, before a commit is reported, that its files were not deleted or replaced."""
        if not self._lost:
            if identify(self._files) == self._identity:
                return
            self._lost = (
                f"The answer store {self.location!r}, or its -wal or -shm file, was removed or replaced while in use"
            )
            try:
                saved = self._save_files()
            except (StoreError, OSError) as error:
                self._lost += f", and its answers could not be saved elsewhere: {error}"
            else:
                self._lost += (
                    f". All its answers, the newest included, are saved in {str(saved)!r}: stop all runs that use the "
                    "store, remove what has its name now, with -wal and -shm, move that file there (the newest if "
                    "several were saved), and run again."
                )
        raise StoreError(self._lost)

    def _save_files(self) -> Path:
        """Copy what this connection can still read into a file beside the store's."""
        if self._saved is None:
            file = self._files[0]
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._saved = make_new_file(file, ".saved.db")
        try:
            self.copy_to(self._saved)
        except StoreError:
            self._saved.unlink()
            self._saved = None
            raise
        return self._saved

    def copy_to(self, target: Path) -> None:
        """Copy all that is committed into an existing file, while other processes read and write."""
        # Whose disk is full is not known otherwise.
        with self._explained(f"The copy of the answer store {self.location!r} to {str(target)!r}"):
            copy = sqlite3.connect(target, isolation_level=None)
            try:
                # In one step, of one snapshot: in several it would begin anew at every commit of another process.
                self._connection.backup(copy)
            finally:
                copy.close()

    def _set_waiting(self, *, waits: bool) -> None:
        """Set whether writes wait for other processes, and for a checkpoint when one is due."""
        if self._waits is not waits:
            self._connection.execute(f"PRAGMA busy_timeout = {int(1000 * self._wait_timeout_s) if waits else 0}")
            self._connection.execute(f"PRAGMA wal_autocheckpoint = {_PAGES_A_CHECKPOINT if waits else 0}")
            self._waits = waits

    def select(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows of a query."""
        return self._connection.execute(to_sqlite(sql), parameters).fetchall()

    def select_in(self, sql: str, values: Sequence[Any]) -> list[Row]:
        """The rows of a query whose only parameter is the list after `IN`."""
        found: list[Row] = []
        for start in range(0, len(values), _MAX_IN_A_LIST):
            some = list(values[start : start + _MAX_IN_A_LIST])
            # Filled up to a power of two: a handful of statements, which SQLite then compiles once.
            some += some[:1] * ((1 << (len(some) - 1).bit_length()) - len(some))
            found += self._connection.execute(to_sqlite(sql, values=len(some)), some).fetchall()
        return found

    def hold(self, name: str) -> None:
        """Nothing to do: SQLite has one writer at a time."""

    def keep_out_writers(self, table: str) -> None:
        """Nothing to do: SQLite has one writer at a time."""

    def read_numbers(self, names: Sequence[str]) -> Mapping[str, bytes | None]:
        """The numbers of `names`."""
        return dict(self.select_in(FIND_NUMBERS, names))

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Run a statement that returns no rows."""
        self._connection.execute(to_sqlite(sql), parameters)

    def run_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement that returns no rows for each of `rows`."""
        start = 0
        while left := len(rows) - start:
            # A handful of statements again, each for a power of two. In each, SQLite lets go of the interpreter, and
            # where that is busy gets it back late; so one for many rows leaves sooner than many for one.
            count = 1 << (min(left, _MAX_ROWS).bit_length() - 1) if " VALUES (" in sql else 1
            some = rows[start : start + count]
            self._connection.execute(to_sqlite(sql, rows=count), list(chain.from_iterable(some)))
            start += count

    def run_in(self, sql: str, values: Sequence[Any]) -> None:
        """Run a statement that returns no rows and whose only parameter is the list after `IN`."""
        self.select_in(sql, values)

    def create_schema(self) -> None:
        """Nothing to do: the tables are in the file."""

    def read_format(self) -> int | None:
        """The version of the tables, 0 if there are none, `None` if they are not those of a store."""
        names = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
        if names and not names >= {"answers", "numbers"}:
            return None
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        return int(version)

    def write_format(self, version: int) -> None:
        """Note the version of the tables."""
        self._connection.execute(f"PRAGMA user_version = {version}")

    def measure(self) -> int:
        """Bytes of the file and its log."""
        files = [] if self._file is None else [self._file, Path(f"{self._file}-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

    def compact(self) -> None:
        """Give the space of deleted rows back to the file system, in many small transactions.

        A file that was made by an early version keeps its size, and new rows use the space.
        """
        give_back = f"PRAGMA incremental_vacuum({_PAGES_GIVEN_BACK})"
        left = -1
        while left != (left := self.read(self._count_free_pages)):
            began = time.monotonic()
            self.write(lambda: self._connection.execute(give_back).fetchall())
            time.sleep(2 * (time.monotonic() - began))  # others may write
        with self._explained():
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _count_free_pages(self) -> int:
        ((pages,),) = self._connection.execute("PRAGMA freelist_count")
        return int(pages)

    def close(self) -> None:
        """Close the file."""
        if self._log_sync is not None:
            self._log_sync.close()
        with self._explained():
            if self._saved is not None:
                self._save_files()  # with what was committed since
            self._connection.close()

    def _switch_to_wal(self) -> None:
        # The one statement that does not wait for a lock by itself: of several that open a new file, all but one fail.
        until = time.monotonic() + self._wait_timeout_s
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.01)
            else:
                return

    @contextmanager
    def _explained(self, what: str = "") -> Iterator[None]:
        try:
            with self._in_use:
                yield
        except (sqlite3.Error, OSError, OverflowError, UnicodeError) as error:
            advice = _advise(error, self._file, self._wait_timeout_s)
            what = what or f"The answer store {self.location!r}"
            raise StoreError(f"{what} failed: {error}. {advice}") from error


class _Connection(sqlite3.Connection):
    """A connection to which there can be weak references."""


_ADVICE = {
    sqlite3.SQLITE_NOTADB: "It is not a SQLite database: name another store, or move the file away.",
    sqlite3.SQLITE_CORRUPT: "Restore a backup, or save what is left by `sqlite3 FILE .recover | sqlite3 NEW` and "
    "name NEW.",
    sqlite3.SQLITE_FULL: "Free some space and run again; what was stored before is safe.",
    sqlite3.SQLITE_IOERR: "Free some space or check the disk, and run again; what was stored before is safe.",
    sqlite3.SQLITE_READONLY: "Allow this user to write the file and its folder, or name another store.",
    sqlite3.SQLITE_CANTOPEN: "Allow this user to write the file and its folder, or name another store.",
    sqlite3.SQLITE_BUSY: "Another process has held its lock for longer than {wait_timeout_s:g} s: stop that one or "
    "wait, and run again. Where processes of several machines share a store, let it be a Postgres database.",
}


_OS_ADVICE = {
    **dict.fromkeys((errno.EIO, errno.ENOSPC, errno.EDQUOT), _ADVICE[sqlite3.SQLITE_IOERR]),
    errno.EMFILE: "This process may open no more files: raise `ulimit -n` and run again; what was stored is safe.",
    errno.ENFILE: "This machine may open no more files: close some and run again; what was stored is safe.",
    errno.EISDIR: "It is a folder: name a file in it.",
    errno.ENAMETOOLONG: "The name is too long for its folder, with the 8 bytes that SQLite adds; choose a shorter one.",
}
_FILES_OF_A_STORE = 4


def _advise(error: Exception, file: Path | None, wait_timeout_s: float) -> str:
    # The lower byte is the kind, the rest its variety.
    kind = sqlite3.SQLITE_CANTOPEN if isinstance(error, OSError) else getattr(error, "sqlite_errorcode", 0) & 0xFF
    if kind == sqlite3.SQLITE_CANTOPEN:
        cause = error if isinstance(error, OSError) else _why_not_opened(file)
        if cause is not None and cause.errno in _OS_ADVICE:
            return _OS_ADVICE[cause.errno]
    return _ADVICE.get(kind, "").format(wait_timeout_s=wait_timeout_s) or "What was stored before is safe."


def _why_not_opened(file: Path | None) -> OSError | None:
    """Why SQLite cannot open its files, which it does not say; `None` if that is not a limit of the system."""
    opened: list[int] = []
    try:
        opened.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(_FILES_OF_A_STORE))
        Path(f"{file}-journal").stat()
    except OSError as error:
        return error
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return None
