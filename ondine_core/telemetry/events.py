"""Events of a run, as frozen values: the one stream that every observer reads.

An event refers to the object it belongs to (a call to its batch, a batch to its run), so it is small and has all ids.
It has no prompt and no reply unless an observer asked for them, and never a secret. Events are named tuples because
they are made in the run's own thread, call by call: a frozen dataclass takes four times as long.
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
    """A run over a table; runs are equal only if they are one object.

    Args:
        origin: Run id, asset and partition, as in the ledger.
        model: The first model, as the user names it.
        rows: Number of rows.
        traceparent: The trace that the run belongs to, in W3C's notation, if the caller named one.
    """

    origin: Origin
    model: str
    rows: int
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """The model that is asked, and its host and port if they are known; one object a model and run."""

    provider: str
    model: str
    address: str | None = None
    port: int | None = None


class AskedBatch(NamedTuple):
    """Prompts that are asked together.

    `number` counts the batches of a run from 1; `attempt` is 1 if the prompts are asked for the first time.
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

    `progress` is the last one, as in the report; `None` if there was none. `error_type` and `error` say why it ended
    early, as in `CallEnded`.
    """

    at: float
    run: Run
    progress: Progress | None
    error_type: str | None = None
    error: str | None = None


class BatchEnded(NamedTuple):
    """A batch is over.

    The numbers are those of its prompts that are `answered`, have `failed` finally, or are asked again in other batches
    (`retried`). `error_type` says why the batch has no reply, as in `CallEnded`.
    """

    at: float
    batch: AskedBatch
    answered: int
    failed: int
    retried: int
    error_type: str | None = None


class CallEnded(NamedTuple):
    """A call got a reply, or failed.

    Args:
        sent: Its entry in the ledger: its id, the reason for it, and the most that it could cost.
        duration_s: Seconds that the model took.
        usage: Tokens billed; `None` if none were, or if that is not known.
        usd: The cost; `None` if the price or the tokens are not known.
        finish_reason: The provider's finish reason.
        request_id: The provider's id of the call.
        model: The provider's name of the model that answered.
        error_type: `"limited"`, `"overloaded"` or `"broken"` (the call may be made again), `"refused"` (never as it
            is), `"fatal"` (no call succeeds), `"cancelled"`, or the name of another exception.
        error: The message of an error of our own, which contains no secret and no text of a row.
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
    """Calls to one model that answered all their prompts, gathered for observers that limit calls a second.

    All have the same `stage` (see `CallStarted`). The first was sent at `began_at`, the last ended at `at`. The tuples
    have the durations, billed tokens and costs (`None`: not known) of the calls, and their waits as in `Held` and
    `Booked`.
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
    """The most that a call can cost is reserved in all budgets, after a wait of `waited_s` seconds."""

    at: float
    batch: AskedBatch
    usd: Decimal
    waited_s: float


class Booked(NamedTuple):
    """The rate limit admits a call with its expected tokens, after a wait of `waited_s` seconds."""

    at: float
    batch: AskedBatch
    tokens: int
    waited_s: float


class RowsFailed(NamedTuple):
    """Rows have no answer, for one reason; a fallback may still answer rows that the model could not be asked about.

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
    """A function of an event, which is called for one event at a time in a thread of its own.

    It may have four attributes:

    - `wants`: the event types that it receives; by default all.
    - `content`: whether events of calls have their messages and replies.
    - `calls_per_second`: the number of ordinary calls a second, and a hundred more at the start, that it receives one
      by one; the others arrive together, as `CallsEnded`. By default all arrive one by one.
    - `close(timeout_s)`: called once, after the last event, if the observer was opened by name.
    """

    def __call__(self, event: Event, /) -> object:
        """Take an event."""
