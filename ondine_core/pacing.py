"""What rate a provider allows that has named none: found from the calls it turns away, and kept to.

Fewer calls at once would also end refusals, but a bound on calls in flight is a bound on the rate only while every call
takes equally long. So calls are spaced in time. Refusals that come in a flood are a limit that has just been reached,
and what was let through before them is its rate. A few among many may be a rate slightly too high, which a cut ends; or
chance (a gateway that drops one in ten), which a cut does not change: then the rate was not to blame, and is restored.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from math import inf
from typing import Literal, TypeAlias

__all__ = ["Ending", "Pacer", "Ticket"]

Ending: TypeAlias = Literal["answered", "limited", "overloaded", "broken"]
"""How a call came back: with a reply (a refusal of its content included), turned away for the rate, turned away or
timed out for want of capacity, or lost for another reason."""

_SURE = 0.985
"""Share of a measured rate that is used: what lies within the error of the measurement would be refused."""
_ROUND = 50
"""Calls after which the share that was limited is judged: of so many, one is chance and more than one in 40 is not."""
_CHANCE = 0.025
_FLOOD, _LAST = 10, 20
"""So many limited among the last so many are a flood; so are these many in a row, before and after the first ones."""
_FLOOD_IN_A_ROW, _FLOOD_WHILE_RISING = 6, 3
_STUBBORN = 3
"""Cuts in a row that did not halve the share of limited calls: it does not depend on the rate."""
_PERIOD_S = 1.0
"""The period over which a limit is taken to count calls, until it turns out to be longer."""
_RIDE_S, _GUESSED_RIDE_S, _LONGEST_RIDE_S = 10.0, 2.0, 80.0
"""Seconds for which a rate is kept before a little more is tried; twice as long whenever more was refused."""
_CATCH_UP_S = 0.02
"""A sleep ends late by milliseconds; what it held back may leave at once."""


@dataclass(slots=True)
class Ticket:
    """A call that has left, and how it came back (`None`: not yet, or it was given up)."""

    left_at: float
    ending: Ending | None = None


@dataclass(slots=True)
class _Flood:
    """Calls from the first refusal on, and when those let through in the period before it had left.

    Nothing leaves until all refusals are here, and then one call alone to see whether the provider takes calls again.
    """

    calls: list[Ticket]
    before: list[float]
    waited_a_period: bool = False
    probe: Ticket | None = None


class Pacer:
    """Decides how far apart calls leave.

    Args:
        now: Seconds on any clock; all other times are on the same one.

    Attributes:
        pace: Calls a second; `None` while no limit has shown.
        closed_until: Nothing leaves before this instant.
        asked_until: Nothing leaves before this instant, because the provider has asked for it.
        since: Calls that left earlier left under other settings and are not judged.
    """

    def __init__(self, now: float) -> None:
        self.pace: float | None = None
        self.closed_until = self.asked_until = self.since = now
        self._latency_s = 0.0
        self._next_at = self._changed_at = self._grow_at = self._grown_at = now
        self._ride_s = _RIDE_S
        self._recent: deque[Ticket] = deque()
        self._endings: Counter[Ending] = Counter()
        self._last: deque[Ending] = deque(maxlen=_LAST)
        self._limited_in_a_row = 0
        self._flood: _Flood | None = None
        self._cuts: list[float] = []
        self._tolerated = 0.0

    @property
    def flooded(self) -> bool:
        """Whether calls are held back until it is clear what the provider takes."""
        return self._flood is not None

    def ready_at(self, now: float) -> float:
        """When the next call may leave; infinity while a probe is out."""
        if self._flood is not None:
            return inf if self._flood.probe else self.closed_until
        return max(self.closed_until, self._next_at if self.pace else now)

    def leave(self, ticket: Ticket, latency_s: float) -> None:
        """Take note that a call leaves; `latency_s` is what calls take."""
        now, self._latency_s = ticket.left_at, latency_s
        self._recent.append(ticket)
        while self._recent[0].left_at < now - _PERIOD_S - 2 * latency_s:
            self._recent.popleft()
        if self._flood:
            self._flood.probe = ticket
        if self.pace:
            self._next_at = max(self._next_at, now - _CATCH_UP_S) + 1 / self.pace

    def end(self, ticket: Ticket, now: float, *, rising: bool) -> str | None:
        """Take note that a call came back; returns what was concluded, if anything was.

        Args:
            ticket: The call, with its ending.
            now: The present instant.
            rising: Calls at once are still being raised, so that shares of a few calls say little.
        """
        limited = ticket.ending == "limited"
        self._limited_in_a_row = self._limited_in_a_row + 1 if limited else 0
        if self._flood is not None:
            return self._after_flood(self._flood, ticket, now)
        if ticket.ending is None:
            return None
        if ticket.left_at >= self.since:
            self._endings[ticket.ending] += 1
            self._last.append(ticket.ending)
        in_a_row = _FLOOD_WHILE_RISING if rising and not self.pace else _FLOOD_IN_A_ROW
        if limited and not self._tolerated:
            if self._limited_in_a_row >= in_a_row or self._last.count("limited") >= _FLOOD:
                self._start_flood(ticket, now)
            elif self._endings.total() >= _LAST and self._endings["limited"] >= self._endings.total() / 3:
                return self._judge(now, rising=False)
        if self._endings.total() >= _ROUND * (4 if self._tolerated else 1):
            return self._judge(now, rising=rising and not self.pace)
        return None

    def hold_off(self, until: float) -> None:
        """Let nothing leave before `until`, as the provider asks."""
        self.asked_until = self.closed_until = max(self.closed_until, until)

    def measured(self, rate: float, now: float) -> None:
        """Take a rate that was measured elsewhere."""
        self._flood = None
        self._set(_SURE * rate, now, _RIDE_S)

    def forget_flood(self) -> None:
        """Stop waiting for a flood to end: it is an outage."""
        self._flood = None

    # -- a flood of refusals ---------------------------------------------------------------------------------------

    def _start_flood(self, ticket: Ticket, now: float) -> None:
        calls = list(self._recent)
        refused = (n for n, call in enumerate(calls) if call.ending == "limited" and call.left_at >= self._changed_at)
        first = next(refused, len(calls) - 1)
        start = calls[first].left_at - _PERIOD_S
        before = [call.left_at for call in calls[:first] if call.left_at >= start and call.ending != "limited"]
        self._flood = _Flood(calls[first:], before)
        # After as long again as this refusal took, the refusals of all that has left are here.
        self.closed_until = max(self.closed_until, now + min(2.0, 1.25 * (now - ticket.left_at) + 0.01))

    def _after_flood(self, flood: _Flood, ticket: Ticket, now: float) -> str | None:
        """Whether the provider is open again: then its rate is known, else wait for a period to pass."""
        if ticket is not flood.probe:
            return None
        flood.probe = None
        if ticket.ending is None:
            return None
        if ticket.ending == "answered":
            self._flood = None
            return self._measure(flood, now)
        if flood.waited_a_period:
            return "closed"
        # So many a period, and it has had them: half of them are a period old when the middle one is.
        flood.waited_a_period = True
        middle = flood.before[len(flood.before) // 2] if flood.before else now
        self.closed_until = max(self.closed_until, middle + _PERIOD_S)
        return None

    def _measure(self, flood: _Flood, now: float) -> str | None:
        taken = sum(call.ending != "limited" for call in flood.calls)
        share, span_s = 1 - taken / len(flood.calls), flood.calls[-1].left_at - flood.calls[0].left_at
        if share < 1 / 3:  # a run of bad luck
            return None
        self._cuts.append(share)
        if self._is_stubborn():
            return self._tolerate(now)
        asked_to_wait = self.asked_until >= self.closed_until
        if flood.waited_a_period or asked_to_wait:
            # Where each refusal costs a pause of everybody, more is tried rarely.
            ride_s = 3 * _RIDE_S if asked_to_wait else _RIDE_S
            return self._set(_SURE * max(1, len(flood.before)) / _PERIOD_S, now, ride_s)
        if taken > len(flood.calls) / 5 and span_s > 0:
            return self._set(_SURE * taken / span_s, now, _RIDE_S)
        # It is open again at once: what it took last was slightly too much. That is a guess, to be tested soon.
        trip_s = max(self._latency_s, _CATCH_UP_S)
        last = sum(at >= flood.calls[0].left_at - trip_s for at in flood.before)
        return self._set(min(max(1, last) / trip_s, 0.9 * (self.pace or inf)), now, _GUESSED_RIDE_S)

    # -- the share of refusals -------------------------------------------------------------------------------------

    def _judge(self, now: float, *, rising: bool) -> str | None:
        share = self._endings["limited"] / self._endings.total()
        usual = 1.5 * self._tolerated + 0.05 if self._tolerated else 0.25 if rising else _CHANCE
        self.new_round(now)
        if share <= usual:
            self._cuts.clear()
            if share < self._tolerated / 4:
                self._tolerated = 0.0
            return self._grow(now)
        self._tolerated = 0.0
        self._cuts.append(share)
        if self._is_stubborn():
            return self._tolerate(now)
        ride_s = min(_LONGEST_RIDE_S, self._ride_s * 2) if self.pace else _RIDE_S
        return self._set((self.pace or self._rate(now)) * (1 - share) * 0.99, now, ride_s)

    def _is_stubborn(self) -> bool:
        first, *others = self._cuts[-_STUBBORN:]
        return len(others) == _STUBBORN - 1 and sum(others) / len(others) > first / 2 and max(first, *others) < 0.6  # noqa: PLR2004

    def _tolerate(self, now: float) -> str:
        self._tolerated, self.pace = max(self._cuts[-_STUBBORN:]), None
        self._cuts.clear()
        self.new_round(now)
        return "refused whatever the rate"

    def _grow(self, now: float) -> str | None:
        """After a while try more: a hundredth a second first, then ever faster."""
        if self.pace is None or now < self._grow_at:
            self._grown_at = now
            return None
        if self.closed_until < now - 2 * _PERIOD_S and self._rate(now) < 0.7 * self.pace:
            self.pace = None
            return "something else is slower than the rate"
        step = min(0.3, 0.01 * 2 ** ((now - self._grow_at) / 3))
        self.pace *= 1 + step * min(1.0, now - self._grown_at)
        self._grown_at = now
        return None

    def _rate(self, now: float) -> float:
        span_s = now - self._recent[0].left_at if self._recent else 0.0
        return len(self._recent) / span_s if span_s > 0 else 0.0

    def _set(self, pace: float, now: float, ride_s: float) -> str:
        self.pace, self._next_at, self._ride_s = max(pace, 0.1), max(self._next_at, now), ride_s
        self._changed_at, self._grow_at, self._grown_at = now, now + ride_s, now + ride_s
        self.new_round(now)
        return "limited"

    def new_round(self, now: float) -> None:
        """Judge only calls that leave from now on."""
        self.since = now
        self._endings.clear()
        self._last.clear()
