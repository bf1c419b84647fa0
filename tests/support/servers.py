"""Simulate adaptive concurrency against servers that are functions, event by event: a minute takes milliseconds.

A server decides how a call ends from its time of arrival and the calls in flight. Servers compose: `chain` asks one
after the other, and `switching` replaces one by another at some time.
"""

from __future__ import annotations

import heapq
import itertools
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from ondine_core.limits import AdaptiveConcurrency, CallOutcome, InFlightCall, Setting

Server = Callable[[float, float], CallOutcome]
"""Returns how a call ends, from its time of arrival and the time that an answer would take."""

Seconds = Callable[[float], float]
"""Returns the duration of a call, from its time of arrival."""

# -- servers -------------------------------------------------------------------------------------------------------


def healthy(_now: float, _takes_s: float) -> CallOutcome:
    """Answer every call."""
    return "answered"


def sliding_window(calls: int, seconds: float = 1.0) -> Server:
    """Let at most `calls` calls through in any window of `seconds`."""
    through = deque[float]()

    def server(now: float, _: float) -> CallOutcome:
        while through and through[0] <= now - seconds:
            through.popleft()
        if len(through) >= calls:
            return "limited"
        through.append(now)
        return "answered"

    return server


def fixed_window(calls: int, seconds: float = 1.0, since_s: float = 0.0) -> Server:
    """Let `calls` calls through in each of consecutive windows, of which the first began `since_s` ago."""
    number, through = -1, 0

    def server(now: float, _: float) -> CallOutcome:
        nonlocal number, through
        current = int((now + since_s) // seconds)
        if current != number:
            number, through = current, 0
        through += 1
        return "answered" if through <= calls else "limited"

    return server


def nth(*numbers: int) -> Server:
    """Refuse the calls of these numbers, counted from 1."""
    arrivals = itertools.count(1)
    return lambda _now, _takes_s: "limited" if next(arrivals) in numbers else "answered"


def token_bucket(per_s: float, burst: float) -> Server:
    """Let calls through while there are tokens, of which at most `burst` are kept and `per_s` return a second."""
    level, at = burst, 0.0

    def server(now: float, _: float) -> CallOutcome:
        nonlocal level, at
        level, at = min(burst, level + (now - at) * per_s), now
        if level < 1:
            return "limited"
        level -= 1
        return "answered"

    return server


def parallel_limit(count: int, ending: CallOutcome = "overloaded") -> Server:
    """Answer at most `count` calls concurrently and refuse all others."""
    busy_until = list[float]()

    def server(now: float, takes_s: float) -> CallOutcome:
        while busy_until and busy_until[0] <= now:
            heapq.heappop(busy_until)
        if len(busy_until) >= count:
            return ending
        heapq.heappush(busy_until, now + takes_s)
        return "answered"

    return server


def at_random(share: float, ending: CallOutcome, seed: int = 0) -> Server:
    """Let this share of the calls, chosen at random, end with this outcome."""
    rng = random.Random(f"{ending} {seed}")
    return lambda _now, _takes_s: ending if rng.random() < share else "answered"


def outage(start_s: float, end_s: float, ending: CallOutcome) -> Server:
    """Answer no call between two instants."""
    return lambda now, _: ending if start_s <= now < end_s else "answered"


def switching(at_s: float, before: Server, after: Server) -> Server:
    """One server until some time, another from then on."""
    return lambda now, takes_s: (before if now < at_s else after)(now, takes_s)


def chain(*servers: Server) -> Server:
    """Answer what every server answers; the first that does not answer decides."""

    def server(now: float, takes_s: float) -> CallOutcome:
        return next((ending for one in servers if (ending := one(now, takes_s)) != "answered"), "answered")

    return server


# -- durations ----------------------------------------------------------------------------------------------------


def always(seconds: float) -> Seconds:
    """Every call takes equally long."""
    return lambda _: seconds


def lognormal(median_s: float, sigma: float = 0.6, seed: int = 0) -> Seconds:
    """Most calls take about the median, a few several times that, as with language models."""
    rng = random.Random(f"lognormal {seed}")
    return lambda _: median_s * rng.lognormvariate(0, sigma)


def jitter(least_s: float, most_s: float, seed: int = 0) -> Seconds:
    """Durations distributed uniformly between two bounds."""
    rng = random.Random(f"jitter {seed}")
    return lambda _: rng.uniform(least_s, most_s)


AT_ONCE, QUICK = always(0.0), always(0.05)

# -- simulation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    """The trace of a simulated run.

    Args:
        left: The times at which calls left.
        back: The times at which calls ended, with their outcomes.
        history: The settings that the limits recorded.
    """

    left: tuple[float, ...]
    back: tuple[tuple[float, CallOutcome], ...]
    history: tuple[Setting, ...]

    def count(self, ending: CallOutcome, start_s: float = 0.0, end_s: float = inf) -> int:
        """The number of calls that ended with this outcome between two instants."""
        return sum(found == ending for at, found in self.back if start_s <= at < end_s)

    def per_s(self, start_s: float, end_s: float) -> float:
        """Answers a second between two instants."""
        return self.count("answered", start_s, end_s) / (end_s - start_s)

    def share(self, ending: CallOutcome, start_s: float = 0.0, end_s: float = inf) -> float:
        """The share of calls with this outcome, of all that ended between two instants."""
        return self.count(ending, start_s, end_s) / sum(start_s <= at < end_s for at, _ in self.back)

    def in_flight(self, start_s: float, end_s: float) -> float:
        """The mean number of calls in flight between two instants."""
        calls = [(at, 1) for at in self.left] + [(at, -1) for at, _ in self.back]
        return sum(step * (end_s - max(at, start_s)) for at, step in calls if at < end_s) / (end_s - start_s)

    def max_departures_in(self, window_s: float, start_s: float = 0.0, end_s: float = inf) -> int:
        """The maximum number of calls that left in any window that begins between two instants."""
        starts = (number for number, at in enumerate(self.left) if start_s <= at < end_s)
        return max(bisect_left(self.left, self.left[n] + window_s) - n for n in starts)


def simulate(  # noqa: PLR0913  (each test sets a few of them)
    server: Server,
    seconds: float = inf,
    *,
    rows: float = inf,
    takes: Seconds = QUICK,
    fails: Seconds | None = None,
    max_calls: int = 50,
    arrives: Seconds = AT_ONCE,
    retry_after_s: float | None = None,
    demand_per_s: float = inf,
) -> Trace:
    """Simulate calls that leave whenever the limits allow, for some time or until all rows are answered.

    Args:
        server: The server called.
        seconds: The maximum duration.
        rows: Number of calls to answer; each is retried until it is answered.
        takes: Seconds from a call's arrival to its end.
        fails: Maximum seconds from a call's arrival to its end if it is not answered; `None` means as `takes`.
        max_calls: Maximum number of calls in flight.
        arrives: Seconds from a call's departure to its arrival: the time for its ledger entry and for the network.
        retry_after_s: The `Retry-After` of a refusal; its row waits that long, and occupies a worker.
        demand_per_s: Calls a second that the run needs.
    """
    limits, numbers = AdaptiveConcurrency(max_calls, 0.0), itertools.count()
    events: list[tuple[float, int, InFlightCall, CallOutcome | None]] = []
    left, back, waiting = list[float](), list[tuple[float, CallOutcome]](), list[float]()
    now, fresh, again, answered = 0.0, rows, 0, 0
    allowed_at = 0.0  # it changes only when a call leaves or ends
    while now < seconds and answered < rows:
        while waiting and waiting[0] <= now:
            heapq.heappop(waiting)
            again += 1
        ready_at = max(now, allowed_at, len(left) / demand_per_s)
        if not again and (not fresh or len(waiting) + len(events) >= 4 * max_calls):
            ready_at = inf
        next_at = min(events[0][0] if events else inf, waiting[0] if waiting else inf)
        if ready_at <= now:
            again, fresh = (again - 1, fresh) if again else (0, fresh - 1)
            left.append(now)
            heapq.heappush(events, (now + arrives(now), next(numbers), limits.start(now), None))
            allowed_at = limits.ready_at(now)
        elif ready_at < next_at:
            now = ready_at
        elif not events or events[0][0] > next_at:
            assert next_at < inf, "Nothing is in flight and nothing may leave."
            now = next_at
        else:
            now, _, call, outcome = heapq.heappop(events)
            if outcome is None:
                takes_s = takes(now)
                outcome = server(now, takes_s)
                if fails and outcome != "answered":
                    takes_s = min(takes_s, fails(now))
                heapq.heappush(events, (now + takes_s, next(numbers), call, outcome))
            else:
                back.append((now, outcome))
                answered += outcome == "answered"
                asked_s = retry_after_s if outcome == "limited" and retry_after_s else 0.0
                if outcome != "answered":
                    heapq.heappush(waiting, now + asked_s)
                limits.finish(call, now, outcome, asked_s)
                allowed_at = limits.ready_at(now)
    return Trace(tuple(left), tuple(back), tuple(limits.history))
