"""A call to be made, and what it comes to: what passes between who asks batches and who makes calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TypeAlias

from ondine_core.books import Claim, Stage
from ondine_core.errors import RefusedError
from ondine_core.telemetry.feed import Told
from ondine_core.values import Answer, Batch, Call, Failure, Key, Reply

__all__ = ["Conclude", "Conclusion", "Errand"]


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What a call settled, and what is to be asked again.

    Args:
        answers: By prompt.
        failures: By prompt.
        retry: What is to be asked again.
        taken: Prompts that another run has in flight, each with its call, or has answered (`None`): the call did not
            leave.
    """

    answers: tuple[tuple[Key, Answer], ...] = ()
    failures: tuple[tuple[Key, Failure], ...] = ()
    retry: tuple[Batch, ...] = ()
    taken: Mapping[Key, bytes | None] = field(default_factory=dict)


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
        claim: How it claims its prompts, `None` when it does not.
    """

    call: Call
    keys: tuple[Key, ...]
    stage: Stage
    conclude: Conclude
    keep: bool
    told: Told
    claim: Claim | None = None
