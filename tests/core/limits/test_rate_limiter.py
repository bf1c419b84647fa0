import asyncio
import random
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondine_core.errors import ConfigError, TransientError
from ondine_core.limits.rate_limiter import MAX_HOLD_OFF_S, RateLimiter
from ondine_core.limits.rates import Rates
from ondine_core.types.clock import Clock
from ondine_core.types.protocols import Numbers
from tests.support.unreliable import MemoryStore
from tests.support.virtual_clock import run_virtually

START = 1_800_000_000.0
CLOSE = 1e-5


@dataclass
class Still:
    """A clock that stands still unless it is moved; sleeps are recorded and end at once."""

    time: float = START
    departures: list[float] = field(default_factory=list)

    def now(self) -> float:
        """The present instant."""
        return self.time

    async def sleep(self, seconds: float) -> None:
        """Record when the sleeper would continue."""
        assert seconds > 0
        self.departures.append(round(self.time + seconds - START, 4))


def limiter(store: MemoryStore, clock: Still | Clock, rates: Rates, name: str = "m") -> RateLimiter:
    return RateLimiter(name, rates, store, clock)


def departures_of(steps: Callable[[RateLimiter, Still], Awaitable[None]], rates: Rates) -> list[float]:
    """The departure times, in seconds, of the callers that had to wait."""
    clock = Still()

    async def main() -> None:
        await steps(limiter(MemoryStore(), clock, rates), clock)

    asyncio.run(main())
    return clock.departures


class SlowStore(MemoryStore):
    """Takes five milliseconds for each update, and makes the change half-way."""

    async def update(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
        await asyncio.sleep(0.0025)
        numbers = await super().update(name, step)
        await asyncio.sleep(0.0025)
        return numbers


# -- no window exceeds the rate ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Departure:
    """A call that left, and its position in the queue of its limiter."""

    at: float
    tokens: int
    limiter: int
    place: int


CALLS = st.lists(
    st.tuples(st.floats(0, 5), st.integers(0, 3), st.integers(0, 2000), st.none() | st.floats(0, 5)),
    min_size=1,
    max_size=40,
)
"""Seconds since the previous call, which of four limiters, tokens, and seconds until it is cancelled."""
RATES = st.builds(
    lambda requests, tokens, burst: Rates(requests, tokens, burst if requests else 1),
    st.none() | st.floats(6, 6000),
    st.none() | st.floats(600, 600_000),
    st.sampled_from([1, 1, 1.5, 4, 20]),
)


def play(calls: Sequence[tuple[float, int, int, float | None]], rates: Rates) -> list[Departure]:
    """Run the calls; every limiter stands for a process, and all share one store."""
    left: list[Departure] = []

    async def main(clock: Clock) -> None:
        store = MemoryStore()
        limiters = [limiter(store, clock, rates) for _ in range(4)]

        async def call(place: int, number: int, tokens: int, cancelled_s: float | None) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(cancelled_s):
                    await limiters[number].acquire(tokens)
                    left.append(Departure(clock.now(), tokens, number, place))

        async with asyncio.TaskGroup() as group:
            for place, (gap, number, tokens, cancelled_s) in enumerate(calls):
                await clock.sleep(gap)
                group.create_task(call(place, number, tokens, cancelled_s))

    run_virtually(main)
    return left


def excess(departures: Sequence[float], amounts: Sequence[float], rate: float, burst: float) -> float:
    """By how much the worst window exceeds `rate` times its length plus the burst or its largest call."""
    return max(
        sum(amounts[first : last + 1])
        - max(burst, *amounts[first : last + 1])
        - rate * (departures[last] - departures[first])
        for last in range(len(departures))
        for first in range(last + 1)
    )


@settings(deadline=None)
@given(CALLS, RATES)
def test_no_window_admits_more_than_its_rate(calls: list[tuple[float, int, int, float | None]], rates: Rates) -> None:
    """No window admits more than the rate and one burst or call, whichever processes call or cancel."""
    left = play(calls, rates)
    times, tokens = [one.at for one in left], [float(one.tokens) for one in left]
    for amounts, rate, burst in zip(([1.0] * len(left), tokens), rates.per_second, rates.bursts, strict=True):
        if rate is not None and left:
            assert excess(times, amounts, rate, burst) <= rate * CLOSE


@settings(deadline=None)
@given(CALLS, RATES)
def test_first_come_first_served(calls: list[tuple[float, int, int, float | None]], rates: Rates) -> None:
    """At one limiter calls leave in order of arrival, and all that are not cancelled leave."""
    left = play(calls, rates)
    for number in range(4):
        times = [one.at for one in sorted(left, key=lambda one: one.place) if one.limiter == number]
        assert all(later >= earlier - CLOSE for earlier, later in pairwise(times))
    assert {one.place for one in left} >= {place for place, call in enumerate(calls) if call[3] is None}


@pytest.mark.parametrize(
    ("rates", "processes", "tokens", "a_minute"),
    [
        (Rates(60_000), 1, 10, 60_000),
        (Rates(60_000), 4, 10, 60_000),
        (Rates(30), 3, 10, 30),
        (Rates(None, 6_000_000), 1, 100, 60_000),
        (Rates(600, 60_000), 2, 1000, 60),
        (Rates(600, 60_000), 2, 50, 600),
        (Rates(600, 600_000, burst=20), 2, 500, 600),
    ],
)
def test_at_least_98_percent_of_the_rate_is_used(rates: Rates, processes: int, tokens: int, a_minute: float) -> None:
    """While callers wait, at least 98 % of the rate leave, with a store that takes 5 ms an update."""
    times: list[float] = []

    async def main(clock: Clock) -> None:
        store = SlowStore()

        async def keep_calling(shared: RateLimiter) -> None:
            while len(times) < 2000:
                await shared.acquire(tokens)
                times.append(clock.now())

        limiters = [limiter(store, clock, rates) for _ in range(processes)]
        await asyncio.gather(*(keep_calling(shared) for shared in limiters for _ in range(100)))

    run_virtually(main)
    assert (len(times) - 1) / (times[-1] - times[0]) * 60 == pytest.approx(a_minute, rel=0.02)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=10))
