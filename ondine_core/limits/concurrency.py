"""How many calls a provider takes at once and a second, found by making them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from ondine_core.limits.change_detector import CallOutcome, ChangeDetector, InFlightCall, Rejections
from ondine_core.limits.probed_limit import ProbedLimit
from ondine_core.limits.rate_estimator import RateEstimator

__all__ = ["AdaptiveConcurrency", "Setting"]

_START, _START_SHARE, _START_S = 4.0, 1 / 12, 0.1
_HOLD_S, _MAX_HOLD_S = 1.0, 40.0
_IN_A_ROW = 5
_PROBE_S, _MAX_PROBE_S = 0.25, 5.0
_MAX_REST_S = 5.0
_HISTORY = 200


@dataclass(frozen=True, slots=True)
class Setting:
    """What was allowed from a moment on.

    Args:
        at_s: Seconds since the start of the run.
        in_flight: Calls at once; 0 while nothing is answered and one at a time probes.
        per_s: Calls a second; `None` while no limit has shown.
        why: What had happened.
    """

    at_s: float
    in_flight: int
    per_s: float | None
    why: str


class AdaptiveConcurrency:
    """Decides when a call may leave."""

    def __init__(self, max_in_flight: int, now: float, named_per_s: float | None = None) -> None:
        self._max, self._started = max_in_flight, now
        self._rate, self._window, self._detector = RateEstimator(now), ProbedLimit(), ChangeDetector()
        self._start = max(_START, _START_SHARE * max_in_flight, _START_S * (named_per_s or 0))
        self._ramp = min(float(max_in_flight), self._start)
        self.in_flight = self._failed_in_a_row = 0
        self._resting: list[float] = []
        self._latency_s = 0.0
        self._answered_at, self._passed_at = now, -inf
        self._held_until = now
        self.closed_since: float | None = None
        self._probe: InFlightCall | None = None
        self._probe_at = now
        self.history: list[Setting] = []
        self._note(now, "start")

    @property
    def limit(self) -> int:
        """Calls in flight that are allowed."""
        window = inf if self._window.value is None else self._window.value + 0.5
        return max(1, int(min(self._max, self._ramp, window)))

    def ready_at(self, now: float) -> float:
        """When the next call may leave; infinity while that depends on another coming back."""
        if self.closed_since is not None:
            return inf if self._probe else max(self._held_until, self._probe_at)
        places = self.limit - self.in_flight
        if places <= 0:
            return inf
        ready_at = max(self._held_until, self._rate.ready_at(now))
        resting = [until for until in self._resting if until > now]
        return ready_at if len(resting) < places else max(ready_at, sorted(resting)[-places])

    def start(self, now: float) -> InFlightCall:
        """Take note that a call leaves."""
        call = InFlightCall(now)
        self.in_flight += 1
        if self.closed_since is not None:
            self._probe = call
            return call
        spread_per_s = 1.25 * self._window.value / self._latency_s if self._window.value else 0.0
        self._rate.start(call, self._latency_s, spread_per_s)
        if self._rate.limit.is_raised:
            self._detector.forget_experiments()
            if (self._rate.limit.value or 0) * self._latency_s > 2 * self._max:
                self._rate.limit.clear()
        self._detector.start(call)
        return call

    def hold_off(self, until: float) -> None:
        self._held_until = max(self._held_until, until)

    def finish(self, call: InFlightCall, now: float, outcome: CallOutcome | None, retry_after_s: float = 0.0) -> None:
        self.in_flight -= 1
        call.outcome = outcome
        if outcome == "answered":
            self._answered(call, now)
        elif outcome is not None:
            self._failed(call, now, retry_after_s)
        if self.closed_since is not None:
            self._continue_probing(call, now)
        elif found := self._detector.advance(
            now - 2 * self._latency_s - 0.05, raised=self._rate.limit.is_raised or self._window.is_raised
        ):
            self._lower(found, now)

    def _answered(self, call: InFlightCall, now: float) -> None:
        used_s = min(now - self._answered_at, self._latency_s)
        self._failed_in_a_row, self._answered_at = 0, now
        self._passed_at = max(self._passed_at, call.left_at)
        self._latency_s += (now - call.left_at - self._latency_s) * (0.1 if self._latency_s else 1.0)
        if self.closed_since is not None:
            self.closed_since = self._probe = None
            self._ramp = min(self._ramp, self._start)
            self._resting.clear()
            self._note(now, "answered again")
            return
        if self._resting:
            self._resting.pop(0)
            return
        if self.in_flight + 1 < self.limit / 2:
            return
        before = self.limit
        if self._ramp < self._max:
            self._ramp += 0.2 + min(1.0, 0.25 * self._latency_s) + min((self._ramp / 20) ** 2, self._max / 64)
        if self._window.value:
            self._window.use(used_s)
            if self._window.is_raised:
                self._detector.forget_experiments()
            if self._window.value > self._max:
                self._window.clear()
        if self.limit > before and (self.limit == self._max or self.limit.bit_length() > before.bit_length()):
            self._note(now, "answered")

    def _failed(self, call: InFlightCall, now: float, retry_after_s: float) -> None:
        self._failed_in_a_row += call.left_at > self._passed_at
        self._resting = [until for until in self._resting if until > now]
        self._resting.append(min(call.left_at + 4 * self._latency_s, now + _MAX_REST_S))
        silent = self.in_flight == 0 or now - self._answered_at >= 2 * self._latency_s
        if self.closed_since is None and silent and self._failed_in_a_row >= _IN_A_ROW:
            self._close(now, call.outcome == "limited")
        if self.closed_since is not None:
            self._probe_at = max(self._probe_at, now + retry_after_s)

    def _close(self, now: float, limited: bool) -> None:
        self.closed_since, self._probe, self._probe_at = now, None, now + _PROBE_S
        per_s = self._rate.measure(self._passed_at, self._latency_s)
        if limited and per_s:
            self._rate.lower(per_s, now, now - self._passed_at, max(1.0, 2 * self._latency_s))
        self._detector.reset()
        self._note(now, "refused" if limited else "outage")

    def _continue_probing(self, call: InFlightCall, now: float) -> None:
        if call is not self._probe:
            return
        self._probe = None
        if call.outcome is not None and self.closed_since is not None:
            wait_s = min(_MAX_PROBE_S, max(_PROBE_S, (now - self.closed_since) / 5))
            self._probe_at = max(self._probe_at, now + wait_s)

    def _lower(self, found: Rejections, now: float) -> None:
        if self._detector.record_failure_rate(found.share):
            self._rate.limit.clear()
            self._window.clear()
            self._ramp = float(self._max)
            self._note(now, "refused whatever is asked")
            return
        wasted_s, feedback_s = now - found.since, max(1.0, 2 * self._latency_s)
        rate, window = self._rate.limit, self._window
        slower_helps_not = rate.value and not rate.is_raised and found.share > 0.1
        fewer_helps_not = window.value and not window.is_raised
        if found.limited and not slower_helps_not and (rate.value or fewer_helps_not):
            window.clear()
            self._rate.lower(found.per_s, now, wasted_s, feedback_s)
        else:
            rate.clear()
            in_flight = max(1.0, min(self.limit, found.per_s * self._latency_s))
            window.lower(in_flight, wasted_s, feedback_s)
        self._note(now, "limited" if found.limited else "overloaded")

    def _note(self, now: float, why: str) -> None:
        if len(self.history) >= _HISTORY:
            del self.history[1::2]
        per_s = None if self._rate.limit.value is None else round(self._rate.limit.value, 3)
        allowed = 0 if self.closed_since is not None else self.limit
        self.history.append(Setting(round(now - self._started, 3), allowed, per_s, why))
