"""Turns what the engine does into events: an `EventEmitter` for each model of a run, a `BatchObserver` for each batch.

In a run without observers both do nothing, so that no events are made.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal
from itertools import count
from typing import TypeAlias
from urllib.parse import urlsplit

from ondine_core.errors import FatalError, OndineError, RefusedError, TransientError
from ondine_core.telemetry.call_aggregator import CallAggregator
from ondine_core.telemetry.call_sampler import Sampler
from ondine_core.telemetry.events import (
    AskedBatch,
    BatchEnded,
    Booked,
    CallEnded,
    Content,
    Endpoint,
    Event,
    Held,
    Retried,
    RowsFailed,
    Run,
)
from ondine_core.types.clock import Clock
from ondine_core.types.ledger import CallStarted
from ondine_core.types.values import Batch, Call, Failure, ModelSpec, Reply

__all__ = ["BatchObserver", "EventEmitter", "LiveEventEmitter", "error_type_of", "error_words_of", "find_endpoint"]

Failed: TypeAlias = Iterable[tuple[Failure, int]]
"""Failures, and how many rows have each."""


class BatchObserver:
    """Reports the outcome of a batch; this one does nothing."""

    __slots__ = ()

    def held(self, usd: Decimal, waited_s: float) -> None:
        """The most that a call can cost is held."""

    def booked(self, tokens: int, waited_s: float) -> None:
        """A call's turn has come."""

    def retried(self) -> None:
        """A call is about to be made again."""

    def on_reply(  # noqa: PLR0913  (one caller)
        self,
        sent: CallStarted,
        call: Call,
        came: Reply | BaseException,
        usd: Decimal | None,
        duration_s: float,
        *,
        ordinary: bool = False,
    ) -> None:
        """A call came back with a reply, ordinary if all its prompts have an answer now, or failed."""

    def rows_failed(self, failed: Failed) -> None:
        """Rows of the batch have no answer."""

    def ended(self, answered: int, failed: int, owed: int, error: BaseException | None = None) -> None:
        """So many prompts have an answer, never will, or are owed one by other batches."""


class EventEmitter:
    """Reports what happens with one model in a run; this one does nothing."""

    def begin(self, batch: Batch) -> BatchObserver:  # noqa: ARG002  (for those who listen)
        """Somebody begins to ask a batch."""
        return _NOBODY

    def rows_failed(self, failed: Failed) -> None:
        """Rows have no answer, and are not asked."""


_NOBODY = BatchObserver()


class LiveEventEmitter(EventEmitter):
    """Makes events.

    Args:
        emit: Takes them; it neither waits nor fails.
        run: The run.
        endpoint: Who is asked.
        numbers: Numbers for batches.
        sampler: Chooses the ordinary batches that are told one by one.
        clock: Time.
        content: Whether calls carry what was said.
    """

    def __init__(  # noqa: PLR0913  (one caller)
        self,
        emit: Callable[[Event], None],
        run: Run,
        endpoint: Endpoint,
        *,
        numbers: count[int],
        sampler: Sampler,
        clock: Clock,
        content: bool,
    ) -> None:
        self.emit = emit
        self._run = run
        self._endpoint = endpoint
        self._numbers = numbers
        self._sampler = sampler
        self.now, self.content = clock.now, content
        self._rest: dict[str, CallAggregator] = {}

    def begin(self, batch: Batch) -> BatchObserver:
        """Somebody begins to ask a batch."""
        began_at = self.now()
        number = next(self._numbers)
        prompts = len(batch.items)
        asked = AskedBatch(self._run, self._endpoint, number, prompts, batch.attempt, began_at)
        return _LiveBatchObserver(self, asked, alone=self._sampler.takes(began_at))

    def rows_failed(self, failed: Failed, batch: AskedBatch | None = None) -> None:
        """Rows have no answer; one event for each kind of failure."""
        rows = Counter[tuple[str, str]]()
        for failure, number in failed:
            rows[failure.reason, failure.detail] += number
        for (reason, detail), number in rows.items():
            self.emit(RowsFailed(self.now(), self._run, batch, reason, detail, number))

    def rest(self, stage: str) -> CallAggregator:
        """Where ordinary calls go that are told together."""
        return self._rest.get(stage) or self._rest.setdefault(stage, CallAggregator(self._run, self._endpoint, stage))

    def tell_of_rest(self, *, ends: bool = False) -> None:
        """Tell of calls that have waited long enough to be told of; of all, if nothing more will come."""
        now = self.now()
        for stage, rest in [*self._rest.items()]:
            if ends or rest.is_due(now):
                self.emit(self._rest.pop(stage).event())


