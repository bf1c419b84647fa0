"""The store of answers and of the ledger: a file that the processes of this machine share, or a Postgres schema.

The store is the checkpoint. It knows no rows, only which prompt had which answer, and which calls were made for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

from ondine_core.store.connect import StoreAddress, parse_address
from ondine_core.store.database import Durability
from ondine_core.store.group_commit import Store, warn_in_log
from ondine_core.store.sqlite_files import resolve

__all__ = [
    "NETWORK_FILE_SYSTEMS",
    "PASSING_FILE_SYSTEMS",
    "Durability",
    "Store",
    "StoreAddress",
    "find_file_system",
    "open_store",
    "parse_address",
]

PASSING_FILE_SYSTEMS = ("overlay", "ramfs", "tmpfs")
"""A container's own layer, and memory: what is on them is lost with the container or machine."""
NETWORK_FILE_SYSTEMS = ("9p", "ceph", "cifs", "fuse.", "glusterfs", "lustre", "nfs", "smb")
"""How the kinds begin where SQLite must not be."""


def open_store(
    path_or_url: str | Path,
    *,
    durability: Durability = "process",
    wait_timeout_s: float = 30.0,
    warn: Callable[[str], None] = warn_in_log,
) -> AbstractContextManager[Store]:
    """Open the store at `path_or_url`, to be used in a `with` statement that closes it in the end.

    Args:
        path_or_url: A file (made if absent; `":memory:"` is forgotten), or a URL as in
            `postgresql://user:password@host:5432/database`.
        durability: Of a file: `"process"` survives kill -9, and a power cut but for the last second or so; `"power"`
            survives both and commits slower. A Postgres server has its own settings.
        wait_timeout_s: How long to wait for the lock of another process, or for a server that is gone.
        warn: Called, from any thread, when a row of the store is damaged; such a row is asked again.

    Raises:
        ConfigError: The URL is of another kind, or the driver for Postgres is not installed.
        StoreError: It cannot be created or opened, is not a store, or was written by a newer version.
    """
    return closing(Store(path_or_url, durability=durability, wait_timeout_s=wait_timeout_s, warn=warn))


def find_file_system(path: str | Path, mounts: str | Path = "/proc/mounts") -> str:
    """The kind of file system that a file lies on, which need not exist yet; empty if that is not known.

    `mounts` is the list of mounts, as Linux shows it.
    """
    try:
        lines = Path(mounts).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    target = resolve(path)
    # A space in the name of a mount point is written as the octal \\040.
    points = [(Path(fields[1].replace("\\040", " ")), fields[2]) for line in lines if len(fields := line.split()) > 2]  # noqa: PLR2004
    holding = [(len(point.parts), kind) for point, kind in points if target.is_relative_to(point)]
    return max(holding, default=(0, ""))[1]
