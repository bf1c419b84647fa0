"""Estimates what a provider lets through, in calls in flight or calls a second, and tries more now and then."""

from __future__ import annotations

from collections import deque
from math import exp

from ondine_core.limits.change_detector import InFlightCall

_USED_SHARE = 0.985  # of what was measured
_STEEPNESS = 2.0  # a limit grows by exp(steepness * t**2), t in hold times after the first
_HOLD_FACTOR = 4.0  # the hold time grows by this whenever more was tried in vain
_MAX_HOLDS = 16.0  # feedback times that it is at most
_RISEN = 1.5  # a limit that could be exceeded by this factor is a new one
_MIN_PER_S = 0.1  # the lowest rate
_PERIOD_S = 1.0  # over which a provider's limit is taken to count calls
_CATCH_UP_S = 0.02  # a sleep ends late by milliseconds; what it held back in that time may leave at once


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

    @property
    def is_held(self) -> bool:
        """Whether no more than what was measured is tried."""
        return self.value is not None and self._used_s <= self._hold_s

    def use(self, seconds: float, max_value: float) -> None:
        """Record that the limit held calls back for some time; above `max_value` there is none any more."""
        self._used_s += seconds
        value = self._after(self._used_s)
        self.value = None if value > max_value else value

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
        self.value = self._measured = measured
        self._used_s = 0.0

    def _after(self, used_s: float) -> float:
        beyond = max(0.0, used_s / self._hold_s - 1)
        return self._measured * exp(min(_STEEPNESS * beyond**2, 100.0))


class RateEstimator(ProbedLimit):
    """A limit in calls a second, at which calls are spaced: where calls take unequally long, fewer in flight do not."""

    def __init__(self, now: float) -> None:
        super().__init__()
        self.next_at = self._left_at = now
        self._recent = deque[InFlightCall]()

    def start(self, call: InFlightCall, latency_s: float, spread_per_s: float, max_per_s: float) -> None:
        """Record a departure; calls are spread at `spread_per_s` (0: not at all) while no limit has shown."""
        now = call.left_at
        self._recent.append(call)
        while self._recent[0].left_at < now - 3 * max(_PERIOD_S, latency_s):
            self._recent.popleft()
        per_s = self.value or spread_per_s
        if per_s:
            spacing_s = 1 / per_s
            if self.value and now - self.next_at < max(_CATCH_UP_S, spacing_s):  # there were calls to make
                self.use(min(now - self._left_at, 2 * spacing_s), max_per_s)
            self.next_at = max(self.next_at, now - _CATCH_UP_S) + spacing_s
        self._left_at = now

    def measure(self, refused: InFlightCall, latency_s: float) -> float:
        """Calls a second that were let through in the last period before a call that was not."""
        period_s = max(_PERIOD_S, latency_s)
        since = refused.left_at - period_s
        before = (call for call in self._recent if call.number < refused.number and call.left_at > since)
        return sum(call.outcome != "limited" for call in before) / period_s

    def slow_down(self, per_s: float, now: float, refused_s: float, feedback_s: float) -> None:
        """Space calls at the rate of what was let through while others were refused, for `refused_s` until now."""
        self.lower(max(_MIN_PER_S, per_s), refused_s + feedback_s, feedback_s)
        self.next_at = max(now, self._left_at + 1 / (self.value or per_s))
