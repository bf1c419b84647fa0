"""Spaces calls in time: fewer calls in flight bound the rate only while every call takes equally long."""

from __future__ import annotations

from collections import deque

from ondine_core.limits.change_detector import InFlightCall
from ondine_core.limits.probed_limit import ProbedLimit

__all__ = ["RateEstimator"]

_PERIOD_S, _MIN_PER_S = 1.0, 0.1  # over which a limit is taken to count calls; the lowest rate
_CATCH_UP_S = 0.02  # a sleep ends late by milliseconds, and what it held back may leave at once


class RateEstimator:
    """The rate at which calls leave, measured from what a provider let through; `limit` is in calls a second."""

    def __init__(self, now: float) -> None:
        self.limit = ProbedLimit()
        self._next_at = self._left_at = now
        self._recent = deque[InFlightCall]()

    def ready_at(self, now: float) -> float:
        """When the next call may leave."""
        return max(now, self._next_at)

    def start(self, call: InFlightCall, latency_s: float, spread_per_s: float) -> None:
        """Record a departure; calls are spread at `spread_per_s` (0: not at all) while no limit has shown."""
        now = call.left_at
        self._recent.append(call)
        while self._recent[0].left_at < now - 3 * max(_PERIOD_S, latency_s):
            self._recent.popleft()
        per_s = self.limit.value or spread_per_s
        if per_s:
            spacing_s = 1 / per_s
            if self.limit.value and now - self._next_at < max(_CATCH_UP_S, spacing_s):  # there were calls to make
                self.limit.use(min(now - self._left_at, 2 * spacing_s))
            self._next_at = min(max(self._next_at, now - _CATCH_UP_S), now + spacing_s) + spacing_s
        self._left_at = now

    def measure(self, until: float, latency_s: float) -> float:
        """Calls a second that were let through in the last period before an instant."""
        period_s = max(_PERIOD_S, latency_s)
        passed = sum(until - period_s < call.left_at <= until and call.outcome != "limited" for call in self._recent)
        return passed / period_s

    def lower(self, per_s: float, now: float, refused_s: float, feedback_s: float) -> None:
        """Space calls at the rate of what was let through while others were refused."""
        self.limit.lower(max(_MIN_PER_S, per_s), refused_s + feedback_s, feedback_s)
        self._next_at = max(now, self._left_at + 1 / (self.limit.value or per_s))
