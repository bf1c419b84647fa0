"""One call first, then the others: a provider has a prefix in its cache only once a call with it is answered."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from typing import Literal, TypeAlias

from ondine_core.providers.prompt_cache import Prefix, find_cache_rule, prefix_of
from ondine_core.types.values import Call, ModelSpec

_UNUSUAL_CALLS_NOT_CACHED = 2
"""The first calls with one row among batches, or with several among single rows, are not cached: their prefix differs
from that of the other calls, and most runs have too few of them to repay what writing a cache entry costs."""

Step: TypeAlias = Literal["go", "lead", "wait"]
"""What a call does: it finds its prefix in the cache; it is the one that brings it there; it waits for that."""


@dataclass(slots=True)
class PrefixState:
    """What is known of a prefix.

    Args:
        cached_until: Until when it is in the cache if it is not used again.
        is_led: Whether a call is on its way that brings it there.
        changed: Tells calls that wait for that to look again.
    """

    cached_until: float = -inf
    is_led: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


def decide(state: PrefixState, now: float) -> Step:
    """What a call with the prefix does."""
    if now < state.cached_until:
        return "go"
    return "wait" if state.is_led else "lead"


class CachedPrefixes:
    """Holds calls back while another brings their prefix into the cache.

    It stays there for `life_s` seconds from its last use.
    """

    def __init__(self, life_s: float, now: Callable[[], float]) -> None:
        self._life_s, self._now = life_s, now
        self._states: defaultdict[Prefix, PrefixState] = defaultdict(PrefixState)

    async def enter(self, prefix: Prefix) -> bool:
        """Wait until a call with `prefix` may leave; returns whether it leads, and has to be ended with `leave`."""
        state = self._states[prefix]
        while (step := decide(state, self._now())) == "wait":
            state.changed.clear()
            await state.changed.wait()
        state.is_led = state.is_led or step == "lead"
        return step == "lead"

    def answered(self, prefix: Prefix) -> None:
        """A call with `prefix` was answered: it is in the cache now, and stays there from now on."""
        state = self._states[prefix]
        state.cached_until = self._now() + self._life_s
        state.changed.set()

    def leave(self, prefix: Prefix) -> None:
        """The call that led is over; if it was not answered, another leads."""
        state = self._states[prefix]
        state.is_led = False
        state.changed.set()


class CacheableCalls:
    """Tells which calls begin with a part that is long enough to be cached."""

    def __init__(self, model: ModelSpec, count: Callable[[str], int]) -> None:
        self._rule = find_cache_rule(model)
        self._unusual_calls = 0
        # All calls have it in common, so it is counted once.
        self._count = lru_cache(maxsize=64)(lambda prefix: sum(map(count, _texts(prefix))))

    def takes(self, call: Call, *, is_unusual: bool) -> bool:
        """Whether the prefix of `call` is cached; `is_unusual` if most calls carry another number of rows."""
        if self._rule is None:
            return False
        if is_unusual:
            self._unusual_calls += 1
            if self._unusual_calls <= _UNUSUAL_CALLS_NOT_CACHED:
                return False
        prefix = prefix_of(call)
        # No token is shorter than a byte, and no character longer than four: that needs no tokenizer.
        if 4 * sum(map(len, _texts(prefix))) < self._rule.min_tokens:
            return False
        return self._count(prefix) >= self._rule.min_tokens


def _texts(prefix: Prefix) -> list[str]:
    return [*(message.content for message in prefix.messages), prefix.start, (prefix.json_schema or b"").decode()]
