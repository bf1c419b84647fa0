"""This process as three numbers that no other process has, and whether the process behind such numbers has ended.

Who shares numbers with others leaves these behind, so that a process that was killed need not be waited for. Only of a
process that this one could see is anything known: same machine since it was started, same space of process ids (a
container has its own). Of every other, and on systems without `/proc`, it is never said that it has ended.
"""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Process", "has_ended", "this_process"]

_NOWHERE = 0.0
_STATE, _STARTED_AT = 0, 19
"""Places in `/proc/<id>/stat`, counted from the field after the name."""


class Process(NamedTuple):
    """A process among all that may share a store.

    Args:
        place: Stands for the space of process ids it lives in; 0 if that is not known.
        id: Its process id there.
        started_at: When it was started, in ticks since the machine was, since ids are used again.
    """

    place: float
    id: float
    started_at: float


def this_process() -> Process:
    """The process that asks."""
    _, started_at = _look(os.getpid()) or ("", 0.0)
    return Process(_place() if started_at else _NOWHERE, os.getpid(), started_at)


def has_ended(process: Process) -> bool:
    """Whether `process` is known to run no more; a zombie does not run."""
    if process.place == _NOWHERE or process.place != _place():
        return False
    try:
        os.kill(int(process.id), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody else's, and alive
    seen = _look(int(process.id))
    return seen is not None and (seen[0] in "ZX" or seen[1] != process.started_at)


@cache
def _place() -> float:
    """A number for this machine since it was started and its space of process ids; 0 if they cannot be told."""
    with suppress(OSError):
        started = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        space = Path("/proc/self/ns/pid").readlink()
        seed = f"{socket.gethostname()} {started} {space}".encode()
        # A float holds 53 bits exactly.
        return float(1 + (int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest()) >> 11))
    return _NOWHERE


def _look(process: int) -> tuple[str, float] | None:
    """State of a process and when it was started, if the system tells."""
    with suppress(OSError):
        # The name, in parentheses, may hold any character.
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[_STATE], float(fields[_STARTED_AT])
    return None
