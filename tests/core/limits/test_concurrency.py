from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.limits import AdaptiveConcurrency, AdmissionQueue, CallOutcome, InFlightCall
from ondine_core.types.clock import Clock
from tests.support.servers import (
    Server,
    always,
    at_random,
    healthy,
    jitter,
    lognormal,
    outage,
    parallel_limit,
    simulate,
    switching,
)
from tests.support.virtual_clock import run_virtually

SEEDS = range(2)

# -- the start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_calls", "latency_s", "within_s"), [(256, 0.05, 1.0), (32, 1, 7), (32, 10, 35), (1, 0.05, 0)]
)
def test_concurrency_reaches_its_maximum_with_a_healthy_provider(
    max_calls: int, latency_s: float, within_s: float
) -> None:
    """Within about twenty round trips, and within three if these are slow."""
    trace = simulate(healthy, within_s + 10 * latency_s, takes=always(latency_s), max_calls=max_calls)
    assert next(setting.at_s for setting in trace.history if setting.in_flight == max_calls) <= within_s
    assert trace.in_flight(within_s + latency_s, within_s + 10 * latency_s) == pytest.approx(max_calls)


def test_first_calls_are_four() -> None:
    """Before anything is known four calls leave at once, not fifty."""
    assert simulate(healthy, 1, takes=always(2)).left == (0,) * 4


# -- overload ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [None, always(0.005)], ids=["slowly", "at once"])
@pytest.mark.parametrize("count", [2, 5, 20, 40])
def test_concurrency_settles_at_the_providers_capacity(count: int, fails: Callable[[float], float]) -> None:
    """After 10 s concurrency is within 0.9 to 1.2 of it, less than 5 % are refused, and 93 % of it is used."""
    for seed in SEEDS:
        trace = simulate(parallel_limit(count), 30, takes=jitter(0.03, 0.07, seed), fails=fails)
        assert 0.9 * count <= trace.in_flight(10, 30) <= 1.2 * count
        assert trace.share("overloaded", 10) < 0.05
        assert trace.per_s(10, 30) >= 0.93 * 20 * count


def test_concurrency_settles_with_slow_answers() -> None:
    """With answers of about 1 s and immediate refusals 80 % of the provider's capacity is used over two minutes."""
    for seed in SEEDS:
        trace = simulate(parallel_limit(20), 120, takes=lognormal(1, seed=seed), fails=always(0.05))
        assert trace.per_s(0, 120) >= 0.8 * 20 / 1.2
        assert trace.share("overloaded") < 0.06


def test_concurrency_follows_a_changed_capacity() -> None:
    """When it falls from 20 to 5 calls, concurrency follows within 2 s, and is back within a minute."""
    fewer = simulate(switching(15, parallel_limit(20), parallel_limit(5)), 30)
    assert fewer.in_flight(17, 30) <= 6
    more = simulate(switching(15, parallel_limit(5), parallel_limit(20)), 90)
    assert more.in_flight(75, 90) >= 18


def test_random_overload_barely_lowers_throughput() -> None:
    """With one call in ten overloaded at random, 90 % of what the maximum concurrency allows."""
    for seed in SEEDS:
        trace = simulate(at_random(0.1, "overloaded", seed), 20)
        assert trace.per_s(0, 20) >= 0.9 * 0.9 * 50 / 0.05


def test_slower_answers_do_not_lower_concurrency() -> None:
    """Answers that take ten times as long come at a tenth of the rate, with as many calls in flight."""
    trace = simulate(healthy, 30, takes=lambda now: 0.05 if now < 10 else 0.5)
    assert trace.per_s(12, 30) == pytest.approx(100, rel=0.02)
    assert trace.in_flight(12, 29) == pytest.approx(50, rel=0.02)


# -- outages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_calls", [1, 50])
@pytest.mark.parametrize("length_s", [5, 60])
@pytest.mark.parametrize("ending", ["overloaded", "broken"])
def test_outage_is_probed_and_recovered_from(ending: CallOutcome, length_s: float, max_calls: int) -> None:
    """At most four probes a second during the outage; from 3 s after it at least 90 % of the earlier throughput."""
    end = 10 + length_s
    for seed in SEEDS:
        trace = simulate(outage(10, end, ending), end + 10, takes=jitter(0.03, 0.07, seed), max_calls=max_calls)
        assert trace.max_departures_in(1.0, 10.6, end - 1) <= 4
        assert sum(10.6 < at < end for at in trace.left) <= length_s
        assert trace.per_s(end + 3, end + 10) >= 0.9 * trace.per_s(3, 10)


@pytest.mark.parametrize("ending", ["overloaded", "broken"])
def test_outage_is_detected_after_two_dozen_failures(ending: CallOutcome) -> None:
    """However quickly the provider fails."""
    trace = simulate(outage(0, inf, ending), 60, fails=always(0.001))
    assert sum(at < 1 for at in trace.left) < 24
    assert trace.history[1].why == "outage"
    assert trace.history[1].in_flight == 0


