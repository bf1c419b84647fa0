"""A limit that was measured: kept for a while, then raised ever faster until calls are turned away again."""

from __future__ import annotations

from math import exp

__all__ = ["ProbedLimit"]

_USED = 0.985
_MAX_HOLDS, _HOLD_FACTOR = 16.0, 4.0
"""Seconds for which a rough and a good measurement is kept; longer by a factor each time more was tried in vain."""
_STEEPNESS = 2.0
"""Logarithm of the growth in the first hold time after it."""
_SUSTAINED_S = 1.0
"""A limit that calls kept to for this long without a refusal is one that is allowed."""


class ProbedLimit:
    """The limit as a function of the time for which it was used.

    Attributes:
        value: The limit; `None` while none has shown.
    """

    def __init__(self) -> None:
        self._measured, self._used_s, self._hold_s = 0.0, 0.0, 1.0
        self.value: float | None = None

    @property
    def is_raised(self) -> bool:
        """Whether more than what was measured is tried."""
        return self.value is not None and self._used_s > self._hold_s

    def use(self, seconds: float) -> None:
        """Take note that calls were held back by it for some time."""
        self._used_s += seconds
        self.value = self._after(self._used_s)

    def lower(self, measured: float, wasted_s: float, feedback_s: float) -> None:
        """Take note of what was let through while calls were turned away."""
        if self.value is None:
            self._measured, self._hold_s = measured, feedback_s
        elif self.is_raised:
            sustained = self._after(self._used_s - wasted_s - feedback_s)
            risen = sustained > 1.5 * self._measured
            self._hold_s = feedback_s if risen else min(_MAX_HOLDS * feedback_s, _HOLD_FACTOR * self._hold_s)
            self._measured = max(min(measured, 0.95 * self.value), _USED * sustained)
        else:
            self._measured = min(measured, self._measured)
        self._used_s = 0.0
        self.value = self._measured

    def clear(self) -> None:
        """There is no limit."""
        self.value = None

    def _after(self, used_s: float) -> float:
        beyond = max(0.0, used_s / self._hold_s - 1)
        return self._measured * exp(min(_STEEPNESS * beyond**2, 100.0))
