import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondine_core.errors import ConfigError
from ondine_core.rate_limiter import RateLimiter, Rates, book
from ondine_core.store import SqliteStore
from ondine_core.values import Numbers

START = 1_800_000_000.0
"""Wall clocks read large numbers; the arithmetic has to bear them."""
CLOSE = 1e-5
RATES = st.floats(0.01, 1000)
CALLS = st.lists(st.tuples(st.floats(0, 20), st.integers(0, 5000)), min_size=1, max_size=40)
"""Seconds since the call before, and tokens."""


def booked(calls: Sequence[tuple[float, int]], rates: tuple[float | None, float | None]) -> list[float]:
    """The departure of each call."""
    free_at: Numbers = (0.0, 0.0)
    departures = []
    for now, (_, tokens) in zip(accumulate((gap for gap, _ in calls), initial=START), calls, strict=False):
        at, free_at = book(free_at, now, (1.0, float(tokens)), rates)
        assert at >= now
        departures.append(at)
    return departures


def excess(departures: Sequence[float], amounts: Sequence[float], rate: float) -> float:
    """How far the worst window goes beyond its last call and `rate` times its length."""
    return max(
        sum(amounts[first:last]) - rate * (departures[last] - departures[first])
        for last in range(len(departures))
        for first in range(last + 1)
    )


@given(CALLS, RATES, RATES)
def test_no_window_admits_more_than_its_rate(calls: list[tuple[float, int]], requests: float, tokens: float) -> None:
    """Any window of w seconds admits at most one call and rate times w, of requests and of tokens alike."""
    departures = booked(calls, (requests, tokens))
    assert excess(departures, [1.0] * len(calls), requests) <= requests * CLOSE
    assert excess(departures, [float(amount) for _, amount in calls], tokens) <= tokens * CLOSE


@given(CALLS, RATES | st.none(), RATES | st.none())
def test_departures_are_in_order_of_arrival(calls: list[tuple[float, int]], requests: Any, tokens: Any) -> None:
    """Nobody overtakes, however small his call is."""
    if requests is None and tokens is None:
        return
    departures = booked(calls, (requests, tokens))
    assert departures == sorted(departures)


@given(CALLS, RATES, RATES)
def test_nobody_waits_without_need(calls: list[tuple[float, int]], requests: float, tokens: float) -> None:
    """A call that waits leaves at the very instant at which the slower of the two rates has recovered."""
    departures = booked(calls, (requests, tokens))
    free_requests = free_tokens = arrival = START
    for departure, (gap, amount) in zip(departures, calls, strict=True):
        assert departure == pytest.approx(max(arrival, free_requests, free_tokens), abs=CLOSE)
        free_requests, free_tokens = departure + 1 / requests, departure + amount / tokens
        arrival += gap


@pytest.mark.parametrize(
    ("rates", "departures"),
    [
        ((2.0, None), [0, 0.5, 1.0, 1.5]),
        ((None, 10.0), [0, 1, 3, 6]),
        ((2.0, 10.0), [0, 1, 3, 6]),
        ((1.0, 100.0), [0, 1, 2, 3]),
    ],
)
def test_calls_of_10_20_30_and_40_tokens(rates: tuple[float | None, float | None], departures: list[float]) -> None:
    """Where one rate is not limited the other alone decides; where both are, the slower one does."""
    found = booked([(0, 10), (0, 20), (0, 30), (0, 40)], rates)
    assert [at - START for at in found] == pytest.approx(departures, abs=CLOSE)


@pytest.mark.parametrize(
    ("rates", "limited"),
    [(Rates(), False), (Rates(requests_per_minute=1), True), (Rates(tokens_per_minute=1), True), (Rates(1, 1), True)],
)
def test_rates_say_whether_there_are_any(rates: Rates, limited: bool) -> None:
    """No rate is no limit; either rate is one."""
    assert bool(rates) is limited


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_that_lets_nobody_pass_is_refused(name: str, rate: float) -> None:
    """A rate is more than nothing; the message names it, its value, and how to have no limit."""
    with pytest.raises(ConfigError, match=f"{name}={rate!r} must be more than 0; None is no limit"):
        Rates(**{name: rate})


