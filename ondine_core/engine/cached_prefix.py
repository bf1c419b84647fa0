"""One call first, then the others: a provider has a prefix in its cache only once a call with it is answered."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Literal, TypeAlias

from ondine_core.providers.prompt_cache import Prefix

__all__ = ["CachedPrefixes", "PrefixState", "Step", "decide"]

Step: TypeAlias = Literal["go", "lead", "wait"]
"""What a call does: it finds its prefix in the cache; it is the one that brings it there; it waits for that."""


@dataclass(slots=True)
class PrefixState:
    """What is known of a prefix.

    Args:
        cached_until: Until when it is in the cache if it is not used again.
        is_led: Whether a call is on its way that brings it there.
        waiting: Calls that wait for that.
    """

    cached_until: float = -inf
    is_led: bool = False
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


def decide(state: PrefixState, now: float) -> Step:
    """What a call with the prefix does."""
    if now < state.cached_until:
        return "go"
    return "wait" if state.is_led else "lead"


class CachedPrefixes:
    """Holds calls back while another brings their prefix into the cache.

    Args:
        life_s: Seconds from its last use for which a prefix stays there.
        now: Seconds.
    """

    def __init__(self, life_s: float, now: Callable[[], float]) -> None:
        self._life_s, self._now = life_s, now
        self._states: defaultdict[Prefix, PrefixState] = defaultdict(PrefixState)

    async def enter(self, prefix: Prefix) -> bool:
        """Return when a call with `prefix` may leave, and whether it leads: then it is handed back with `leave`."""
        state = self._states[prefix]
        while (step := decide(state, self._now())) == "wait":
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            state.waiting.append(future)
            await future
        state.is_led = state.is_led or step == "lead"
        return step == "lead"

    def answered(self, prefix: Prefix) -> None:
        """A call with `prefix` was answered: it is in the cache now, and stays there from now on."""
        state = self._states[prefix]
        state.cached_until = self._now() + self._life_s
        _wake(state)

    def leave(self, prefix: Prefix) -> None:
        """The call that led is over; if it was not answered, another leads."""
        state = self._states[prefix]
        state.is_led = False
        _wake(state)


def _wake(state: PrefixState) -> None:
    for future in state.waiting:
        if not future.done():
            future.set_result(None)
    state.waiting.clear()
