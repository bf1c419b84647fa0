"""How the time that a function takes grows with its text, told apart from the noise of a busy machine."""

from __future__ import annotations

from collections.abc import Callable
from time import thread_time

_SHORT = 1_000
_FACTOR = 16
_TIMES = 3
_MOST = 64.0
"""Sixteen times the text takes about 16 times as long; by its square it would take 256 times as long. Each is a factor
of four from the limit, more than a busy machine adds."""
_QUICK_S = 0.01
"""What takes less for the longer text cannot grow with its square: 128,000,000 steps would take longer."""
_TRIES = 4


def grows_no_faster_than_its_text(function: Callable[[str], object], unit: str) -> None:
    """Check that `function` takes time in proportion to how often `unit` is repeated.

    Processor time of this thread is measured, the quickest of some runs counts, and what looks too slow is measured
    again: a pause makes a run longer, but never all of them.
    """
    short, long = unit * (_SHORT // len(unit)), unit * (_FACTOR * _SHORT // len(unit))
    if _time(function, long, 1) < _QUICK_S:
        return
    ratios = []
    for _ in range(_TRIES):
        ratios.append(_time(function, long, _TIMES) / max(_time(function, short, _TIMES), 1e-9))
        if ratios[-1] <= _MOST:
            return
    raise AssertionError(f"{_FACTOR} times as much of {unit!r} takes {min(ratios):.1f} times as long.")


def _time(function: Callable[[str], object], text: str, times: int) -> float:
    taken = []
    for _ in range(times):
        started = thread_time()
        function(text)
        taken.append(thread_time() - started)
    return min(taken)
