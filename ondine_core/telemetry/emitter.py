"""Emits events of the engine: an `EventEmitter` for each model, a `BatchObserver` for each batch."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count
from typing import TypeAlias

from ondine_core.errors import FatalError, OndineError, RefusedError, TransientError
from ondine_core.telemetry import events
from ondine_core.telemetry.call_sampler import Emitted, OrdinaryCall
from ondine_core.telemetry.events import AskedBatch, CallEnded, Endpoint, Event, RowsFailed, Run
from ondine_core.types.ledger import NO_ORIGIN, CallStarted
from ondine_core.types.values import Batch, Call, Failure, Reply

Failed: TypeAlias = Iterable[tuple[Failure, int]]
"""Failures, each with the number of its rows."""


@dataclass(frozen=True, slots=True)
class EventEmitter:
    """Emits the events of one model in a run; by default they are discarded.

    `emit` neither waits nor fails; `numbers` are those of batches, which the models of a run share; with `content`,
    events of calls have their messages and replies.
    """

    run: Run = Run(NO_ORIGIN, "", 0)
    endpoint: Endpoint = Endpoint("", "")
    emit: Callable[[Emitted], object] = lambda _: None
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    now: Callable[[], float] = time.time
    content: bool = False

    def begin(self, batch: Batch) -> BatchObserver:
        """The observer of a batch that is about to be asked."""
        number, prompts = next(self.numbers), len(batch.items)
        return BatchObserver(self, AskedBatch(self.run, self.endpoint, number, prompts, batch.attempt, self.now()))

    def rows_failed(self, failed: Failed) -> None:
        """Report rows that have no answer and are not asked."""
        for event in self.failures_of(failed, None):
            self.emit(event)

    def failures_of(self, failed: Failed, batch: AskedBatch | None) -> list[RowsFailed]:
        """One event for each kind of failure."""
        rows = Counter[tuple[str, str]]()
        for failure, number in failed:
            rows[failure.reason, failure.detail] += number
        return [
            RowsFailed(self.now(), self.run, batch, reason, detail, number) for (reason, detail), number in rows.items()
        ]


class BatchObserver:
    """Emits the events of a batch.

    Waits are kept until the outcome of their call is known: if the first call answers all prompts, the batch is one
    `OrdinaryCall`. Otherwise every event is emitted by itself.
    """

    __slots__ = ("_attempt", "_batch", "_call", "_emitter", "_is_ordinary", "_sent", "_waits")

    def __init__(self, emitter: EventEmitter, batch: AskedBatch) -> None:
        self._emitter = emitter
        self._batch = batch
        self._attempt = 1
        self._is_ordinary = True
        self._waits: tuple[events.Held | events.Booked, ...] = ()

    def held(self, usd: Decimal, waited_s: float) -> None:
        """Report that the most that a call can cost, in USD, is reserved after a wait."""
        self._waits += (events.Held(self._emitter.now(), self._batch, usd, waited_s),)

    def booked(self, tokens: int, waited_s: float) -> None:
        """Report that the rate limit admits a call after a wait."""
        self._waits += (events.Booked(self._emitter.now(), self._batch, tokens, waited_s),)

    def retried(self) -> None:
        """Report that a call is about to be made again."""
        self._attempt += 1
        self._emit(events.Retried(self._emitter.now(), self._batch, self._attempt))

    def sent(self, sent: CallStarted, call: Call) -> None:
        """Report that a call is sent."""
        self._sent = sent
        self._call = call

    def on_reply(
        self, reply: Reply | BaseException, usd: Decimal | None, duration_s: float, *, ordinary: bool = False
    ) -> None:
        """Report the reply or the error of the call that was sent; `ordinary` if all its prompts have an answer now."""
        now, content = self._emitter.now(), None
        if self._emitter.content:
            content = events.Content(self._call.messages, reply.text if isinstance(reply, Reply) else None)
        if isinstance(reply, Reply):
            reply_fields = (reply.usage, usd, reply.finish_reason, reply.request_id, reply.model)
            call = CallEnded(now, self._batch, self._sent, duration_s, *reply_fields, content=content)
        else:
            usage = reply.usage if isinstance(reply, RefusedError) else None
            error = {"error_type": error_type_of(reply), "error": error_words_of(reply)}
            call = CallEnded(now, self._batch, self._sent, duration_s, usage, usd, **error, content=content)
        if ordinary and self._is_ordinary:
            self._emitter.emit(OrdinaryCall(call, self._waits))
            self._waits = ()
        else:
            self._emit(call)

    def rows_failed(self, failed: Failed) -> None:
        """Report rows of the batch that have no answer."""
        for event in self._emitter.failures_of(failed, self._batch):
            self._emit(event)

    def ended(self, answered: int, failed: int, retried: int, error: BaseException | None = None) -> None:
        """Report how many prompts have an answer, have failed, or are asked again in other batches."""
        if error or not self._is_ordinary:
            error_type = error_type_of(error) if error else None
            self._emit(events.BatchEnded(self._emitter.now(), self._batch, answered, failed, retried, error_type))

    def _emit(self, event: Event) -> None:
        """Emit an event by itself, after the waits before it."""
        self._is_ordinary = False
        for earlier in (*self._waits, event):
            self._emitter.emit(earlier)
        self._waits = ()


def error_type_of(error: BaseException) -> str:
    """The kind of an error; see `CallEnded`."""
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
    """The message of an error of our own; `None` for others, which may contain a secret or the text of a row."""
    return str(error) if isinstance(error, OndineError) else None
