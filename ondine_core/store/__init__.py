"""The store of answers and of the ledger: a file that the processes of this machine share, or a Postgres schema.

The store is the checkpoint. It knows no rows, only that a question with this content had this answer, and which calls
were made to learn it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ondine_core.store.connect import StoreAddress, parse_address
from ondine_core.store.database import Durability
from ondine_core.store.group_commit import Store, warn_in_log

__all__ = [
    "Durability",
    "Store",
    "StoreAddress",
    "network_file_system",
    "open_store",
    "parse_address",
    "passing_file_system",
]

_PASSING = ("overlay", "ramfs", "tmpfs")
"""A container's own layer, and memory."""
_NETWORK = ("9p", "ceph", "cifs", "fuse.", "glusterfs", "lustre", "nfs", "smb")


@contextmanager
def open_store(
    place: str | Path,
    *,
    durability: Durability = "process",
    wait_timeout_s: float = 30.0,
    warn: Callable[[str], None] = warn_in_log,
) -> Iterator[Store]:
    """Open the store at `place` and close it in the end.

    Args:
        place: A file (made if absent; `":memory:"` is forgotten), or a URL as in
            `postgresql://user:password@host:5432/database`.
        durability: Of a file: `"process"` survives kill -9, and a power cut but for the last second or so; `"power"`
            survives both and commits slower. A Postgres server has its own settings.
        wait_timeout_s: How long to wait for the lock of another process, or for a server that is gone.
        warn: Called, from any thread, when a row of the store is damaged; such a row is asked again.

    Raises:
        ConfigError: The URL is of another kind, or the driver for Postgres is not installed.
        StoreError: It cannot be created or opened, is not a store, or was written by a newer version.
    """
    store = Store(place, durability=durability, wait_timeout_s=wait_timeout_s, warn=warn)
    try:
        yield store
    finally:
        store.close()


def network_file_system(path: str | Path, mounts: str | Path = "/proc/mounts") -> str | None:
    """The kind of network file system `path` lies on, where SQLite must not be; `None` if it is local or unknown.

    Args:
        path: A file that need not exist yet.
        mounts: The list of mounts, as Linux shows it.
    """
    kind = _file_system(path, mounts)
    return kind if kind.startswith(_NETWORK) else None


def passing_file_system(path: str | Path, mounts: str | Path = "/proc/mounts") -> str | None:
    """The kind of file system `path` lies on if it is lost with its container or machine; `None` if it stays.

    Args:
        path: A file that need not exist yet.
        mounts: The list of mounts, as Linux shows it.
    """
    kind = _file_system(path, mounts)
    return kind if kind in _PASSING else None


def _file_system(path: str | Path, mounts: str | Path) -> str:
    """The kind of file system `path` lies on, empty if that is not known."""
    try:
        lines = Path(mounts).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    target = Path(path).expanduser().resolve()
    # A space in the name of a mount point is written as the octal \\040.
    points = [(Path(fields[1].replace("\\040", " ")), fields[2]) for line in lines if len(fields := line.split()) > 2]  # noqa: PLR2004
    holding = [(len(point.parts), kind) for point, kind in points if target.is_relative_to(point)]
    return max(holding, default=(0, ""))[1]
