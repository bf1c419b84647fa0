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
    drive,
    healthy,
    jitter,
    lanes,
    lognormal,
    outage,
    switching,
)
from tests.support.virtual_clock import run_virtually

SEEDS = range(2)

# -- the start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "latency_s", "within_s"), [(256, 0.05, 1.0), (32, 1, 7), (32, 10, 35), (1, 0.05, 0)])
def test_a_healthy_provider_is_soon_asked_as_much_as_allowed(most: int, latency_s: float, within_s: float) -> None:
    """Calls at once reach their bound within about twenty round trips, and within three when these are slow."""
    course = drive(healthy, within_s + 10 * latency_s, takes=always(latency_s), most=most)
    assert next(setting.at_s for setting in course.history if setting.in_flight == most) <= within_s
    assert course.in_flight(within_s + latency_s, within_s + 10 * latency_s) == pytest.approx(most)


def test_the_start_is_gentle() -> None:
    """Before anything is known, four calls leave at once, not fifty."""
    assert drive(healthy, 1, takes=always(2)).left == (0,) * 4


# -- overload ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [None, always(0.005)], ids=["slowly", "at once"])
@pytest.mark.parametrize("count", [2, 5, 20, 40])
def test_calls_at_once_settle_where_a_provider_is_not_overloaded(count: int, fails: Callable[[float], float]) -> None:
    """After ten seconds nearly as many are in flight as it takes, few are turned away, and nobody starves."""
    for seed in SEEDS:
        course = drive(lanes(count), 30, takes=jitter(0.03, 0.07, seed), fails=fails)
        assert 0.9 * count <= course.in_flight(10, 30) <= 1.2 * count
        assert course.share("overloaded", 10) < 0.05
        assert course.per_s(10, 30) >= 0.93 * 20 * count


def test_calls_at_once_settle_when_answers_are_slow() -> None:
    """The same with answers of about a second, refused at once: 80 % of what the provider can do over two minutes."""
    for seed in SEEDS:
        course = drive(lanes(20), 120, takes=lognormal(1, seed=seed), fails=always(0.05))
        assert course.per_s(0, 120) >= 0.8 * 20 / 1.2
        assert course.share("overloaded") < 0.06


def test_a_provider_that_takes_fewer_calls_is_given_fewer() -> None:
    """When it can work on 5 instead of 20, calls at once follow within two seconds, and back within a minute."""
    fewer = drive(switching(15, lanes(20), lanes(5)), 30)
    assert fewer.in_flight(17, 30) <= 6
    more = drive(switching(15, lanes(5), lanes(20)), 90)
    assert more.in_flight(75, 90) >= 18


def test_overload_by_chance_slows_nobody_down() -> None:
    """A provider that calls itself overloaded once in ten calls: 90 % of what calls at once allow."""
    for seed in SEEDS:
        course = drive(at_random(0.1, "overloaded", seed), 20)
        assert course.per_s(0, 20) >= 0.9 * 0.9 * 50 / 0.05


def test_a_slower_provider_is_not_taken_for_a_broken_one() -> None:
    """Answers that take ten times as long come at a tenth of the rate, with as many calls in flight."""
    course = drive(healthy, 30, takes=lambda now: 0.05 if now < 10 else 0.5)
    assert course.per_s(12, 30) == pytest.approx(100, rel=0.02)
    assert course.in_flight(12, 29) == pytest.approx(50, rel=0.02)


# -- outages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 50])
@pytest.mark.parametrize("length_s", [5, 60])
@pytest.mark.parametrize("ending", ["overloaded", "broken"])
def test_an_outage_is_probed_and_forgotten(ending: CallOutcome, length_s: float, most: int) -> None:
    """At most four probes a second while nobody is answered; within three seconds after it, all is as before."""
    end = 10 + length_s
    for seed in SEEDS:
        course = drive(outage(10, end, ending), end + 10, takes=jitter(0.03, 0.07, seed), most=most)
        assert course.most_left_in(1.0, 10.6, end - 1) <= 4
        assert sum(10.6 < at < end for at in course.left) <= length_s
        assert course.per_s(end + 3, end + 10) >= 0.9 * course.per_s(3, 10)


@pytest.mark.parametrize("ending", ["overloaded", "broken"])
def test_an_outage_is_seen_after_a_few_failures(ending: CallOutcome) -> None:
    """Of a provider that answers nobody no more than two dozen calls are lost, however quickly it fails."""
    course = drive(outage(0, inf, ending), 60, fails=always(0.001))
    assert sum(at < 1 for at in course.left) < 24
    assert course.history[1].why == "outage"
    assert course.history[1].in_flight == 0


