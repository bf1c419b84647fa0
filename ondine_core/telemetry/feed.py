"""From what the engine does to events: the engine says it in its own terms to a `Feed`, and to a `Told` for a batch.

Those of a run that nobody observes do nothing, so it makes no events.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal
from itertools import count
from typing import TypeAlias
from urllib.parse import urlsplit

from ondine_core.books import Sent
from ondine_core.budget import Hold
from ondine_core.caps import usd_of
from ondine_core.errors import FatalError, OndineError, RefusedError, TransientError
from ondine_core.policy import Clock
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
from ondine_core.values import Batch, Call, Failure, ModelSpec, Reply

__all__ = ["Feed", "LiveFeed", "Told", "error_type_of", "error_words_of", "find_endpoint"]

Failed: TypeAlias = Iterable[tuple[Failure, int]]
"""Failures, and how many rows have each."""


class Told:
    """Hears what becomes of a batch; this one tells nobody."""

    def held(self, holds: tuple[Hold, ...], waited_s: float) -> None:
        """The most that a call can cost is held."""

    def booked(self, tokens: int, waited_s: float) -> None:
        """A call's turn has come."""

    def retried(self) -> None:
        """A call is about to be made again."""

    def came(self, sent: Sent, call: Call, came: Reply | BaseException, usd: Decimal | None, duration_s: float) -> None:
        """A call came back with a reply, or failed."""

    def rows_failed(self, failed: Failed) -> None:
        """Rows of the batch have no answer."""

    def ended(self, answered: int, failed: int, owed: int, error: BaseException | None = None) -> None:
        """So many prompts have an answer, never will, or are owed one by other batches."""


class Feed:
    """Hears what one model brings about in a run; this one tells nobody."""

    def begin(self, batch: Batch) -> Told:  # noqa: ARG002  (for those who listen)
        """Somebody begins to ask a batch."""
        return _NOBODY

    def rows_failed(self, failed: Failed) -> None:
        """Rows have no answer, and are not asked."""


_NOBODY = Told()


class LiveFeed(Feed):
    """Makes events.

    Args:
        emit: Takes them; it neither waits nor fails.
        run: The run.
        endpoint: Who is asked.
        numbers: Numbers for batches.
        clock: Time.
        content: Whether calls carry what was said.
    """

    def __init__(  # noqa: PLR0913  (one caller)
        self,
        emit: Callable[[Event], None],
        run: Run,
        endpoint: Endpoint,
        numbers: count[int],
        clock: Clock,
        *,
        content: bool,
    ) -> None:
        self.emit, self._run, self._endpoint, self._numbers = emit, run, endpoint, numbers
        self.now, self.content = clock.now, content

    def begin(self, batch: Batch) -> Told:
        """Somebody begins to ask a batch."""
        number, prompts = next(self._numbers), len(batch.items)
        return _LiveTold(self, AskedBatch(self._run, self._endpoint, number, prompts, batch.attempt, self.now()))

    def rows_failed(self, failed: Failed, batch: AskedBatch | None = None) -> None:
        """Rows have no answer; one event for each kind of failure."""
        rows = Counter[tuple[str, str]]()
        for failure, number in failed:
            rows[failure.reason, failure.detail] += number
        for (reason, detail), number in rows.items():
            self.emit(RowsFailed(self.now(), self._run, batch, reason, detail, number))


class _LiveTold(Told):
    def __init__(self, feed: LiveFeed, batch: AskedBatch) -> None:
        self._feed, self._batch, self._attempt = feed, batch, 1

    def held(self, holds: tuple[Hold, ...], waited_s: float) -> None:
        self._feed.emit(Held(self._feed.now(), self._batch, usd_of(holds[0].units), waited_s))

    def booked(self, tokens: int, waited_s: float) -> None:
        self._feed.emit(Booked(self._feed.now(), self._batch, tokens, waited_s))

    def retried(self) -> None:
        self._attempt += 1
        self._feed.emit(Retried(self._feed.now(), self._batch, self._attempt))

    def came(self, sent: Sent, call: Call, came: Reply | BaseException, usd: Decimal | None, duration_s: float) -> None:
        now, content = self._feed.now(), None
        if self._feed.content:
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
        self._feed.emit(event)

    def rows_failed(self, failed: Failed) -> None:
        self._feed.rows_failed(failed, self._batch)

    def ended(self, answered: int, failed: int, owed: int, error: BaseException | None = None) -> None:
        why = error_type_of(error) if error else None
        self._feed.emit(BatchEnded(self._feed.now(), self._batch, answered, failed, owed, why))


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