def test_outage_during_a_rate_limit_is_probed_only() -> None:
    """A provider that breaks down during a rate-limit wait gets no burst of calls."""
    down: Server = switching(0.3, parallel_limit(2, "limited"), outage(0, inf, "broken"))
    trace = simulate(down, 30, fails=always(0.001))
    assert sum(at > 2 for at in trace.left) < 2 * 28


def test_failure_of_half_the_calls_is_no_outage() -> None:
    """While some calls are answered no outage is detected."""
    trace = simulate(at_random(0.5, "broken"), 20)
    assert not [setting for setting in trace.history if setting.in_flight == 0]
    assert trace.per_s(0, 20) >= 0.9 * 0.5 * 50 / 0.05


# -- laws ----------------------------------------------------------------------------------------------------------

ENDINGS: tuple[CallOutcome | None, ...] = ("answered", "limited", "overloaded", "broken", None)
pauses = st.sampled_from([0.0, 0.001, 0.05, 0.3, 1.0, 5.0, 100.0])
moods = st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=4)
"""How calls end for a while: one of these."""
steps = st.lists(
    st.one_of(
        st.tuples(st.just("leave"), st.integers(1, 12), pauses),
        st.tuples(st.just("end"), st.integers(1, 12), pauses),
        st.tuples(st.just("hold_off"), pauses, pauses),
        st.tuples(st.just("change_mood"), moods, pauses),
    ),
    max_size=120,
)
_MAX_WAIT_S = 45.0
"""Two calls at the lowest rate, and a little."""


class Run:
    """Limits under observation: after every step the invariants are checked."""

    def __init__(self, max_calls: int, rng: random.Random) -> None:
        self._limits, self._max_in_flight, self._rng = AdaptiveConcurrency(max_calls, 0.0), max_calls, rng
        self._now = self._asked = 0.0
        self._mood: list[CallOutcome | None] = ["answered"]
        self._out: list[InFlightCall] = []

    def step(self, step: str, what: Any, pause_s: float) -> None:
        """Take a step, and let time pass."""
        getattr(self, f"_{step}")(what, pause_s)
        self._now += pause_s
        self._check()

    def history(self) -> list[float]:
        """The times of the recorded settings."""
        return [setting.at_s for setting in self._limits.history]

    def _leave(self, count: int, _: float) -> None:
        for _ in range(count):
            ready_at = self._check()
            if ready_at < inf:
                self._now = max(self._now, ready_at)
                self._out.append(self._limits.start(self._now))

    def _end(self, count: int, pause_s: float) -> None:
        for _ in range(min(count, len(self._out))):
            slot = self._out.pop(self._rng.randrange(len(self._out)))
            self._limits.finish(slot, self._now, self._rng.choice(self._mood))
            self._now += pause_s / 10
            self._check()

    def _hold_off(self, seconds: float, _: float) -> None:
        self._limits.hold_off(self._now + seconds)
        self._asked = max(self._asked, self._now + seconds)

    def _change_mood(self, mood: list[CallOutcome | None], _: float) -> None:
        self._mood = mood

    def _check(self) -> float:
        ready_at = self._limits.ready_at(self._now)
        assert self._limits.in_flight == len(self._out) <= self._max_in_flight
        assert self._out or ready_at <= max(self._now, self._asked) + _MAX_WAIT_S
        assert ready_at > self._now or self._now >= self._asked
        return ready_at


@given(st.sampled_from([1, 2, 3, 8, 50]), steps, st.randoms(use_true_random=False))
def test_invariants_of_adaptive_concurrency(
    max_calls: int, steps: list[tuple[str, Any, float]], rng: random.Random
) -> None:
    """In any order of events: no more calls than allowed, none before the provider's wait is over, no deadlock."""
    run = Run(max_calls, rng)
    for step in steps:
        run.step(*step)
    assert run.history() == sorted(run.history())
    assert len(run.history()) <= 200


def test_history_stays_short() -> None:
    """A day of changes is recorded in at most 200 settings, from the first to the last."""
    limits = AdaptiveConcurrency(50, 0.0)
    for day in range(500):
        for n in range(40):
            now = day * 100.0 + n
            limits.finish(limits.start(now), now + 0.5, "broken" if n < 20 else "answered")
    assert 100 <= len(limits.history) <= 200
    assert limits.history[0].why == "start"
    assert limits.history[-1].at_s > 499 * 100


def test_cancelled_call_only_frees_its_slot() -> None:
    """During an outage and outside of one it changes nothing else."""
    limits = AdaptiveConcurrency(4, 0.0)
    for n in range(100):
        limits.finish(limits.start(float(n)), n + 0.5, None)
    assert len(limits.history) == 1
    assert limits.ready_at(100.0) <= 100.0
    now = 200.0
    while limits.closed_since is None:
        limits.finish(limits.start(now), now, "broken")
    now = limits.ready_at(now)
    limits.finish(limits.start(now), now, None)
    assert limits.ready_at(now) <= now


