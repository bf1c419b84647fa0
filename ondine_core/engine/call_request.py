"""A call to be made, and what it comes to: what passes between who asks batches and who makes calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from ondine_core.errors import RefusedError
from ondine_core.telemetry.emitter import BatchObserver
from ondine_core.types.ledger import CallReason
from ondine_core.types.values import Answer, Batch, Call, Failure, Key, Reply

__all__ = ["BatchResult", "CallRequest", "InterpretReply"]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a call settled, and what is to be asked again."""

    answers: tuple[tuple[Key, Answer], ...] = ()
    failures: tuple[tuple[Key, Failure], ...] = ()
    retry: tuple[Batch, ...] = ()
    replies: tuple[tuple[Key, str], ...] = ()
    """What the model replied to prompts that failed, if that is to be kept."""
    taken: frozenset[Key] = frozenset()
    """Prompts for which the call was not made: another run has them in flight, or they have an answer by now."""


InterpretReply: TypeAlias = Callable[[Reply | RefusedError, Decimal | None], BatchResult]
"""From what came back, and what it cost in USD, to what it means."""


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A call to be made.

    Args:
        call: What is asked.
        keys: The prompts it carries.
        stage: Why it is made.
        conclude: What is made of what comes back.
        keep: Whether its answers go to the store; its place in the books it has in any case.
        observer: Hears what becomes of it.
    """

    call: Call
    keys: tuple[Key, ...]
    stage: CallReason
    conclude: InterpretReply
    keep: bool
    observer: BatchObserver
