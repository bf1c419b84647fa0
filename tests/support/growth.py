"""Check that a function's time is linear in the length of its text, also on a busy machine."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import thread_time

_SHORT = 1_000
_FACTOR = 16
_MAX_RATIO = 64.0
"""Sixteen times the text takes about 16 times as long, or 256 times if the time is quadratic. Both differ by a factor
of four from this limit, more than the noise of a busy machine."""
_FAST_S = 0.01
"""If the longer text takes less, the time cannot be quadratic: 128,000,000 steps would take longer."""
_ATTEMPTS = 6


def grows_no_faster_than_its_text(function: Callable[[str], object], unit: str) -> None:
    """Check that `function` takes time linear in the number of repetitions of `unit`.

    Processor time of this thread is measured. Runs that seem too slow are repeated, and the fastest run counts.
    """
    short = unit * (_SHORT // len(unit))
    long = unit * (_FACTOR * _SHORT // len(unit))
    short_s = long_s = inf
    for _ in range(_ATTEMPTS):
        long_s = min(long_s, _time(function, long))
        short_s = min(short_s, _time(function, short))
        if long_s < _FAST_S or long_s <= _MAX_RATIO * short_s:
            return
    raise AssertionError(f"{_FACTOR} times as much of {unit!r} takes {long_s / short_s:.1f} times as long.")


def _time(function: Callable[[str], object], text: str) -> float:
    started = thread_time()
    function(text)
    return thread_time() - started
