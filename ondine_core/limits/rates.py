"""What a provider allows a minute, and the arithmetic that keeps to it; no clock and no store in here.

A booking is arithmetic on two numbers, the instants at which the request rate and the token rate are free again (the
generic cell rate algorithm, ITU-T I.371, with weights). Both are booked for one joint instant: booked apart, callers
that the token rate held back would leave together and break the request rate.

What processes share is not these instants but the backlog, in requests and tokens as of the last writer's clock. So a
rate that was set wrongly leaves no queue of hours behind once it is set right, and a host whose clock runs far ahead
delays no caller: a process that finds the last writer more than a minute in its future counts from its own present.
Clocks that differ by less keep the rates but for windows as short as the difference, which those behind wait longer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ondine_core.errors import ConfigError
from ondine_core.types.numbers import is_number, is_positive
from ondine_core.types.protocols import Numbers

_MINUTE_S = 60.0
_CLOCKS_AGREE_S = 60.0


@dataclass(frozen=True, slots=True)
class Rates:
    """What a provider allows; `None` means no limit.

    Args:
        requests_per_minute: Calls a minute.
        tokens_per_minute: Tokens a minute, input and output together.
        burst: Requests that may leave at once after a pause, with the tokens that the token rate allows in the time in
            which the request rate allows these requests. 1 means no burst, of requests or of tokens.
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
        """Requests and tokens that may leave at once; a call that has more tokens leaves alone."""
        if self.burst == 1 or self.requests_per_minute is None:
            return 1.0, 0.0
        return self.burst, self.burst * (self.tokens_per_minute or 0.0) / self.requests_per_minute


def book(
    free_at: Numbers, now: float, amounts: Numbers, rates: tuple[float | None, ...], bursts: Numbers = (0.0, 0.0)
) -> tuple[float, Numbers]:
    """Find the earliest instant at which all `amounts` may pass, and take it.

    A call waits until every rate has recovered from all calls before it, except for what is left of its burst once the
    call is in it. So a window of w seconds passes at most rate x w and the burst, or the largest call if that is more.

    Args:
        free_at: For each rate, the instant (seconds) at which it has recovered from the bookings so far.
        now: The present instant.
        amounts: How much of each rate the call takes.
        rates: Units a second, `None` for no limit.
        bursts: For each rate, how much may pass at once after a pause.

    Returns:
        The instant of the booking, and the new `free_at`.
    """
    bound = [
        free - max(0.0, burst - amount) / rate
        for free, amount, rate, burst in zip(free_at, amounts, rates, bursts, strict=True)
        if rate is not None
    ]
    at = max([now, *bound])
    after = tuple(
        max(at, free) + amount / rate if rate is not None else free
        for free, amount, rate in zip(free_at, amounts, rates, strict=True)
    )
    return at, after


@dataclass(frozen=True, slots=True)
class Queue:
    """What processes share of a limit.

    Args:
        free_at: As for `book`.
        held_until: No new booking starts before this moment.
        made: How many bookings there ever were, which numbers them.
        last: The number of the last booking that was not given back.
    """

    free_at: Numbers = (0.0, 0.0)
    held_until: float = 0.0
    made: float = 0.0
    last: float = 0.0

    @classmethod
    def read(cls, numbers: Numbers | None, now: float, rates: tuple[float | None, ...]) -> Queue:
        """The queue as `written` left it."""
        if numbers is None:
            return cls()
        *backlog, held_s, written_at, made, last = numbers
        then = written_at if written_at - now <= _CLOCKS_AGREE_S else now
        free_at = (then + (units / rate if rate else 0.0) for units, rate in zip(backlog, rates, strict=True))
        return cls(tuple(free_at), then + held_s, made, last)

    def written(self, now: float, rates: tuple[float | None, ...]) -> Numbers:
        """What the store keeps: backlog in requests and tokens, seconds held off, the time, bookings, the last one."""
        return (*self.backlog(now, rates), max(0.0, self.held_until - now), now, self.made, self.last)

    def backlog(self, now: float, rates: tuple[float | None, ...]) -> Numbers:
        """Requests and tokens that were booked and from which the rates have not recovered."""
        return tuple(max(0.0, free - now) * (rate or 0.0) for free, rate in zip(self.free_at, rates, strict=True))


@dataclass(frozen=True, slots=True)
class RateReports:
    """What replies reported about the rates since the last booking.

    Args:
        since: When the first of them came.
        tokens_s: How many seconds of the token rate the calls took more than was booked for them.
    """

    since: float = 0.0
    tokens_s: float = 0.0

    def used(self, more_s: float, now: float) -> RateReports:
        """Add that a call took `more_s` seconds of the token rate more than was booked, or less."""
        return replace(self, since=self.since or now, tokens_s=self.tokens_s + more_s)

    def applied(self, queue: Queue, now: float) -> Queue:
        """The queue after the correction; existing bookings stay."""
        requests, tokens = queue.free_at
        moved = max(tokens, self.since) + self.tokens_s
        # A provider counts by the minute: so an unforeseen amount delays no caller for longer.
        tokens = moved if self.tokens_s < 0 else max(tokens, min(moved, now + _MINUTE_S))
        return replace(queue, free_at=(requests, tokens))
