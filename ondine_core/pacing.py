"""What rate a provider allows that has named none: found from the calls it turns away, and kept to.

Fewer calls at once would also end refusals, but a bound on calls in flight is a bound on the rate only while every call
takes equally long. So calls are spaced in time. When all are refused, a limit has been reached that counts calls over a
period: nothing leaves until it takes calls again, and what it took before is its rate. When some are refused, the rate
is somewhat too high, or it is not to blame. A rate that was found is kept for a while; then ever more is tried.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import takewhile
from math import ceil, inf, log

from ondine_core.blame import Ending, Finding, Suspect, Ticket

__all__ = ["Ending", "Pacer", "Ticket"]

_SURE, _AGAIN, _LEAST = 0.985, 0.95, 0.05
"""Share of a measured rate that is used, share of one that was refused before it was raised, and the lowest rate."""
_RUN, _UNLIKELY = 5, 1e-6
"""So many refused one after the other, or as many as would be unlikely by chance, are a limit that has been reached."""
_PERIOD_S, _LONGEST_PERIOD_S, _ROUND_S = 1.0, 60.0, 0.5
"""The period over which a limit is taken to count calls, until it turns out to be longer; and a round."""
_FIRST_RIDE_S, _SURE_RIDE_S, _LONGEST_RIDE_S = 2.0, 20.0, 40.0
"""Seconds for which a rate is kept before more is tried; twice as long whenever more was refused."""
_PAUSES, _FEEDBACKS, _LONGEST_FEEDBACK_S = 20, 4, 30.0
"""A rate is kept for so many of the pauses that a refusal costs, and of the times it takes to see that it is wrong."""
_SLOWLY, _FAST = 0.01, 0.3
"""Growth of the rate a second, when it begins to grow and at most."""
_CATCH_UP_S, _RECENT = 0.02, 20
"""A sleep ends late by milliseconds; what it held back may leave at once. So many calls are remembered at least."""


@dataclass(slots=True)
class _Flood:
    """Refusals of everything.

    Nothing leaves until all of them are here, and then one call alone to see whether the provider takes calls again.

    Args:
        since: When the first of the refused calls left.
        before: Calls that had left before.
        share: Calls refused among all since the rate was last changed.
        probe: The call that is out alone.
        refused: Probes that were refused.
        refused_at: When the last of them, or of the calls before, left.
    """

    since: float
    before: list[Ticket]
    share: float
    probe: Ticket | None
    refused: int
    refused_at: float

    def taken(self, since: float) -> int:
        """How many of the calls before it, from some instant on, were let through; at least one."""
        return max(1, sum(call.left_at >= since and call.ending != "limited" for call in self.before))


class Pacer:
    """Decides how far apart calls leave.

    Args:
        now: Seconds on any clock; all other times are on the same one.

    Attributes:
        pace: Calls a second; `None` while no limit has shown.
        closed_until: Nothing leaves before this instant.
        closed_since: Since when everything is refused, once that has gone on for longer than a period.
    """

    def __init__(self, now: float) -> None:
        self.pace: float | None = None
        self.closed_until = self._asked_until = now
        self.closed_since: float | None = None
        self._suspect = Suspect("limited", now, _ROUND_S)
        self._recent: deque[Ticket] = deque()
        self._flood: _Flood | None = None
        self._next_at = self._left_at = self._opened_at = now
        self._ride_s, self._used_s, self._period_s, self._answered = _FIRST_RIDE_S, 0.0, _PERIOD_S, 0

    @property
    def tolerant(self) -> bool:
        """Whether refusals are known not to depend on the rate."""
        return self._suspect.tolerated > 0

    def ready_at(self, now: float) -> float:
        """When the next call may leave."""
        if self._flood is None:
            return max(self.closed_until, self._next_at if self.pace else now)
        if self._flood.probe is None:
            return self.closed_until
        # A refusal would be back by then.
        return max(self.closed_until, self._flood.probe.left_at + 3 * self._suspect.took_s + 0.05)

    def leave(self, ticket: Ticket, latency_s: float) -> str | None:
        """Take note that a call leaves; `latency_s` is what calls take. Returns what was concluded, if anything was."""
        now, found = ticket.left_at, None
        if self._flood and self._flood.probe:
            found = self._reopen(self._flood, now)
        if self._flood:
            self._flood.probe = ticket
        elif self.pace:
            self._keep_pace(self.pace, now)
        self._recent.append(ticket)
        self._suspect.leave(ticket)
        old = now - _PERIOD_S - 2 * max(latency_s, self._suspect.took_s)
        while len(self._recent) > _RECENT and self._recent[0].left_at < old:
            self._recent.popleft()
        self._left_at = now
        return found

    def end(self, ticket: Ticket, now: float, *, rising: bool) -> str | None:
        """Take note that a call came back; returns what was concluded, if anything was.

        Args:
            ticket: The call, with its ending.
            now: The present instant.
            rising: Calls at once are still being raised.
        """
        self._answered += ticket.ending == "answered"
        since = self._suspect.since
        finding = self._suspect.end(ticket, now, rising=rising and self.pace is None)
        if self._flood is not None:
            return self._go_on(self._flood, ticket, now)
        if finding:
            return self._conclude(finding, now, _FIRST_RIDE_S)
        if ticket.ending == "limited" and ticket.number >= since:
            run = self._find_run(now)
            if not run and self._asked_until > now and not self.tolerant:
                run = [ticket]  # nobody leaves in any case
            if run:
                self._start_flood(run[0], now)
        return None

    def hold_off(self, until: float) -> None:
        """Let nothing leave before `until`, as the provider asks."""
        self._asked_until = self.closed_until = max(self.closed_until, until)

    def restart(self, now: float) -> None:
        """Judge only calls that leave from now on, and wait for no flood to end: there is an outage, or was one."""
        self._flood = self.closed_since = None
        self._suspect.start(now)
        self._open(now)

    def _open(self, now: float) -> None:
        self._opened_at, self._answered = now, 0

    # -- all are refused -------------------------------------------------------------------------------------------

    def _find_run(self, now: float) -> list[Ticket]:
        """The last calls, if they were all refused and are so many that it is no chance."""
        chance = self._suspect.tolerated
        length = max(_RUN, ceil(log(_UNLIKELY) / log(chance))) if chance else _RUN
        run, told_until = list[Ticket](), now - 0.99 * self._suspect.took_s
        for call in reversed(self._recent):
            if call.left_at > told_until:  # refusals are often quicker than answers
                continue
            if call.ending != "limited" or call.number < self._suspect.since:
                break
            run.append(call)
        return run[::-1] if len(run) >= length else []

    def _start_flood(self, first: Ticket, now: float) -> None:
        before = list(takewhile(lambda call: call is not first, self._recent))
        self._flood = _Flood(first.left_at, before, self._suspect.share, None, 0, first.left_at)
        self._suspect.start(now)
        # After as long again as a refusal takes, the refusals of all that has left are here.
        self.closed_until = max(self.closed_until, now + min(2.0, 1.25 * self._suspect.took_s + 0.01))

    def _go_on(self, flood: _Flood, ticket: Ticket, now: float) -> str | None:
        if ticket is not flood.probe:
            return None
        flood.probe = None
        if ticket.ending == "answered":
            return self._reopen(flood, now)
        if ticket.ending != "limited":
            return None
        flood.refused, flood.refused_at = flood.refused + 1, ticket.left_at
        if flood.refused == 1:
            # So many a period, and it has had them: half of them are a period old when the middle one is.
            before = [call.left_at for call in flood.before if call.left_at >= flood.since - _PERIOD_S]
            self.closed_until = max(self.closed_until, _PERIOD_S + (before[len(before) // 2] if before else now))
            return None
        # A limit that counts over minutes is found by few probes, each after a fifth of the time that it takes.
        self.closed_until = max(self.closed_until, now + max(0.25, min(_LONGEST_PERIOD_S, now - flood.since) / 5))
        if self.closed_since is not None or flood.refused <= _RUN:
            return None
        self.closed_since = now
        return "closed"

    def _reopen(self, flood: _Flood, now: float) -> str | None:
        """The provider takes calls again, so its rate is known."""
        was_closed, self._flood, self.closed_since = self.closed_since is not None, None, None
        asked_s = max(0.0, self._asked_until - flood.since)
        if was_closed or asked_s > 2 * _PERIOD_S:
            cycle_s = (flood.refused_at + now) / 2 - self._opened_at
            rate, self._period_s = self._answered / cycle_s, min(cycle_s, _LONGEST_PERIOD_S)
        elif flood.refused or now - flood.since > _PERIOD_S:
            rate = flood.taken(flood.since - _PERIOD_S) / _PERIOD_S
            if self.pace and self._opened_at > flood.since - _PERIOD_S and not flood.refused:
                # What a limit allows for a period may have been used up in less; or it allows for less.
                rate = max(rate, 0.8 * self.pace)
        else:  # it was not closed for long, so what it took says little
            start = max(self._opened_at, flood.before[0].left_at if flood.before else flood.since)
            rate = flood.taken(start) / max(flood.since - start, self._suspect.took_s, _CATCH_UP_S)
            rate = max(rate, self.pace / 2 if self.pace else 0.0)
            return self._conclude(Finding(True, flood.share, rate), now, _FIRST_RIDE_S)
        self._open(now)
        of_chance = self._suspect.blame(flood.share, rate, _RUN) if asked_s else None
        found = of_chance or Finding(True, flood.share, rate)
        return self._conclude(found, now, max(_SURE_RIDE_S, _PAUSES * asked_s))

    # -- the rate --------------------------------------------------------------------------------------------------

    def _conclude(self, finding: Finding, now: float, ride_s: float) -> str:
        """Go as fast as calls passed, and keep to that for a while; or at any rate, if it is not to blame."""
        if not finding.to_blame:
            self.pace = None
            return "refused whatever the rate"
        pace = _SURE * min(finding.per_s, self.pace or inf)
        if self.pace and self._used_s > self._ride_s:  # more was tried
            ride_s = max(ride_s, min(_LONGEST_RIDE_S, 2 * self._ride_s))
        elif self.pace:
            pace, ride_s = min(pace, _AGAIN * self.pace), max(ride_s, self._ride_s)
        self.pace, self._used_s = max(pace, _LEAST), 0.0
        self._ride_s = max(ride_s, _FEEDBACKS * min(_LONGEST_FEEDBACK_S, self._feedback_s(self.pace)))
        self._next_at = max(now, self._left_at + 1 / self.pace)
        self._suspect.start(now)
        return "limited"

    def _feedback_s(self, pace: float) -> float:
        """How long it takes to see that a rate is too high."""
        return max(self._period_s, self._suspect.took_s + _RECENT / pace)

    def _keep_pace(self, pace: float, now: float) -> None:
        """Space calls, and after the ride try more: a hundredth a second first, then ever faster."""
        if now - self._next_at < max(_CATCH_UP_S, 1 / pace):  # there were calls to make
            since_s, feedback_s = now - self._left_at, self._feedback_s(pace)
            self._used_s += min(since_s, 2 / pace)
            if (beyond_s := self._used_s - self._ride_s) > 0:
                self._suspect.acquit()
                doubles_s = max(feedback_s, min(3.0, self._ride_s / 4))
                step = min(_FAST / max(1.0, feedback_s), _SLOWLY * 2.0 ** min(beyond_s / doubles_s, 20.0))
                pace *= 1 + step * min(since_s, 1.0)
        self.pace = pace
        self._next_at = min(max(self._next_at, now - _CATCH_UP_S), now + 1 / pace) + 1 / pace
