"""Servers as functions, and a throttle driven against them event by event: a minute of calls takes milliseconds.

A server says how a call ends from when it arrives and how many calls are there. Servers compose: `together` asks one
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

from ondine_core.blame import Ending, Ticket
from ondine_core.concurrency import Setting, Throttle

Server = Callable[[float, float], Ending]
"""From when a call arrives, and how long answering it would take, to how it ends."""

Seconds = Callable[[float], float]
"""From when a call arrives to how long it takes."""

# -- servers -------------------------------------------------------------------------------------------------------


def healthy(_now: float, _takes_s: float) -> Ending:
    """Answer every call."""
    return "answered"


def sliding_window(calls: int, seconds: float = 1.0) -> Server:
    """Let at most so many calls through in any window of so many seconds."""
    through = deque[float]()

    def server(now: float, _: float) -> Ending:
        while through and through[0] <= now - seconds:
            through.popleft()
        if len(through) >= calls:
            return "limited"
        through.append(now)
        return "answered"

    return server


def token_bucket(per_s: float, burst: float) -> Server:
    """Let calls through while there are tokens, of which `burst` fit and so many come back a second."""
    level, at = burst, 0.0

    def server(now: float, _: float) -> Ending:
        nonlocal level, at
        level, at = min(burst, level + (now - at) * per_s), now
        if level < 1:
            return "limited"
        level -= 1
        return "answered"

    return server


def lanes(count: int, ending: Ending = "overloaded") -> Server:
    """Work on so many calls at once and turn away all others."""
    busy_until = list[float]()

    def server(now: float, takes_s: float) -> Ending:
        while busy_until and busy_until[0] <= now:
            heapq.heappop(busy_until)
        if len(busy_until) >= count:
            return ending
        heapq.heappush(busy_until, now + takes_s)
        return "answered"

    return server


def at_random(share: float, ending: Ending, seed: int = 0) -> Server:
    """Let this share of the calls end like this, by chance."""
    rng = random.Random(f"{ending} {seed}")
    return lambda _now, _takes_s: ending if rng.random() < share else "answered"


def outage(start_s: float, end_s: float, ending: Ending) -> Server:
    """Answer nobody between two instants."""
    return lambda now, _: ending if start_s <= now < end_s else "answered"


def switching(at_s: float, before: Server, after: Server) -> Server:
    """One server until some time, another from then on."""
    return lambda now, takes_s: (before if now < at_s else after)(now, takes_s)


def together(*servers: Server) -> Server:
    """Answer what every one of the servers answers; the first that does not decides."""

    def server(now: float, takes_s: float) -> Ending:
        return next((ending for one in servers if (ending := one(now, takes_s)) != "answered"), "answered")

    return server


# -- how long it takes ---------------------------------------------------------------------------------------------


def always(seconds: float) -> Seconds:
    """Every call takes equally long."""
    return lambda _: seconds


def lognormal(median_s: float, sigma: float = 0.6, seed: int = 0) -> Seconds:
    """Most calls take about so long, a few several times that, as language models do."""
    rng = random.Random(f"lognormal {seed}")
    return lambda _: median_s * rng.lognormvariate(0, sigma)


def jitter(least_s: float, most_s: float, seed: int = 0) -> Seconds:
    """Anything between two durations."""
    rng = random.Random(f"jitter {seed}")
    return lambda _: rng.uniform(least_s, most_s)


AT_ONCE, QUICK = always(0.0), always(0.05)

# -- driving -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """What a throttle made of a server.

    Args:
        left: When calls left.
        back: When calls came back, and how.
        history: What the throttle has noted.
    """

    left: tuple[float, ...]
    back: tuple[tuple[float, Ending], ...]
    history: tuple[Setting, ...]

    def count(self, ending: Ending, start_s: float = 0.0, end_s: float = inf) -> int:
        """Calls that came back like this between two instants."""
        return sum(found == ending for at, found in self.back if start_s <= at < end_s)

    def per_s(self, start_s: float, end_s: float) -> float:
        """Answers a second between two instants."""
        return self.count("answered", start_s, end_s) / (end_s - start_s)

    def share(self, ending: Ending, start_s: float = 0.0, end_s: float = inf) -> float:
        """Of the calls that came back between two instants, how many did so like this."""
        return self.count(ending, start_s, end_s) / sum(start_s <= at < end_s for at, _ in self.back)

    def in_flight(self, start_s: float, end_s: float) -> float:
        """Calls in flight between two instants, on average."""
        calls = [(at, 1) for at in self.left] + [(at, -1) for at, _ in self.back]
        return sum(step * (end_s - max(at, start_s)) for at, step in calls if at < end_s) / (end_s - start_s)

    def most_left_in(self, window_s: float, start_s: float = 0.0, end_s: float = inf) -> int:
        """The most calls that left in any window that begins between two instants."""
        starts = (number for number, at in enumerate(self.left) if start_s <= at < end_s)
        return max(bisect_left(self.left, self.left[n] + window_s) - n for n in starts)


def drive(  # noqa: PLR0913  (the ways in which runs differ)
    server: Server,
    seconds: float,
    *,
    takes: Seconds = QUICK,
    fails: Seconds | None = None,
    most: int = 50,
    arrives: Seconds = AT_ONCE,
    retry_after_s: float | None = None,
    demand_per_s: float = inf,
) -> Course:
    """Let calls leave whenever a throttle allows, for so long.

    Args:
        server: Who is called.
        seconds: For how long.
        takes: Seconds from a call's arrival to its end.
        fails: The same for a call that is not answered, if that is less; `None` if it takes as long.
        most: Calls in flight that are allowed.
        arrives: Seconds from a call's departure to its arrival: it is noted in the books, and travels.
        retry_after_s: What a refusal asks to wait.
        demand_per_s: Calls there are to make.
    """
    throttle, numbers = Throttle(most, 0.0), itertools.count()
    events: list[tuple[float, int, Ticket, Ending | None]] = []
    left, back = list[float](), list[tuple[float, Ending]]()
    now = 0.0
    while now < seconds:
        ready_at = max(throttle.ready_at(now), len(left) / demand_per_s)
        if ready_at <= now:
            left.append(now)
            heapq.heappush(events, (now + arrives(now), next(numbers), throttle.leave(now), None))
        elif not events or ready_at < events[0][0]:
            assert ready_at < inf, "Nothing is in flight and nothing may leave."
            now = ready_at
        else:
            now, _, ticket, ending = heapq.heappop(events)
            if ending is None:
                takes_s = takes(now)
                ending = server(now, takes_s)
                if fails and ending != "answered":
                    takes_s = min(takes_s, fails(now))
                heapq.heappush(events, (now + takes_s, next(numbers), ticket, ending))
            else:
                back.append((now, ending))
                if ending == "limited" and retry_after_s:
                    throttle.hold_off(now + retry_after_s)
                throttle.end(ticket, now, ending)
    return Course(tuple(left), tuple(back), tuple(throttle.history))
