from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.errors import ConfigError
from ondine_core.limits.rates import Queue, RateReports, Rates, book
from ondine_core.types.protocols import Numbers

START = 1_800_000_000.0
"""Wall clocks read large numbers; the arithmetic must stay exact with them."""
CLOSE = 1e-5
RATES = st.floats(0.01, 1000)
BURSTS = st.floats(0, 50)
CALLS = st.lists(st.tuples(st.floats(0, 20), st.integers(0, 5000)), min_size=1, max_size=40)
"""Seconds since the call before, and tokens."""


def booked(
    calls: Sequence[tuple[float, int]], rates: tuple[float | None, float | None], bursts: Numbers = (0.0, 0.0)
) -> list[float]:
    """The departure time of each call."""
    free_at: Numbers = (0.0, 0.0)
    departures = []
    for now, (_, tokens) in zip(accumulate((gap for gap, _ in calls), initial=START), calls, strict=False):
        at, free_at = book(free_at, now, (1.0, float(tokens)), rates, bursts)
        assert at >= now
        departures.append(at)
    return departures


def excess(departures: Sequence[float], amounts: Sequence[float], rate: float, burst: float = 0.0) -> float:
    """How far the worst window goes beyond `rate` times its length, and the burst or its last call."""
    return max(
        sum(amounts[first : last + 1]) - max(burst, amounts[last]) - rate * (departures[last] - departures[first])
        for last in range(len(departures))
        for first in range(last + 1)
    )


@given(CALLS, RATES, RATES, BURSTS, BURSTS.map(lambda burst: burst * 100))
def test_no_window_admits_more_than_its_rate(
    calls: list[tuple[float, int]], requests: float, tokens: float, burst: float, burst_tokens: float
) -> None:
    """A window of w seconds admits at most rate * w plus one burst or call, of requests and of tokens alike."""
    departures = booked(calls, (requests, tokens), (burst, burst_tokens))
    assert excess(departures, [1.0] * len(calls), requests, burst) <= requests * CLOSE
    assert excess(departures, [float(amount) for _, amount in calls], tokens, burst_tokens) <= tokens * CLOSE


@given(CALLS, RATES | st.none(), RATES | st.none(), BURSTS, BURSTS)
def test_departures_are_in_order_of_arrival(
    calls: list[tuple[float, int]], requests: Any, tokens: Any, burst: float, burst_tokens: float
) -> None:
    """No call overtakes an earlier one, however small it is."""
    departures = booked(calls, (requests, tokens), (burst, burst_tokens))
    assert all(later >= earlier - CLOSE for earlier, later in pairwise(departures))


@given(CALLS, RATES, RATES)
def test_no_call_waits_longer_than_the_slower_rate_needs(
    calls: list[tuple[float, int]], requests: float, tokens: float
) -> None:
    """A call that waits leaves at the instant at which the slower of the two rates has recovered."""
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
    """With one rate that rate decides; with both the slower one does."""
    found = booked([(0, 10), (0, 20), (0, 30), (0, 40)], rates)
    assert [at - START for at in found] == pytest.approx(departures, abs=CLOSE)


@pytest.mark.parametrize(
    ("rates", "tokens", "departures"),
    [
        (Rates(60, None, burst=3), 0, [0, 0, 0, 1, 2]),
        (Rates(60, 6000, burst=3), 100, [0, 0, 0, 1, 2]),
        (Rates(60, 6000, burst=3), 150, [0, 0, 1.5, 3, 4.5]),
        (Rates(60, 6000, burst=3), 1000, [0, 10, 20, 30, 40]),
        (Rates(60, 6000), 100, [0, 1, 2, 3, 4]),
    ],
)
def test_burst_after_a_pause(rates: Rates, tokens: int, departures: list[float]) -> None:
    """As many calls as `burst` leave at once if they have the average size of the two rates; fewer of larger ones."""
    found = booked([(0, tokens)] * 5, rates.per_second, rates.bursts)
    assert [at - START for at in found] == pytest.approx(departures, abs=CLOSE)


