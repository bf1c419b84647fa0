"""Prompts that another run has in flight: left for later, then found in its answers or asked here after all.

A call claims its prompts in the transaction that notes it, so of all runs that share a store one asks a prompt. The
others go on with their own prompts and wait only at the end, when they claim nothing themselves: so no two runs wait
for each other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from math import inf

from ondine_core.books import Claim
from ondine_core.policy import Policy
from ondine_core.ports import AnswerStore
from ondine_core.question import Question
from ondine_core.values import Item, Key, Outcome

__all__ = ["Deferral", "look_up"]

_KEYS_A_LOOK_UP = 10_000
_MARGIN_S = 10.0
"""A call that is in flight for longer than its time-out, and by so much, is taken over."""


async def look_up(
    store: AnswerStore, policy: Policy, keys: Iterable[Key], question: Question
) -> AsyncIterator[Mapping[Key, Outcome]]:
    """What the store knows of `keys` that `policy` takes, some at a time; not what lacks a column of `question`."""
    unique = iter(keys)
    names = {column.name for column in question.schema.columns}
    while policy.reuse_since < inf and (some := list(islice(unique, _KEYS_A_LOOK_UP))):
        found = await store.get(some)
        yield {
            key: answer
            for key, answer in found.items()
            if answer.answered_at >= policy.reuse_since and answer.values.keys() == names
        }
        if not (policy.retry_failed_rows or policy.reuse_since):
            yield await store.get_failures([key for key in some if key not in found])


class Deferral:
    """Prompts of a run that wait for calls of other runs.

    Args:
        question: What is asked.
        store: Shared by the runs.
        policy: Which stored outcomes are taken.

    Attributes:
        items: The prompts that wait.
        claim: How the next call claims its prompts; `None` when the run takes no stored answer.
        overlaps: Whether another run lately had a prompt of this one: then the store is asked before each call.
    """

    def __init__(self, question: Question, store: AnswerStore, policy: Policy) -> None:
        self._question = question
        self._store = store
        self._policy = policy
        self._max_wait_s = question.model.timeout_s + _MARGIN_S
        self._answered: set[Key] = set()
        self._first_seen: dict[bytes, float] = {}
        self.items: dict[Key, Item] = {}
        self.claim = Claim(policy.reuse_since) if policy.reuse_since < inf else None
        self.overlaps = False

    def add(self, items: Iterable[Item], taken: Mapping[Key, bytes | None], now: float) -> None:
        """Defer those of `items` that a call could not claim; `taken` has the call that holds each, if one does."""
        self.overlaps = True
        for item in items:
            if item.key in taken:
                call = taken[item.key]
                self.items[item.key] = item
                if call is None:
                    self._answered.add(item.key)
                else:
                    self._first_seen.setdefault(call, now)

    async def find(self, keys: Collection[Key]) -> dict[Key, Outcome]:
        """The outcomes of `keys` that are in the store by now and that the run takes."""
        outcomes: dict[Key, Outcome] = {}
        async for found in look_up(self._store, self._policy, keys, self._question):
            outcomes |= found
        return outcomes

    async def find_taken(self, keys: Collection[Key]) -> dict[Key, bytes]:
        """Those of `keys` that another run has in flight, each with its call."""
        holders = await self._store.get_holders(list(keys))
        void = self.claim.take_over if self.claim else frozenset()
        taken = {key: holder.call for key, holder in holders.items() if holder.call not in void}
        self.overlaps = bool(taken)
        return taken

    async def free(self, now: float) -> tuple[list[Item], set[Key]]:
        """Stop deferring the prompts that no other run answers any more.

        Args:
            now: Seconds on a clock that is never set back.

        Returns:
            The prompts to be asked here, and those of them that a call of an ended or slow holder may have paid for.
        """
        # A claim that is gone by now was settled before the next look at the answers, which comes before the next call.
        holders = await self._store.get_holders(list(self.items))
        lost: dict[Key, bytes] = {}
        waiting: set[Key] = set()
        for key, holder in holders.items():
            since = self._first_seen.setdefault(holder.call, now)
            if holder.has_ended or now - since >= self._max_wait_s:
                lost[key] = holder.call
            else:
                waiting.add(key)
        freed = [item for key, item in self.items.items() if key not in waiting]
        self.items = {key: self.items[key] for key in waiting}
        if self.claim is not None:
            # The store has an answer that this run does not take, so it is asked in spite of it.
            unusable = {item.key for item in freed} & self._answered
            self.claim = replace(
                self.claim,
                take_over=self.claim.take_over | set(lost.values()),
                unusable=self.claim.unusable | unusable,
            )
        return freed, set(lost)

    def forget(self, outcomes: Mapping[Key, Outcome]) -> None:
        """Stop deferring prompts that have an outcome."""
        for key in outcomes:
            self.items.pop(key, None)
