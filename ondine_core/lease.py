"""A lease: of all processes that share a store, one at a time works under a name, and nobody waits for a dead one.

Two steps that fill the same partition would pay for the same answers, also if they are two attempts of one run: where
the first one is taken for dead and is not, as after the loss of a network. A lease is a few numbers in the store: a
token, the instant at which it ends, and the process that holds it, which renews it in time. One that was killed does
not, so the name is free again after `ttl_s`, and at once where its end can be seen. Clocks of different machines may
differ by a good part of `ttl_s`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast

from ondine_core.errors import StoreError
from ondine_core.ports import AnswerStore, Numbers
from ondine_core.processes import Process, has_ended, this_process

__all__ = ["hold_lease"]

_NOBODY = 0
_NO_PROCESS = Process(0.0, 0.0, 0.0)


@asynccontextmanager
async def hold_lease(  # noqa: PLR0913  (named at every call)
    store: AnswerStore,
    name: str,
    *,
    now: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
    ttl_s: float = 60.0,
    on_wait: Callable[[float], None] = lambda _: None,
) -> AsyncIterator[None]:
    """Run the body while holding the lease on `name`, as soon as nobody else does.

    Args:
        store: Shared by all who may want the lease.
        name: What one at a time may work on.
        now: Wall clock in seconds, since other processes read what it writes.
        sleep: Waits for seconds.
        ttl_s: How long the lease outlives a holder that was killed.
        on_wait: Told, when another holds the lease and now and then while it does, after how many seconds it would be
            free if that one were dead.

    Raises:
        StoreError: The lease was lost to another, or cannot be renewed; the body was cancelled.
    """
    # A float holds 53 bits exactly, and 0 is nobody's.
    lease = _Lease(store, f"lease:{name}", 1 + secrets.randbits(53), this_process(), now, sleep, ttl_s)
    try:
        await lease.take(on_wait)
        async with _renewed(lease):
            yield
    finally:
        # Also when the wait is broken off: the lease may have been granted unheard. If the store is gone, it runs out.
        with suppress(StoreError):
            await asyncio.shield(lease.release())


@asynccontextmanager
async def _renewed(lease: _Lease) -> AsyncIterator[None]:
    """Run the body while the lease is renewed; when that fails, the body is cancelled and the reason raised."""
    holder = cast("asyncio.Task[object]", asyncio.current_task())
    renewing = asyncio.create_task(lease.renew())
    inside, lost = True, None

    def stop(ended: asyncio.Task[None]) -> None:
        nonlocal lost
        if not ended.cancelled() and (error := ended.exception()) and inside:
            lost = error
            holder.cancel()

    renewing.add_done_callback(stop)
    try:
        try:
            yield
        finally:
            inside = False
            renewing.cancel()
            # A cancellation that came too late for the body comes out here.
            await asyncio.wait([renewing])
    except BaseException as error:
        # Whoever else cancelled the task is obeyed first.
        if lost and not holder.uncancel() and isinstance(error, asyncio.CancelledError):
            raise lost from None
        raise


@dataclass(frozen=True, slots=True)
class _Lease:
    store: AnswerStore
    name: str
    token: int
    process: Process
    now: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    ttl_s: float

    async def take(self, on_wait: Callable[[float], None]) -> None:
        """Return when the lease is taken."""
        tell_at = self.now()
        while True:
            token, ends_at, *_ = await self.store.update(self.name, self._taken)
            if token == self.token:
                return
            left_s = max(0.0, ends_at - self.now())
            if self.now() >= tell_at:
                on_wait(left_s)
                tell_at = self.now() + self.ttl_s / 2
            # It may be given back early, so it is looked at more often than it can run out.
            await self.sleep(min(self.ttl_s / 6, max(left_s, self.ttl_s / 60)))

    async def renew(self) -> None:
        """Renew the lease for ever.

        Raises:
            StoreError: It was lost, or the store failed.
        """
        while True:
            await self.sleep(self.ttl_s / 3)
            token, *_ = await self.store.update(self.name, self._renewed)
            if token != self.token:
                raise StoreError(
                    f"The lease on {self.name.removeprefix('lease:')!r} was lost to another process, because this one "
                    f"did not renew it for {self.ttl_s:g} s (was it suspended?). Answers so far are kept; run again."
                )

    async def release(self) -> None:
        """Let the next one take it."""
        await self.store.update(self.name, self._released)

    def _taken(self, state: Numbers | None) -> Numbers:
        token, ends_at, *process = state or (_NOBODY, 0.0, *_NO_PROCESS)
        free = token in (_NOBODY, self.token) or self.now() >= ends_at or has_ended(Process(*process))
        return self._held() if free else (token, ends_at, *process)

    def _renewed(self, state: Numbers | None) -> Numbers:
        return self._held() if state is None or state[0] == self.token else state

    def _released(self, state: Numbers | None) -> Numbers:
        return (_NOBODY, self.now(), *_NO_PROCESS) if state is None or state[0] == self.token else state

    def _held(self) -> Numbers:
        return (self.token, self.now() + self.ttl_s, *self.process)
