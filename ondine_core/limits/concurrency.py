"""Decides when the next call may leave, from how earlier calls ended; it tells no time and does not wait."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from ondine_core.limits.change_detector import CallOutcome, ChangeDetector, InFlightCall, Rejections
from ondine_core.limits.rate_estimator import ProbedLimit, RateEstimator

_START = 4.0  # calls in flight at the start of a run, unless one of the next two allows more
_START_SHARE = 1 / 12  # of the calls allowed
_START_S = 0.1  # of a named rate
_GROWTH = 0.2  # calls in flight that an answer adds
_GROWTH_PER_S = 0.25  # added besides for each second that an answer takes, up to 1
_GROWTH_SCALE = 20.0  # added besides: (calls in flight / scale) ** 2
_MAX_GROWTH_SHARE = 1 / 100  # of the calls allowed: the most that the scale adds
_FEEDBACK_LATENCIES = 4  # within this time it shows that a limit is too high
_MIN_FEEDBACK_S = 1.0  # the least of that time, since providers count calls over a second
_MAX_REST_S = 5.0  # the slot of a refused call stays empty for at most this, or until another call is answered
_ALL_FAIL_CALLS = 10  # failures in a row after which all calls are taken to fail
_ALL_FAIL_OTHERS = 0.1  # share of other outcomes among the calls that left since the first of them, at most
_SILENT_LATENCIES = 2  # a call in flight for longer is judged without its outcome
_MIN_LATENCY_S = 0.001  # a divisor, as answers of a local server may take no measurable time
_PROBE_S = 0.25  # between probes, doubled each time
_MAX_PROBE_S = 2.0  # the longest time between probes
_MAX_LIMITED_PROBE_S = 4.0  # the same after a rate limit
_SPREAD = 1.25  # where calls in flight are limited, calls leave evenly, this much faster than they come back
_FEW_REFUSALS = 0.15  # share that a rate leads to which was measured too high; a larger share has another cause
_HISTORY = 200  # settings that are kept, at most


@dataclass(frozen=True, slots=True)
class Setting:
    """What was allowed from a moment on, in seconds since the start of the run, and what had happened."""

    at_s: float
    in_flight: int  # 0 while all calls fail and one at a time probes
    per_s: float | None  # `None` while no limit has shown
    why: str


class AdaptiveConcurrency:
    """The calls that may be in flight, never more than `max_in_flight`, and when the next may leave."""

    def __init__(self, max_in_flight: int, now: float, named_per_s: float | None = None) -> None:
        self.in_flight = 0
        self.limit = 1  # calls in flight that are allowed while calls are answered
        self.closed_since: float | None = None  # since when all calls fail
        self.history: list[Setting] = []  # oldest first; thinned out when it grows long
        self._max = max_in_flight
        self._start = min(max_in_flight, max(_START, _START_SHARE * max_in_flight, _START_S * (named_per_s or 0.0)))
        self._ramp = self._start
        self._window = ProbedLimit()  # of calls in flight
        self._rate = RateEstimator(now)
        self._detector = ChangeDetector()
        self._latency_s = 0.0
        self._departed = self._last_answered = self._failed = 0
        self._first_failed = InFlightCall(now, 1)  # of those that failed in a row
        self._started = self._answered_at = self._held_until = self._probe_at = now
        self._resting: list[float] = []  # until when slots stay empty
        self._probe: InFlightCall | None = None
        self._probe_wait_s = _PROBE_S
        self._note(now, "start")

    def ready_at(self, now: float) -> float:
        """When the next call may leave; infinity while that depends on another coming back."""
        if self.closed_since is not None:
            return inf if self._probe else max(self._held_until, self._probe_at)
        free = self.limit - self.in_flight
        if free <= 0:
            return inf
        ready_at = max(now, self._held_until, self._rate.next_at)
        resting = [until for until in self._resting if until > ready_at] if self._resting else ()
        return ready_at if len(resting) < free else sorted(resting)[-free]

    def start(self, now: float) -> InFlightCall:
        """Record that a call leaves; it is handed back with `finish`."""
        self._departed += 1
        self.in_flight += 1
        call = InFlightCall(now, self._departed)
        if self.closed_since is not None:
            self._probe = call
            return call
        latency_s = max(_MIN_LATENCY_S, self._latency_s)
        self._rate.start(call, latency_s, _SPREAD * (self._window.value or 0.0) / latency_s, 2 * self._max / latency_s)
        self._detector.start(call)
        return call

    def hold_off(self, until: float) -> None:
        """Let no call leave before an instant, as an answer says that nothing is left of a limit."""
        self._held_until = max(self._held_until, until)

    def finish(self, call: InFlightCall, now: float, outcome: CallOutcome | None, retry_after_s: float = 0.0) -> None:
        """Record how a call ended (`None`: it was given up); a wait that it asks for holds back all while all fail."""
        self.in_flight -= 1
        call.outcome = outcome
        if outcome == "answered":
            self._record_answer(call, now)
        elif outcome is not None:
            self._record_failure(call, now)
        if self.closed_since is None:
            is_raised = self._rate.is_raised or self._window.is_raised
            known_until = now - _SILENT_LATENCIES * self._latency_s - 0.05
            found = self._detector.advance(known_until, raised=is_raised)
            if found:
                self._lower(found, now)
        elif call is self._probe or self._is_silent(now):
            self._probe_at = max(self._probe_at, now + retry_after_s)
        if call is self._probe:
            self._probe = None
            if outcome is not None:
                max_s = _MAX_LIMITED_PROBE_S if outcome == "limited" else _MAX_PROBE_S
                self._probe_wait_s = min(max_s, 2 * self._probe_wait_s)
                self._probe_at = max(self._probe_at, now + self._probe_wait_s)

    @property
    def _feedback_s(self) -> float:
        return max(_MIN_FEEDBACK_S, _FEEDBACK_LATENCIES * self._latency_s)

    def _is_silent(self, now: float) -> bool:
        return now - self._answered_at >= _SILENT_LATENCIES * self._latency_s

    def _record_answer(self, call: InFlightCall, now: float) -> None:
        since_s = now - self._answered_at
        self._answered_at = now
        self._latency_s += (now - call.left_at - self._latency_s) * (0.1 if self._latency_s else 1.0)
        self._last_answered = max(self._last_answered, call.number)
        is_later = call.number > self._first_failed.number
        if is_later:
            self._failed = 0
        if self.closed_since is not None:
            if is_later:
                self._open(now)
        elif self._resting:
            self._resting.pop(0)
        elif self.in_flight + 1 >= self.limit / 2:  # the limit is used
            self._raise(since_s, now)

    def _raise(self, since_s: float, now: float) -> None:
        before = self.limit
        if self._ramp < self._max:
            self._ramp += _GROWTH + min(1.0, _GROWTH_PER_S * self._latency_s)
            self._ramp += min((self._ramp / _GROWTH_SCALE) ** 2, _MAX_GROWTH_SHARE * self._max)
        if self._window.value:
            self._window.use(min(since_s, self._latency_s), self._max)
        self._apply()
        if before < self.limit and (self.limit == self._max or self.limit.bit_length() > before.bit_length()):
            self._note(now, "answered")

    def _record_failure(self, call: InFlightCall, now: float) -> None:
        if call.number > self._last_answered:
            if not self._failed or call.number < self._first_failed.number:
                self._first_failed = call
            self._failed += 1
        latencies = 1 if call.outcome == "broken" else _FEEDBACK_LATENCIES
        rests_until = min(call.left_at + latencies * self._latency_s, now + _MAX_REST_S)
        self._resting = [until for until in (*self._resting, rests_until) if until > now]
        if self.closed_since is None and self._all_fail(call, now):
            self._close(now, limited=call.outcome == "limited")

    def _all_fail(self, call: InFlightCall, now: float) -> bool:
        """Whether calls that leave now fail: nearly all have since the first that failed, and none after it succeeded.

        Calls that are still in flight from before it may be answered all the same. A rate limit is certain at once;
        other failures may be due to chance, so nothing must have been answered for a while, too.
        """
        left = max(self._failed, call.number - self._first_failed.number + 1)
        if self._failed < min(_ALL_FAIL_CALLS, 3 + self.limit):
            return False
        if left - self._failed > max(1.0, _ALL_FAIL_OTHERS * left):
            return False
        return call.outcome == "limited" or self._is_silent(now)

    def _close(self, now: float, *, limited: bool) -> None:
        """Let one call at a time probe. For a rate limit, what passed before it was used up is its rate."""
        per_s = self._rate.measure(self._first_failed, self._latency_s)
        if limited and per_s:
            self._rate.slow_down(per_s, now, now - self._first_failed.left_at, self._feedback_s)
        self._detector.reset()
        self._probe_wait_s = _PROBE_S
        self._probe_at = now + _PROBE_S
        self.closed_since = now
        self._note(now, "refused" if limited else "outage")

    def _open(self, now: float) -> None:
        self.closed_since = None
        self._ramp = min(self._ramp, self._start)
        self._resting.clear()
        self._note(now, "answered again")

    def _lower(self, found: Rejections, now: float) -> None:
        """Lower the calls in flight; if that did not help, the calls a second; if neither helps, both are as before."""
        refused_s = now - found.since
        slower_failed = self._rate.is_held and found.share > _FEW_REFUSALS
        in_vain = self._window.is_held or self._rate.is_held
        if self._detector.record_failure_rate(found.share, in_vain=in_vain):
            self._rate.value = self._window.value = None
            self._ramp = self._max
            self._note(now, "refused whatever is asked")
        elif found.limited and not slower_failed and (self._rate.value is not None or self._window.is_held):
            self._window.value = None
            self._rate.slow_down(found.per_s, now, refused_s, self._feedback_s)
            self._note(now, "limited")
        else:
            self._rate.value = None
            in_flight = max(1.0, min(self.limit, found.per_s * self._latency_s))  # J. Little's law
            self._window.lower(in_flight, refused_s + 2 * self._latency_s, self._feedback_s)
            self._note(now, "limited" if found.limited else "overloaded")

    def _apply(self) -> None:
        found = inf if self._window.value is None else self._window.value + 0.5
        self.limit = max(1, int(min(self._max, self._ramp, found)))

    def _note(self, now: float, why: str) -> None:
        self._apply()
        if len(self.history) >= _HISTORY:
            del self.history[1::2]
        per_s = None if self._rate.value is None else round(self._rate.value, 3)
        allowed = 0 if self.closed_since is not None else self.limit
        self.history.append(Setting(round(now - self._started, 3), allowed, per_s, why))
