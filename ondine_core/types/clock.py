"""Time and chance as arguments, so that tests run on a virtual clock."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ondine_core.types.processes import boot_time


@dataclass(frozen=True, slots=True)
class Clock:
    """The effects of time and chance; tests bring a virtual clock and a seeded generator.

    Args:
        now: Seconds since the epoch, comparable between hosts.
        sleep: Waits for a number of seconds.
        rng: Random numbers.
        elapsed: Seconds since an arbitrary moment; unlike `now` it is never set back.
        boot: Seconds since the machine was started, suspended time included; comparable between its processes.
    """

    now: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    rng: random.Random = field(default_factory=random.Random)
    elapsed: Callable[[], float] = time.monotonic
    boot: Callable[[], float] = boot_time