def test_concurrent_callers_get_successive_departures(amounts: list[int]) -> None:
    """Callers that arrive together are each given a departure of their own, first come, first served."""

    async def steps(shared: RateLimiter, _: Still) -> None:
        await asyncio.gather(*(shared.acquire(tokens) for tokens in amounts))

    expected = list(accumulate(max(1.0, tokens / 100) for tokens in amounts[:-1]))
    departures = departures_of(steps, Rates(requests_per_minute=60, tokens_per_minute=6000))
    assert departures == pytest.approx(expected, abs=1e-3)
    assert all(later - earlier >= 0.999 for earlier, later in pairwise(departures))


def test_two_limiters_on_one_store_share_the_rate() -> None:
    """Limiters with the same store and name share one rate; another name has its own."""

    async def main() -> list[list[float]]:
        one, other, stranger = Still(), Still(), Still()
        rates, store = Rates(requests_per_minute=60), MemoryStore()
        for _ in range(2):
            await limiter(store, one, rates).acquire(0)
            await limiter(store, other, rates).acquire(0)
        await limiter(store, stranger, rates, "other").acquire(0)
        return [clock.departures for clock in (one, other, stranger)]

    assert asyncio.run(main()) == [[2.0], [1.0, 3.0], []]


def test_no_burst_after_idle_time_by_default() -> None:
    """After a pause without calls the first leaves at once and the next at the rate."""

    async def steps(shared: RateLimiter, clock: Still) -> None:
        await shared.acquire(0)
        clock.time += 3600
        await shared.acquire(0)
        await shared.acquire(0)

    assert departures_of(steps, Rates(requests_per_minute=60)) == [3601.0]


def test_idle_time_is_saved_up_to_the_burst() -> None:
    """After a pause as many calls leave at once as `burst` says, however long the pause was."""

    async def steps(shared: RateLimiter, clock: Still) -> None:
        for pause_s in (0, 3600):
            clock.time += pause_s
            for _ in range(5):
                await shared.acquire(0)

    assert departures_of(steps, Rates(requests_per_minute=60, burst=3)) == [1.0, 2.0, 3601.0, 3602.0]


# -- hold-offs -----------------------------------------------------------------------------------------------------


