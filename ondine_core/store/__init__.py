"""The store of answers and of the ledger: a file that the processes of this machine share, or a Postgres schema.

The store is the checkpoint. It has no rows of tables, only the answers to prompts, and the calls made for them.
"""

from __future__ import annotations

from collections.abc import Callable
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
"""File systems that are lost with the container or machine: a container's own layer, and memory."""
NETWORK_FILE_SYSTEMS = ("9p", "ceph", "cifs", "fuse.", "glusterfs", "lustre", "nfs", "smb")
"""Prefixes of the types of file systems on which SQLite must not be used."""


def open_store(
    path_or_url: str | Path,
    *,
    durability: Durability = "process",
    wait_timeout_s: float = 30.0,
    warn: Callable[[str], None] = warn_in_log,
) -> Store:
    """Open the store at `path_or_url`; close it with `close()`, or use it in a `with` statement, which does that.

    Args:
        path_or_url: The path of a file, which is created if absent (`":memory:"` is not kept), or a URL such as
            `postgresql://user:password@host:5432/database`.
        durability: What a file survives without loss: `"process"` a kill of the process, and a power cut except for
            the last second or so; `"power"` both, with slower commits. A Postgres server has its own settings.
        wait_timeout_s: Seconds to wait for the lock of another process, or for a server that is gone.
        warn: Called, from any thread, when a row of the store is damaged; its prompt is asked again.

    Raises:
        ConfigError: The URL is of another kind, or the driver for Postgres is not installed.
        StoreError: The store cannot be created or opened, is not a store, or has a newer format.
    """
    return Store(path_or_url, durability=durability, wait_timeout_s=wait_timeout_s, warn=warn)


def find_file_system(path: str | Path, mounts: str | Path = "/proc/mounts") -> str:
    """The type of the file system of `path`, which need not exist yet; empty if unknown.

    `mounts` is the list of mounts in the format of Linux.
    """
    try:
        lines = Path(mounts).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    target = resolve(path)
    containing: list[tuple[int, str]] = []
    for line in lines:
        match line.split():
            case [_, mount_point, kind, *_]:
                point = Path(mount_point.replace("\\040", " "))  # a space is written as the octal \040
                if target.is_relative_to(point):
                    containing.append((len(point.parts), kind))
    return max(containing, default=(0, ""))[1]
