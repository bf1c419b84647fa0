"""Finds the number of threads that have a processor each, in at most a second, and limits how long they spin.

The threads of one computation wait for each other many times for each token, so one that shares its processor holds up
all others: beside a second busy process on two processors, two threads are many times slower than one.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ondine_core.providers.settings import set_variable

_SPINS = 10_000
"""About a tenth of a millisecond: much longer than threads wait for each other if each has a processor."""
_SPIN_VARIABLE = "GOMP_SPINCOUNT"
_WAITING = frozenset({_SPIN_VARIABLE, "OMP_WAIT_POLICY"})

_MEASUREMENTS = 3
_MEASURED_S = 0.3
_OWN_PROCESSOR = 0.85
"""A thread that ran for at least this part of the time had a processor for itself."""
_TOPOLOGY = Path("/sys/devices/system/cpu")


def thread_count(cores: int, measure: Callable[[int], Sequence[float]]) -> int:
    """The most threads, up to `cores`, of which each has a processor for itself; at least one.

    `measure` finds the share of the time for which each of that many busy threads runs.
    """
    threads = cores
    for _ in range(_MEASUREMENTS):
        if threads == 1:
            return 1
        shares = measure(threads)
        if min(shares) >= _OWN_PROCESSOR:
            return threads
        threads = max(1, min(threads - 1, int(sum(shares))))
    return threads


def measure_shares(threads: int) -> list[float]:
    """The share of the time for which each of `threads` busy threads runs, measured for 0.3 s."""
    shares: list[float] = []
    start = threading.Barrier(threads)
    block = bytes(1 << 18)

    def work() -> None:
        start.wait()
        began_at, used_s = time.perf_counter(), time.thread_time()
        while (passed_s := time.perf_counter() - began_at) < _MEASURED_S:
            hashlib.blake2b(block).digest()  # without the interpreter's lock
        shares.append((time.thread_time() - used_s) / passed_s)

    workers = [threading.Thread(target=work, name="ondine-processors") for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return shares


def core_count() -> int:
    """Cores that this process may use; on Linux, the logical processors of one core are counted once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    processors = os.sched_getaffinity(0)
    return len({_core_of(processor) for processor in processors})


def brief_spinning(environment: MutableMapping[str, str]) -> AbstractContextManager[None]:
    """Make the threads of libraries loaded inside the context spin only briefly, unless the user set how they wait.

    GNU's OpenMP spins for milliseconds by default. If other work takes a processor later, the spinning threads keep it
    from the thread that they wait for, and the computation stalls.
    """
    if _WAITING & environment.keys():
        return nullcontext()
    return set_variable(environment, _SPIN_VARIABLE, str(_SPINS))


def _core_of(processor: int) -> str:
    try:
        return (_TOPOLOGY / f"cpu{processor}" / "topology" / "thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return str(processor)
