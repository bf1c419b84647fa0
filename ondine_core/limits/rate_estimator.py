"""Spaces calls at a rate that was measured from what a provider let through."""

from __future__ import annotations

from collections import deque

from ondine_core.limits.change_detector import InFlightCall
from ondine_core.limits.probed_limit import ProbedLimit

__all__ = ["RateEstimator"]

_PERIOD_S = 1.0
"""Seconds over which a limit that is used up is taken to count calls."""
_CATCH_UP_S = 0.02
"""A sleep ends late by milliseconds; what it held back may leave at once."""
_MIN_PER_S = 0.1
_USED = 0.985
"""Share of a measured rate that is used."""


class RateEstimator:
    """The rate at which calls leave."""

    def __init__(self, now: float) -> None:
        self.limit = ProbedLimit()
        self._next_at = self._left_at = now
        self._recent = deque[InFlightCall]()

    def ready_at(self, now: float) -> float:
        """When the next call may leave."""
        return max(now, self._next_at)

    def start(self, call: InFlightCall, latency_s: float, spread_per_s: float) -> None:
        """Take note of a departure."""
        now = call.left_at
        self._recent.append(call)
        while self._recent[0].left_at < now - 2 * max(_PERIOD_S, latency_s) - latency_s:
            self._recent.popleft()
        if per_s := self.limit.value or spread_per_s:
            if self.limit.value and now - self._next_at < max(_CATCH_UP_S, 1 / per_s):  # there were calls to make
                self.limit.use(min(now - self._left_at, 2 / per_s))
            self._next_at = min(max(self._next_at, now - _CATCH_UP_S), now + 1 / per_s) + 1 / per_s
        else:
            self._next_at = now
        self._left_at = now

    def measure(self, until: float, latency_s: float) -> float:
        """Calls a second that were let through in the last period before an instant."""
        period_s = max(_PERIOD_S, latency_s)
        passed = sum(until - period_s < call.left_at <= until and call.outcome != "limited" for call in self._recent)
        return passed / period_s

    def lower(self, per_s: float, now: float, wasted_s: float, feedback_s: float) -> None:
        """Space calls at a measured rate from now on."""
        self.limit.lower(max(_MIN_PER_S, _USED * per_s), wasted_s, feedback_s)
        self._next_at = max(now, self._left_at + 1 / (self.limit.value or 1.0))
