"""Identity and liveness of processes that share a store, and the boot clock of their machine.

A process stores its identity beside the numbers that it shares, so that others need not wait for a process that was
killed. Only processes of the same boot of the same machine and of the same process-id namespace (a container has its
own) can be seen to have ended. All others, and all on a system without `/proc`, are never reported as ended.
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
_STATE, _STARTED_AT = 0, 19
"""Fields of `/proc/<id>/stat`, counted from the field after the name."""
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None) or getattr(time, "CLOCK_MONOTONIC", None)
"""The first is for Linux, the second for macOS; unlike `time.monotonic`, both go on while the machine is suspended."""


class Process(NamedTuple):
    """A process among all that may share a store.

    Args:
        host: Identifies its host name, boot and process-id namespace; 0 if unknown.
        id: Its process id.
        started_at: Its start in clock ticks since the boot, since ids are reused; 0 if unknown.
        machine: Identifies the boot clock, which containers of one machine share; 0 if unknown.
    """

    host: float
    id: float
    started_at: float
    machine: float = _UNKNOWN


def boot_time() -> float:
    """Seconds since the machine was started, suspended time included; setting the wall clock does not change it."""
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)


def this_process() -> Process:
    """The current process."""
    _, started_at = _read_stat(os.getpid()) or ("", 0.0)
    return Process(_host() if started_at else _UNKNOWN, os.getpid(), started_at, _identify("time"))


def has_ended(process: Process) -> bool:
    """Whether `process` is known to have ended; a zombie has."""
    if process.host == _UNKNOWN or process.host != _host():
        return False
    try:
        os.kill(int(process.id), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it runs as another user
    stat = _read_stat(int(process.id))
    if stat is None:
        return False
    state, started_at = stat
    return state in "ZX" or started_at != process.started_at


@cache
def _host() -> float:
    # The host name distinguishes clones of a machine, which have its boot id. DHCP may change it, so it is read once.
    return _identify("pid", socket.gethostname())


@cache
def _identify(namespace: str, *more: str) -> float:
    """A hash of this boot of the machine, of this process's namespace of a kind, and of `more`; 0 if unknown."""
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
    """State of a process and its start in clock ticks since the boot, `None` if the system does not say."""
    with suppress(OSError):
        # The name, in parentheses, may hold any character.
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[_STATE], float(fields[_STARTED_AT])
    return None
