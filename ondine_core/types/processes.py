"""Identity and liveness of processes that share a store, and the boot clock of their machine.

A process stores its identity beside the numbers that it shares, so that others need not wait for one that was killed.
Liveness is known only for processes of the same machine (same boot) and the same space of process ids; a container has
its own. All others, and all on a system without `/proc`, are never reported as ended.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

_UNKNOWN = 0.0
_STATE = 0
_STARTED_AT = 19
"""Fields of `/proc/<id>/stat`, counted from the field after the name."""
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None) or getattr(time, "CLOCK_MONOTONIC", None)
"""On Linux and macOS respectively, these go on while the machine is suspended, which `time.monotonic` does not."""


class Process(NamedTuple):
    """A process among all that may share a store.

    Args:
        host: Identifies its host name, boot and space of process ids; 0 if unknown.
        id: Its process id there.
        started_at: Its start, in clock ticks since the boot, because ids are reused.
        machine: Identifies the boot clock that it reads, which containers of one machine share; 0 if unknown.
    """

    host: float
    id: float
    started_at: float
    machine: float = _UNKNOWN


def boot_time() -> float:
    """Seconds since the machine was started, suspended time included; setting the wall clock does not change it."""
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)


def this_process() -> Process:
    """The process that asks."""
    _, started_at = _read_stat(os.getpid()) or ("", 0.0)
    return Process(_host() if started_at else _UNKNOWN, os.getpid(), started_at, _identify("time"))


def has_ended(process: Process) -> bool:
    """Whether `process` is known to run no more; a zombie does not run."""
    if process.host == _UNKNOWN or process.host != _host():
        return False
    try:
        os.kill(int(process.id), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's, and alive
    seen = _read_stat(int(process.id))
    return seen is not None and (seen[0] in "ZX" or seen[1] != process.started_at)


@cache
def _host() -> float:
    # The host name tells machines apart that were cloned with their boot id. DHCP may change it, so it is read once.
    return _identify("pid", socket.gethostname())


@cache
def _identify(namespace: str, *more: str) -> float:
    """A number for this boot of this machine, this process's namespace of a kind, and `more`; 0 if not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return _UNKNOWN
    link = Path("/proc/self/ns") / namespace
    try:
        space = str(link.readlink())
    except OSError:
        if namespace == "pid":
            return _UNKNOWN
        space = ""  # kernels before 5.6 have one boot clock for all
    # A float holds 53 bits exactly.
    seed = " ".join((boot, space, *more)).encode()
    return float(1 + (int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest()) >> 11))


def _read_stat(process: int) -> tuple[str, float] | None:
    """State of a process and when it was started, if the system tells."""
    with suppress(OSError):
        # The name, in parentheses, may hold any character.
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[_STATE], float(fields[_STARTED_AT])
    return None
