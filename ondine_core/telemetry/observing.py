"""A run that is observed: its beginning, how far it is, and its end, whatever that is.

The end waits for the observers, since a step's process ends with its run; it waits for seconds only, since a collector
that is gone must not hold the step, and for less than one when somebody has interrupted it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count

from ondine_core.providers.openai_servers import find_address
from ondine_core.telemetry.call_sampler import Sampler
from ondine_core.telemetry.emitter import EventEmitter, LiveEventEmitter, error_type_of, error_words_of, find_endpoint
from ondine_core.telemetry.events import Progressed, Run, RunEnded, RunStarted
from ondine_core.telemetry.registry import ObserverSpec, open_observers
from ondine_core.telemetry.stream import Stream
from ondine_core.types.clock import Clock
from ondine_core.types.progress import Progress
from ondine_core.types.values import ModelSpec

__all__ = ["Observation", "observed"]

_TELL_EVERY_S = 0.5
_WAIT_TIMEOUT_S = 5.0
_INTERRUPTED_WAIT_TIMEOUT_S = 0.8
"""Less than the 1.5 s that are left after an interrupt, in which connections are closed, too."""


class Observation:
    """Emits the events of a run; of a run without observers, its progress only.

    Args:
        on_progress: Told after every batch, too.
    """

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress = on_progress

    def emitter(self, spec: ModelSpec) -> EventEmitter:  # noqa: ARG002  (for those who listen)
        """Where the events go that the model of `spec` brings about."""
        return EventEmitter()

    def progress(self, progress: Progress) -> None:
        """How far it is."""
        self._on_progress(progress)


class _Live(Observation):
    def __init__(self, run: Run, stream: Stream, clock: Clock, on_progress: Callable[[Progress], None]) -> None:
        super().__init__(on_progress)
        self._run = run
        self._stream = stream
        self._clock = clock
        self._numbers = count(1)
        self._sampler = Sampler(stream.calls_per_second)
        self._due = clock.elapsed()
        self.feeds: list[LiveEventEmitter] = []
        self.latest: Progress | None = None

    def emitter(self, spec: ModelSpec) -> EventEmitter:
        stream, endpoint = self._stream, find_endpoint(spec, find_address(spec))
        emitter = LiveEventEmitter(
            stream.emit,
            self._run,
            endpoint,
            numbers=self._numbers,
            sampler=self._sampler,
            clock=self._clock,
            content=stream.content,
        )
        self.feeds.append(emitter)
        return emitter

    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        self.latest = progress
        if self._clock.elapsed() >= self._due:
            self._due = self._clock.elapsed() + _TELL_EVERY_S
            self._stream.emit(Progressed(self._clock.now(), self._run, progress))
            for emitter in self.feeds:
                emitter.tell_of_rest()


@asynccontextmanager
async def observed(
    run: Run,
    observers: Sequence[ObserverSpec],
    clock: Clock,
    on_progress: Callable[[Progress], None],
    on_observer_error: Callable[[str], None],
) -> AsyncIterator[Observation]:
    """The observation of a run; when it ends, the observers have seconds to finish.

    Args:
        run: What is observed.
        observers: Who observes.
        clock: Time.
        on_progress: Called with the progress, with or without observers.
        on_observer_error: Told what observers missed and that they failed, from any thread.

    Raises:
        ConfigError: An observer cannot be opened.
    """
    if not observers:
        yield Observation(on_progress)
        return
    stream = Stream(open_observers(observers), on_observer_error)
    live, wait_timeout_s = _Live(run, stream, clock, on_progress), _WAIT_TIMEOUT_S
    error: BaseException | None = None
    stream.emit(RunStarted(clock.now(), run))
    try:
        yield live
    except BaseException as caught:
        error = caught
        wait_timeout_s = _WAIT_TIMEOUT_S if isinstance(caught, Exception) else _INTERRUPTED_WAIT_TIMEOUT_S
        raise
    finally:
        for emitter in live.feeds:
            emitter.tell_of_rest(ends=True)
        why, words = (error_type_of(error), error_words_of(error)) if error else (None, None)
        stream.emit(RunEnded(clock.now(), run, live.latest, why, words))
        await asyncio.to_thread(stream.close, wait_timeout_s)
