"""Events of a run, as frozen values: the one stream that every observer reads.

An event refers to what it belongs to (a call to its batch, a batch to its run), so it is small and has every id. It
holds no prompt and no reply unless an observer asked for them, and never a secret. Events are named tuples because they
are made in the run's own thread, call by call: a frozen dataclass takes four times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple, Protocol, TypeAlias

from ondine_core.types.ledger import CallStarted, Origin
from ondine_core.types.progress import Progress
from ondine_core.types.values import Message, Usage


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A table that is asked about; two are the same only if they are one object.

    Args:
        origin: Run id, asset and partition, as in the ledger.
        model: The model that is asked first, as the user names it.
        rows: Number of rows.
        traceparent: The trace it is a part of, in W3C's notation, if the caller named one.
    """

    origin: Origin
    model: str
    rows: int
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """The model that is asked, and its address if it is another process and known; one object a model and run."""

    provider: str
    model: str
    address: str | None = None
    port: int | None = None


class AskedBatch(NamedTuple):
    """Prompts that are asked together, until all of them are settled or are asked again in smaller batches.

    `number` counts the batches of a run from 1; `attempt` is 1 when the prompts are asked for the first time.
    """

    run: Run
    endpoint: Endpoint
    number: int
    prompts: int
    attempt: int
    began_at: float


class Content(NamedTuple):
    """The text of a call: the messages sent, and the reply, if one was received."""

    messages: tuple[Message, ...]
    text: str | None


# -- events: `at` and `began_at` are in seconds since the epoch ----------------------------------------------------


class RunStarted(NamedTuple):
    """A run begins."""

    at: float
    run: Run


class Progressed(NamedTuple):
    """The progress of a run; emitted at most twice a second."""

    at: float
    run: Run
    progress: Progress


class RunEnded(NamedTuple):
    """A run is over.

    `progress` is the last one, as in the report; `None` if the run ended before it began. `error_type` and `error` say
    what ended it early, as in `CallEnded`.
    """

    at: float
    run: Run
    progress: Progress | None
    error_type: str | None = None
    error: str | None = None


class BatchEnded(NamedTuple):
    """A batch is settled, as far as it can be.

    Of its prompts some are `answered`, some have `failed` for good, and those `retried` are asked again in other
    batches; `error_type` says why no call of it brought anything, as in `CallEnded`.
    """

    at: float
    batch: AskedBatch
    answered: int
    failed: int
    retried: int
    error_type: str | None = None


class CallEnded(NamedTuple):
    """A call brought a reply, or failed.

    Args:
        sent: Its entry in the ledger: its id, why it was made, and the most that it could cost.
        duration_s: Seconds the model took.
        usage: Tokens billed; `None` if none were, or if that is not known.
        usd: What they cost, `None` when the price or the tokens are not known.
        finish_reason: The provider's word for why the reply ended.
        request_id: The provider's name for the call.
        model: The model that answered, in the provider's words.
        error_type: `"limited"`, `"overloaded"` or `"broken"` (it may be made again), `"refused"` (never as it is),
            `"fatal"` (no call succeeds), `"cancelled"`, or the name of another exception.
        error: The message of an error of ours, which holds no secret and no text of a row.
        content: The messages and the reply, if an observer asked for them.
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
    """Calls to one model that answered all their prompts, in one event for observers that do not want one for each.

    All have the same `stage` (see `CallStarted`). The first left at `began_at`, the last ended at `at`. The tuples hold
    how long each took, what it was billed for, what it cost (`None`: not known), and how long calls waited, as in
    `Held` and `Booked`.
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
    """A call is about to be made again; `attempt` 2 is the first repetition."""

    at: float
    batch: AskedBatch
    attempt: int


class Held(NamedTuple):
    """The most that a call can cost is held in every budget, after `waited_s` seconds."""

    at: float
    batch: AskedBatch
    usd: Decimal
    waited_s: float


class Booked(NamedTuple):
    """A call and its expected tokens are booked with the rate limit; its turn came after `waited_s` seconds."""

    at: float
    batch: AskedBatch
    tokens: int
    waited_s: float


class RowsFailed(NamedTuple):
    """Rows have no answer, for one reason; a fallback may still answer those that are out of reach.

    `batch` is `None` if they were not asked; `reason` and `detail` are those of `Failure`.
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
    """The fields of an event, without its time, run and batch."""
    return {name: value for name, value in event._asdict().items() if name not in {"at", "run", "batch"}}


class Observer(Protocol):
    """Takes events, one at a time, in a thread of its own; any function of an event is one.

    It may have four attributes:

    - `wants`: the event types that it receives; by default all.
    - `content`: whether calls carry their messages and replies.
    - `calls_per_second`: how many ordinary calls a second, and a hundred more at the start, it receives one by one;
      the others arrive together, as `CallsEnded`. By default all arrive one by one.
    - `close(timeout_s)`: called once, after the last event, if it was opened by name.
    """

    def __call__(self, event: Event, /) -> object:
        """Take an event."""
