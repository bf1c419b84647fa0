"""Request and result that workers and `Caller` exchange."""

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
    """Outcomes that a call brought, and batches to ask again."""

    answers: tuple[tuple[Key, Answer], ...] = ()
    failures: tuple[tuple[Key, Failure], ...] = ()
    retry: tuple[Batch, ...] = ()
    replies: tuple[tuple[Key, str], ...] = ()
    """What the model replied to prompts that failed, if that is to be kept."""
    taken: frozenset[Key] = frozenset()
    """Prompts for which the call was not made: another run has them in flight, or they have an answer by now."""


InterpretReply: TypeAlias = Callable[[Reply | RefusedError, Decimal | None], BatchResult]
"""From a reply or refusal, and its cost in USD, to a result."""


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A call to be made.

    Args:
        call: The request to the model.
        keys: Keys of the prompts it carries.
        stage: Why it is made.
        conclude: Interprets what comes back.
        keep: Whether its answers go to the store; the ledger has the call in any case.
        observer: Receives its events.
    """

    call: Call
    keys: tuple[Key, ...]
    stage: CallReason
    conclude: InterpretReply
    keep: bool
    observer: BatchObserver
