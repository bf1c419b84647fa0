"""Requests and tokens per minute, shared by every process that uses the same store.

A booking is arithmetic on two numbers, the instants at which the request rate and the token rate are free again (the
generic cell rate algorithm, ITU-T I.371, with weights). Both are booked for one joint instant: booked apart, callers
that the token rate held back would leave together and break the request rate. A booking is final, so callers leave in
the order they came and nobody polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ondine_core.errors import ConfigError
from ondine_core.values import AnswerStore, Numbers

__all__ = ["RateLimiter", "Rates", "book"]


@dataclass(frozen=True, slots=True)
class Rates:
    """What a provider allows; `None` is no limit.

    Args:
        requests_per_minute: Calls a minute.
        tokens_per_minute: Tokens a minute, input and output together.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __post_init__(self) -> None:
        for name, rate in (("requests", self.requests_per_minute), ("tokens", self.tokens_per_minute)):
            if rate is not None and not rate > 0:
                raise ConfigError(f"{name}_per_minute={rate!r} must be more than 0; None is no limit.")

    def __bool__(self) -> bool:
        return self.requests_per_minute is not None or self.tokens_per_minute is not None


def book(free_at: Numbers, now: float, amounts: Numbers, rates: tuple[float | None, ...]) -> tuple[float, Numbers]:
    """Find the earliest instant at which all `amounts` may pass, and take it.

    A call passes when every rate has recovered from all calls before it; there is no burst beyond that one call.

    Args:
        free_at: For each rate, the instant (seconds) at which it has recovered from the bookings so far.
        now: The present instant.
        amounts: How much of each rate the call takes.
        rates: Units a second, `None` for no limit.

    Returns:
        The instant of the booking, and the new `free_at`.
    """
    bound = [free for free, rate in zip(free_at, rates, strict=True) if rate is not None]
    at = max(now, *bound)
    after = tuple(
        at + amount / rate if rate is not None else free
        for free, amount, rate in zip(free_at, amounts, rates, strict=True)
    )
    return at, after


_BOOKED_AHEAD = 4


class RateLimiter:
    """Holds callers back to a rate that all users of `name` in `store` share.

    Args:
        name: What is limited, for instance a model at a provider.
        rates: The allowed rates.
        store: Keeps the shared numbers.
        now: Wall clock in seconds, since other processes read what it writes.
        sleep: Waits for seconds.
    """

    def __init__(
        self,
        name: str,
        rates: Rates,
        store: AnswerStore,
        *,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._name = f"rate:{name}"
        self._rates = tuple(
            None if minute is None else minute / 60 for minute in (rates.requests_per_minute, rates.tokens_per_minute)
        )
        self._store, self._now, self._sleep = store, now, sleep
        # What is booked ahead is lost when a run is stopped; a few ahead keep the rate full.
        self._ahead = asyncio.Semaphore(_BOOKED_AHEAD)

    async def admit(self, tokens: int) -> None:
        """Return when a call of `tokens` tokens may leave."""
        async with self._ahead:
            await self._book(tokens)

    async def _book(self, tokens: int) -> None:
        booked_at = 0.0

        def step(free_at: Numbers | None) -> Numbers:
            nonlocal booked_at
            booked_at, after = book(free_at or (0.0, 0.0), self._now(), (1.0, float(tokens)), self._rates)
            return after

        await self._store.update(self._name, step)
        if (wait_s := booked_at - self._now()) > 0:
            await self._sleep(wait_s)

    async def hold_off(self, seconds: float) -> None:
        """Let nobody who has not booked yet leave within `seconds`, as a provider's `Retry-After` asks."""
        until = self._now() + seconds
        await self._store.update(self._name, lambda free_at: tuple(max(until, free) for free in free_at or (0.0, 0.0)))
