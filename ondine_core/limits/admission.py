"""First-in, first-out queue of calls that wait until the limits let them leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf

from ondine_core.limits.change_detector import CallOutcome, InFlightCall
from ondine_core.limits.concurrency import AdaptiveConcurrency

__all__ = ["AdmissionQueue"]


class AdmissionQueue:
    """Admits calls first come, first served, when the limits allow."""

    def __init__(
        self, limits: AdaptiveConcurrency, now: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self.limits = limits
        self._now = now
        self._sleep = sleep
        self._turn = asyncio.Lock()  # it is fair, so the first in the queue has it
        self._changed = asyncio.Event()

    async def enter(self) -> InFlightCall:
        """Return when a call may leave; each call that is returned is handed back with `leave`."""
        async with self._turn:
            now = self._now()
            while (ready_at := self.limits.ready_at(now)) > now:
                await self._wait(ready_at - now)
                now = self._now()
            return self.limits.start(now)

    def leave(self, call: InFlightCall, outcome: CallOutcome | None, retry_after_s: float = 0.0) -> None:
        """Hand a call back: how it ended, and the wait that its refusal asked for."""
        self.limits.finish(call, self._now(), outcome, retry_after_s)
        self._changed.set()

    def hold_off(self, seconds: float) -> None:
        """Admit no call for some time."""
        self.limits.hold_off(self._now() + seconds)

    async def _wait(self, seconds: float) -> None:
        """Wait for some time, or until a call comes back."""
        self._changed.clear()
        alarm = asyncio.ensure_future(self._ring(seconds)) if seconds < inf else None
        try:
            await self._changed.wait()
        finally:
            if alarm:
                alarm.cancel()

    async def _ring(self, seconds: float) -> None:
        await self._sleep(seconds)
        self._changed.set()