# -- through the store ---------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """A clock that stands still unless it is moved; whoever sleeps is noted and goes on."""

    time: float = START
    departures: list[float] = field(default_factory=list)

    def now(self) -> float:
        """The present instant."""
        return self.time

    async def sleep(self, seconds: float) -> None:
        """Note when the sleeper leaves."""
        assert seconds > 0
        self.departures.append(round(self.time + seconds - START, 4))


@asynccontextmanager
async def opened() -> AsyncIterator[SqliteStore]:
    store = SqliteStore(":memory:")
    try:
        yield store
    finally:
        store.close()


def limiter(store: SqliteStore, clock: Clock, rates: Rates, name: str = "m") -> RateLimiter:
    return RateLimiter(name, rates, store, now=clock.now, sleep=clock.sleep)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=10))
def test_callers_at_once_leave_in_turn(amounts: list[int]) -> None:
    """Callers that come together are each given an instant of their own, first come, first served."""

    async def main() -> list[float]:
        clock = Clock()
        async with opened() as store:
            shared = limiter(store, clock, Rates(requests_per_minute=60, tokens_per_minute=6000))
            await asyncio.gather(*(shared.admit(tokens) for tokens in amounts))
        return clock.departures

    expected = list(accumulate(max(1.0, tokens / 100) for tokens in amounts[:-1]))
    departures = asyncio.run(main())
    assert departures == pytest.approx(expected, abs=1e-3)
    assert all(later - earlier >= 0.999 for earlier, later in pairwise(departures))


def test_two_limiters_on_one_store_share_the_rate() -> None:
    """Whoever uses the same store and name draws on one rate; another name has its own."""

    async def main() -> list[list[float]]:
        one, other, stranger = Clock(), Clock(), Clock()
        rates = Rates(requests_per_minute=60)
        async with opened() as store:
            for _ in range(2):
                await limiter(store, one, rates).admit(0)
                await limiter(store, other, rates).admit(0)
            await limiter(store, stranger, rates, "other").admit(0)
        return [clock.departures for clock in (one, other, stranger)]

    assert asyncio.run(main()) == [[2.0], [1.0, 3.0], []]


def test_hold_off_holds_back_whoever_books_later() -> None:
    """A `Retry-After` moves nobody who has booked, and lets nobody else leave before it is over, at the usual pace."""

    async def main() -> list[float]:
        clock = Clock()
        async with opened() as store:
            mine, theirs = (limiter(store, clock, Rates(requests_per_minute=60)) for _ in "ab")
            await mine.admit(0)
            await mine.admit(0)
            await mine.hold_off(10)
            await theirs.admit(0)
            await mine.admit(0)
        return clock.departures

    assert asyncio.run(main()) == [1.0, 10.0, 11.0]


def test_hold_off_is_never_shortened() -> None:
    """Of several pauses the longest holds, and one that is shorter than the bookings changes nothing."""

    async def main() -> list[float]:
        clock = Clock()
        async with opened() as store:
            shared = limiter(store, clock, Rates(tokens_per_minute=60))
            await shared.hold_off(5)
            await shared.hold_off(2)
            await shared.admit(7)
            await shared.hold_off(1)
            await shared.admit(0)
        return clock.departures

    assert asyncio.run(main()) == [5.0, 12.0]


def test_idle_time_is_not_saved_up() -> None:
    """After a pause without calls there is no burst: the first leaves at once, the next at the rate."""

    async def main() -> list[float]:
        clock = Clock()
        async with opened() as store:
            shared = limiter(store, clock, Rates(requests_per_minute=60))
            await shared.admit(0)
            clock.time += 3600
            await shared.admit(0)
            await shared.admit(0)
        return clock.departures

    assert asyncio.run(main()) == [3601.0]
