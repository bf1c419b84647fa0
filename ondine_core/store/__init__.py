"""Where answers are kept: one file that the processes of this machine share.

The store is the checkpoint. It knows neither runs nor rows, only that a question with this content had this answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ondine_core.store.sqlite import SqliteStore

__all__ = ["SqliteStore", "network_file_system", "open_store"]

_NETWORK = ("9p", "ceph", "cifs", "fuse.", "glusterfs", "lustre", "nfs", "smb")


@contextmanager
def open_store(path: str | Path) -> Iterator[SqliteStore]:
    """Open the store at `path` (made if absent; `":memory:"` is forgotten) and close it in the end.

    Raises:
        StoreError: The file cannot be created, is not a store, or was written by a newer version.
    """
    store = SqliteStore(path)
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
    try:
        lines = Path(mounts).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    target = Path(path).expanduser().resolve()
    # A space in the name of a mount point is written as the octal \\040.
    points = [(Path(fields[1].replace("\\040", " ")), fields[2]) for line in lines if len(fields := line.split()) > 2]  # noqa: PLR2004
    holding = [(len(point.parts), kind) for point, kind in points if target.is_relative_to(point)]
    kind = max(holding, default=(0, ""))[1]
    return kind if kind.startswith(_NETWORK) else None
