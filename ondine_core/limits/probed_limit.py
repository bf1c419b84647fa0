"""A limit that was measured: kept for a while, then raised ever faster until calls are turned away again."""

from __future__ import annotations

from math import exp

__all__ = ["ProbedLimit"]

_HOLD_FACTOR, _MAX_HOLDS = 4.0, 16.0  # growth of the hold time whenever more was tried in vain, and its bound
_USED, _RISEN = 0.985, 1.5  # share of a limit that is used; growth that shows a new limit
_STEEPNESS, _MAX_EXPONENT = 2.0, 100.0  # it grows by exp(steepness * t**2), t in hold times after the first


class ProbedLimit:
    """A limit as a function of the time for which it held calls back; its `value` is `None` while none has shown."""

    def __init__(self) -> None:
        self.value: float | None = None
        self._measured = self._used_s = 0.0
        self._hold_s = 1.0

    @property
    def is_raised(self) -> bool:
        """Whether more than what was measured is tried."""
        return self.value is not None and self._used_s > self._hold_s

    def use(self, seconds: float) -> None:
        """Record that the limit held calls back for some time."""
        self._used_s += seconds
        self.value = self._after(self._used_s)

    def lower(self, measured: float, allowed_s: float, feedback_s: float) -> None:
        """Lower the limit to what was let through; it was not too high `allowed_s` ago, as `feedback_s` show."""
        measured *= _USED
        if self.value is None:
            self._hold_s = feedback_s
        elif self.is_raised:
            allowed = _USED * self._after(self._used_s - allowed_s)
            has_risen = allowed > _RISEN * self._measured
            self._hold_s = feedback_s if has_risen else min(_MAX_HOLDS * feedback_s, _HOLD_FACTOR * self._hold_s)
            measured = max(allowed, min(measured, 0.95 * self.value))
        else:
            measured = min(measured, self._measured)
        self.value = self._measured = measured
        self._used_s = 0.0

    def _after(self, used_s: float) -> float:
        beyond = max(0.0, used_s / self._hold_s - 1)
        return self._measured * exp(min(_STEEPNESS * beyond**2, _MAX_EXPONENT))
