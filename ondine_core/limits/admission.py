"""Calls wait here, in the order they came, until the throttle lets them leave."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf

from ondine_core.limits.change_detector import CallOutcome, InFlightCall
from ondine_core.limits.concurrency import AdaptiveConcurrency

__all__ = ["AdmissionQueue"]


class AdmissionQueue:
    """Lets calls leave in the order they came, when the throttle allows.

    Args:
        throttle: Decides.
        now: Tells the time.
        sleep: Waits for seconds.
    """

    def __init__(self, throttle: AdaptiveConcurrency, now: Callable[[], float], sleep: Callable[[float], Awaitable[None]]) -> None:
        self.throttle, self._now, self._sleep = throttle, now, sleep
        self._line = deque[asyncio.Future[InFlightCall]]()
        self._alarm: asyncio.Future[None] | None = None
        self._alarm_at = inf

    async def enter(self) -> InFlightCall:
        """Return when a call may leave; whoever enters leaves again with `leave`."""
        place: asyncio.Future[InFlightCall] = asyncio.get_running_loop().create_future()
        self._line.append(place)
        self._let_in()
        try:
            return await place
        except asyncio.CancelledError:
            if place.cancelled():
                with suppress(ValueError):  # it may have been passed over
                    self._line.remove(place)
                self._let_in()
            else:  # it was let in in this very moment
                self.leave(place.result(), None)
            raise

    def leave(self, ticket: InFlightCall, ending: CallOutcome | None) -> None:
        """Hand the ticket back."""
        self.throttle.finish(ticket, self._now(), ending)
        self._let_in()

    def hold_off(self, seconds: float) -> None:
        """Let nobody leave who has not entered, for so long."""
        self.throttle.hold_off(self._now() + seconds)
        self._let_in()

    def _let_in(self) -> None:
        """Let in whoever may leave now, and be woken when the next may, unless that depends on a call coming back."""
        now = ready_at = inf
        while self._line and (ready_at := self.throttle.ready_at(now := self._now())) <= now:
            place = self._line.popleft()
            if not place.done():
                place.set_result(self.throttle.start(now))
        alarm_at = ready_at if self._line else inf
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
        self._let_in()
