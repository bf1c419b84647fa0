"""Prompts that other runs of the same task have in flight are asked last: they are answered there, or taken over.

The store has the prompts that each run has in flight (`store.claims`), and is read again at intervals. A prompt is
asked here when its run has released it, when the process of that run is known to have ended, or when one call has been
in flight for longer than a call can take. A run waits only when it has nothing else to ask, and holds no claim while it
waits, so runs never wait for each other in a circle.
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
"""How much longer than its time-out a call may take, before its prompts are taken over."""


@dataclass(frozen=True, slots=True)
class LookupResult:
    """What a look at some prompts found.

    Args:
        found: Outcomes that the store has by now.
        free: Prompts without an outcome that no other run has in flight.
        held: Prompts that another run has in flight.

    Prompts that a batch job has in flight are in none of these, but in `OtherRuns.in_jobs`.
    """

    found: Mapping[Key, Outcome]
    free: tuple[Item, ...]
    held: tuple[Item, ...]


@dataclass(slots=True)
class OtherRuns:
    """The runs that ask the same question at the same time, as one of them sees them.

    Attributes:
        is_shared: Whether there are other runs, or have been since this one was announced, as far as is known.
        taken_over: Prompts that another run had in flight and that were taken over; they may be paid twice.
        in_jobs: Prompts that were left to batch jobs, and those jobs.
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
        """Run the body while this run is announced."""
        try:
            others = await self.store.join(self.own)
            self.is_shared = bool(others.keys() - await self._forget_ended(others))
            yield
        finally:
            with suppress(StoreError):  # if the store is gone, so are the claims, or they end with the process
                await asyncio.shield(self.store.leave(self.own.run))

    def is_known_unanswered(self, keys: Iterable[Key]) -> bool:
        """Whether the store's answer to one of `keys` cannot be read, so that its being there says nothing."""
        return not self._unreadable.isdisjoint(keys)

    def defer(self, items: Iterable[Item]) -> None:
        """Leave prompts for later that another run has in flight, or has answered meanwhile."""
        if not self._waiting:
            self._next_look = self.elapsed() + _LOOK_EVERY_S
        self._waiting |= {item.key: item for item in items}

    @property
    def is_waiting(self) -> bool:
        """Whether prompts were left for later."""
        return bool(self._waiting)

    def is_due(self) -> bool:
        """Whether it is time to look for the prompts that were left for later, while others are still to be asked."""
        return bool(self._waiting) and self.elapsed() >= self._next_look

    def next_wait_s(self) -> float:
        """How long to wait before the next look when nothing else is left to do: longer from look to look."""
        wait_s, self._wait_s = self._wait_s, min(2 * self._wait_s, _MAX_WAIT_S)
        return wait_s

    async def look_again(self) -> LookupResult:
        """Look for the prompts that were left for later; the caller defers again those that are still held."""
        items, self._waiting = tuple(self._waiting.values()), {}
        looked = await self.look(items)
        # One look-up is not enough: the run that had it may just have released it.
        free = {item.key for item in looked.free}
        self._unreadable |= free & self._freed
        self._freed |= free
        if looked.found or looked.free:
            self._wait_s = _FIRST_WAIT_S
        return looked

    async def look(self, items: Sequence[Item]) -> LookupResult:
        """Find out of some prompts which are answered, in flight elsewhere, or neither.

        Claims are read before answers: a prompt whose claim is gone has its answer by then.
        """
        claims = await self.store.get_claims([item.key for item in items])
        claims = {key: claim for key, claim in claims.items() if claim.run != self.own.run}
        found: dict[Key, Outcome] = {}
        async for some in self.look_up(item.key for item in items):
            found |= some
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
        """Leave those of `keys` to batch jobs that they have in flight."""
        claims = await self.store.get_claims(keys)
        self.in_jobs |= {key: claim.run for key, claim in claims.items() if not claim.process}

    async def _find_held(self, claims: Mapping[Key, Claim]) -> set[Key]:
        """Those of the claimed prompts that are still to be waited for; the others are taken over."""
        ended = await self._forget_ended({claim.run: claim.process for claim in claims.values()})
        now, overdue = self.elapsed(), set[bytes]()
        for key, claim in claims.items():
            call, since = self._seen.get(key, (b"", now))
            self._seen[key] = (claim.call, since if call == claim.call else now)
            if now - self._seen[key][1] > self.timeout_s + _MARGIN_S:
                overdue.add(claim.call)
        if overdue:
            await self.store.release(sorted(overdue))
        held = {key for key, claim in claims.items() if claim.run not in ended and claim.call not in overdue}
        self.taken_over |= claims.keys() - held
        return held

    async def _forget_ended(self, runs: Mapping[bytes, Sequence[float]]) -> set[bytes]:
        """Remove the claims of runs whose process is known to have ended."""
        ended = {run for run, process in runs.items() if process and has_ended(Process(*process))}
        if ended:
            await self.store.leave(*sorted(ended))
        return ended
