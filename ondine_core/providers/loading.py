"""Resources of event loops: a connection belongs to the event loop in which it was opened."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


def pop_closed(by_loop: dict[asyncio.AbstractEventLoop, T], also: asyncio.AbstractEventLoop | None = None) -> list[T]:
    """Remove and return the resources of closed event loops, and that of the loop `also`."""
    loops = [loop for loop in list(by_loop) if loop is also or loop.is_closed()]  # other threads may add their loops
    resources = [by_loop.pop(loop, None) for loop in loops]
    return [resource for resource in resources if resource is not None]


class LoadedOnce(Generic[T]):
    """The result of `load`, which is called in a thread, once for each event loop, at the first `get`.

    `close` closes a result.
    """

    def __init__(self, load: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._load, self._close = load, close
        self._ready: dict[asyncio.AbstractEventLoop, asyncio.Future[T]] = {}

    async def get(self) -> T:
        """The result; after an error, the next call loads again.

        Several calls may wait for one `load`, so cancelling a call does not cancel it.
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
        for ready in pop_closed(self._ready, also):
            if ready.done() and not ready.cancelled() and not ready.exception():
                await self._close(ready.result())
