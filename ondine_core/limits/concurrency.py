"""Decides when the next call may leave from how earlier calls ended. It reads no clock and does not wait.

The allowed calls in flight grow while calls are answered. A refusal delays its own call, and leaves its concurrency
slot empty for a moment. When more calls are refused than usual (`ChangeDetector`), their occupancy, the number of calls
in flight when they left, shows what is limited. A provider that limits calls in flight refuses exactly the calls above
its limit, so the limit is seen at once. Otherwise it limits the rate: calls are then spaced at the rate at which others
were let through meanwhile. If the same share is refused at each lower rate, refusals are due to chance and nothing is
limited. A limit of either kind is kept for a while, then raised ever faster until calls are refused again
(`ProbedLimit`). When the latest calls all fail, calls stop, and one at a time probes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf

from ondine_core.limits.change_detector import CallOutcome, ChangeDetector, InFlightCall, Refusals
from ondine_core.limits.probed_limit import LimitKind, ProbedLimit

_START = 4.0  # calls in flight at the start of a run, unless one of the next two allows more
_START_SHARE = 1 / 12  # of the maximum of calls in flight
_START_S = 0.1  # calls that a stated rate allows in this time
_MAX_GROWTH = 1.15  # maximum number of calls in flight that an answer adds: they about double in each round trip
_GROWTH_SHARE = 1 / 20  # of the calls in flight, which an answer adds if that is less and answers are quick
_MIN_FEEDBACK_S = 1.0  # time in which a limit proves too high, since providers count calls over a second
_FEEDBACK_LATENCIES = 4  # the same in latencies, for slow answers
_SILENT_LATENCIES = 1.5  # a call in flight for longer, plus `_SILENT_S`, is judged without its outcome
_SILENT_S = 0.05
_OUTAGE_LATENCIES = 2  # when nothing was answered for longer, failures in a row are not due to chance
_MAX_REST_S = 5.0  # maximum time that the slot of a refused call stays empty, unless another call is answered before
_ALL_FAIL_CALLS = 10  # failures in a row after which all calls are taken to fail
_ALL_FAIL_OTHERS = 0.1  # maximum share of other outcomes among the calls that left since the first of them
_PROBE_S = 0.25  # time between probes, doubled each time
_MAX_PROBE_S = 2.0  # maximum time between probes
_MAX_LIMITED_PROBE_S = 4.0  # the same after a rate limit
_PERIOD_S = 1.0  # over which a provider is taken to count calls
_MIN_LATENCY_S = 0.001  # a divisor, since the answers of a local server may take no measurable time
_CATCH_UP_S = 0.02  # a sleep ends late by milliseconds; the calls that it delayed may leave at once
_HISTORY = 200  # maximum number of settings that are kept


@dataclass(frozen=True, slots=True)
class Setting:
    """The limits that applied from a moment on, and why."""

    at_s: float  # seconds since the start of the run
    in_flight: int  # 0 while all calls fail and one at a time probes
    per_s: float | None  # `None` while no limit is known
    why: str


class AdaptiveConcurrency:
    """Adapts how many calls may be in flight, at most `max_in_flight`, and when the next may leave.

    `named_per_s` is the request rate that the user stated, if any. Times are in seconds on one clock of the caller's.
    """

    def __init__(self, max_in_flight: int, now: float, named_per_s: float | None = None) -> None:
        self.in_flight = 0
        self.limit = 1  # calls in flight that are allowed while calls are answered
        self.closed_since: float | None = None  # since when all calls fail
        self.history: list[Setting] = []  # oldest first; thinned out when it grows long
        self._max = max_in_flight
        self._start = min(max_in_flight, max(_START, _START_SHARE * max_in_flight, _START_S * (named_per_s or 0.0)))
        self._ramp = self._start
        self._provider_limit = ProbedLimit()
        self._detector = ChangeDetector()
        self._recent = deque[InFlightCall]()
        self._latency_s = 0.0
        self._departed = self._last_answered = self._failed = 0
        self._first_failed = InFlightCall(now, 1)  # the first of the latest failures in a row
        self._started = self._answered_at = self._held_until = self._probe_at = now
        self._left_at = self._next_at = now
        self._resting = 0
        self._rest_until = now
        self._probe: InFlightCall | None = None
        self._probe_wait_s = _PROBE_S
        self._note(now, "start")

    def ready_at(self, now: float) -> float:
        """When the next call may leave; infinity while it waits for another call to end."""
        if self.closed_since is not None:
            return inf if self._probe else max(self._held_until, self._probe_at)
        free = self.limit - self.in_flight
        if free <= 0:
            return inf
        ready_at = max(now, self._held_until, self._next_at)
        return ready_at if self._resting < free else max(ready_at, self._rest_until)

    def start(self, now: float) -> InFlightCall:
        """Record that a call leaves; its end is recorded with `finish`."""
        self._departed += 1
        call = InFlightCall(now, self._departed)
        if self.closed_since is not None:
            self._probe = call
        else:
            self._detector.start(call, self.in_flight)
            self._recent.append(call)
            while self._recent[0].left_at < now - 3 * max(_PERIOD_S, self._latency_s):
                self._recent.popleft()
            self._use_limit(now)
            self._left_at = now
        self.in_flight += 1
        return call

    def hold_off(self, until: float) -> None:
        """Let no call leave before `until`, since a reply says that a limit is used up."""
        self._held_until = max(self._held_until, until)

    def finish(self, call: InFlightCall, now: float, outcome: CallOutcome | None, retry_after_s: float = 0.0) -> None:
        """Record how a call ended, `None` if it was given up.

        The wait `retry_after_s` that its refusal asks for delays other calls only while all calls fail.
        """
        self.in_flight -= 1
        call.outcome = outcome
        self._detector.finish(call)
        if outcome == "answered":
            self._record_answer(call, now)
        elif outcome is not None:
            self._record_failure(call, now)
        if self.closed_since is None:
            known_until = now - _SILENT_LATENCIES * self._latency_s - _SILENT_S
            refusals = self._detector.advance(known_until, now, self._provider_limit.per_s)
            if refusals:
                self._lower(refusals, now)
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
        """Whether no call has been answered for so long that failures are not due to chance."""
        return now - self._answered_at >= _OUTAGE_LATENCIES * self._latency_s

    def _record_answer(self, call: InFlightCall, now: float) -> None:
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
            self._resting -= 1
        elif self.in_flight + 1 >= self.limit / 2:  # the limit is used
            self._raise(now)

    def _use_limit(self, now: float) -> None:
        """Schedule the next call by the rate limit, and record for how long a limit delayed this one."""
        latency_s = max(_MIN_LATENCY_S, self._latency_s)
        waited_s = now - self._left_at
        if self._provider_limit.per_s:
            spacing_s = 1 / self._provider_limit.per_s
            if now - self._next_at < max(_CATCH_UP_S, spacing_s):  # calls were waiting
                self._provider_limit.use(min(waited_s, 2 * spacing_s), 2 * self._max / latency_s)
            self._next_at = max(self._next_at, now - _CATCH_UP_S) + spacing_s
        elif self._provider_limit.in_flight and self.in_flight + 1 >= self.limit:
            self._provider_limit.use(min(waited_s, latency_s), self._max)
            self._apply()

    def _raise(self, now: float) -> None:
        before = self.limit
        self._ramp = min(self._max, self._ramp + min(_MAX_GROWTH, max(_GROWTH_SHARE * self._ramp, self._latency_s)))
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
        self._resting = 1 + (self._resting if self._rest_until > now else 0)
        self._rest_until = max(self._rest_until, rests_until)
        if self.closed_since is None and self._all_fail(call, now):
            self._close(now, limited=call.outcome == "limited")

    def _all_fail(self, call: InFlightCall, now: float) -> bool:
        """Whether all calls fail: since the first of the failures in a row, nearly all calls that left have failed.

        Calls that left before it may still be answered. Refusals by a rate limit are certain; other failures may be
        due to chance, so nothing must have been answered for a while, too.
        """
        departed = max(self._failed, call.number - self._first_failed.number + 1)
        if self._failed < min(_ALL_FAIL_CALLS, 3 + self.limit):
            return False
        if departed - self._failed > max(1.0, _ALL_FAIL_OTHERS * departed):
            return False
        return call.outcome == "limited" or self._is_silent(now)

    def _close(self, now: float, *, limited: bool) -> None:
        """Let one call at a time probe; the rate of a rate limit is that of the calls before it was used up."""
        if limited:
            period_s = max(_PERIOD_S, self._latency_s)
            first = self._first_failed
            in_period = [call for call in self._recent if first.left_at - period_s < call.left_at]
            passed = sum(call.outcome != "limited" for call in in_period if call.number < first.number)
            if passed:
                self._set_limit("per second", passed / period_s, now)
        self._detector.reset(now)
        self._probe_wait_s = _PROBE_S
        self._probe_at = now + _PROBE_S
        self.closed_since = now
        self._note(now, "refused" if limited else "outage")

    def _open(self, now: float) -> None:
        self.closed_since = None
        self._ramp = min(self._ramp, self._start)
        self._resting = 0
        self._note(now, "answered again")

    def _lower(self, refusals: Refusals, now: float) -> None:
        """Lower the limit that explains the refusals, and give up the other."""
        if refusals.in_flight is not None:
            self._set_limit("in flight", refusals.in_flight, now)
            self._note(now, "refused beyond a number in flight")
        elif refusals.by_chance:
            self._provider_limit.value = None
            self._ramp = self._max
            self._note(now, "refused whatever is asked")
        else:
            self._set_limit("per second", refusals.per_s, now)
            self._note(now, "refused beyond a rate")

    def _set_limit(self, kind: LimitKind, measured: float, now: float) -> None:
        self._provider_limit.lower(kind, measured, self._feedback_s)
        self._next_at = max(now, self._left_at + 1 / self._provider_limit.per_s) if self._provider_limit.per_s else now

    def _apply(self) -> None:
        measured = self._provider_limit.in_flight + 0.5 if self._provider_limit.in_flight else inf
        self.limit = max(1, int(min(self._max, self._ramp, measured)))

    def _note(self, now: float, why: str) -> None:
        self._apply()
        if len(self.history) >= _HISTORY:
            del self.history[1::2]
        per_s = None if self._provider_limit.per_s is None else round(self._provider_limit.per_s, 3)
        allowed = 0 if self.closed_since is not None else self.limit
        self.history.append(Setting(round(now - self._started, 3), allowed, per_s, why))
