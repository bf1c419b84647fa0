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
    """How often and when a call is retried after a `TransientError`.

    Args:
        max_attempts: Maximum number of attempts, the first included.
        first_wait_s: Maximum first pause; it doubles from attempt to attempt.
        max_wait_s: Maximum pause, unless a provider's `Retry-After` is longer.
        max_lost: Maximum number of attempts that may have been billed without a reply, as after a time-out. A batch
            that reaches it is halved, and each half may lose one more.
        max_retry_after_s: Maximum `Retry-After` that is waited for.
        max_outage_s: Maximum time without an answer to any call, after which the run ends. During an outage one call at
            a time probes, and no call uses up its attempts.
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
        """Whether `attempt`, from 1, which failed with `error`, was the last."""
        too_long = (error.retry_after_s or 0.0) > self.max_retry_after_s
        return attempt >= self.max_attempts or too_long or error.times_lost >= self.max_lost

    def explain(self, error: TransientError) -> str:
        """Explain why no further attempt was made after `error`."""
        if (error.retry_after_s or 0.0) > self.max_retry_after_s:
            return f"{error} It asks to wait {error.retry_after_s:,.0f} s, longer than {self.max_retry_after_s:g} s."
        tried = min(error.times_lost, self.max_lost) if error.times_lost >= self.max_lost else self.max_attempts
        return f"{error} (tried {tried} times)"

    def wait_s(self, attempt: int, error: TransientError, rng: random.Random) -> float:
        """Seconds to wait after `attempt`, from 1, failed with `error`.

        A `Retry-After` takes precedence and is extended by up to a tenth, so that callers do not return all at once.
        Otherwise "full jitter": uniform between 0 and the doubled pause (M. Brooker, "Exponential Backoff and Jitter",
        AWS, 2015).
        """
        if error.retry_after_s is not None:
            return error.retry_after_s * (1 + rng.random() / 10)
        return rng.random() * min(self.max_wait_s, self.first_wait_s * 2.0 ** min(attempt - 1, 32))


async def retry(
    make: Callable[[int], Awaitable[T]],
    policy: RetryPolicy,
    sleep: Callable[[float], Awaitable[None]],
    rng: random.Random,
) -> T:
    """Call `make` with the number of the attempt, from 1, until it succeeds or `policy` gives up; return its result.

    Raises:
        TransientError: The error of the last attempt.
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
