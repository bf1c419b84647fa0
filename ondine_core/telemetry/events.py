"""What happens in a run, as frozen values: the one stream that every observer reads.

An event refers to what it belongs to (a call to its batch, a batch to its run), so it is small and carries every id. It
holds no prompt and no reply unless an observer asked for them, and never a secret. Events are named tuples because
they are made in the run's own thread, call by call: a frozen dataclass takes four times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple, Protocol, TypeAlias

from ondine_core.types.ledger import CallStarted, Origin
from ondine_core.types.progress import Progress
from ondine_core.types.values import Message, Usage

__all__ = [
    "AskedBatch",
    "BatchEnded",
    "Booked",
    "CallEnded",
    "CallsEnded",
    "Content",
    "Endpoint",
    "Event",
    "Held",
    "Observer",
    "Progressed",
    "Retried",
    "RowsFailed",
    "Run",
    "RunEnded",
    "RunStarted",
    "figures_of",
]


# -- what events belong to -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A table that is asked about; two are the same only if they are one object.

    Args:
        origin: Run id, asset and partition, as in the ledger.
        model: Who is asked first, as the user names it.
        rows: How many rows there are.
        traceparent: The trace it is a part of, in W3C's notation, if the caller named one.
    """

    origin: Origin
    model: str
    rows: int
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """Who is asked, and where; one object a model and run.

    Args:
        provider: What stands before the first slash of the model's name.
        model: What the provider calls it.
        address: Host that is asked, `None` if it is this process or not known.
        port: Its port.
    """

    provider: str
    model: str
    address: str | None = None
    port: int | None = None


class AskedBatch(NamedTuple):
    """Prompts that are asked together, until all of them are settled or owed in smaller batches.

    Args:
        run: What it is part of.
        endpoint: Who is asked.
        number: Counts the batches of a run from 1.
        prompts: How many it carries.
        attempt: 1 when they are asked for the first time.
        began_at: Seconds since the epoch.
    """

    run: Run
    endpoint: Endpoint
    number: int
    prompts: int
    attempt: int
    began_at: float


class Content(NamedTuple):
    """What was said in a call: the messages sent, and the text that came back, if any did."""

    messages: tuple[Message, ...]
    text: str | None


# -- events: `at` is in seconds since the epoch --------------------------------------------------------------------


class RunStarted(NamedTuple):
    """A run begins."""

    at: float
    run: Run


class Progressed(NamedTuple):
    """How far a run is; told at most twice a second."""

    at: float
    run: Run
    progress: Progress


class RunEnded(NamedTuple):
    """A run is over.

    Args:
        at: When.
        run: Which.
        progress: What it came to, as the report has it, where there is one. `None` if it ended before it began.
        error_type: What ended it early, as in `CallEnded`; `None` if it came to its end.
        error: The same in words.
    """

    at: float
    run: Run
    progress: Progress | None
    error_type: str | None = None
    error: str | None = None


class BatchEnded(NamedTuple):
    """A batch is settled, as far as it can be.

    Args:
        at: When.
        batch: Which.
        answered: Prompts that have an answer now.
        failed: Prompts that never will.
        owed: Prompts that are asked again, in other batches.
        error_type: Why none of its calls brought anything, as in `CallEnded`.
    """

    at: float
    batch: AskedBatch
    answered: int
    failed: int
    owed: int
    error_type: str | None = None


class CallEnded(NamedTuple):
    """A call came back, or did not.

    Args:
        at: When.
        batch: What it carried.
        sent: Its entry in the ledger: its id, why it was made, and the most that it could cost.
        duration_s: Seconds the model took.
        usage: Tokens billed; `None` if none were, or if that is not known.
        usd: What they cost, `None` when the price or the tokens are not known.
        finish_reason: The provider's word for why the reply ended.
        request_id: The provider's name for the call.
        model: Who answered, in the provider's words.
        error_type: `"limited"`, `"overloaded"` or `"broken"` (it may be made again), `"refused"` (never as it is),
            `"fatal"` (no call succeeds), `"cancelled"`, or the name of another exception.
        error: The same in words, without a secret and without the text of a row, where it is an error of ours.
        content: What was said, if an observer asked for it.
    """

    at: float
    batch: AskedBatch
    sent: CallStarted
    duration_s: float
    usage: Usage | None = None
    usd: Decimal | None = None
    finish_reason: str | None = None
    request_id: str | None = None
    model: str | None = None
    error_type: str | None = None
    error: str | None = None
    content: Content | None = None


class CallsEnded(NamedTuple):
    """Calls to one model that answered all their prompts, in one event for an observer that wants none for each.

    Args:
        at: When the last came.
        run: What they were made for.
        endpoint: Who was asked.
        stage: Why they were made, as in `CallStarted`.
        began_at: When the first left, in seconds since the epoch.
        prompts: How many they carried.
        durations_s: Seconds that each took; as many as there were calls.
        usages: Tokens that each was billed for.
        usds: What each cost, `None` when the price is not known.
        held_s: Seconds that they waited for budgets, as in `Held`.
        booked_s: Seconds that they waited for the rate limit, as in `Booked`.
    """

    at: float
    run: Run
    endpoint: Endpoint
    stage: str
    began_at: float
    prompts: int
    durations_s: tuple[float, ...]
    usages: tuple[Usage, ...]
    usds: tuple[Decimal | None, ...]
    held_s: tuple[float, ...] = ()
    booked_s: tuple[float, ...] = ()


class Retried(NamedTuple):
    """A call is about to be made again, for the time that `attempt` says (2 is the first repetition)."""

    at: float
    batch: AskedBatch
    attempt: int


class Held(NamedTuple):
    """The most that a call can cost is held in every budget; that took `waited_s` seconds."""

    at: float
    batch: AskedBatch
    usd: Decimal
    waited_s: float


class Booked(NamedTuple):
    """A call and its expected tokens are booked with the rate limit, and its turn has come after `waited_s` seconds."""

    at: float
    batch: AskedBatch
    tokens: int
    waited_s: float


class RowsFailed(NamedTuple):
    """Rows have no answer, for one reason; those out of reach may be answered by a fallback yet.

    Args:
        at: When.
        run: Whose rows.
        batch: What they were asked in; `None` if they were not asked.
        reason: Why, in a word, as in `Failure`.
        detail: The same in a line, without the text of a row.
        rows: How many.
    """

    at: float
    run: Run
    batch: AskedBatch | None
    reason: str
    detail: str
    rows: int


Event: TypeAlias = (
    RunStarted | Progressed | RunEnded | BatchEnded | CallEnded | CallsEnded | Retried | Held | Booked | RowsFailed
)


def figures_of(event: BatchEnded | Retried | Held | Booked | RowsFailed) -> dict[str, Any]:
    """What an event says, beyond when it was and what it belongs to."""
    return {name: value for name, value in event._asdict().items() if name not in {"at", "run", "batch"}}


class Observer(Protocol):
    """Takes events, one at a time, in a thread of its own; any function of an event is one.

    Four attributes are heeded if it has them:

    - `wants`: the event types that it is told of; by default all.
    - `content`: whether calls carry what was said.
    - `calls_per_second`: how many ordinary calls a second it is told of one by one (and a hundred more at the start),
      with their batches, reservations and bookings; of others it is told together, as `CallsEnded`. By default it is
      told of all one by one.
    - `close(timeout_s)`: called once, after the last event, if it was opened by name.
    """

    def __call__(self, event: Event, /) -> object:
        """Take an event."""
