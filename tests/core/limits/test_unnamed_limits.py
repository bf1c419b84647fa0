"""The cost of refusals: bounds on runs against servers that enforce unconfigured limits.

Each bound is one that users asked for; 50 calls in flight and 50 ms an answer unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import inf

import pytest

from tests.support.servers import (
    QUICK,
    Seconds,
    Server,
    Trace,
    always,
    at_random,
    chain,
    fixed_window,
    healthy,
    jitter,
    lognormal,
    nth,
    outage,
    parallel_limit,
    simulate,
    sliding_window,
    switching,
    token_bucket,
)

FULL = 50 / 0.05


@cache
def free_of_faults(seconds: float = inf, rows: float = inf) -> Trace:
    """The same calls to a server that answers all of them."""
    return simulate(healthy, seconds, rows=rows)


def back_after(trace: Trace, end_s: float, full: float = FULL) -> float:
    """Seconds from the first answer after an instant until 80 % of full speed is reached for half a second."""
    first = min(at for at, outcome in trace.back if outcome == "answered" and at >= end_s)
    starts = (first + tenth / 10 for tenth in range(200))
    return next((start for start in starts if trace.per_s(start, start + 0.5) >= 0.8 * full), inf) - first


# -- Retry-After of a single refusal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [None, always(0.005)], ids=["slowly", "at once"])
@pytest.mark.parametrize("asked_s", [1, 7, 20])
@pytest.mark.parametrize("number", [1, 4, 20, 100])
def test_one_refusal_delays_one_call(number: int, asked_s: float, fails: Seconds | None) -> None:
    """One 429 with Retry-After, at any call, costs at most its wait plus 1 s."""
    fault_free_s = free_of_faults(rows=2000).back[-1][0]
    trace = simulate(nth(number), rows=2000, retry_after_s=asked_s, fails=fails)
    assert trace.back[-1][0] <= fault_free_s + asked_s + 1
    assert len(trace.left) == 2001


def test_one_refusal_of_few_rows_costs_its_wait() -> None:
    """The same if there are fewer rows than allowed calls, and with one call at a time."""
    assert simulate(nth(1), rows=5, retry_after_s=3).back[-1][0] <= 3.2
    assert simulate(nth(2), rows=40, retry_after_s=3, max_calls=1).back[-1][0] <= 5.5


@pytest.mark.parametrize("retry_after_s", [None, 1.0, 5.0])
@pytest.mark.parametrize("length_s", [3, 20, 60])
def test_full_speed_returns_after_refusals_at_the_start(length_s: float, retry_after_s: float | None) -> None:
    """If all is refused for a while, full speed is reached within 5 s of the first answer."""
    for before in (healthy, nth(1, 2, 3)):
        for start_s in (0, 0.06, 0.4):
            server = chain(before, outage(start_s, length_s, "limited"))
            trace = simulate(server, length_s + 16, retry_after_s=retry_after_s)
            assert back_after(trace, length_s) <= 5
            assert sum(start_s + 0.3 < at < length_s for at in trace.left) <= 10 + length_s / 2


@pytest.mark.parametrize("retry_after_s", [None, 1.0])
@pytest.mark.parametrize(("start_s", "length_s"), [(1.0, 2.0), (5.0, 0.7), (10.0, 2.0)])
@pytest.mark.parametrize("max_calls", [8, 32, 50])
def test_full_speed_returns_after_a_short_limit(
    max_calls: int, start_s: float, length_s: float, retry_after_s: float | None
) -> None:
    """Another tenant uses up the rate in mid-run: 80 % of full speed within 5 s of its end."""
    end_s = start_s + length_s
    trace = simulate(outage(start_s, end_s, "limited"), end_s + 8, retry_after_s=retry_after_s, max_calls=max_calls)
    assert trace.per_s(end_s + 4.5, end_s + 5.5) >= 0.8 * max_calls / 0.05
    assert trace.per_s(end_s, end_s + 5) >= 0.45 * max_calls / 0.05


# -- random refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [None, always(0.005)], ids=["slowly", "at once"])
@pytest.mark.parametrize(("share", "retry_after_s"), [(0.01, 1.0), (0.01, 5.0), (0.1, None), (0.1, 1.0)])
def test_random_refusals_cost_at_most_30_percent(
    share: float, retry_after_s: float | None, fails: Seconds | None
) -> None:
    """With one call in a hundred or in ten refused at random, at least 0.7 of the rows a second without."""
    for seed in range(2):
        trace = simulate(at_random(share, "limited", seed), 20, retry_after_s=retry_after_s, fails=fails)
        assert trace.per_s(0, 20) >= 0.7 * free_of_faults(20).per_s(0, 20)


# -- a limit on calls in flight --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [None, always(0.005)], ids=["slowly", "at once"])
@pytest.mark.parametrize(
    "takes",
    [lambda: QUICK, lambda: jitter(0.03, 0.07), lambda: lognormal(0.05)],
    ids=["even", "jitter", "lognormal"],
)
@pytest.mark.parametrize(("count", "retry_after_s"), [(5, 60.0), (5, None), (12, 60.0)])
def test_concurrency_limit_is_found_by_lowering_concurrency(
    count: int, retry_after_s: float | None, takes: Callable[[], Seconds], fails: Seconds | None
) -> None:
    """If calls beyond the limit get 429, after 10 s 0.7 of its capacity is used and less than 5 % are refused."""
    trace = simulate(parallel_limit(count, "limited"), 40, takes=takes(), fails=fails, retry_after_s=retry_after_s)
    sample = takes()
    mean_s = sum(sample(0) for _ in range(1000)) / 1000
    assert trace.per_s(10, 40) >= 0.7 * count / mean_s
    assert trace.share("limited", 10) < 0.05


@pytest.mark.parametrize("takes", [lambda: always(5.0), lambda: lognormal(5, 0.2)], ids=["even", "lognormal"])
def test_concurrency_limit_is_found_with_slow_calls(takes: Callable[[], Seconds]) -> None:
    """The same for batches that take 5 s each."""
    trace = simulate(parallel_limit(5, "limited"), 200, takes=takes(), retry_after_s=60)
    assert trace.per_s(10, 200) >= 0.7 * 5 / 5.1


# -- a limit on the rate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("takes", [QUICK, jitter(0.03, 0.07)], ids=["even", "jitter"])
@pytest.mark.parametrize(("limit", "burst"), [(20, 10), (50, 10), (100, 10), (100, 100), (200, 200), (500, 500)])
def test_an_enforced_rate_is_used(limit: int, burst: int, takes: Seconds) -> None:
    """Of an unconfigured token bucket at least 93 % is used over a minute, and at most 3 % of calls are refused."""
    for retry_after_s in (None, 1.0):
        trace = simulate(token_bucket(limit, burst), 60, takes=takes, retry_after_s=retry_after_s)
        assert trace.per_s(0, 60) >= 0.93 * limit
        assert trace.share("limited") <= 0.03


@pytest.mark.parametrize("takes", [QUICK, jitter(0.03, 0.07)], ids=["even", "jitter"])
@pytest.mark.parametrize(
    "server", [lambda: sliding_window(300), lambda: token_bucket(300, 300)], ids=["window", "bucket"]
)
def test_immediate_refusals_slow_calls_at_once(server: Callable[[], Server], takes: Seconds) -> None:
    """With 256 calls in flight at most 2 % are refused over 20 s."""
    trace = simulate(server(), 20, max_calls=256, takes=takes, fails=always(0.002))
    assert trace.per_s(0, 20) >= 0.9 * 300
    assert trace.share("limited") <= 0.02


@pytest.mark.parametrize("retry_after_s", [None, 1.0, 10.0])
@pytest.mark.parametrize(
    ("server", "least_s"),
    [
        (lambda: sliding_window(60, 60), 240),
        (lambda: fixed_window(60, 60), 240),
        (lambda: fixed_window(60, 60, 30), 210),
        (lambda: fixed_window(60, 60, 59), 241),
    ],
    ids=["sliding", "fixed", "fixed since 30 s", "fixed since 59 s"],
)
def test_rate_per_minute_is_used(server: Callable[[], Server], least_s: float, retry_after_s: float | None) -> None:
    """With 60 calls a minute, 300 rows take at most 1.3 times the minimum."""
    trace = simulate(server(), rows=300, retry_after_s=retry_after_s)
    assert trace.back[-1][0] <= 1.3 * least_s


@pytest.mark.parametrize("server", [sliding_window, fixed_window], ids=["sliding", "fixed"])
@pytest.mark.parametrize("calls", [20, 100, 1000])
def test_rate_per_ten_seconds_is_used(calls: int, server: type[Server]) -> None:
    """Of windows of 10 s, which no header names, at least 77 % is used."""
    assert simulate(server(calls, 10), 100).per_s(0, 100) >= 0.77 * calls / 10  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "limited", [lambda: sliding_window(100), lambda: sliding_window(20), lambda: parallel_limit(5, "limited")]
)
def test_full_speed_returns_when_a_limit_is_lifted(limited: Callable[[], Server]) -> None:
    """Within half a minute."""
    trace = simulate(switching(30, limited(), healthy), 72, takes=jitter(0.03, 0.07))
    assert trace.per_s(62, 72) >= 0.8 * FULL


# -- no limit --------------------------------------------------------------------------------------------------------


def test_queueing_server_gets_the_maximum_concurrency() -> None:
    """Latency that grows with concurrency lowers nothing."""
    for takes_s in (0.5, 5.0):
        trace = simulate(healthy, 20 * takes_s, takes=lambda now, takes_s=takes_s: min(takes_s, 0.05 + now / 20))  # type: ignore[misc]
        assert trace.in_flight(15 * takes_s, 19 * takes_s) >= 49
        assert {setting.per_s for setting in trace.history} == {None}