def test_an_outage_among_refusals_is_an_outage() -> None:
    """A provider that breaks down while its rate limit is waited for is not hammered."""
    down: Server = switching(0.3, lanes(2, "limited"), outage(0, inf, "broken"))
    course = drive(down, 30, fails=always(0.001))
    assert sum(at > 2 for at in course.left) < 2 * 28


def test_half_the_failures_are_no_outage() -> None:
    """While some calls are answered, nobody is told of an outage."""
    course = drive(at_random(0.5, "broken"), 20)
    assert not [setting for setting in course.history if setting.in_flight == 0]
    assert course.per_s(0, 20) >= 0.9 * 0.5 * 50 / 0.05


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
    """A throttle under observation: after every step the laws are checked."""

    def __init__(self, most: int, rng: random.Random) -> None:
        self._throttle, self._most, self._rng = AdaptiveConcurrency(most, 0.0), most, rng
        self._now = self._asked = 0.0
        self._mood: list[CallOutcome | None] = ["answered"]
        self._out: list[InFlightCall] = []

    def step(self, step: str, what: Any, pause_s: float) -> None:
        """Let something happen, and time pass."""
        getattr(self, f"_{step}")(what, pause_s)
        self._now += pause_s
        self._check()

    def history(self) -> list[float]:
        """When settings were noted."""
        return [setting.at_s for setting in self._throttle.history]

    def _leave(self, count: int, _: float) -> None:
        for _ in range(count):
            ready_at = self._check()
            if ready_at < inf:
                self._now = max(self._now, ready_at)
                self._out.append(self._throttle.start(self._now))

    def _end(self, count: int, pause_s: float) -> None:
        for _ in range(min(count, len(self._out))):
            slot = self._out.pop(self._rng.randrange(len(self._out)))
            self._throttle.finish(slot, self._now, self._rng.choice(self._mood))
            self._now += pause_s / 10
            self._check()

    def _hold_off(self, seconds: float, _: float) -> None:
        self._throttle.hold_off(self._now + seconds)
        self._asked = max(self._asked, self._now + seconds)

    def _change_mood(self, mood: list[CallOutcome | None], _: float) -> None:
        self._mood = mood

    def _check(self) -> float:
        ready_at = self._throttle.ready_at(self._now)
        assert self._throttle.in_flight == len(self._out) <= self._most
        assert self._out or ready_at <= max(self._now, self._asked) + _MAX_WAIT_S
        assert ready_at > self._now or self._now >= self._asked
        return ready_at


@given(st.sampled_from([1, 2, 3, 8, 50]), steps, st.randoms(use_true_random=False))
def test_laws_of_the_throttle(most: int, steps: list[tuple[str, Any, float]], rng: random.Random) -> None:
    """Whatever happens in whatever order: no more calls than allowed, none before the provider wishes, never stuck."""
    run = Run(most, rng)
    for step in steps:
        run.step(*step)
    assert run.history() == sorted(run.history())
    assert len(run.history()) <= 200


def test_history_stays_short() -> None:
    """A day of ups and downs is told in at most 200 settings, from the first to the last of them."""
    throttle = AdaptiveConcurrency(50, 0.0)
    for day in range(500):
        for n in range(40):
            now = day * 100.0 + n
            throttle.finish(throttle.start(now), now + 0.5, "broken" if n < 20 else "answered")
    assert 100 <= len(throttle.history) <= 200
    assert throttle.history[0].why == "start"
    assert throttle.history[-1].at_s > 499 * 100


def test_a_call_that_was_given_up_says_nothing() -> None:
    """Cancelled calls give their places back and change nothing else, in an outage and out of it."""
    throttle = AdaptiveConcurrency(4, 0.0)
    for n in range(100):
        throttle.finish(throttle.start(float(n)), n + 0.5, None)
    assert len(throttle.history) == 1
    assert throttle.ready_at(100.0) <= 100.0
    now = 200.0
    while throttle.closed_since is None:
        throttle.finish(throttle.start(now), now, "broken")
    now = throttle.ready_at(now)
    throttle.finish(throttle.start(now), now, None)
    assert throttle.ready_at(now) <= now


# -- the gate ------------------------------------------------------------------------------------------------------


