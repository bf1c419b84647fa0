"""Estimates the rate at which a provider lets calls through, and spaces calls at it.

Fewer calls in flight bound the rate only while every call takes equally long.
"""

from __future__ import annotations

from collections import deque
from math import exp

from ondine_core.limits.change_detector import InFlightCall

__all__ = ["ProbedLimit", "RateEstimator"]

_HOLD_FACTOR = 4.0
_MAX_HOLDS = 16.0
"""The hold time grows by this factor whenever more was tried in vain, up to this many feedback times."""
_USED_SHARE = 0.985
"""The share of a measured limit that is used."""
_RISEN = 1.5
"""A limit that could be exceeded by this factor is a new limit."""
_STEEPNESS = 2.0
_MAX_EXPONENT = 100.0
"""A limit grows by exp(steepness * t**2), t in hold times after the first."""
_PERIOD_S = 1.0
"""The period over which a provider's limit is taken to count calls."""
_MIN_PER_S = 0.1
"""The lowest rate."""
_CATCH_UP_S = 0.02
"""A sleep ends late by milliseconds; what it held back in that time may leave at once."""


class ProbedLimit:
    """A measured limit: kept for a hold time, then raised ever faster until calls are refused again."""

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
        measured *= _USED_SHARE
        if self.value is None:
            self._hold_s = feedback_s
        elif self.is_raised:
            allowed = _USED_SHARE * self._after(self._used_s - allowed_s)
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


class RateEstimator:
    """The rate at which calls leave, measured from what a provider let through; `limit` is in calls a second."""

    def __init__(self, now: float) -> None:
        self.limit = ProbedLimit()
        self.next_at = self._left_at = now
        self._recent = deque[InFlightCall]()

    def start(self, call: InFlightCall, latency_s: float, spread_per_s: float) -> None:
        """Record a departure; calls are spread at `spread_per_s` (0: not at all) while no limit has shown."""
        now = call.left_at
        self._recent.append(call)
        while self._recent[0].left_at < now - 3 * max(_PERIOD_S, latency_s):
            self._recent.popleft()
        per_s = self.limit.value or spread_per_s
        if per_s:
            spacing_s = 1 / per_s
            if self.limit.value and now - self.next_at < max(_CATCH_UP_S, spacing_s):  # there were calls to make
                self.limit.use(min(now - self._left_at, 2 * spacing_s))
            self.next_at = min(max(self.next_at, now - _CATCH_UP_S), now + spacing_s) + spacing_s
        self._left_at = now

    def measure(self, refused: InFlightCall, latency_s: float) -> float:
        """Calls a second that were let through in the last period before a call that was not."""
        period_s = max(_PERIOD_S, latency_s)
        since = refused.left_at - period_s
        before = (call for call in self._recent if call.number < refused.number and call.left_at > since)
        return sum(call.outcome != "limited" for call in before) / period_s

    def lower(self, per_s: float, now: float, refused_s: float, feedback_s: float) -> None:
        """Space calls at the rate of what was let through while others were refused."""
        self.limit.lower(max(_MIN_PER_S, per_s), refused_s + feedback_s, feedback_s)
        self.next_at = max(now, self._left_at + 1 / (self.limit.value or per_s))