@pytest.mark.parametrize(
    ("rates", "limited"),
    [(Rates(), False), (Rates(requests_per_minute=1), True), (Rates(tokens_per_minute=1), True), (Rates(1, 1), True)],
)
def test_rates_without_a_number_are_no_limit(rates: Rates, limited: bool) -> None:
    """Either rate alone is a limit."""
    assert bool(rates) is limited


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "60"])
def test_rate_must_be_a_positive_number(name: str, rate: Any) -> None:
    """The message names the setting, its value, and how to have no limit."""
    with pytest.raises(ConfigError, match=f"{name}={rate!r} must be more than 0; None means no limit"):
        Rates(**{name: rate})


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"requests_per_minute": 60, "burst": 0.5}, "burst=0.5 must be at least 1"),
        ({"requests_per_minute": 60, "burst": float("nan")}, "burst=nan must be at least 1"),
        ({"requests_per_minute": 60, "burst": "5"}, "burst='5' must be at least 1"),
        ({"tokens_per_minute": 60, "burst": 5}, "burst=5 counts requests; set requests_per_minute too"),
    ],
)
def test_burst_must_be_at_least_one_request(rates: dict[str, Any], message: str) -> None:
    """A burst counts requests; the tokens that go with it follow from both rates."""
    with pytest.raises(ConfigError, match=message):
        Rates(**rates)


# -- what processes share ------------------------------------------------------------------------------------------

WAITS = st.floats(0, 1000)


@given(st.tuples(RATES, RATES), WAITS, WAITS, WAITS, st.floats(-60, 3600))
def test_state_round_trips_through_the_store(
    rates: tuple[float, float], one: float, two: float, held: float, gap: float
) -> None:
    """Instants are read as they were written, also by a process whose clock is up to a minute behind."""
    queue = Queue((START + one, START + two), START + held, 7.0, 5.0)
    found = Queue.from_numbers(queue.to_numbers(START, rates), START + gap, rates)
    assert (found.made, found.last) == (7.0, 5.0)
    assert (*found.free_at, found.held_until) == pytest.approx((*queue.free_at, queue.held_until), abs=CLOSE)


@given(RATES, WAITS, st.floats(61, 1e9))
def test_clock_ahead_of_others_delays_no_call(rate: float, wait: float, ahead: float) -> None:
    """If the last writer's clock was over a minute ahead, a process waits only for the bookings."""
    written = Queue((START + ahead + wait, 0.0)).to_numbers(START + ahead, (rate, None))
    assert Queue.from_numbers(written, START, (rate, None)).free_at[0] == pytest.approx(START + wait, abs=CLOSE)


def test_corrected_rate_applies_to_earlier_bookings() -> None:
    """Ten calls booked at one a minute take ten seconds once one a second is allowed."""
    written = Queue((START + 600, 0.0)).to_numbers(START, (1 / 60, None))
    assert Queue.from_numbers(written, START, (1.0, None)).free_at[0] == pytest.approx(START + 10, abs=CLOSE)


# -- what replies tell ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free_at", "more_s", "expected"),
    [
        (0.0, 5.0, 5.0),
        (-100.0, 5.0, 5.0),
        (10.0, 5.0, 15.0),
        (10.0, -4.0, 6.0),
        (10.0, 1e9, 60.0),
        (100.0, 1e9, 100.0),
    ],
)
def test_actual_usage_corrects_the_next_booking(free_at: float, more_s: float, expected: float) -> None:
    """By the tokens used beyond or below the booking; an unforeseen excess delays no call by more than a minute."""
    reported = RateReports().add(more_s, START)
    moved = reported.apply_to(Queue((START + 1, START + free_at)), START)
    assert moved.free_at == pytest.approx((START + 1, START + expected), abs=CLOSE)


def test_usage_of_many_calls_adds_up() -> None:
    """All usage reported since the last booking counts, from the time of the first report."""
    reported = RateReports().add(5.0, START).add(-1.0, START + 3)
    assert reported.apply_to(Queue(), START + 3).free_at[1] == pytest.approx(START + 4, abs=CLOSE)