def at_gate(most: int, test: Callable[[AdmissionQueue, Clock], object]) -> None:
    """Run a test of a gate on virtual time, where a hang is an error; so is a loop that is busy."""

    async def main(clock: Clock) -> None:
        asked = 0

        def now() -> float:
            nonlocal asked
            asked += 1
            assert asked < 5000, "The gate asks for the time and does not wait."
            return clock.now()

        await test(AdmissionQueue(AdaptiveConcurrency(most, clock.now()), now, clock.sleep), clock)

    run_virtually(main)


def test_who_comes_first_enters_first() -> None:
    """Calls leave in the order in which they came, one at a time where one is allowed."""

    async def test(gate: AdmissionQueue, clock: Clock) -> None:
        entered: list[int] = []

        async def one(number: int) -> None:
            slot = await gate.enter()
            entered.append(number)
            await clock.sleep(1)
            gate.leave(slot, "answered")

        await asyncio.gather(*map(one, range(20)))
        assert entered == list(range(20))
        assert clock.now() == 20

    at_gate(1, test)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_who_stops_waiting_holds_up_nobody(which: int) -> None:
    """Whoever is cancelled at the gate, the first in line included, leaves no place taken and nobody stuck."""

    async def test(gate: AdmissionQueue, clock: Clock) -> None:
        inside = await gate.enter()
        waiting = [asyncio.create_task(gate.enter()) for _ in range(3)]
        await clock.sleep(1)
        waiting.pop(which).cancel()
        await clock.sleep(1)
        assert gate.limits.in_flight == 1
        for task in waiting:
            assert not task.done()
            gate.leave(inside, "answered")
            inside = await task
        assert gate.limits.in_flight == 1

    at_gate(1, test)


@pytest.mark.parametrize("sooner", ["the gate opens", "it is cancelled"])
def test_cancelled_as_the_gate_opens(sooner: str) -> None:
    """A place that falls vacant in the very moment in which the first in line gives up goes to the second."""

    async def test(gate: AdmissionQueue, _clock: Clock) -> None:
        inside = await gate.enter()
        first, second = (asyncio.create_task(gate.enter()) for _ in range(2))
        await asyncio.sleep(1)
        if sooner == "it is cancelled":
            first.cancel()
        gate.leave(inside, "answered")
        first.cancel()
        await second
        await asyncio.wait({first})
        assert first.cancelled()
        assert gate.limits.in_flight == 1

    at_gate(1, test)


def test_a_pause_that_is_asked_for_holds_back_who_waits_already() -> None:
    """Whoever waits when a pause begins waits for its end, and for a longer one if it is extended meanwhile."""

    async def test(gate: AdmissionQueue, clock: Clock) -> None:
        gate.hold_off(2)
        waiting = asyncio.create_task(gate.enter())
        await clock.sleep(1)
        gate.hold_off(5)
        await clock.sleep(4.5)
        assert not waiting.done()
        gate.leave(await waiting, "answered")
        assert clock.now() == 6

    at_gate(8, test)


def test_a_shorter_pause_ends_no_longer_one() -> None:
    """Of two pauses the later end holds."""

    async def test(gate: AdmissionQueue, clock: Clock) -> None:
        gate.hold_off(5)
        gate.hold_off(1)
        await gate.enter()
        assert clock.now() == 5

    at_gate(8, test)


def test_a_call_that_comes_back_opens_the_gate_at_once() -> None:
    """Who waits for a place has it in the moment in which it falls vacant."""

    async def test(gate: AdmissionQueue, clock: Clock) -> None:
        inside = await gate.enter()
        waiting = asyncio.create_task(gate.enter())
        await clock.sleep(3)
        gate.leave(inside, "answered")
        await waiting
        assert clock.now() == 3

    at_gate(1, test)


def test_an_outage_lets_one_probe_through_and_then_everybody() -> None:
    """Of many who wait in an outage one at a time goes; when it is answered, the others follow."""

    async def test(gate: AdmissionQueue, clock: Clock) -> None:
        served: list[float] = []

        async def one() -> None:
            ending: CallOutcome = "broken"
            while ending == "broken":
                slot = await gate.enter()
                await clock.sleep(0.05)
                ending = "broken" if clock.now() < 10 else "answered"
                gate.leave(slot, ending)
            served.append(clock.now())

        await asyncio.gather(*(one() for _ in range(100)))
        assert min(served) < 12.1
        assert max(served) < 14

    at_gate(50, test)


def test_the_simulation_keeps_true_books() -> None:
    """A healthy server answers everything, and what is in flight follows from what left and came back."""
    course = drive(healthy, 10)
    assert course.count("answered") == len(course.back)
    assert course.share("answered") == 1
    assert course.in_flight(5, 9) == pytest.approx(50)
    assert course.most_left_in(0.049, 5) == 50
