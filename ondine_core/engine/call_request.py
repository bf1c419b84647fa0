"""Request and result that workers and `Caller` exchange."""

from __future__ import annotations

from dataclasses import dataclass

from ondine_core.telemetry.emitter import BatchObserver
from ondine_core.types.ledger import CallReason
from ondine_core.types.values import Answer, Batch, Call, Failure, Key

__all__ = ["BatchResult", "CallRequest"]


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


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A call to be made.

    Args:
        call: The request to the model.
        keys: Keys of the prompts it carries.
        reason: Why it is made.
        keep: Whether its answers go to the store; the ledger has the call in any case.
        observer: Receives its events.
    """

    call: Call
    keys: tuple[Key, ...]
    reason: CallReason
    keep: bool
    observer: BatchObserver
