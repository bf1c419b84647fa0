"""Makes garbage collection rarer while many calls are in flight.

Python searches for unreachable cycles whenever a few hundred more containers were created than freed. A call in flight
has a few dozen, so with hundreds of calls in flight it searches all the time and finds nothing, which takes a fifth of
the time of a row. Nearly everything is freed by reference counting anyway.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from ondine_core.types.forking import make_lock

_CONTAINERS = 20_000
"""The threshold during a run: more containers than 256 calls in flight have. They take two megabytes."""


class _Runs:
    """The number of runs that have raised the threshold, and the thresholds before the first of them."""

    lock = make_lock()
    count = 0
    before = (0, 0, 0)


@contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """Collect new containers less often, in the whole process, until the last body ends."""
    with _Runs.lock:
        if not _Runs.count:
            _Runs.before = gc.get_threshold()
            # 0 turns the collector off.
            if 0 < _Runs.before[0] < _CONTAINERS:
                gc.set_threshold(_CONTAINERS, *_Runs.before[1:])
        _Runs.count += 1
    try:
        yield
    finally:
        with _Runs.lock:
            _Runs.count -= 1
            if not _Runs.count:
                gc.set_threshold(*_Runs.before)
