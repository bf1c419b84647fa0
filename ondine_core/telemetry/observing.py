"""Emits the beginning, the progress and the end of a run.

The end waits for the observers, since a step's process ends with its run. It waits five seconds at most, since an
unreachable collector must not delay the step, and less than one second after an interrupt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from urllib.parse import urlsplit

from ondine_core.providers.openai_servers import find_address
from ondine_core.telemetry.emitter import EventEmitter, error_type_of, error_words_of
from ondine_core.telemetry.events import Endpoint, Progressed, Run, RunEnded, RunStarted
from ondine_core.telemetry.registry import ObserverSpec, open_observers
from ondine_core.telemetry.stream import Stream
from ondine_core.types.clock import Clock
from ondine_core.types.progress import Progress
from ondine_core.types.values import ModelSpec

_PROGRESS_EVERY_S = 0.5
_WAIT_TIMEOUT_S = 5.0
_INTERRUPTED_WAIT_TIMEOUT_S = 0.8
"""Less than the 1.5 s that are left after an interrupt, since connections are also closed in that time."""


class Observation:
    """Emits the progress of a run, and makes the emitters of its models."""

    def __init__(self, run: Run, stream: Stream, clock: Clock, on_progress: Callable[[Progress], None]) -> None:
        self._run = run
        self._stream = stream
        self._clock = clock
        self._on_progress = on_progress
        self._numbers = count(1)
        self._due = clock.elapsed()
        self.latest: Progress | None = None

    def emitter(self, spec: ModelSpec) -> EventEmitter:
        """An emitter of the events of the model of `spec`."""
        stream = self._stream
        return EventEmitter(self._run, _endpoint_of(spec), stream.emit, self._numbers, self._clock.now, stream.content)

    def progress(self, progress: Progress) -> None:
        """Report the progress of the run."""
        self._on_progress(progress)
        self.latest = progress
        if self._clock.elapsed() >= self._due:
            self._due = self._clock.elapsed() + _PROGRESS_EVERY_S
            self._stream.emit(Progressed(self._clock.now(), self._run, progress))


@asynccontextmanager
async def observed(
    run: Run,
    observers: Sequence[ObserverSpec],
    clock: Clock,
    on_progress: Callable[[Progress], None],
    on_observer_error: Callable[[str], None],
) -> AsyncIterator[Observation]:
    """Observe a run; at its end, the observers have a few seconds to finish.

    `on_progress` is called with or without observers; `on_observer_error` is called, from any thread, if an observer
    fails or has missed events.
    """
    stream = Stream(open_observers(observers), on_observer_error)
    observation = Observation(run, stream, clock, on_progress)
    error_type: str | None = None
    error_words: str | None = None
    wait_timeout_s = _WAIT_TIMEOUT_S
    stream.emit(RunStarted(clock.now(), run))
    try:
        yield observation
    except BaseException as error:
        error_type, error_words = error_type_of(error), error_words_of(error)
        if not isinstance(error, Exception):
            wait_timeout_s = _INTERRUPTED_WAIT_TIMEOUT_S
        raise
    finally:
        stream.emit(RunEnded(clock.now(), run, observation.latest, error_type, error_words))
        if observers:
            await asyncio.to_thread(stream.close, wait_timeout_s)


def _endpoint_of(spec: ModelSpec) -> Endpoint:
    """The provider and model of `spec`, and the host of its address without a user or a path."""
    provider, _, model = spec.model.partition("/")
    parts = urlsplit(find_address(spec) or "")
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return Endpoint(provider, model, parts.hostname, port if parts.hostname else None)
