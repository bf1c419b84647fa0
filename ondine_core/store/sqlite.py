"""A store in one SQLite file, which any number of processes of one machine may share.

A commit survives a kill of the process. With `synchronous=NORMAL` the write-ahead log is synced at most a second after
it, so a power cut loses at most the last second or so. With `FULL` every commit is synced, and nothing is lost.
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
"""Many, since keys are random: a page is changed often, and each checkpoint copies it to the file and syncs."""
_PAGES_GIVEN_BACK = 256
"""Free pages that one transaction returns to the file system: few, so that other processes wait only briefly."""
_WRITES_A_CHECKPOINT = 200
"""Number of small writes, of about a page each, after which one is left to `write`, which makes a checkpoint if due."""


class SqliteDatabase(Database):
    """A `Database` in one file; see `open_store` for the arguments."""

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
        self._in_use = make_lock()  # no fork while SQLite holds its own locks, which the child would inherit
        with self._explained():
            if self.location != ":memory:":
                self._file = resolve(path)
                self._files = store_files(self._file)
                self._log_sync = None if self._syncs_commits else LogSync(self._files[1])
                prepare(self._file, create=create)
            # It is opened on one thread and used on others, never at the same time.
            self._connection = sqlite3.connect(
                self._file or ":memory:",
                timeout=wait_timeout_s,
                isolation_level=None,
                check_same_thread=False,
                factory=_Connection,
            )
            # A forked process would take the locks of its parent for its own.
            close_in_forks(self._connection)
        try:
            with self._explained():
                # A database of another program, which `migrate` refuses, is not changed.
                if self.read_format() is not None:
                    make_private(self._files)
                    self._connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect in a new file
                    self._switch_to_wal()
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if self._syncs_commits else 'NORMAL'}")
                if self._syncs_commits:
                    self._connection.execute("PRAGMA fullfsync = ON")  # macOS; without effect elsewhere
                self._set_waiting(waits=True)
                self._connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # creates the log and its index
                self._identity = identify(self._files)
        except BaseException:
            self._connection.close()
            raise

    def read(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, which only selects."""
        with self._explained():
            self._set_waiting(waits=True)
            return work()

    def write(self, work: Callable[[], T], locks: Iterable[str] = ()) -> T:
        """Return the result of `work`, whose statements take effect together or not at all.

        The `locks` are not needed, since SQLite has one writer at a time.
        """
        del locks
        with self._explained():
            self._set_waiting(waits=True)
            # IMMEDIATE waits for the lock at the start; otherwise the transaction could fail at its first write.
            self._connection.execute("BEGIN IMMEDIATE")
            return self._finish(work)

    def write_at_once(self, work: Callable[[], T], locks: Iterable[str] = ()) -> T | None:
        """`write`, or `None` if another process writes, the disk would be synced, or a checkpoint may be due."""
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
            self._check_files()  # its error would explain the failure better
            raise
        self._check_files()
        if self._log_sync is not None:
            self._log_sync.note_commit()
        return result

    def _check_format(self) -> None:
        """Check that no newer version of Ondine has migrated the tables meanwhile."""
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        check_version(version, self.location)

    def _check_files(self) -> None:
        """Check, before a commit is reported, that the files of the store were not deleted or replaced.

        Raises:
            StoreError: They were; the message says where the answers were saved.
        """
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
        """Copy what this connection can still read to a file beside the store."""
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
        """Copy everything that is committed to an existing file, while other processes read and write."""
        # The message names both files, since the error does not say which disk is full.
        with self._explained(f"The copy of the answer store {self.location!r} to {str(target)!r}"):
            copy = sqlite3.connect(target, isolation_level=None)
            try:
                # In one step; with several steps, it would begin anew at every commit of another process.
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
        """The rows of a query whose only parameter is the list after `IN`; the order is undefined."""
        rows: list[Row] = []
        for start in range(0, len(values), _MAX_IN_A_LIST):
            chunk = list(values[start : start + _MAX_IN_A_LIST])
            # Filled up to a power of two, so that there are few different statements and SQLite compiles each once.
            size = 1 << (len(chunk) - 1).bit_length()
            chunk += chunk[:1] * (size - len(chunk))
            rows += self._connection.execute(to_sqlite(sql, values=size), chunk).fetchall()
        return rows

    def hold(self, name: str) -> None:
        """Do nothing: SQLite has one writer at a time."""

    def keep_out_writers(self, table: str) -> None:
        """Do nothing: SQLite has one writer at a time."""

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
            # A power of two, so that there are few different statements. One statement for many rows is faster than
            # many: each releases the interpreter lock, and regains it late while other threads run.
            count = 1 << (min(left, _MAX_ROWS).bit_length() - 1) if " VALUES (" in sql else 1
            chunk = rows[start : start + count]
            self._connection.execute(to_sqlite(sql, rows=count), list(chain.from_iterable(chunk)))
            start += count

    def run_in(self, sql: str, values: Sequence[Any]) -> None:
        """Run a statement that returns no rows and whose only parameter is the list after `IN`."""
        self.select_in(sql, values)

    def read_format(self) -> int | None:
        """The format of the tables, 0 if there are none, `None` if they are not those of a store."""
        names = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
        if names and not names >= {"answers", "numbers"}:
            return None
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        return int(version)

    def write_format(self, version: int) -> None:
        """Record the format of the tables."""
        self._connection.execute(f"PRAGMA user_version = {version}")

    def measure(self) -> int:
        """Size of the file and its log, in bytes."""
        files = [] if self._file is None else [self._file, Path(f"{self._file}-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

    def compact(self) -> None:
        """Return the space of deleted rows to the file system, in many small transactions.

        A file that was created by an early version keeps its size; new rows use the space.
        """
        give_back = f"PRAGMA incremental_vacuum({_PAGES_GIVEN_BACK})"
        before, left = -1, self.read(self._count_free_pages)
        while left != before:
            began = time.monotonic()
            self.write(lambda: self._connection.execute(give_back).fetchall())
            time.sleep(2 * (time.monotonic() - began))  # other processes can write
            before, left = left, self.read(self._count_free_pages)
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
        # This statement does not wait for a lock by itself: of several processes that open a new file, one succeeds.
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
        """Raise errors of the body as a `StoreError` that says what failed and what to do."""
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
    # The lower byte is the primary error code.
    kind = sqlite3.SQLITE_CANTOPEN if isinstance(error, OSError) else getattr(error, "sqlite_errorcode", 0) & 0xFF
    if kind == sqlite3.SQLITE_CANTOPEN:
        cause = error if isinstance(error, OSError) else _why_not_opened(file)
        if cause is not None and cause.errno in _OS_ADVICE:
            return _OS_ADVICE[cause.errno]
    return _ADVICE.get(kind, "").format(wait_timeout_s=wait_timeout_s) or "What was stored before is safe."


def _why_not_opened(file: Path | None) -> OSError | None:
    """Find the limit of the system because of which SQLite cannot open its files; `None` if there is none."""
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
