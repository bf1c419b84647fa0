"""The files of a SQLite store: private to their owner, synced to the disk in time, and watched for removal.

A store is three files: the database, its write-ahead log (`-wal`), which holds the newest commits, and the index of the
log (`-shm`). They belong together.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ondine_core.errors import StoreError
from ondine_core.types.forking import make_lock

if sys.platform == "darwin":
    import fcntl

_SYNC_EVERY_S = 1.0
_MISSING = "There is no answer store at {!r}; name one that exists."
_PRIVATE = 0o600
_MAKING = make_lock()
"""Held while a database is created. Closing any descriptor of a database releases all locks that this process has on
it, so no other thread may open the database meanwhile, and an existing database is never opened in this module."""


def resolve(path: str | Path) -> Path:
    """The absolute path of the database, without links, since SQLite creates the log beside the target of a link."""
    try:
        return Path(os.path.realpath(Path(path).expanduser()))
    except RuntimeError as error:
        raise StoreError(f"The home folder in {str(path)!r} is not known; write the path without `~`.") from error


def store_files(file: Path) -> tuple[Path, Path, Path]:
    """The database, its log and the index of the log."""
    return file, Path(f"{file}-wal"), Path(f"{file}-shm")


def identify(files: tuple[Path, ...]) -> tuple[tuple[int, int] | None, ...]:
    """Device and inode of each file, `None` for one that does not exist or a database that was emptied."""
    identities: list[tuple[int, int] | None] = []
    for file in files:
        try:
            state = os.stat(file)  # noqa: PTH116  (half the time of Path.stat, and it is called at every commit)
        except FileNotFoundError:
            identities.append(None)
        else:
            is_emptied = not identities and state.st_size == 0  # the first file is the database
            identities.append(None if is_emptied else (state.st_dev, state.st_ino))
    return tuple(identities)


def prepare(file: Path, *, create: bool) -> None:
    """Create the file of a store if there is none, for its owner only, whatever the umask is.

    SQLite gives the log and its index the permissions of the database.

    Raises:
        OSError: It cannot be created.
        StoreError: It is missing, and `create` is not set or its log exists.
    """
    _, log, index = store_files(file)
    # Checked first: while a store is created, the database exists before its log.
    has_log = log.exists() or index.exists()
    if not file.exists():
        if has_log:
            raise StoreError(
                f"The answer store {str(file)!r} is missing, but its log is there: the database was removed or renamed "
                f"without {str(log)!r}, which holds its newest answers. Put it back, or, if no process uses it any "
                f"more, remove {str(log)!r} and {str(index)!r} too."
            )
        if not create:
            raise StoreError(_MISSING.format(str(file)))
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _MAKING, suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, _PRIVATE))
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not os.access(file, os.R_OK | os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
    if not create and not file.stat().st_size:
        raise StoreError(_MISSING.format(str(file)))


def make_private(files: Iterable[Path]) -> None:
    """Remove all permissions of group and others on files that exist and are the user's own."""
    for file in files:
        with suppress(OSError, AttributeError):  # Windows has no such rights
            state = file.stat()
            mode = stat.S_IMODE(state.st_mode)
            if mode & ~_PRIVATE & 0o777 and state.st_uid == os.geteuid() and stat.S_ISREG(state.st_mode):
                file.chmod(mode & _PRIVATE)


def make_new_file(beside: Path, suffix: str) -> Path:
    """Create an empty file with an unguessable name in the folder of `beside`, for its owner only; follows no link."""
    descriptor, name = tempfile.mkstemp(suffix=suffix, prefix=f"{beside.name}.", dir=beside.parent)
    os.close(descriptor)
    return Path(name)


class LogSync:
    """Syncs the write-ahead log to the disk at most a second after a commit, on a thread.

    So a power cut, or a crash of the operating system, loses at most the commits of the last second or so. Frames that
    were written in part are recognised by their checksums, so the database is consistent in any case.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._unsynced = False
        self._error: OSError | None = None

    def note_commit(self) -> None:
        """Have a commit synced within a second.

        Raises:
            OSError: An earlier commit could not be synced.
        """
        self._unsynced = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_syncing, name="ondine-store-sync", daemon=True)
            self._thread.start()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Sync what is not yet synced."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _keep_syncing(self) -> None:
        is_open = True
        while is_open:
            is_open = not self._closing.wait(_SYNC_EVERY_S)
            if self._unsynced:
                self._unsynced = False  # before the sync, so that a commit during it is synced next time
                try:
                    _sync(self._log)
                except FileNotFoundError:
                    pass  # it was removed, which the next commit reports
                except OSError as error:
                    self._error = error


def _sync(file: Path) -> None:
    # Closing this descriptor releases no locks of SQLite, which has none on the log.
    descriptor = os.open(file, os.O_RDWR)
    try:
        if sys.platform == "darwin":  # where fsync leaves the data in the disk's own cache
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            getattr(os, "fdatasync", os.fsync)(descriptor)
    finally:
        os.close(descriptor)