# -- admission -----------------------------------------------------------------------------------------------------


def with_queue(max_calls: int, test: Callable[[AdmissionQueue, Clock], object]) -> None:
    """Run a test of the admission queue on virtual time, where a deadlock or a busy loop is an error."""

    async def main(clock: Clock) -> None:
        asked = 0

        def now() -> float:
            nonlocal asked
            asked += 1
            assert asked < 5000, "The queue asks for the time and does not wait."
            return clock.now()

        await test(AdmissionQueue(AdaptiveConcurrency(max_calls, clock.now()), now, clock.sleep), clock)

    run_virtually(main)


def test_calls_are_admitted_in_order_of_arrival() -> None:
    """Here one at a time."""

    async def test(queue: AdmissionQueue, clock: Clock) -> None:
        entered: list[int] = []

        async def one(number: int) -> None:
            slot = await queue.enter()
            entered.append(number)
            await clock.sleep(1)
            queue.leave(slot, "answered")

        await asyncio.gather(*map(one, range(20)))
        assert entered == list(range(20))
        assert clock.now() == 20

    with_queue(1, test)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_cancelled_waiting_call_frees_its_place_in_the_queue(which: int) -> None:
    """Also the first in the queue: no slot stays occupied, and the others are admitted."""

    async def test(queue: AdmissionQueue, clock: Clock) -> None:
        inside = await queue.enter()
        waiting = [asyncio.create_task(queue.enter()) for _ in range(3)]
        await clock.sleep(1)
        waiting.pop(which).cancel()
        await clock.sleep(1)
        assert queue.limits.in_flight == 1
        for task in waiting:
            assert not task.done()
            queue.leave(inside, "answered")
            inside = await task
        assert queue.limits.in_flight == 1

    with_queue(1, test)


@pytest.mark.parametrize("sooner", ["a place falls vacant", "it is cancelled"])
def test_slot_freed_while_the_first_call_is_cancelled_goes_to_the_second(sooner: str) -> None:
    """In either order of the two events."""

    async def test(queue: AdmissionQueue, _clock: Clock) -> None:
        inside = await queue.enter()
        first, second = (asyncio.create_task(queue.enter()) for _ in range(2))
        await asyncio.sleep(1)
        if sooner == "it is cancelled":
            first.cancel()
        queue.leave(inside, "answered")
        first.cancel()
        await second
        await asyncio.wait({first})
        assert first.cancelled()
        assert queue.limits.in_flight == 1

    with_queue(1, test)


def test_hold_off_delays_calls_that_wait_already() -> None:
    """They wait until its end, also if it is extended meanwhile."""

    async def test(queue: AdmissionQueue, clock: Clock) -> None:
        queue.hold_off(2)
        waiting = asyncio.create_task(queue.enter())
        await clock.sleep(1)
        queue.hold_off(5)
        await clock.sleep(4.5)
        assert not waiting.done()
        queue.leave(await waiting, "answered")
        assert clock.now() == 6

    with_queue(8, test)


def test_shorter_hold_off_does_not_end_a_longer_one() -> None:
    """Of two hold-offs the later end counts."""

    async def test(queue: AdmissionQueue, clock: Clock) -> None:
        queue.hold_off(5)
        queue.hold_off(1)
        await queue.enter()
        assert clock.now() == 5

    with_queue(8, test)


def test_finished_call_admits_the_next_at_once() -> None:
    """A waiting call gets the slot at the instant at which it is freed."""

    async def test(queue: AdmissionQueue, clock: Clock) -> None:
        inside = await queue.enter()
        waiting = asyncio.create_task(queue.enter())
        await clock.sleep(3)
        queue.leave(inside, "answered")
        await waiting
        assert clock.now() == 3

    with_queue(1, test)


def test_outage_admits_one_probe_at_a_time_and_then_all() -> None:
    """When a probe is answered, the other waiting calls follow."""

    async def test(queue: AdmissionQueue, clock: Clock) -> None:
        served: list[float] = []

        async def one() -> None:
            ending: CallOutcome = "broken"
            while ending == "broken":
                slot = await queue.enter()
                await clock.sleep(0.05)
                ending = "broken" if clock.now() < 10 else "answered"
                queue.leave(slot, ending)
            served.append(clock.now())

        await asyncio.gather(*(one() for _ in range(100)))
        assert min(served) < 12.1
        assert max(served) < 14

    with_queue(50, test)


def test_simulated_run_is_consistent() -> None:
    """A healthy server answers every call, and the calls in flight follow from those that left and ended."""
    trace = simulate(healthy, 10)
    assert trace.count("answered") == len(trace.back)
    assert trace.share("answered") == 1
    assert trace.in_flight(5, 9) == pytest.approx(50)
    assert trace.max_departures_in(0.049, 5) == 50