def test_hold_off_delays_later_bookings_only() -> None:
    """A `Retry-After` does not move existing bookings; later ones leave after it is over, at the usual rate."""

    async def main() -> list[float]:
        clock, store = Still(), MemoryStore()
        mine, theirs = (limiter(store, clock, Rates(requests_per_minute=60)) for _ in "ab")
        await mine.acquire(0)
        await mine.acquire(0)
        await mine.hold_off(10)
        await theirs.acquire(0)
        await mine.acquire(0)
        return clock.departures

    assert asyncio.run(main()) == [1.0, 10.0, 11.0]


def test_hold_off_is_never_shortened() -> None:
    """The longest of overlapping hold-offs counts, and one that ends before the bookings do changes nothing."""

    async def steps(shared: RateLimiter, _: Still) -> None:
        await shared.hold_off(5)
        await shared.hold_off(2)
        await shared.acquire(7)
        await shared.hold_off(1)
        await shared.acquire(0)

    assert departures_of(steps, Rates(tokens_per_minute=60)) == [5.0, 12.0]


def test_hold_off_applies_without_a_rate() -> None:
    """A hold-off of one caller delays all callers, also where no rate is set."""

    async def steps(shared: RateLimiter, _: Still) -> None:
        await shared.acquire(1)
        await shared.hold_off(3)
        await shared.hold_off(2)
        await shared.acquire(1)
        await shared.acquire(1)

    assert departures_of(steps, Rates()) == [3.0, 3.0]


def test_no_burst_follows_a_hold_off() -> None:
    """After a hold-off the bucket starts empty."""

    async def steps(shared: RateLimiter, _: Still) -> None:
        await shared.hold_off(10)
        for _ in range(3):
            await shared.acquire(0)

    assert departures_of(steps, Rates(requests_per_minute=60, burst=3)) == [10.0, 11.0, 12.0]


def test_hold_off_is_at_most_ten_minutes() -> None:
    """A provider that asks for a day holds back all callers for ten minutes at most."""

    async def steps(shared: RateLimiter, _: Still) -> None:
        await shared.hold_off(86_400)
        await shared.acquire(0)

    assert departures_of(steps, Rates(requests_per_minute=60)) == [MAX_HOLD_OFF_S]


# -- time-outs and cancellation ------------------------------------------------------------------------------------


def test_wait_longer_than_the_time_out_books_nothing() -> None:
    """The error says how long the wait would be; the next caller leaves as if the first had not come."""

    async def steps(shared: RateLimiter, _: Still) -> None:
        await shared.acquire(0)
        await shared.acquire(0, timeout_s=1.5)
        with pytest.raises(
            TransientError, match=r"'m' has reached its rate: the next call may leave in 2\.0 s"
        ) as refused:
            await shared.acquire(0, timeout_s=1.5)
        assert refused.value.retry_after_s == pytest.approx(2)
        await shared.acquire(0, timeout_s=2.0)

    assert departures_of(steps, Rates(requests_per_minute=60)) == [1.0, 2.0]


def test_time_spent_in_the_queue_counts_towards_the_time_out() -> None:
    """A caller whose time-out ends before it can book fails then, and does not delay the others."""

    async def main(clock: Clock) -> tuple[list[float], float]:
        shared, left = limiter(MemoryStore(), clock, Rates(requests_per_minute=60)), []

        async def call() -> None:
            await shared.acquire(0)
            left.append(clock.now())

        calls = [asyncio.ensure_future(call()) for _ in range(5)]
        await clock.sleep(0.1)
        with pytest.raises(TransientError, match=r"no call could be booked within 0\.5 s"):
            await shared.acquire(0, timeout_s=0.5)
        refused = clock.now()
        await asyncio.gather(*calls, call())
        return left, refused

    left, refused = run_virtually(main)
    assert left == pytest.approx([0, 1, 2, 3, 4, 5], abs=CLOSE)
    assert refused == pytest.approx(0.6, abs=CLOSE)