class _LiveBatchObserver(BatchObserver):
    """Tells of a batch and its calls alone if it was chosen, or as soon as anything is not as it should be."""

    __slots__ = ("_alone", "_attempt", "_batch", "_booked", "_emitter", "_held")

    def __init__(self, emitter: LiveEventEmitter, batch: AskedBatch, *, alone: bool) -> None:
        self._emitter = emitter
        self._batch = batch
        self._attempt = 1
        self._alone = alone
        self._held: tuple[float, Decimal, float] | None = None
        self._booked: tuple[float, int, float] | None = None

    def held(self, usd: Decimal, waited_s: float) -> None:
        self._held = (self._emitter.now(), usd, waited_s)
        if self._alone:
            self._tell()

    def booked(self, tokens: int, waited_s: float) -> None:
        self._booked = (self._emitter.now(), tokens, waited_s)
        if self._alone:
            self._tell()

    def retried(self) -> None:
        self._attempt += 1
        self._tell(Retried(self._emitter.now(), self._batch, self._attempt))

    def on_reply(  # noqa: PLR0913  (as above)
        self,
        sent: CallStarted,
        call: Call,
        came: Reply | BaseException,
        usd: Decimal | None,
        duration_s: float,
        *,
        ordinary: bool = False,
    ) -> None:
        if isinstance(came, Reply) and ordinary and not self._alone:
            rest, now = self._emitter.rest(sent.stage), self._emitter.now()
            rest.add(now, self._batch.prompts, duration_s, came.usage, usd)
            rest.add_waits(self._held and self._held[2], self._booked and self._booked[2])
            self._held = self._booked = None
            if rest.is_due(now):
                self._emitter.tell_of_rest()
            return
        now, content = self._emitter.now(), None
        if self._emitter.content:
            content = Content(call.messages, came.text if isinstance(came, Reply) else None)
        if isinstance(came, Reply):
            told = (came.usage, usd, came.finish_reason, came.request_id, came.model)
            event = CallEnded(now, self._batch, sent, duration_s, *told, content=content)
        else:
            usage = came.usage if isinstance(came, RefusedError) else None
            why, words = error_type_of(came), error_words_of(came)
            event = CallEnded(
                now, self._batch, sent, duration_s, usage, usd, error_type=why, error=words, content=content
            )
        self._tell(event)

    def rows_failed(self, failed: Failed) -> None:
        self._tell()
        self._emitter.rows_failed(failed, self._batch)

    def ended(self, answered: int, failed: int, owed: int, error: BaseException | None = None) -> None:
        if self._alone or error:
            why = error_type_of(error) if error else None
            self._tell(BatchEnded(self._emitter.now(), self._batch, answered, failed, owed, why))

    def _tell(self, *events: Event) -> None:
        """Tell of these alone, and of what went before."""
        emit, self._alone = self._emitter.emit, True
        if self._held:
            at, usd, waited_s = self._held
            emit(Held(at, self._batch, usd, waited_s))
        if self._booked:
            emit(Booked(self._booked[0], self._batch, *self._booked[1:]))
        self._held = self._booked = None
        for event in events:
            emit(event)


def error_type_of(error: BaseException) -> str:
    """The kind of an error, in a few words of a fixed list."""
    match error:
        case TransientError():
            return error.kind
        case RefusedError():
            return "refused"
        case FatalError():
            return "fatal"
        case asyncio.CancelledError() | KeyboardInterrupt():
            return "cancelled"
    return type(error).__name__


def error_words_of(error: BaseException) -> str | None:
    """What an error says, if it is one of ours: others may hold a secret or the text of a row."""
    return str(error) if isinstance(error, OndineError) else None


def find_endpoint(spec: ModelSpec, base_url: str | None) -> Endpoint:
    """Who `spec` names, at `base_url`; what else that may hold (a user, a path) is left out."""
    provider, _, model = spec.model.partition("/")
    parts = urlsplit(base_url or "")
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return Endpoint(provider, model, parts.hostname, port if parts.hostname else None)
