"""Defers prompts that other runs of the same task have in flight, until they are answered there or taken over.

The store has the prompts that each run has in flight (`store.claims`), and is read at intervals. A prompt is asked here
when its run has released it, when the process of that run is known to have ended, or when one call has been in flight
for longer than a call can take. A run waits only when it has nothing else to ask, and holds no claim while it waits, so
there is no deadlock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from ondine_core.errors import StoreError
from ondine_core.types.ledger import Claim, RunStarted
from ondine_core.types.processes import Process, has_ended
from ondine_core.types.protocols import AnswerStore
from ondine_core.types.values import Item, Key, Outcome

_LOOK_EVERY_S = 0.5
_FIRST_WAIT_S, _MAX_WAIT_S = 0.05, 1.0
_MARGIN_S = 30.0
"""Time beyond the time-out of a call, after which its prompts are taken over."""


@dataclass(frozen=True, slots=True)
class LookupResult:
    """The states of prompts in the store.

    Args:
        found: Outcomes by key.
        free: Prompts without an outcome that no other run has in flight.
        held: Prompts that another run has in flight.

    Prompts that a batch job has in flight are in none of these, but in `OtherRuns.in_jobs`.
    """

    found: Mapping[Key, Outcome]
    free: tuple[Item, ...]
    held: tuple[Item, ...]


@dataclass(slots=True)
class OtherRuns:
    """The other runs of the same task, as this run knows them.

    Attributes:
        is_shared: Whether another run is known, now or since this one was announced.
        taken_over: Prompts that were taken over from another run; they may be paid twice.
        in_jobs: Prompts that are left to batch jobs, and these jobs.
        lock: Held by the one task that waits for other runs.
    """

    store: AnswerStore
    own: RunStarted
    look_up: Callable[[Iterable[Key]], AsyncIterator[Mapping[Key, Outcome]]]
    elapsed: Callable[[], float]
    timeout_s: float
    is_shared: bool = field(default=False, init=False)
    taken_over: set[Key] = field(default_factory=set, init=False)
    in_jobs: dict[Key, bytes] = field(default_factory=dict, init=False)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _waiting: dict[Key, Item] = field(default_factory=dict, init=False)
    _seen: dict[Key, tuple[bytes, float]] = field(default_factory=dict, init=False)
    _unreadable: set[Key] = field(default_factory=set, init=False)
    _freed: set[Key] = field(default_factory=set, init=False)
    _next_look: float = field(default=0.0, init=False)
    _wait_s: float = field(default=_FIRST_WAIT_S, init=False)

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[None]:
        """Announce this run while the body runs."""
        try:
            others = await self.store.join(self.own)
            self.is_shared = bool(others.keys() - await self._forget_ended(others))
            yield
        finally:
            with suppress(StoreError):  # without the store there are no claims, and they end with the process
                await asyncio.shield(self.store.leave(self.own.run))

    def has_unreadable(self, keys: Iterable[Key]) -> bool:
        """Whether the store has an answer to one of `keys` that cannot be read; such an answer counts as none."""
        return not self._unreadable.isdisjoint(keys)

    def defer(self, items: Iterable[Item]) -> None:
        """Put off prompts that another run has in flight, or has answered meanwhile."""
        if not self._waiting:
            self._next_look = self.elapsed() + _LOOK_EVERY_S
        self._waiting |= {item.key: item for item in items}

    @property
    def is_waiting(self) -> bool:
        """Whether there are deferred prompts."""
        return bool(self._waiting)

    def is_due(self) -> bool:
        """Whether it is time to look up the deferred prompts, while others are still to be asked."""
        return bool(self._waiting) and self.elapsed() >= self._next_look

    def next_wait_s(self) -> float:
        """Seconds to wait before the next look-up when there is nothing else to ask; doubled each time."""
        wait_s = self._wait_s
        self._wait_s = min(2 * wait_s, _MAX_WAIT_S)
        return wait_s

    async def look_again(self) -> LookupResult:
        """Look up the deferred prompts; the caller must defer again those that are still held."""
        items = tuple(self._waiting.values())
        self._waiting = {}
        result = await self.look(items)
        # A prompt that is free for the first time may just have been released. One that is free again was deferred in
        # between because the store has an answer to it, so this answer cannot be read.
        free = {item.key for item in result.free}
        self._unreadable |= free & self._freed
        self._freed |= free
        if result.found or result.free:
            self._wait_s = _FIRST_WAIT_S
        return result

    async def look(self, items: Sequence[Item]) -> LookupResult:
        """Find out which prompts have an outcome, which are in flight elsewhere, and which are free.

        Claims are read before answers: if the claim on a prompt is gone, its answer is already stored.
        """
        claims = await self.store.get_claims([item.key for item in items])
        claims = {key: claim for key, claim in claims.items() if claim.run != self.own.run}
        found: dict[Key, Outcome] = {}
        async for outcomes in self.look_up(item.key for item in items):
            found |= outcomes
        claims = {key: claim for key, claim in claims.items() if key not in found}
        in_jobs = {key: claim.run for key, claim in claims.items() if not claim.process}
        held = await self._find_held({key: claim for key, claim in claims.items() if claim.process})
        for item in items:
            if item.key not in held:
                self._seen.pop(item.key, None)
        self.in_jobs |= in_jobs
        taken = found.keys() | held | in_jobs.keys()
        return LookupResult(
            found,
            tuple(item for item in items if item.key not in taken),
            tuple(item for item in items if item.key in held),
        )

    async def leave_to_jobs(self, keys: Sequence[Key]) -> None:
        """Leave those of `keys` that batch jobs have in flight to these jobs."""
        claims = await self.store.get_claims(keys)
        self.in_jobs |= {key: claim.run for key, claim in claims.items() if not claim.process}

    async def _find_held(self, claims: Mapping[Key, Claim]) -> set[Key]:
        """The claimed prompts that are to be waited for; the others are taken over."""
        ended = await self._forget_ended({claim.run: claim.process for claim in claims.values()})
        now = self.elapsed()
        overdue = set[bytes]()
        for key, claim in claims.items():
            call, seen_at = self._seen.get(key, (b"", now))
            if call != claim.call:
                seen_at = now
            self._seen[key] = (claim.call, seen_at)
            if now - seen_at > self.timeout_s + _MARGIN_S:
                overdue.add(claim.call)
        if overdue:
            await self.store.release(sorted(overdue))
        held = {key for key, claim in claims.items() if claim.run not in ended and claim.call not in overdue}
        self.taken_over |= claims.keys() - held
        return held

    async def _forget_ended(self, runs: Mapping[bytes, Sequence[float]]) -> set[bytes]:
        """Withdraw the runs whose process is known to have ended; returns them."""
        processes = {Process(*process) for process in runs.values() if process}  # hundreds of runs may be of one
        gone = {process for process in processes if has_ended(process)}
        ended = {run for run, process in runs.items() if tuple(process) in gone}
        if ended:
            await self.store.leave(*sorted(ended))
        return ended
