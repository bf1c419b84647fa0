"""What takes long to load and has connections, which belong to the event loop in which they were opened."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class LoadedOnce(Generic[T]):
    """The result of `load`, which is called in a thread, once in each event loop, when it is first needed there.

    `close` closes a result.
    """

    def __init__(self, load: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._load, self._close = load, close
        self._ready: dict[asyncio.AbstractEventLoop, asyncio.Future[T]] = {}

    async def get(self) -> T:
        """The result; after an error, `load` is called again.

        Others wait for it, too, so a call that is cancelled does not cancel it.
        """
        loop = asyncio.get_running_loop()
        ready = self._ready.get(loop)
        if ready is None or (ready.done() and ready.exception()):
            ready = self._ready[loop] = asyncio.ensure_future(asyncio.to_thread(self._load))
            await self._close_old()
        return await asyncio.shield(ready)

    async def aclose(self) -> None:
        """Close the result of this event loop, and those of loops that are closed."""
        loop = asyncio.get_running_loop()
        if loop in self._ready:
            await asyncio.wait([self._ready[loop]])
        await self._close_old(loop)

    async def _close_old(self, also: asyncio.AbstractEventLoop | None = None) -> None:
        for loop in list(self._ready):  # to which other threads may add theirs meanwhile
            ready = self._ready.pop(loop, None) if loop is also or loop.is_closed() else None
            if ready is not None and ready.done() and not ready.cancelled() and not ready.exception():
                await self._close(ready.result())
