"""Delays calls until one with the same prefix is answered, since only then the provider has the prefix in its cache."""

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
"""Number of first calls with one row among batches, or with several among single rows, that are not cached: their
prefix differs from that of the other calls, and most runs have too few of them to repay the cost of a cache entry."""

Step: TypeAlias = Literal["go", "lead", "wait"]
"""`"go"`: the prefix is in the cache; `"lead"`: the call brings it there; `"wait"`: another call brings it there."""


@dataclass(slots=True)
class PrefixState:
    """What is known of a prefix.

    Args:
        cached_until: When it leaves the cache if it is not used again.
        is_led: Whether a call that brings it into the cache is in flight.
        changed: Wakes the calls that wait for it.
    """

    cached_until: float = -inf
    is_led: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


def decide(state: PrefixState, now: float) -> Step:
    """Decide what a call with the prefix does."""
    if now < state.cached_until:
        return "go"
    return "wait" if state.is_led else "lead"


class CachedPrefixes:
    """Delays calls while another one brings their prefix into the cache.

    A prefix stays in the cache for `life_s` seconds after its last use.
    """

    def __init__(self, life_s: float, now: Callable[[], float]) -> None:
        self._life_s, self._now = life_s, now
        self._states: defaultdict[Prefix, PrefixState] = defaultdict(PrefixState)

    async def enter(self, prefix: Prefix) -> bool:
        """Wait until a call with `prefix` may leave; returns whether it leads, and must be ended with `leave`."""
        state = self._states[prefix]
        step = decide(state, self._now())
        while step == "wait":
            state.changed.clear()
            await state.changed.wait()
            step = decide(state, self._now())
        leads = step == "lead"
        state.is_led = state.is_led or leads
        return leads

    def answered(self, prefix: Prefix) -> None:
        """Record that a call with `prefix` was answered, so that the prefix is in the cache."""
        state = self._states[prefix]
        state.cached_until = self._now() + self._life_s
        state.changed.set()

    def leave(self, prefix: Prefix) -> None:
        """Record that the leading call has ended; if it was not answered, another one leads."""
        state = self._states[prefix]
        state.is_led = False
        state.changed.set()


class CacheableCalls:
    """Decides which calls begin with a prefix that is long enough to be cached."""

    def __init__(self, model: ModelSpec, count: Callable[[str], int]) -> None:
        self._rule = find_cache_rule(model)
        self._unusual_calls = 0
        # Calls have the same prefix, so its tokens are counted once.
        self._count = lru_cache(maxsize=64)(lambda prefix: sum(map(count, _texts(prefix))))

    def takes(self, call: Call, *, is_unusual: bool) -> bool:
        """Whether the prefix of `call` should be cached; `is_unusual` if most calls carry another number of rows."""
        if self._rule is None:
            return False
        if is_unusual:
            self._unusual_calls += 1
            if self._unusual_calls <= _UNUSUAL_CALLS_NOT_CACHED:
                return False
        prefix = prefix_of(call)
        # A character has at most four bytes, and a token at least one: this avoids the tokenizer for short prefixes.
        if 4 * sum(map(len, _texts(prefix))) < self._rule.min_tokens:
            return False
        return self._count(prefix) >= self._rule.min_tokens


def _texts(prefix: Prefix) -> list[str]:
    return [*(message.content for message in prefix.messages), prefix.start, (prefix.json_schema or b"").decode()]