@pytest.mark.parametrize(("cancelled", "next_at"), [([3], 3), ([2, 3], 2), ([1, 2, 3], 1), ([3, 2, 1], 1), ([1, 2], 4)])
@pytest.mark.parametrize("store", [MemoryStore, SlowStore])
def test_cancelled_caller_gives_its_booking_back(
    store: type[MemoryStore], cancelled: list[int], next_at: float
) -> None:
    """Several at once, in any order; but not if another booked later, since the next would leave too soon."""

    async def main(clock: Clock) -> float:
        one_store = store()
        shared, other = (limiter(one_store, clock, Rates(requests_per_minute=60)) for _ in "ab")
        calls = []
        for _ in range(4):
            calls.append(asyncio.ensure_future(shared.acquire(0)))
            await clock.sleep(0.01)
        for place in cancelled:
            calls[place].cancel()
        await clock.sleep(0.1)
        await other.acquire(0)
        departure = clock.now()
        await asyncio.gather(*calls, return_exceptions=True)
        return departure

    assert run_virtually(main) == pytest.approx(next_at, abs=0.01)


@pytest.mark.parametrize("after_s", [0.001, 0.003], ids=["before it is made", "before he knows of it"])
def test_caller_cancelled_while_booking_gives_it_back(after_s: float) -> None:
    """Even if it is cancelled again during that."""

    async def main(clock: Clock) -> float:
        shared = limiter(SlowStore(), clock, Rates(requests_per_minute=1))
        call = asyncio.ensure_future(shared.acquire(0))
        await clock.sleep(after_s)
        call.cancel()
        await clock.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await clock.sleep(0.1)
        await shared.acquire(0)
        return clock.now()

    assert run_virtually(main) < 1


def test_giving_back_keeps_usage_reported_meanwhile() -> None:
    """Usage that other calls reported in the meantime still counts."""

    async def main(clock: Clock) -> float:
        shared = limiter(MemoryStore(), clock, Rates(1, 6000))
        await shared.acquire(0)
        await clock.sleep(50)
        call = asyncio.ensure_future(shared.acquire(0))
        await clock.sleep(0.5)
        shared.correct(0, 1500)
        call.cancel()
        await clock.sleep(0)
        await shared.acquire(0)
        return clock.now()

    assert 65 - CLOSE <= run_virtually(main) <= 65.5 + CLOSE


def test_slow_store_delays_no_departure() -> None:
    """A call leaves at its booked time, not later by the time that the store took to answer."""

    async def main(clock: Clock) -> float:
        shared = limiter(SlowStore(), clock, Rates(requests_per_minute=60))
        await asyncio.gather(*(shared.acquire(0) for _ in range(3)))
        return clock.now()

    assert run_virtually(main) == pytest.approx(2.0025, abs=CLOSE)


