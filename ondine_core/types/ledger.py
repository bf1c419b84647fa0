"""Frozen values of the ledger: every call is recorded before it leaves and settled once its outcome is seen.

A call that was started and never finished is what a crash may have cost, so the ledger is exact after one. What is made
for every call is a named tuple, here and in the engine: a frozen dataclass takes four times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple, TypeAlias

from ondine_core.types.values import Answer, Failure, Key, Usage

CallReason: TypeAlias = Literal["ask", "repair", "split", "retry", "calibrate"]
"""Why a call is made: for the first time; with what was wrong; in smaller batches; after it got lost; to compare."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of calls: a run, and the asset and partition it fills."""

    run: str
    asset: str = ""
    partition: str = ""


NO_ORIGIN = Origin("")
"""Of calls that are made for nothing in particular."""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run, or a batch job, as it is announced to the others that ask the same.

    Args:
        run: What the identities of all its calls begin with, 8 bytes.
        task: What it asks, see `CallStarted.task`.
        process: Where it is; empty for a batch job, which is in no process.
        lease: The lease it holds. A run that held it before has lost it, and its prompts in flight may be asked again.
        origin: The run, asset and partition that ask.
        definition: What it asks, without the rows; see `definition.write_definition`.
    """

    run: bytes
    task: bytes
    process: tuple[float, ...] = ()
    lease: str = ""
    origin: Origin = NO_ORIGIN
    definition: bytes = b""


class CallStarted(NamedTuple):
    """A call that is about to leave, as it is noted before it does.

    Args:
        call: Its identity, 16 bytes that no other call has.
        origin: The run, asset and partition that it is made for.
        model: The model that is asked.
        stage: Why it is made.
        keys: The prompts it carries.
        sent_at: Seconds since the epoch.
        at_most_usd: The most it can cost, `None` when that is not known.
        task: Identifies what is asked, all but the prompts' own text; calls of two runs can carry the same prompts
            only if it is the same. Empty for a call that repeats on purpose what may be known.
        is_shared: Whether other runs are known to ask the same question, or to have asked it since this one began.
        is_unanswered: Whether the prompts were just looked for in vain among the answers.
        batch: Of a request of a batch job: how its prompts were put together, so that its reply can be read later.
    """

    call: bytes
    origin: Origin
    model: str
    stage: CallReason
    keys: tuple[Key, ...]
    sent_at: float
    at_most_usd: Decimal | None = None
    task: bytes = b""
    is_shared: bool = False
    is_unanswered: bool = False
    batch: bytes | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A prompt that another run has in flight.

    `run` is what the identities of all calls of that run begin with; a batch job is in no `process`.
    """

    call: bytes
    run: bytes
    process: tuple[float, ...]


class CallFinished(NamedTuple):
    """The outcome of a call whose end was seen; a call without this entry is known only to have been sent.

    Args:
        sent: The call.
        outcome: `"answered"` if the model replied, `"refused"` if the provider turned the call away.
        usage: Tokens billed.
        usd: What they cost, `None` when the price is unknown.
        answers: Prompts it settled with an answer.
        failures: Prompts it settled for good without one.
        paid_twice: How many of the answers had been asked for before by a call whose outcome was never seen.
        reuse_since: Answers from before this moment (seconds since the epoch) were not reused: a failure replaces them,
            but not later ones.
        at_most: Whether the true cost may be less than `usd`.
        replies: The replies to some of the prompts that failed, sanitized, to be kept.
    """

    sent: CallStarted
    outcome: Literal["answered", "refused"]
    usage: Usage = Usage()
    usd: Decimal | None = Decimal(0)
    answers: tuple[tuple[Key, Answer], ...] = ()
    failures: tuple[tuple[Key, Failure], ...] = ()
    paid_twice: int = 0
    reuse_since: float = 0.0
    at_most: bool = False
    replies: tuple[tuple[Key, str], ...] = ()


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Totals of the calls of one kind in the ledger.

    `usd` is `None` when a price is unknown; `at_most_calls` are in it with the most that they can cost.
    """

    calls: int = 0
    usage: Usage = Usage()
    usd: Decimal | None = Decimal(0)
    at_most_calls: int = 0

    def __add__(self, other: UsageTotals) -> UsageTotals:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        at_most_calls = self.at_most_calls + other.at_most_calls
        return UsageTotals(self.calls + other.calls, self.usage + other.usage, usd, at_most_calls)


@dataclass(frozen=True, slots=True)
class Audit:
    """The ledger of one run, as the store has it: exact also after the process was killed.

    Args:
        answered: Calls with a reply.
        refused: Calls that the provider refused, or that were interrupted before they left.
        unknown: Calls sent whose outcome was never seen; their `usd` is the most they can have cost.
        paid_twice: Prompts answered that such a call had asked for before.
        in_jobs: Requests of batch jobs that have no outcome yet; their `usd` is the most they can cost.
    """

    answered: UsageTotals = UsageTotals()
    refused: UsageTotals = UsageTotals()
    unknown: UsageTotals = UsageTotals()
    paid_twice: int = 0
    in_jobs: UsageTotals = UsageTotals()

    @property
    def sent(self) -> int:
        """All calls, as they were recorded before they left."""
        return self.answered.calls + self.refused.calls + self.unknown.calls + self.in_jobs.calls
