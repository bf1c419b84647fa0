"""How many calls a provider takes at once, found out by asking it: more while it answers, fewer when it is overloaded.

Additive increase, multiplicative decrease (D. Chiu and R. Jain, 1989): calls in flight grow by a share a round trip
until the provider is overloaded for the first time, and by one a round trip from then on; they are cut by the share
that was turned away. A rate limit is `pacing`'s. A provider that answers nothing at all is probed by one call at a
time, and its outage is nobody's failed attempt.

`Throttle` decides and is told the time; who waits is in `gate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from ondine_core.blame import Ending, Finding, Suspect, Ticket
from ondine_core.pacing import Pacer

__all__ = ["Setting", "Throttle"]

_START, _START_S = 4, 0.1
"""Calls at once in the beginning; as many as a named rate brings in this time, if that is more."""
_GROWTH, _GROWTH_A_SECOND, _GROWTH_A_CALL = 0.25, 0.25, 1 / 128
"""Calls more for each answer, for each second that it took (who is slow is asked seldom enough), and for each call that
is allowed already (who takes many takes more)."""
_STILL_S = 1.0
"""Calls at once that have not been raised for so long are not being raised."""
_ROUND_S, _FIRST_RIDE_S, _LONGEST_RIDE_S = 0.2, 2.0, 40.0
"""Seconds over which overload is judged, and for which a cut is kept before more is tried; twice as long every time."""
_LONGEST_REST_S = 5.0
"""Seconds for which the place of a call that was turned away is kept free at most."""
_IN_A_ROW, _SILENT_S = 5, 2.0
"""So many failures in a row are an outage, or a quarter of the calls at once more; and so long without an answer."""
_PROBE_S, _LONGEST_PROBE_S = 0.25, 2.0
"""Seconds from one probe of a provider in outage to the next, doubling."""
_HISTORY = 200


@dataclass(frozen=True, slots=True)
class Setting:
    """What was allowed from a moment on.

    Args:
        at_s: Seconds since the start of the run.
        in_flight: Calls at once; 0 during an outage, when one at a time probes.
        per_s: Calls a second; `None` while no limit has shown.
        why: What had happened.
    """

    at_s: float
    in_flight: int
    per_s: float | None
    why: str


class Throttle:
    """Decides when a call may leave; tells no time and waits for nothing.

    Args:
        most: Calls in flight that are never exceeded.
        now: Seconds on any clock; all other times are on the same one.
        named_per_s: Calls a second that the provider is known to take.

    Attributes:
        in_flight: Calls that have left and are not back.
        history: What was allowed when, oldest first; thinned out when it grows long.
    """

    def __init__(self, most: int, now: float, named_per_s: float | None = None) -> None:
        self._most, self._started = most, now
        self._pacer, self._suspect = Pacer(now), Suspect("overloaded", now, _ROUND_S)
        self.in_flight = self._left = self._failed_in_a_row = 0
        self._resting: list[float] = []
        self._latency_s = 0.0
        self._outage_since: float | None = None
        self._probe: Ticket | None = None
        self._probe_at = self._probe_s = 0.0
        self.history: list[Setting] = []
        self._grow_at = self._grown_at = self._answered_at = now
        self._raise_from(min(float(most), max(_START, _START_S * (named_per_s or 0))), now, "start")

    @property
    def outage_since(self) -> float | None:
        """Since when nothing was answered; `None` if that is not so."""
        return self._pacer.closed_since if self._outage_since is None else self._outage_since

    def ready_at(self, now: float) -> float:
        """When the next call may leave; infinity while that depends on another coming back."""
        if self._outage_since is not None:
            return inf if self._probe else max(self._pacer.closed_until, self._probe_at)
        places = int(self._limit) - self.in_flight
        if places <= 0:
            return inf
        ready_at = self._pacer.ready_at(now)
        resting = [until for until in self._resting if until > now]
        return ready_at if len(resting) < places else max(ready_at, sorted(resting)[-places])

    def leave(self, now: float) -> Ticket:
        """Take note that a call leaves; its ticket is handed in when it is back."""
        ticket = Ticket(self._left, now)
        self._left, self.in_flight = self._left + 1, self.in_flight + 1
        if self._outage_since is not None:
            self._probe = ticket
        else:
            if found := self._pacer.leave(ticket, self._latency_s):
                self._note(now, found)
            self._suspect.leave(ticket)
        return ticket

    def hold_off(self, until: float) -> None:
        """Let nobody leave before `until`, as the provider asks."""
        self._pacer.hold_off(until)

    def end(self, ticket: Ticket, now: float, ending: Ending | None) -> None:
        """Take note that a call came back, `None` if it was given up before its outcome was known."""
        self.in_flight -= 1
        ticket.ending = ending
        if ending == "answered":
            self._answered(ticket, now)
        elif ending is not None:
            self._failed_in_a_row += ending != "limited"
            self._rest(ticket, now)
        if self._outage_since is not None:
            self._go_on_probing(ticket, now)
            return
        if now > self._grown_at + max(_STILL_S, 4 * self._latency_s):
            self._rising = False
        if found := self._pacer.end(ticket, now, rising=self._rising):
            self._note(now, found)
        if finding := self._suspect.end(ticket, now, rising=self._rising):
            self._judge_load(finding, now)
        # An overloaded provider fails many in a row and still answers some.
        silent = ending != "overloaded" or now - self._answered_at >= min(2 * self._latency_s, _SILENT_S)
        if silent and self._failed_in_a_row >= _IN_A_ROW + self._limit / 4:
            self._start_outage(now)

    # -- calls at once ---------------------------------------------------------------------------------------------

    def _raise_from(self, limit: float, now: float, why: str) -> None:
        self._limit, self._rising, self._overloaded_before = limit, limit < self._most, False
        self._grow_at, self._grown_at, self._ride_s = now, now, _FIRST_RIDE_S
        self._note(now, why)

    def _answered(self, ticket: Ticket, now: float) -> None:
        self._failed_in_a_row, self._answered_at = 0, now
        self._latency_s += (now - ticket.left_at - self._latency_s) * (0.1 if self._latency_s else 1.0)
        if self._outage_since is not None:
            self._recover(now)
        elif self._limit < self._most and now >= self._grow_at and self.in_flight + 1 >= self._limit / 2:
            before = self._limit
            growth = min(1.0, _GROWTH + _GROWTH_A_SECOND * self._latency_s + _GROWTH_A_CALL * before)
            self._limit = min(self._most, before + (1 / before if self._overloaded_before else growth))
            self._grown_at, self._rising = now, self._rising and self._limit < self._most
            self._suspect.acquit()
            if self._limit == self._most or int(self._limit).bit_length() > int(before).bit_length():
                self._note(now, "answered")

    def _rest(self, ticket: Ticket, now: float) -> None:
        """A call that was turned away at once frees its place no sooner than an answered one would have.

        Otherwise a few places would do nothing but be turned away. While it is not clear why, the next one is, too.
        """
        self._resting = [until for until in self._resting if until > now]
        doubtful = ticket.ending == "limited" and self._limit < self._most and not self._pacer.tolerant
        if ticket.ending != "broken":
            until = ticket.left_at + (2 if doubtful else 1) * self._latency_s
            self._resting.append(min(until, now + _LONGEST_REST_S))

    def _judge_load(self, finding: Finding, now: float) -> None:
        if finding.to_blame:
            self._ride_s = min(_LONGEST_RIDE_S, 2 * self._ride_s) if self._overloaded_before else _FIRST_RIDE_S
            self._limit = max(1.0, self._limit * max(0.5, 1 - finding.share))
            self._grow_at, self._overloaded_before, self._rising = now + self._ride_s, True, False
            self._note(now, "overloaded")
        else:
            self._grow_at, self._overloaded_before = now, False
            self._note(now, "overloaded however few")

    # -- outage ----------------------------------------------------------------------------------------------------

    def _start_outage(self, now: float) -> None:
        self._outage_since, self._probe, self._probe_s = self.outage_since or now, None, _PROBE_S
        self._probe_at = now + _PROBE_S
        self._pacer.restart(now)
        self._note(now, "outage")

    def _go_on_probing(self, ticket: Ticket, now: float) -> None:
        if ticket is not self._probe:
            return
        self._probe = None
        if ticket.ending is not None:
            self._probe_s = min(_LONGEST_PROBE_S, self._probe_s * 2)
            self._probe_at = now + self._probe_s

    def _recover(self, now: float) -> None:
        self._outage_since = self._probe = None
        self._pacer.restart(now)
        self._suspect.start(now)
        self._raise_from(max(min(_START, self._most), self._limit / 2), now, "answered again")

    def _note(self, now: float, why: str) -> None:
        if len(self.history) >= _HISTORY:
            del self.history[1::2]
        pace = None if self._pacer.pace is None else round(self._pacer.pace, 3)
        allowed = 0 if self.outage_since is not None else int(self._limit)
        self.history.append(Setting(round(now - self._started, 3), allowed, pace, why))