def test_clock_set_back_while_booking_adds_no_wait() -> None:
    """The wait is at most what was booked."""

    class Setback(MemoryStore):
        async def update(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
            numbers = await super().update(name, step)
            clock.time -= 7200
            return numbers

    clock = Still()

    async def main() -> None:
        shared = limiter(Setback(), clock, Rates(requests_per_minute=60))
        await shared.acquire(0)
        await shared.acquire(0)

    asyncio.run(main())
    assert [at + 2 * 7200 for at in clock.departures] == [1.0]


def test_bookings_of_a_killed_process_pass() -> None:
    """A killed process had booked at most four calls ahead; the fifth departure is another process's."""

    async def main(clock: Clock) -> float:
        store, rates = MemoryStore(), Rates(requests_per_minute=60)
        frozen = RateLimiter("m", rates, store, replace(clock, sleep=lambda _: asyncio.Event().wait()))
        calls = [asyncio.ensure_future(frozen.acquire(0)) for _ in range(100)]
        await clock.sleep(0.5)
        await limiter(store, clock, rates).acquire(0)
        departure = clock.now()
        for call in calls:
            call.cancel()
        return departure

    # The first of the hundred left at once, without waiting.
    assert run_virtually(main) == pytest.approx(5, abs=CLOSE)


@settings(deadline=None)
@given(st.lists(st.floats(-29, 29), min_size=2, max_size=4), st.integers(1, 50))
def test_clocks_that_differ_by_less_than_a_minute_keep_the_rate(skews: list[float], seed: int) -> None:
    """All processes together keep the rate by their own clocks; one whose clock is behind waits longer."""
    times: list[float] = []

    async def main(clock: Clock) -> None:
        store = MemoryStore()

        async def keep_calling(skew: float) -> None:
            skewed = replace(clock, now=lambda: clock.now() + skew)
            shared = RateLimiter("m", Rates(requests_per_minute=60), store, skewed)
            for _ in range(8):
                await clock.sleep(clock.rng.random() * 3)
                await shared.acquire(0)
                times.append(round(clock.now() + skew, 6))

        await asyncio.gather(*(keep_calling(skew) for skew in skews))

    run_virtually(main, seed)
    assert all(later - earlier >= 1 - CLOSE for earlier, later in pairwise(sorted(times)))


# -- departures after a stalled event loop -------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.sampled_from([120, 600, 18_000]),
    st.lists(st.tuples(st.floats(0, 4), st.floats(0.001, 0.3)), max_size=4),
    st.sampled_from([1.0, 5.0]),
)
def test_callers_that_are_late_do_not_leave_together(
    per_minute: int, stalls: list[tuple[float, float]], burst: float
) -> None:
    """After a stall of the event loop no second exceeds rate and burst; most of the time is caught up.

    A provider counts its whole rate, of which a run books 98.5 %.
    """
    rate, times, count = per_minute / 60, list[float](), min(6 * per_minute // 60, 1000)

    async def main(clock: Clock) -> None:
        rates = Rates(requests_per_minute=0.985 * per_minute, burst=burst)
        shared = limiter(MemoryStore(), clock, rates)

        async def call() -> None:
            await shared.acquire(0)
            since = clock.now() - began
            late_s = max((at + takes_s - since for at, takes_s in stalls if at <= since < at + takes_s), default=0.0)
            await clock.sleep(late_s)
            await shared.depart()
            times.append(clock.now())

        began = clock.now()
        await asyncio.gather(*(call() for _ in range(count)))

    run_virtually(main)
    times.sort()
    most = max(bisect_left(times, at + 1) - number for number, at in enumerate(times))
    assert most <= rate + burst - 1
    late_s = sum(takes_s for _, takes_s in stalls) + 1.5 / rate
    assert times[-1] - times[0] <= count / (0.985 * rate) + late_s


def test_clock_set_back_delays_no_departure() -> None:
    """A departure waits for the one before it and no longer, whatever the clock reads."""
    clock = Still()

    async def main() -> None:
        shared = limiter(MemoryStore(), clock, Rates(requests_per_minute=600))
        for _ in range(3):
            await shared.depart()
            clock.time -= 3600

    asyncio.run(main())
    assert [at + 3600 * number for number, at in enumerate(clock.departures, 1)] == pytest.approx([0.1, 0.1], rel=0.06)


# -- corrections by usage ------------------------------------------------------------------------------------------

USED = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000), st.floats(0, 3)), min_size=1, max_size=30)
"""Tokens booked, tokens used, and seconds until that is known."""


@settings(deadline=None)
@given(USED, st.floats(6000, 600_000))
def test_corrected_bookings_keep_usage_within_the_rate(calls: list[tuple[int, int, float]], rate: float) -> None:
    """With sequential calls any window uses at most the rate plus its last call, however wrong the bookings were."""
    times: list[float] = []

    async def main(clock: Clock) -> None:
        shared = limiter(MemoryStore(), clock, Rates(tokens_per_minute=rate))
        for booked, used, latency_s in calls:
            await shared.acquire(booked)
            times.append(clock.now())
            await clock.sleep(latency_s)
            shared.correct(booked, used)

    run_virtually(main)
    assert excess(times, [float(used) for _, used, _ in calls], rate / 60, 0) <= rate * CLOSE


@pytest.mark.parametrize(
    ("used", "departures"), [(100, [1.0]), (50, [0.5]), (400, [4.0]), (10**9, [60.0]), (0, [])], ids=str
)
def test_correction_moves_the_next_departure(used: int, departures: list[float]) -> None:
    """Earlier or later, never before now, and by at most the minute that a provider counts."""

    async def steps(shared: RateLimiter, _: Still) -> None:
        await shared.acquire(100)
        shared.correct(100, used)
        await shared.acquire(100)

    assert departures_of(steps, Rates(tokens_per_minute=6000)) == departures


def test_no_correction_without_a_token_rate() -> None:
    """Requests are not corrected."""

    async def steps(shared: RateLimiter, _: Still) -> None:
        shared.correct(100, 10**6)
        await shared.acquire(100)

    assert departures_of(steps, Rates(requests_per_minute=60)) == []


