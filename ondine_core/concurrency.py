"""How many calls a provider takes at once, found out by asking it: more while it answers, fewer when it is overloaded.

Additive increase, multiplicative decrease (D. Chiu and R. Jain, 1989): calls in flight grow by a quarter a round trip
until the provider is overloaded for the first time, and by one a round trip from then on; they are cut by the share
that was turned away, at most in half. A rate limit is `pacing`'s. A provider that answers nothing at all is probed by
one call at a time, and its outage is nobody's failed attempt.

`Throttle` decides and is told the time; `Gate` waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf

from ondine_core.pacing import Ending, Pacer, Ticket

__all__ = ["Gate", "Setting", "Throttle"]

_START = 8
_GROWTH = 0.25
_OVERLOADED = 1 / 3
"""Share of overloaded calls that is no accident."""
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

    Attributes:
        in_flight: Calls that have left and are not back.
        outage_since: Since when nothing was answered; `None` if that is not so.
        history: What was allowed when, oldest first; thinned out when it grows long.
    """

    def __init__(self, most: int, now: float) -> None:
        self._most, self._started = most, now
        self._limit, self._overloaded_before = float(min(most, _START)), False
        self._pacer = Pacer(now)
        self.in_flight = 0
        self._latency_s = 0.0
        self._ended = self._overloaded = self._failed_in_a_row = 0
        self.outage_since: float | None = None
        self._probe: Ticket | None = None
        self._probe_at = self._probe_s = 0.0
        self._cycle_start, self._answers_in_cycle, self._only_limited = now, 0, True
        self.history: list[Setting] = []
        self._note(now, "start")

    def ready_at(self, now: float) -> float:
        """When the next call may leave; infinity while that depends on another coming back."""
        if self.outage_since is not None:
            return inf if self._probe else max(self._pacer.closed_until, self._probe_at)
        if self.in_flight >= int(self._limit):
            return inf
        return self._pacer.ready_at(now)

    def leave(self, now: float) -> Ticket:
        """Take note that a call leaves; its ticket is handed in when it is back."""
        ticket = Ticket(now)
        self.in_flight += 1
        self._pacer.leave(ticket, self._latency_s)
        if self.outage_since is not None:
            self._probe = ticket
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
            self._failed_in_a_row += 1
            self._only_limited = self._only_limited and ending == "limited"
        if self.outage_since is not None:
            self._go_on_probing(ticket, now)
            return
        rising = not self._overloaded_before and self._limit < self._most
        found = self._pacer.end(ticket, now, rising=rising)
        if found == "closed" or (self._failed_in_a_row >= 5 + self._limit / 4 and not self._pacer.flooded):
            self._start_outage(now)
        elif found:
            self._note(now, found)
        elif ending is not None and ticket.left_at >= self._pacer.since:
            self._judge_load(now, ending)

    def _answered(self, ticket: Ticket, now: float) -> None:
        self._failed_in_a_row = 0
        self._answers_in_cycle += 1
        self._latency_s += (now - ticket.left_at - self._latency_s) * (0.1 if self._latency_s else 1.0)
        if self.outage_since is not None:
            self._recover(now)
        elif self._limit < self._most and self.in_flight + 1 >= self._limit / 2:
            before = self._limit
            self._limit = min(self._most, before + (1 / before if self._overloaded_before else _GROWTH))
            if self._limit == self._most or int(self._limit).bit_length() > int(before).bit_length():
                self._note(now, "answered")

    def _judge_load(self, now: float, ending: Ending) -> None:
        self._ended += 1
        self._overloaded += ending == "overloaded"
        if self._ended < max(20, self._limit):
            return
        share = self._overloaded / self._ended
        self._ended = self._overloaded = 0
        if share >= _OVERLOADED:
            self._limit, self._overloaded_before = max(1.0, self._limit * max(0.5, 1 - share)), True
            self._pacer.new_round(now)
            self._note(now, "overloaded")

    # -- outage ----------------------------------------------------------------------------------------------------

    def _start_outage(self, now: float) -> None:
        self._pacer.forget_flood()
        self.outage_since, self._probe, self._probe_s = now, None, _PROBE_S
        self._probe_at = now + _PROBE_S
        self._note(now, "outage")

    def _go_on_probing(self, ticket: Ticket, now: float) -> None:
        if ticket is not self._probe:
            return
        self._probe = None
        if ticket.ending is not None:
            # A limit that counts over minutes is found by few probes, each after a fifth of the time that has passed.
            longest_s = (now - self._cycle_start) / 5 if self._only_limited else _LONGEST_PROBE_S
            self._probe_s = max(_PROBE_S, min(longest_s, self._probe_s * 2))
            self._probe_at = now + self._probe_s

    def _recover(self, now: float) -> None:
        """Something was answered again. If all that failed was limited, the whole cycle shows the rate."""
        if self._only_limited and (cycle_s := now - self._cycle_start) > 1:
            self._pacer.measured(self._answers_in_cycle / cycle_s, now)
        self._cycle_start, self._answers_in_cycle, self._only_limited = now, 0, True
        self._limit, self._overloaded_before = max(min(_START, self._most), self._limit / 2), False
        self.outage_since = self._probe = None
        self._ended = self._overloaded = 0
        self._pacer.new_round(now)
        self._note(now, "answered again")

    def _note(self, now: float, why: str) -> None:
        if len(self.history) >= _HISTORY:
            del self.history[1::2]
        pace = None if self._pacer.pace is None else round(self._pacer.pace, 3)
        allowed = 0 if self.outage_since is not None else int(self._limit)
        self.history.append(Setting(round(now - self._started, 3), allowed, pace, why))


class Gate:
    """Lets calls leave one after the other, in the order they came, when the throttle allows.

    Args:
        throttle: Decides.
        now: Tells the time.
        sleep: Waits for seconds.
    """

    def __init__(self, throttle: Throttle, now: Callable[[], float], sleep: Callable[[float], Awaitable[None]]) -> None:
        self.throttle, self._now, self._sleep = throttle, now, sleep
        self._turn, self._changed = asyncio.Lock(), asyncio.Event()

    async def enter(self) -> Ticket:
        """Return when a call may leave; whoever enters leaves again with `leave`."""
        async with self._turn:
            while (ready_at := self.throttle.ready_at(self._now())) > (now := self._now()):
                self._changed.clear()
                await self._until_changed(None if ready_at == inf else ready_at - now)
            return self.throttle.leave(self._now())

    def leave(self, ticket: Ticket, ending: Ending | None) -> None:
        """Hand the ticket back."""
        self.throttle.end(ticket, self._now(), ending)
        self._changed.set()

    def hold_off(self, seconds: float) -> None:
        """Let nobody leave who has not entered, for so long."""
        self.throttle.hold_off(self._now() + seconds)
        self._changed.set()

    async def _until_changed(self, longest_s: float | None) -> None:
        changed = asyncio.ensure_future(self._changed.wait())
        slept = None if longest_s is None else asyncio.ensure_future(self._sleep(longest_s))
        waiting = {changed} if slept is None else {changed, slept}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waited in waiting:
                waited.cancel()
