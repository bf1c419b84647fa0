"""Rates that a provider allows, and the arithmetic of bookings that keep to them, without a clock or store.

A booking moves two instants: those at which the request rate and the token rate are free again (the generic cell rate
algorithm, ITU-T I.371, with weights). Both are booked for one joint instant. If they were booked separately, callers
that the token rate delayed would leave together and exceed the request rate.

Processes do not share these instants but the backlog, in requests and tokens at the time of the last writer's clock. So
a wrong rate leaves no queue of hours behind once it is corrected, and a host whose clock is far ahead delays no caller:
a process for which the last write is more than a minute in the future counts from its own clock. Clocks that differ by
less keep the rates, except in windows as short as the difference; hosts whose clocks are behind wait that much longer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ondine_core.errors import ConfigError
from ondine_core.types.numbers import is_number, is_positive
from ondine_core.types.protocols import Numbers

_MINUTE_S = 60.0
_CLOCKS_AGREE_S = 60.0
"""Difference up to which the clocks of hosts are trusted."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a provider allows; `None` means no limit.

    Args:
        requests_per_minute: Calls a minute.
        tokens_per_minute: Tokens a minute, input and output together.
        burst: Requests that may leave at once after a pause, together with the tokens that the token rate allows in the
            time in which the request rate allows these requests. 1 means no burst, neither of requests nor of tokens.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst: float = 1

    def __post_init__(self) -> None:
        for name, rate in (("requests", self.requests_per_minute), ("tokens", self.tokens_per_minute)):
            if rate is not None and not is_positive(rate):
                raise ConfigError(f"{name}_per_minute={rate!r} must be more than 0; None means no limit.")
        if not is_number(self.burst, 1):
            raise ConfigError(f"burst={self.burst!r} must be at least 1, which means no burst.")
        if self.burst > 1 and self.requests_per_minute is None:
            raise ConfigError(f"burst={self.burst!r} counts requests; set requests_per_minute too.")

    def __bool__(self) -> bool:
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    @property
    def per_second(self) -> tuple[float | None, float | None]:
        """Requests and tokens a second."""
        requests, tokens = self.requests_per_minute, self.tokens_per_minute
        return None if requests is None else requests / _MINUTE_S, None if tokens is None else tokens / _MINUTE_S

    @property
    def bursts(self) -> tuple[float, float]:
        """Requests and tokens that may leave at once; a call with more tokens leaves alone."""
        if self.burst == 1 or self.requests_per_minute is None:
            return 1.0, 0.0
        return self.burst, self.burst * (self.tokens_per_minute or 0.0) / self.requests_per_minute


def book(
    free_at: Numbers, now: float, amounts: Numbers, rates: tuple[float | None, ...], bursts: Numbers = (0.0, 0.0)
) -> tuple[float, Numbers]:
    """Book a call at the earliest instant at which every rate allows its amount.

    A call waits until every rate has recovered from all calls before it, except for the part of the burst that the call
    leaves free. So a window of w seconds admits at most rate x w plus the burst, or the largest call if that is more.

    Args:
        free_at: For each rate, the instant (seconds) at which it has recovered from the bookings so far.
        now: The present instant.
        amounts: For each rate, how much the call takes.
        rates: Units a second, `None` for no limit.
        bursts: For each rate, how much may pass at once after a pause.

    Returns:
        The instant of the booking, and the new `free_at`.
    """
    earliest = [
        free - max(0.0, burst - amount) / rate
        for free, amount, rate, burst in zip(free_at, amounts, rates, bursts, strict=True)
        if rate is not None
    ]
    at = max([now, *earliest])
    after = tuple(
        max(at, free) + amount / rate if rate is not None else free
        for free, amount, rate in zip(free_at, amounts, rates, strict=True)
    )
    return at, after


@dataclass(frozen=True, slots=True)
class Queue:
    """The bookings that processes share.

    Args:
        free_at: As for `book`.
        held_until: No new booking is earlier than this instant.
        made: How many bookings were ever made, by which they are numbered.
        last: The number of the last booking that was not given back.
    """

    free_at: Numbers = (0.0, 0.0)
    held_until: float = 0.0
    made: float = 0.0
    last: float = 0.0

    @classmethod
    def from_numbers(cls, numbers: Numbers | None, now: float, rates: tuple[float | None, ...]) -> Queue:
        """The queue of which the store has the numbers."""
        if numbers is None:
            return cls()
        *backlog, held_s, written_at, made, last = numbers
        then = written_at if written_at - now <= _CLOCKS_AGREE_S else now
        free_at = (then + (units / rate if rate else 0.0) for units, rate in zip(backlog, rates, strict=True))
        return cls(tuple(free_at), then + held_s, made, last)

    def to_numbers(self, now: float, rates: tuple[float | None, ...]) -> Numbers:
        """The numbers for the store: backlog of requests and tokens, seconds held off, `now`, `made`, `last`."""
        return (*self.backlog(now, rates), max(0.0, self.held_until - now), now, self.made, self.last)

    def backlog(self, now: float, rates: tuple[float | None, ...]) -> Numbers:
        """Booked requests and tokens from which the rates have not recovered yet."""
        return tuple(max(0.0, free - now) * (rate or 0.0) for free, rate in zip(self.free_at, rates, strict=True))


@dataclass(frozen=True, slots=True)
class RateReports:
    """Tokens that calls used beyond what was booked, as replies reported since the last booking.

    Args:
        since: When the first of these replies came.
        tokens_s: The tokens, in seconds of the token rate; negative if the calls used less than was booked.
    """

    since: float = 0.0
    tokens_s: float = 0.0

    def add(self, more_s: float, now: float) -> RateReports:
        """Add that a call used `more_s` seconds of the token rate beyond what was booked."""
        return replace(self, since=self.since or now, tokens_s=self.tokens_s + more_s)

    def apply_to(self, queue: Queue, now: float) -> Queue:
        """The queue after this correction; existing bookings stay."""
        requests, tokens = queue.free_at
        moved = max(tokens, self.since) + self.tokens_s
        # A provider counts by the minute, so unexpected tokens delay callers by a minute at most.
        tokens = moved if self.tokens_s < 0 else max(tokens, min(moved, now + _MINUTE_S))
        return replace(queue, free_at=(requests, tokens))
