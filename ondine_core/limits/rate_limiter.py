"""Holds callers back to rates that every process with the same store shares.

A booking is final, so callers leave in the order they came, without polling. A cancelled caller gives its booking back
if there is no later one. The bookings of a killed process pass like any other; since each process books only a little
ahead, nothing has to be cleaned up.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from ondine_core.errors import ConfigError, StoreError, TransientError
from ondine_core.limits.rates import Queue, RateReports, Rates, book
from ondine_core.types.clock import Clock
from ondine_core.types.field_types import check_type
from ondine_core.types.numbers import is_number
from ondine_core.types.protocols import AnswerStore, Numbers

MAX_HOLD_OFF_S = 600.0
"""Upper bound of a `Retry-After` for all callers, since it may be meant for one account or model only."""
_BOOKED_AHEAD, _BOOKED_AHEAD_S = 4, 0.1
"""What is booked ahead is lost with a process that is killed; what leaves while the store answers keeps a rate full."""
_LATE_S, _CATCH_UP = 0.005, 1.005
"""Callers that an event loop woke late leave together only if they are late by less than this; others make up for it by
leaving this much faster than booked."""
_TOKENS_A_CALL = 1000
"""What a call is taken to have, where only tokens tell how many calls leave in a second."""


@dataclass(frozen=True, slots=True)
class _Booking:
    """The `number`th booking, after that numbered `before`: it leaves `at`, in `wait_s`, and moved the rates."""

    number: float
    before: float
    at: float
    wait_s: float
    moved_s: Numbers


class RateLimiter:
    """Delays callers so that all users of `name` in `store` together keep to a rate.

    Args:
        name: What is limited, for instance a model at a provider by one key; other names have rates of their own.
        rates: The allowed rates; without any, only hold-offs count.
        store: Keeps the shared numbers.
        clock: Its wall clock counts, since other processes read what is written.
    """

    def __init__(self, name: str, rates: Rates, store: AnswerStore, clock: Clock | None = None) -> None:
        check_type("name of RateLimiter", name, str, ConfigError)
        check_type("rates of RateLimiter", rates, Rates, ConfigError)
        check_type("store of RateLimiter", store, AnswerStore, ConfigError)
        clock = clock or Clock()
        self._what, self._name = name, f"rate:{name}"
        self._rates, self._bursts = rates.per_second, rates.bursts
        self._store = store
        self._now = clock.now
        self._sleep = clock.sleep
        self._ahead = asyncio.Semaphore(_max_booked_ahead(*rates.per_second))
        self._reports = RateReports()
        self._unwanted: dict[float, _Booking] = {}
        self._door, self._free_at = asyncio.Lock(), 0.0

    @property
    def requests_per_s(self) -> float | None:
        """The rate of requests, `None` for no limit."""
        return self._rates[0]

    async def acquire(self, tokens: int, timeout_s: float | None = None) -> None:
        """Return when a call of `tokens` tokens may leave.

        Raises:
            ConfigError: `tokens` is negative or no number; it would change the rate of all processes.
            TransientError: That would take longer than `timeout_s`; nothing is booked.
        """
        if not is_number(tokens, 0):
            raise ConfigError(f"tokens={tokens!r} must be a number of tokens, 0 or more.")
        if timeout_s is not None and not is_number(timeout_s, 0, math.inf):
            raise ConfigError(f"timeout_s={timeout_s!r} must be a number of seconds, 0 or more, or None.")
        until = math.inf if timeout_s is None else self._now() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._ahead.acquire()
        except TimeoutError:
            raise TransientError(
                f"{self._what!r} has reached its rate: no call could be booked within {timeout_s:g} s."
            ) from None
        try:
            await self._leave(asyncio.ensure_future(self._book(tokens, until)))
        finally:
            self._ahead.release()

    async def depart(self) -> None:
        """Return when a call that has acquired may really leave, milliseconds later if many are late.

        Bookings keep to the rate, and an event loop that was busy lets several of them go at once: a provider that
        counts the requests of any second would turn the last of them away. Here those of this process go one by one.
        """
        rate = self._rates[0]
        if rate is None or rate < 1:
            return  # with seconds between two calls, milliseconds do not matter
        spacing_s = 1 / (_CATCH_UP * rate)
        early_s = (self._bursts[0] - 1) * spacing_s + _LATE_S
        async with self._door:
            now = self._now()
            # It is never further away, unless the clock was set back.
            free_at = min(self._free_at, now + early_s + spacing_s)
            wait_s = free_at - early_s - now
            if wait_s > 0:
                await self._sleep(wait_s)
            self._free_at = max(self._now(), free_at) + spacing_s

    async def available(self) -> tuple[float, float]:
        """Requests and tokens that could leave right now; infinite where one call of any size could."""
        found = (0.0, 0.0)

        def step(queue: Queue, now: float) -> Queue:
            nonlocal found
            found = _available(queue, now, self._rates, self._bursts)
            return queue

        await self._change(step)
        return found

    async def reset(self) -> None:
        """Forget all bookings and hold-offs; callers that wait for theirs still do."""
        self._reports = RateReports()
        await self._change(lambda queue, _: Queue(made=queue.made))

    async def hold_off(self, seconds: float) -> None:
        """Let no caller that has not booked yet leave within `seconds`, as a provider's `Retry-After` asks.

        After a hold-off the bucket starts empty; overlapping hold-offs use the longest.
        """
        if not is_number(seconds, 0, math.inf):
            raise ConfigError(f"seconds={seconds!r} must be a number of seconds, 0 or more.")

        def step(queue: Queue, now: float) -> Queue:
            until = now + min(seconds, MAX_HOLD_OFF_S)
            spent = (
                until + max(0.0, burst - one) / rate if rate else 0.0
                for rate, burst, one in zip(self._rates, self._bursts, (1.0, 0.0), strict=True)
            )
            free_at = tuple(map(max, queue.free_at, spent))
            return replace(queue, free_at=free_at, held_until=max(until, queue.held_until))

        await self._change(step)

    def correct(self, booked_tokens: int, used_tokens: int) -> None:
        """Make up for what a call used more or less than was booked for it.

        It costs no round trip to the store: it is shared with this process's next booking, and what was booked too
        much is there for callers that have not booked by then.
        """
        rate = self._rates[1]
        if rate:
            self._reports = self._reports.used((used_tokens - booked_tokens) / rate, self._now())

    async def _book(self, tokens: int, until: float) -> _Booking:
        at, booking = 0.0, _Booking(0.0, 0.0, 0.0, 0.0, ())

        def step(queue: Queue, now: float) -> Queue:
            nonlocal at, booking
            amounts = (1.0, float(tokens))
            at, free_at = book(queue.free_at, max(now, queue.held_until), amounts, self._rates, self._bursts)
            if at > until:
                return queue
            moved_s = tuple(after - max(before, now) for before, after in zip(queue.free_at, free_at, strict=True))
            booking = _Booking(queue.made + 1, queue.last, at, at - now, moved_s)
            return replace(queue, free_at=free_at, made=booking.number, last=booking.number)

        await self._change(step)
        if at > until:
            wait_s = at - self._now()
            raise TransientError(
                f"{self._what!r} has reached its rate: the next call may leave in {wait_s:.1f} s, which is too late.",
                retry_after_s=wait_s,
            )
        return booking

    async def _leave(self, booking: asyncio.Future[_Booking]) -> None:
        try:
            booked = await asyncio.shield(booking)
            # The sooner of the two, since the clock may have been set meanwhile.
            wait_s = min(booked.wait_s, booked.at - self._now())
            if wait_s > 0:
                await self._sleep(wait_s)
        except asyncio.CancelledError:
            # A task of its own, which goes on if this one is cancelled once more.
            await asyncio.shield(asyncio.ensure_future(self._give_back(booking)))
            raise

    async def _give_back(self, booking: asyncio.Future[_Booking]) -> None:
        with suppress(StoreError, TransientError):
            mine = await booking
            self._unwanted = {n: other for n, other in self._unwanted.items() if other.at > self._now()}
            self._unwanted[mine.number] = mine
            unwanted = dict(self._unwanted)

            def step(queue: Queue, _: float) -> Queue:
                # Several are often cancelled at once, in the order they booked: the last takes the others along.
                while last := unwanted.get(queue.last):
                    free_at = tuple(free - moved for free, moved in zip(queue.free_at, last.moved_s, strict=True))
                    queue = replace(queue, free_at=free_at, last=last.before)
                return queue

            await self._change(step)

    async def _change(self, step: Callable[[Queue, float], Queue]) -> None:
        reports, self._reports = self._reports, RateReports()

        def apply(numbers: Numbers | None) -> Numbers:
            now = self._now()
            queue = reports.applied(Queue.read(numbers, now, self._rates), now)
            return step(queue, now).written(now, self._rates)

        await self._store.update(self._name, apply)


def _max_booked_ahead(requests_a_s: float | None, tokens_a_s: float | None) -> int:
    calls_a_s = min(requests_a_s or math.inf, tokens_a_s / _TOKENS_A_CALL if tokens_a_s else math.inf, 10_000)
    return max(_BOOKED_AHEAD, math.ceil(calls_a_s * _BOOKED_AHEAD_S))


def _available(queue: Queue, now: float, rates: tuple[float | None, ...], bursts: Numbers) -> tuple[float, float]:
    requests_behind, tokens_behind = queue.backlog(now, rates)
    requests = math.inf if rates[0] is None else max(0, math.floor(bursts[0] - requests_behind + 1e-3))
    if now < queue.held_until or not requests:
        return 0.0, 0.0
    return float(requests), math.inf if not tokens_behind else max(0.0, bursts[1] - tokens_behind)
