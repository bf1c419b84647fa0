"""Delays callers to rates that all processes with the same store share.

A booking is final, so callers leave in the order in which they came, without polling. A cancelled caller gives its
booking back if there is no later one. The bookings of a killed process are not cleaned up: each process books only a
little ahead, so they soon pass.
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
"""Calls and seconds that a process may book ahead: enough to use the rate while the store answers, and little to lose
when the process is killed."""
_LATE_S, _CATCH_UP = 0.005, 1.005
"""Callers that the event loop woke less than `_LATE_S` late may leave together; others leave one by one, faster than
booked by the factor `_CATCH_UP`."""
_TOKENS_A_CALL = 1000
"""Assumed tokens of a call, to convert a token rate to calls a second."""


@dataclass(frozen=True, slots=True)
class _Booking:
    """A booked call."""

    number: float
    before: float  # number of the previous booking
    at: float  # when the call leaves, by the wall clock
    wait_s: float  # the same from the moment of booking
    moved_s: Numbers  # by how much the booking moved the instants `Queue.free_at`


class RateLimiter:
    """Delays callers so that all users of `name` in `store` together keep to a rate.

    Args:
        name: Name of the limit, for instance of one model, provider and key; each name has its own rates.
        rates: The allowed rates; if there is none, only hold-offs delay callers.
        store: Keeps the shared numbers.
        clock: Its wall clock is used, since other processes read the numbers.
    """

    def __init__(self, name: str, rates: Rates, store: AnswerStore, clock: Clock | None = None) -> None:
        check_type("name of RateLimiter", name, str, ConfigError)
        check_type("rates of RateLimiter", rates, Rates, ConfigError)
        check_type("store of RateLimiter", store, AnswerStore, ConfigError)
        clock = clock or Clock()
        self._name, self._key = name, f"rate:{name}"
        self._rates, self._bursts = rates.per_second, rates.bursts
        self._store = store
        self._now = clock.now
        self._sleep = clock.sleep
        self._ahead = asyncio.Semaphore(_max_booked_ahead(*rates.per_second))
        self._reports = RateReports()
        self._cancelled: dict[float, _Booking] = {}
        self._departing, self._free_at = asyncio.Lock(), 0.0

    @property
    def requests_per_s(self) -> float | None:
        """The rate of requests, `None` for no limit."""
        return self._rates[0]

    async def acquire(self, tokens: int, timeout_s: float | None = None) -> None:
        """Book a call of `tokens` tokens and wait until it may leave.

        Raises:
            ConfigError: `tokens` is negative or not a number; it would change the rate of all processes.
            TransientError: The call could not leave within `timeout_s`; nothing is booked.
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
                f"{self._name!r} has reached its rate: no call could be booked within {timeout_s:g} s."
            ) from None
        try:
            await self._leave(asyncio.ensure_future(self._book(tokens, until)))
        finally:
            self._ahead.release()

    async def depart(self) -> None:
        """Wait, usually not at all, until a call that has returned from `acquire` may leave.

        A busy event loop wakes several callers late and together, although their bookings keep to the rate. A provider
        that counts the requests of any second would refuse the last of them, so they leave one by one here.
        """
        rate = self._rates[0]
        if rate is None or rate < 1:
            return  # with seconds between two calls, milliseconds do not matter
        spacing_s = 1 / (_CATCH_UP * rate)
        early_s = (self._bursts[0] - 1) * spacing_s + _LATE_S
        async with self._departing:
            now = self._now()
            # `free_at` is later than this only if the clock was set back.
            free_at = min(self._free_at, now + early_s + spacing_s)
            wait_s = free_at - early_s - now
            if wait_s > 0:
                await self._sleep(wait_s)
            self._free_at = max(self._now(), free_at) + spacing_s

    async def available(self) -> tuple[float, float]:
        """Requests and tokens that could leave right now; infinite tokens if a call of any size could."""
        available = (0.0, 0.0)

        def step(queue: Queue, now: float) -> Queue:
            nonlocal available
            available = _available(queue, now, self._rates, self._bursts)
            return queue

        await self._change(step)
        return available

    async def reset(self) -> None:
        """Forget all bookings and hold-offs; callers that are waiting leave as booked."""
        self._reports = RateReports()
        await self._change(lambda queue, _: Queue(made=queue.made))

    async def hold_off(self, seconds: float) -> None:
        """Let calls that are booked from now on leave in `seconds` at the earliest, as a `Retry-After` asks.

        After a hold-off the bucket starts empty; overlapping hold-offs use the longest.
        """
        if not is_number(seconds, 0, math.inf):
            raise ConfigError(f"seconds={seconds!r} must be a number of seconds, 0 or more.")

        def step(queue: Queue, now: float) -> Queue:
            until = now + min(seconds, MAX_HOLD_OFF_S)
            empty_at = (
                until + max(0.0, burst - needed) / rate if rate else 0.0
                for rate, burst, needed in zip(self._rates, self._bursts, (1.0, 0.0), strict=True)
            )
            free_at = tuple(map(max, queue.free_at, empty_at))
            return replace(queue, free_at=free_at, held_until=max(until, queue.held_until))

        await self._change(step)

    def correct(self, booked_tokens: int, used_tokens: int) -> None:
        """Correct the token rate by what a call used more or less than was booked for it.

        The store learns of it with this process's next booking, and bookings before that stay as they are.
        """
        rate = self._rates[1]
        if rate:
            self._reports = self._reports.add((used_tokens - booked_tokens) / rate, self._now())

    async def _book(self, tokens: int, until: float) -> _Booking:
        at = 0.0
        booking = _Booking(0.0, 0.0, 0.0, 0.0, ())

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
                f"{self._name!r} has reached its rate: the next call may leave in {wait_s:.1f} s, which is too late.",
                retry_after_s=wait_s,
            )
        return booking

    async def _leave(self, booking: asyncio.Future[_Booking]) -> None:
        """Wait until the booked call may leave; if that is cancelled, give the booking back."""
        try:
            booked = await asyncio.shield(booking)
            # The sooner of the two, since the clock may have been set meanwhile.
            wait_s = min(booked.wait_s, booked.at - self._now())
            if wait_s > 0:
                await self._sleep(wait_s)
        except asyncio.CancelledError:
            # A task of its own, which a second cancellation does not stop.
            await asyncio.shield(asyncio.ensure_future(self._give_back(booking)))
            raise

    async def _give_back(self, booking: asyncio.Future[_Booking]) -> None:
        with suppress(StoreError, TransientError):
            booked = await booking
            self._cancelled = {number: other for number, other in self._cancelled.items() if other.at > self._now()}
            self._cancelled[booked.number] = booked
            cancelled = dict(self._cancelled)

            def step(queue: Queue, _: float) -> Queue:
                # Callers are often cancelled together, in the order in which they booked: giving back the last booking
                # makes it possible to give back those before it.
                while last := cancelled.get(queue.last):
                    free_at = tuple(free - moved for free, moved in zip(queue.free_at, last.moved_s, strict=True))
                    queue = replace(queue, free_at=free_at, last=last.before)
                return queue

            await self._change(step)

    async def _change(self, step: Callable[[Queue, float], Queue]) -> None:
        reports, self._reports = self._reports, RateReports()

        def apply(numbers: Numbers | None) -> Numbers:
            now = self._now()
            queue = reports.apply_to(Queue.from_numbers(numbers, now, self._rates), now)
            return step(queue, now).to_numbers(now, self._rates)

        await self._store.update(self._key, apply)


def _max_booked_ahead(requests_a_s: float | None, tokens_a_s: float | None) -> int:
    by_tokens = tokens_a_s / _TOKENS_A_CALL if tokens_a_s else math.inf
    calls_a_s = min(requests_a_s or math.inf, by_tokens, 10_000)
    return max(_BOOKED_AHEAD, math.ceil(calls_a_s * _BOOKED_AHEAD_S))


def _available(queue: Queue, now: float, rates: tuple[float | None, ...], bursts: Numbers) -> tuple[float, float]:
    requests_behind, tokens_behind = queue.backlog(now, rates)
    requests = math.inf if rates[0] is None else max(0, math.floor(bursts[0] - requests_behind + 1e-3))
    if now < queue.held_until or not requests:
        return 0.0, 0.0
    return float(requests), math.inf if not tokens_behind else max(0.0, bursts[1] - tokens_behind)
