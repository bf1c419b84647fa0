"""A call to be made, and what it comes to: what passes between who asks batches and who makes calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from ondine_core.books import Stage
from ondine_core.errors import RefusedError
from ondine_core.telemetry.feed import Told
from ondine_core.values import Answer, Batch, Call, Failure, Key, Reply

__all__ = ["Conclude", "Conclusion", "Errand"]


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What a call settled, and what is to be asked again."""

    answers: tuple[tuple[Key, Answer], ...] = ()
    failures: tuple[tuple[Key, Failure], ...] = ()
    retry: tuple[Batch, ...] = ()
    replies: tuple[tuple[Key, str], ...] = ()
    """What the model replied to prompts that failed, if that is to be kept."""
    taken: frozenset[Key] = frozenset()
    """Prompts for which the call was not made: another run has them in flight, or they have an answer by now."""


Conclude: TypeAlias = Callable[[Reply | RefusedError, Decimal | None], Conclusion]
"""From what came back, and what it cost in USD, to what it means."""


@dataclass(frozen=True, slots=True)
class Errand:
    """A call to be made.

    Args:
        call: What is asked.
        keys: The prompts it carries.
        stage: Why it is made.
        conclude: What is made of what comes back.
        keep: Whether its answers go to the store; its place in the books it has in any case.
        told: Hears what becomes of it.
    """

    call: Call
    keys: tuple[Key, ...]
    stage: Stage
    conclude: Conclude
    keep: bool
    told: Told
