"""Frozen values of the ledger: every call is recorded before it leaves and settled once its outcome is seen.

The calls that were started and never finished are what a crash may have cost. Values made for every call are named
tuples, here and in the engine: making a frozen dataclass takes four times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple, TypeAlias

from ondine_core.types.values import Answer, Failure, Key, Usage

CallReason: TypeAlias = Literal["ask", "repair", "split", "retry", "calibrate"]
"""Why a call is made: `"ask"` for the first time, `"repair"` with what was wrong with the last reply, `"split"` in
smaller batches, `"retry"` after its reply was lost, `"calibrate"` to compare answers."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of calls: a run, and the asset and partition it fills."""

    run: str
    asset: str = ""
    partition: str = ""


NO_ORIGIN = Origin("")
"""The origin of calls that are made outside a run."""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run, or a batch job, as it is announced to other runs of the same task.

    Args:
        run: Id of the run, 8 bytes; the ids of all its calls begin with them.
        task: Id of what is asked, see `CallStarted.task`.
        process: The process of the run; empty for a batch job.
        lease: The lease that the run holds. A run that held it before has lost it: its prompts in flight are released.
        origin: The run, asset and partition that ask.
        definition: What is asked, without the rows; see `definition.write_definition`.
    """

    run: bytes
    task: bytes
    process: tuple[float, ...] = ()
    lease: str = ""
    origin: Origin = NO_ORIGIN
    definition: bytes = b""


class CallStarted(NamedTuple):
    """A call as it is recorded before it leaves.

    Args:
        call: Id of the call, 16 unique bytes.
        origin: The run, asset and partition for which it is made.
        model: The model that is asked.
        stage: Why it is made.
        keys: The prompts it carries.
        sent_at: Seconds since the epoch.
        at_most_usd: Maximum cost of the call, `None` if unknown.
        task: Id of everything that is asked except the texts of prompts: only calls of the same task can carry the same
            prompts. Empty for a call that repeats known prompts on purpose.
        is_shared: Whether another run of the same task is known, now or since this run began.
        ignores_answers: Whether the call leaves although the store may have answers to its prompts, since they cannot
            be read or are not reused.
        batch: How the prompts of a request of a batch job were put together, so that its reply can be read later.
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
    ignores_answers: bool = False
    batch: bytes | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A prompt that another run has in flight, in the call `call`.

    The ids of all calls of that run begin with `run`; `process` is empty for a batch job.
    """

    call: bytes
    run: bytes
    process: tuple[float, ...]


class CallFinished(NamedTuple):
    """The outcome of a call; without one, a call is known only to have been sent.

    Args:
        sent: The call.
        outcome: `"answered"` if the model replied, `"refused"` if the provider refused the call.
        usage: Tokens billed.
        usd: Their cost, `None` if the price is unknown.
        answers: Prompts that are answered.
        failures: Prompts that failed and are not asked again.
        paid_twice: Number of answers whose prompts were also in an earlier call of unknown outcome.
        reuse_since: Seconds since the epoch. A failure replaces answers from before, which were not reused, and none
            from after.
        at_most: Whether the true cost may be less than `usd`.
        replies: Sanitized replies to keep, of some of the prompts that failed.
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

    `usd` is `None` if a price is unknown; it contains `at_most_calls` calls at their maximum cost.
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
    """The ledger of one run, exact also after the process was killed.

    Args:
        answered: Calls with a reply.
        refused: Calls that the provider refused, or that were interrupted before they left.
        unknown: Calls that were sent and whose outcome was never seen, at their maximum cost.
        paid_twice: Number of answered prompts that were also in an earlier call of unknown outcome.
        in_jobs: Requests of batch jobs that have no outcome yet, at their maximum cost.
    """

    answered: UsageTotals = UsageTotals()
    refused: UsageTotals = UsageTotals()
    unknown: UsageTotals = UsageTotals()
    paid_twice: int = 0
    in_jobs: UsageTotals = UsageTotals()

    @property
    def sent(self) -> int:
        """Number of calls recorded as sent."""
        return self.answered.calls + self.refused.calls + self.unknown.calls + self.in_jobs.calls
