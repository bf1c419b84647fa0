"""How much of an unconfigured rate limit is used, and which share of the calls is refused meanwhile.

Measured for each server over six seeds; the bounds leave room for the worst of them.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.support.servers import (
    QUICK,
    Seconds,
    Server,
    always,
    at_random,
    chain,
    jitter,
    lognormal,
    parallel_limit,
    simulate,
    sliding_window,
    switching,
    token_bucket,
)

SEEDS = range(2)

# -- a limit a second ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retry_after_s", [None, 1.0])
@pytest.mark.parametrize("limit", [20, 50, 100, 500])
def test_unconfigured_limit_is_found_and_used(limit: int, retry_after_s: float | None) -> None:
    """Over a minute at least 95 % of it is used and 3 % of the calls are refused, the first ones included."""
    trace = simulate(sliding_window(limit), 60, retry_after_s=retry_after_s)
    assert trace.per_s(0, 60) >= 0.95 * limit
    assert trace.share("limited") < 0.03
    assert trace.share("limited", 20) < 0.02


@pytest.mark.parametrize("retry_after_s", [None, 1.0])
@pytest.mark.parametrize("limit", [20, 50, 100, 500])
def test_varying_latency_does_not_affect_discovery(limit: int, retry_after_s: float | None) -> None:
    """The same bounds if latencies differ, so that calls end in another order."""
    for seed in SEEDS:
        trace = simulate(sliding_window(limit), 60, takes=jitter(0.03, 0.07, seed), retry_after_s=retry_after_s)
        assert trace.per_s(0, 60) >= 0.93 * limit
        assert trace.share("limited") < 0.03


@pytest.mark.parametrize("limit", [20, 50, 100, 500])
def test_network_jitter_costs_little(limit: int) -> None:
    """With up to 20 ms on the way calls arrive in bunches; 93 % of the limit is used, 3 % of calls refused."""
    for seed in SEEDS:
        trace = simulate(sliding_window(limit), 60, takes=jitter(0.03, 0.07, seed), arrives=jitter(0, 0.02, seed))
        assert trace.per_s(0, 60) >= 0.93 * limit
        assert trace.share("limited") < 0.03


def test_token_bucket_with_a_small_burst_is_found_and_used() -> None:
    """With 100 a second and a burst of ten, 95 % of it is used over a minute and less than 2 % of calls are refused."""
    for takes in (QUICK, *(jitter(0.03, 0.07, seed) for seed in SEEDS)):
        trace = simulate(token_bucket(100, 10), 60, takes=takes)
        assert trace.per_s(0, 60) >= 0.95 * 100
        assert trace.share("limited") < 0.02


@pytest.mark.parametrize("server", [sliding_window, lambda limit: token_bucket(limit, limit)], ids=["window", "bucket"])
def test_low_limit_with_slow_answers(server: type[Server]) -> None:
    """Ten a second, 1 s an answer: 80 % used over two minutes, 12 % refused, and in the second minute 8 %.

    A share of ten calls a second takes seconds to measure, so the first half minute has more refusals.
    """
    for seed in SEEDS:
        trace = simulate(server(10), 120, takes=lognormal(1, seed=seed), fails=always(0.05))
        assert trace.per_s(0, 120) >= 0.8 * 10
        assert trace.share("limited") < 0.12
        assert trace.share("limited", 60) < 0.08


# -- a limit a minute ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "refused"), [(60, 0.4), (600, 0.1), (3000, 0.03)])
def test_limit_over_a_minute_is_used(limit: int, refused: float) -> None:
    """Over five minutes 90 % of it is used; each minute a burst is refused, and about twenty probes.

    A pause between two windows says nothing about a rate, so each window is used as soon as a probe finds it.
    """
    for seed in SEEDS:
        trace = simulate(sliding_window(limit, 60), 300, takes=jitter(0.03, 0.07, seed))
        assert trace.per_s(0, 300) >= 0.9 * limit / 60
        assert trace.share("limited") < refused


def test_exhausted_minute_is_probed_by_single_calls() -> None:
    """About twenty probes in a minute, at most 4 s apart."""
    trace = simulate(sliding_window(600, 60), 60)
    probes = [at for at in trace.left if at > 3]
    assert 5 < len(probes) < 25
    assert max(later - earlier for earlier, later in pairwise(probes)) < 4.2


# -- no limit ------------------------------------------------------------------------------------------------------

FULL = 50 / 0.05


@pytest.mark.parametrize("fails", [None, always(0.005)], ids=["slowly", "at once"])
def test_random_refusals_barely_lower_throughput(fails: Seconds | None) -> None:
    """With one call in ten refused at random, 85 % of what the concurrency allows, the first seconds included."""
    for seed in SEEDS:
        trace = simulate(at_random(0.1, "limited", seed), 20, fails=fails)
        assert trace.per_s(0, 20) >= 0.85 * 0.9 * FULL


@pytest.mark.parametrize("share", [0.02, 0.05, 0.3])
def test_any_share_of_random_refusals_is_recognized(share: float) -> None:
    """At least 75 % of what the concurrency allows, and in the end nearly all of it."""
    for seed in SEEDS:
        trace = simulate(at_random(share, "limited", seed), 30, takes=jitter(0.03, 0.07, seed))
        assert trace.per_s(0, 30) >= 0.75 * (1 - share) * FULL
        assert trace.per_s(20, 30) >= 0.93 * (1 - share) * FULL


def test_random_failures_of_all_kinds_barely_lower_throughput() -> None:
    """Of calls 10 % refused, 10 % broken, 5 % overloaded: 93 % of what the concurrency allows."""
    for seed in SEEDS:
        faults = (
            at_random(0.1, "limited", seed),
            at_random(1 / 9, "broken", seed),
            at_random(1 / 16, "overloaded", seed),
        )
        assert simulate(chain(*faults), 20).per_s(0, 20) >= 0.93 * 0.75 * FULL


def test_limit_is_found_among_random_refusals() -> None:
    """With 10 % random refusals 90 % of a limit of 100 a second is used, and 5 % more are refused."""
    for seed in SEEDS:
        trace = simulate(chain(at_random(0.1, "limited", seed), sliding_window(100)), 60)
        assert trace.per_s(20, 60) >= 0.9 * 100
        assert trace.share("limited", 20) < 0.15


def test_concurrency_limit_reported_as_a_rate_limit_is_found() -> None:
    """If the provider answers 429 beyond 20 concurrent calls, 70 % of its capacity is used."""
    for seed in SEEDS:
        trace = simulate(parallel_limit(20, "limited"), 30, takes=jitter(0.03, 0.07, seed))
        assert trace.per_s(0, 30) >= 0.7 * 400
        assert trace.share("limited") < 0.1


# -- limits that change --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [sliding_window, lambda limit: token_bucket(limit, 10)], ids=["window", "bucket"])
@pytest.mark.parametrize("lower", [50, 20])
def test_lowered_limit_is_kept_within_ten_seconds(lower: int, kind: type[Server]) -> None:
    """Fewer than 100 calls are refused in these 10 s; then 90 % of the limit is used and less than 3 % refused."""
    trace = simulate(switching(30, kind(100), kind(lower)), 60, takes=jitter(0.03, 0.07))
    assert trace.count("limited", 30, 40) < 100
    assert trace.per_s(40, 60) >= 0.9 * lower
    assert trace.share("limited", 40) < 0.03


@pytest.mark.parametrize("kind", [sliding_window, lambda limit: token_bucket(limit, 10)], ids=["window", "bucket"])
@pytest.mark.parametrize("higher", [200, 500])
def test_raised_limit_is_used_within_a_minute(higher: int, kind: type[Server]) -> None:
    """A higher rate is tried after 40 s at the latest, and then ever faster."""
    trace = simulate(switching(30, kind(100), kind(higher)), 110, takes=jitter(0.03, 0.07))
    assert trace.per_s(90, 110) >= 0.9 * higher
    assert trace.share("limited", 30) < 0.02


def test_unused_rate_is_not_raised() -> None:
    """A run with few calls learns nothing about the limit, and exceeds it no more than at the start."""
    quiet = switching(60, sliding_window(100), sliding_window(100))
    trace = simulate(chain(quiet), 60, demand_per_s=30)
    assert trace.count("limited") == 0
    assert trace.per_s(0, 60) >= 29
