"""When a call is made again, and after how long.

This is the only layer that retries calls: providers try once, and Dagster's own retries are for crashed processes.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import TypeVar

from ondine_core.errors import ConfigError, TransientError
from ondine_core.types.numbers import is_number

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patiently a call is retried after a `TransientError`.

    Args:
        max_attempts: Calls in all, the first included.
        first_wait_s: Longest first pause; it doubles from call to call.
        max_wait_s: Longest pause this policy chooses itself; a provider's `Retry-After` may be longer.
        max_lost: Calls in all that may have been billed without a reply, as after a time-out. A batch that reaches this
            number is halved, and each half may lose one more call.
        max_retry_after_s: A provider that asks for a longer pause than this is not waited for.
        max_outage_s: How long no call may be answered before the run ends. An outage is waited out, probed by one call
            at a time, and is not an attempt of any call.
    """

    max_attempts: int = 12
    first_wait_s: float = 0.1
    max_wait_s: float = 2.0
    max_lost: int = 6
    max_retry_after_s: float = 600.0
    max_outage_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("max_attempts", "max_lost"):
            if not is_number(getattr(self, name), 1, inf):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be at least 1.")
        for name in ("first_wait_s", "max_wait_s", "max_retry_after_s", "max_outage_s"):
            if not is_number(getattr(self, name), 0, inf):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a number of seconds, not negative.")

    def gives_up(self, attempt: int, error: TransientError) -> bool:
        """Whether call number `attempt`, which failed with `error`, was the last."""
        too_long = (error.retry_after_s or 0.0) > self.max_retry_after_s
        return attempt >= self.max_attempts or too_long or error.times_lost >= self.max_lost

    def explain(self, error: TransientError) -> str:
        """Why no further call was made after `error`."""
        if (error.retry_after_s or 0.0) > self.max_retry_after_s:
            limit = f"{self.max_retry_after_s:g} s"
            return f"{error} It asks to wait {error.retry_after_s:,.0f} s, longer than {limit}."
        tried = min(error.times_lost, self.max_lost) if error.times_lost >= self.max_lost else self.max_attempts
        return f"{error} (tried {tried} times)"

    def wait_s(self, attempt: int, error: TransientError, rng: random.Random) -> float:
        """Seconds to wait after call number `attempt` failed with `error`.

        A `Retry-After` wins and is spread by up to a tenth, so that not all callers return at once. Otherwise "full
        jitter": uniform between 0 and the doubled pause (M. Brooker, "Exponential Backoff and Jitter", AWS, 2015).
        """
        asked = error.retry_after_s
        if asked is not None:
            return asked * (1 + rng.random() / 10)
        return rng.random() * min(self.max_wait_s, self.first_wait_s * 2.0 ** min(attempt - 1, 32))


async def retry(
    make: Callable[[int], Awaitable[T]],
    policy: RetryPolicy,
    sleep: Callable[[float], Awaitable[None]],
    rng: random.Random,
) -> T:
    """The result of the first of the calls that `policy` allows which does not fail with a `TransientError`.

    Raises:
        TransientError: That of the last call.
    """
    attempt = 1
    lost = 0
    while True:
        try:
            return await make(attempt)
        except TransientError as error:
            lost += error.cost_unknown
            error.times_lost = lost
            if policy.gives_up(attempt, error):
                raise
            wait_s = policy.wait_s(attempt, error, rng)
        await sleep(wait_s)
        attempt += 1
