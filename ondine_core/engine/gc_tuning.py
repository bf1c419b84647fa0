"""Makes garbage collection rarer while many calls are in flight.

Python looks for unreachable cycles whenever a few hundred more containers were made than freed. A call in flight holds
a few dozen, so with hundreds of calls in flight it looks all the time and finds nothing: a fifth of the time of a row.
Nearly everything is freed without a search, as before.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from ondine_core.types.forking import make_lock

_CONTAINERS = 20_000
"""Some 256 calls in flight come and go with fewer; they take two megabytes."""


class _Runs:
    """How many runs have it set, and the thresholds before the first of them."""

    lock = make_lock()
    count = 0
    before = (0, 0, 0)


@contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """Let the collector look at new containers less often, in the whole process, until the last of these runs ends."""
    with _Runs.lock:
        if not _Runs.count:
            _Runs.before = gc.get_threshold()
            # 0 means never.
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
