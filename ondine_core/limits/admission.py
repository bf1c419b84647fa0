"""First-in, first-out queue of calls that wait until the limits let them leave."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from math import inf

from ondine_core.limits.change_detector import CallOutcome, InFlightCall
from ondine_core.limits.concurrency import AdaptiveConcurrency


class AdmissionQueue:
    """Admits calls first come, first served, when the limits allow."""

    def __init__(
        self, limits: AdaptiveConcurrency, now: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self.limits = limits
        self._now = now
        self._sleep = sleep
        self._waiting = deque[asyncio.Future[InFlightCall]]()
        self._alarm: asyncio.Future[None] | None = None
        self._alarm_at = inf

    async def enter(self) -> InFlightCall:
        """Wait until a call may leave; when it ends, it must be passed to `leave`."""
        waiter: asyncio.Future[InFlightCall] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._admit()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                if waiter in self._waiting:  # otherwise `_admit` has removed it
                    self._waiting.remove(waiter)
                self._admit()
            else:  # it was admitted just before it was cancelled
                self.leave(waiter.result(), None)
            raise

    def leave(self, call: InFlightCall, outcome: CallOutcome | None, retry_after_s: float = 0.0) -> None:
        """Record how a call ended, `None` if it was given up, and the wait that its refusal asked for."""
        self.limits.finish(call, self._now(), outcome, retry_after_s)
        self._admit()

    def hold_off(self, seconds: float) -> None:
        """Admit no call for `seconds`."""
        self.limits.hold_off(self._now() + seconds)
        self._admit()

    def _admit(self) -> None:
        """Admit the calls that may leave now, and set an alarm for the next unless it waits for a call to end."""
        now = self._now()
        ready_at = self.limits.ready_at(now)
        while self._waiting and ready_at <= now:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(self.limits.start(now))
            ready_at = self.limits.ready_at(now)
        alarm_at = ready_at if self._waiting else inf
        if alarm_at == self._alarm_at:
            return
        if self._alarm:
            self._alarm.cancel()
        self._alarm_at, self._alarm = alarm_at, None
        if alarm_at < inf:
            self._alarm = asyncio.ensure_future(self._ring(alarm_at - now))

    async def _ring(self, seconds: float) -> None:
        await self._sleep(seconds)
        self._alarm_at, self._alarm = inf, None
        self._admit()
