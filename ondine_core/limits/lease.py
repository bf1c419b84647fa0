"""A lease: of all processes that share a store, one at a time works under a name.

Two steps that fill the same partition would pay for the same answers. They may be two attempts of one run, if the first
is wrongly taken for dead, as after the loss of a network. A lease is a few numbers in the store, which its holder
renews in time. When it expires is never decided by a wall clock, which can be set:

- at once, if the holder's process is known to have ended;
- on the same machine, when `ttl_s` have passed since the last renewal by the boot clock, which containers share;
- on another machine, when the numbers have not changed for `ttl_s` of the waiting process's own boot clock.

A holder that was suspended for longer than `ttl_s` asks the store before its next call whether it still has the lease.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, cast

from ondine_core.errors import StoreError
from ondine_core.types.clock import Clock
from ondine_core.types.processes import Process, has_ended, this_process
from ondine_core.types.protocols import AnswerStore, Numbers

_NO_OWNER = 0.0


@asynccontextmanager
async def _keep_renewed(lease: Lease) -> AsyncIterator[None]:
    """Renew the lease while the body runs; when that fails, cancel the body and raise the reason."""
    holder = cast("asyncio.Task[object]", asyncio.current_task())
    renewing = asyncio.create_task(lease.keep_renewing())
    inside, lost = True, None

    def stop(ended: asyncio.Task[None]) -> None:
        nonlocal lost
        error = None if ended.cancelled() else ended.exception()
        if error and inside:
            lost = error
            holder.cancel()

    renewing.add_done_callback(stop)
    try:
        try:
            yield
        finally:
            inside = False
            renewing.cancel()
            # A cancellation by `stop` that came too late for the body is raised here.
            await asyncio.wait([renewing])
    except BaseException as error:
        # A cancellation of the task from elsewhere takes precedence over the lost lease.
        if lost and not holder.uncancel() and isinstance(error, asyncio.CancelledError):
            raise lost from None
        raise


class _State(NamedTuple):
    """The numbers of a lease: its holder, and when it expires by the wall clock (for `prune`) and by the boot clock."""

    token: float = _NO_OWNER
    ends_at: float = 0.0
    host: float = 0.0
    process_id: float = 0.0
    started_at: float = 0.0
    machine: float = 0.0
    ends_at_boot: float = 0.0
    ttl_s: float = 0.0

    @property
    def process(self) -> Process:
        return Process(self.host, self.process_id, self.started_at, self.machine)


@dataclass(slots=True)
class Lease:
    """A lease that this process holds, or waits for.

    It expires `ttl_s` after its holder was killed, if not before. Until `valid_until`, in seconds by the boot clock, no
    other process can have taken it. `prune` removes old leases by the wall clock.
    """

    store: AnswerStore
    name: str
    clock: Clock = field(default_factory=Clock)
    ttl_s: float = 60.0
    process: Process = field(default_factory=this_process)
    # The store keeps floats, which hold 53 bits exactly; 0 means no holder.
    token: float = field(default_factory=lambda: float(1 + secrets.randbits(53)), init=False)
    valid_until: float = field(default=0.0, init=False)

    @property
    def key(self) -> str:
        """The name of its numbers in the store."""
        return f"lease:{self.name}"

    @asynccontextmanager
    async def held(self, on_wait: Callable[[float], None] = lambda _: None) -> AsyncIterator[None]:
        """Wait until no other process holds the lease, and hold it while the body runs.

        Args:
            on_wait: Called repeatedly while another process holds the lease, with the seconds until it expires if that
                process does not renew it.

        Raises:
            StoreError: The lease was lost to another process, or cannot be renewed; the body was cancelled.
        """
        try:
            await self.take(on_wait)
            async with _keep_renewed(self):
                yield
        finally:
            # Also after a cancelled wait, which may have taken the lease in the store. If the store is gone, the lease
            # expires.
            with suppress(StoreError):
                await asyncio.shield(self.release())

    def is_overdue(self) -> bool:
        """Whether another process may have taken the lease meanwhile; reads only a clock."""
        return self.clock.boot() >= self.valid_until

    async def renew(self) -> None:
        """Renew the lease.

        Raises:
            StoreError: Another process has taken it.
        """
        state = _State(*await self.store.update(self.key, self._try_renew))
        if state.token != self.token:
            raise StoreError(
                f"The lease on {self.name!r} was lost to another process, because this one "
                f"did not renew it for {self.ttl_s:g} s (was it suspended?). Answers so far are kept; run again."
            )
        self.valid_until = state.ends_at_boot

    async def keep_renewing(self) -> None:
        """Renew the lease for ever."""
        while True:
            await self.clock.sleep(self.ttl_s / 3)
            await self.renew()

    async def take(self, on_wait: Callable[[float], None]) -> None:
        """Wait for the lease and take it."""
        seen = _State()
        seen_at = report_at = self.clock.boot()
        while True:
            state = _State(*await self.store.update(self.key, partial(self._try_take, seen, seen_at)))
            if state.token == self.token:
                self.valid_until = state.ends_at_boot
                return
            if state != seen:
                seen, seen_at = state, self.clock.boot()
            left_s = self._left_s(state, seen_at)
            if self.clock.boot() >= report_at:
                on_wait(left_s)
                report_at = self.clock.boot() + self.ttl_s / 2
            # The lease may be released early, so it is read more often than it can expire.
            await self.clock.sleep(min(self.ttl_s / 6, max(left_s, self.ttl_s / 60)))

    async def release(self) -> None:
        """Let another process take the lease."""
        await self.store.update(self.key, self._try_release)

    def _left_s(self, state: _State, seen_at: float) -> float:
        """Seconds until the lease expires if it is not renewed; `seen_at` is when `state` was first seen."""
        if state.machine and state.machine == self.process.machine:
            return max(0.0, state.ends_at_boot - self.clock.boot())
        return max(0.0, seen_at + (state.ttl_s or self.ttl_s) - self.clock.boot())

    def _try_take(self, seen: _State, seen_at: float, numbers: Numbers | None) -> Numbers:
        state = _State(*(numbers or ()))
        if state.token in (_NO_OWNER, self.token) or has_ended(state.process):
            return self._own_state()
        left_s = self._left_s(state, seen_at if state == seen else self.clock.boot())
        return self._own_state() if left_s <= 0 else state

    def _try_renew(self, numbers: Numbers | None) -> Numbers:
        return self._own_state() if numbers is None or numbers[0] == self.token else numbers

    def _try_release(self, numbers: Numbers | None) -> Numbers:
        return _State(ends_at=self.clock.now()) if numbers is None or numbers[0] == self.token else numbers

    def _own_state(self) -> _State:
        """The numbers of the lease when this process takes or renews it now."""
        return _State(
            self.token, self.clock.now() + self.ttl_s, *self.process, self.clock.boot() + self.ttl_s, self.ttl_s
        )