# -- asking and resetting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "calls", "left"),
    [
        (Rates(), 3, (inf, inf)),
        (Rates(requests_per_minute=60), 0, (1, inf)),
        (Rates(requests_per_minute=60), 1, (0, 0)),
        (Rates(tokens_per_minute=6000), 0, (inf, inf)),
        (Rates(tokens_per_minute=6000), 1, (inf, 0)),
        (Rates(60, 6000, burst=5), 0, (5, inf)),
        (Rates(60, 6000, burst=5), 2, (3, 300)),
        (Rates(60, 6000, burst=5), 5, (0, 0)),
    ],
)
def test_available_requests_and_tokens(rates: Rates, calls: int, left: tuple[float, float]) -> None:
    """The requests and tokens of the burst; without a backlog, one call of any size. Asking books nothing."""

    async def steps(shared: RateLimiter, _: Still) -> None:
        for _ in range(calls):
            await shared.acquire(100)
        for _ in range(2):
            assert await shared.available() == pytest.approx(left, abs=CLOSE)

    departures_of(steps, rates)


@pytest.mark.parametrize(("rates", "free"), [(Rates(requests_per_minute=60), (1, inf)), (Rates(), (inf, inf))])
def test_nothing_is_available_during_a_hold_off(rates: Rates, free: tuple[float, float]) -> None:
    """A hold-off applies without a rate, too, and ends on time."""

    async def steps(shared: RateLimiter, clock: Still) -> None:
        await shared.hold_off(5)
        assert await shared.available() == (0, 0)
        clock.time += 5
        assert await shared.available() == free

    departures_of(steps, rates)


@pytest.mark.parametrize("tokens", [-1, float("nan"), float("inf"), "500", None])
def test_no_number_of_tokens_is_refused_and_books_nothing(tokens: Any) -> None:
    """It would change the rate of all processes."""

    async def steps(shared: RateLimiter, _: Still) -> None:
        with pytest.raises(ConfigError, match=f"tokens={tokens!r} must be a number of tokens"):
            await shared.acquire(tokens)
        await shared.acquire(100)

    assert departures_of(steps, Rates(60, 6000)) == []


def test_reset_forgets_bookings_hold_offs_and_usage() -> None:
    """After a reset the next call leaves at once."""

    async def steps(shared: RateLimiter, _: Still) -> None:
        await shared.acquire(100)
        shared.correct(100, 5000)
        await shared.hold_off(500)
        await shared.reset()
        await shared.acquire(100)
        await shared.acquire(100)

    assert departures_of(steps, Rates(60, 6000)) == [1.0]


def test_booking_from_before_a_reset_is_not_given_back() -> None:
    """It was forgotten by the reset, and later bookings are other calls'."""

    async def main(clock: Clock) -> float:
        store = MemoryStore()
        shared, other = (limiter(store, clock, Rates(requests_per_minute=60)) for _ in "ab")
        await shared.acquire(0)
        call = asyncio.ensure_future(shared.acquire(0))
        await clock.sleep(0.1)
        await shared.reset()
        others = [asyncio.ensure_future(other.acquire(0)) for _ in range(2)]
        await clock.sleep(0.1)
        call.cancel()
        await clock.sleep(0.1)
        await shared.acquire(0)
        await asyncio.gather(*others)
        return clock.now()

    # Two at 0.1 and 1.1, then the last.
    assert run_virtually(main) == pytest.approx(2.1, abs=CLOSE)


def test_repeated_terminations_lose_little_of_the_rate() -> None:
    """Runs that are terminated again and again give their bookings back, and the next runs use the rate."""

    async def main(clock: Clock) -> float:
        store, rates, left = MemoryStore(), Rates(requests_per_minute=600), 0
        chance = random.Random(1)

        async def call(shared: RateLimiter) -> None:
            nonlocal left
            await shared.acquire(0)
            left += 1

        for _ in range(50):
            shared = limiter(store, clock, rates)
            calls = [asyncio.ensure_future(call(shared)) for _ in range(100)]
            await clock.sleep(1 + chance.random())
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        return left / clock.now() * 60

    assert run_virtually(main) >= 0.98 * 600
