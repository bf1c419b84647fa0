"""A run that is observed: its beginning, how far it is, and its end, whatever that is.

The end waits for the observers, since a step's process ends with its run; it waits for seconds only, since a collector
that is gone must not hold the step, and for less than one when somebody has interrupted it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count

from ondine_core.policy import Clock
from ondine_core.providers.openai_servers import find_address
from ondine_core.report import Progress
from ondine_core.telemetry.events import Progressed, Run, RunEnded, RunStarted
from ondine_core.telemetry.feed import Feed, LiveFeed, error_type_of, error_words_of, find_endpoint
from ondine_core.telemetry.registry import ObserverSpec, open_observers
from ondine_core.telemetry.sampling import Sampler
from ondine_core.telemetry.stream import Stream
from ondine_core.values import ModelSpec

__all__ = ["Observation", "observed"]

_TELL_EVERY_S = 0.5
_PATIENCE_S = 5.0
_INTERRUPTED_PATIENCE_S = 0.8
"""Less than the 1.5 s that are left after an interrupt, in which connections are closed, too."""


class Observation:
    """What is told of a run; of one that nobody observes, only how far it is.

    Args:
        on_progress: Told after every batch, too.
    """

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress = on_progress

    def feed(self, spec: ModelSpec) -> Feed:  # noqa: ARG002  (for those who listen)
        """Where the events go that the model of `spec` brings about."""
        return Feed()

    def progress(self, progress: Progress) -> None:
        """How far it is."""
        self._on_progress(progress)


class _Live(Observation):
    def __init__(self, run: Run, stream: Stream, clock: Clock, on_progress: Callable[[Progress], None]) -> None:
        super().__init__(on_progress)
        self._run, self._stream, self._clock = run, stream, clock
        self._numbers, self._sampler, self._due = count(1), Sampler(stream.calls_per_second), clock.elapsed()
        self.feeds: list[LiveFeed] = []
        self.latest: Progress | None = None

    def feed(self, spec: ModelSpec) -> Feed:
        stream, endpoint = self._stream, find_endpoint(spec, find_address(spec))
        feed = LiveFeed(
            stream.emit,
            self._run,
            endpoint,
            numbers=self._numbers,
            sampler=self._sampler,
            clock=self._clock,
            content=stream.content,
        )
        self.feeds.append(feed)
        return feed

    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        self.latest = progress
        if self._clock.elapsed() >= self._due:
            self._due = self._clock.elapsed() + _TELL_EVERY_S
            self._stream.emit(Progressed(self._clock.now(), self._run, progress))
            for feed in self.feeds:
                feed.tell_of_rest()


@asynccontextmanager
async def observed(
    run: Run,
    observers: Sequence[ObserverSpec],
    clock: Clock,
    on_progress: Callable[[Progress], None],
    on_trouble: Callable[[str], None],
) -> AsyncIterator[Observation]:
    """The observation of a run; when it ends, the observers have seconds to finish.

    Args:
        run: What is observed.
        observers: Who observes.
        clock: Time.
        on_progress: Told how far it is, whoever observes.
        on_trouble: Told what observers missed and that they failed, from any thread.

    Raises:
        ConfigError: An observer cannot be opened.
    """
    if not observers:
        yield Observation(on_progress)
        return
    stream = Stream(open_observers(observers), on_trouble)
    live, patience_s = _Live(run, stream, clock, on_progress), _PATIENCE_S
    error: BaseException | None = None
    stream.emit(RunStarted(clock.now(), run))
    try:
        yield live
    except BaseException as caught:
        error = caught
        patience_s = _PATIENCE_S if isinstance(caught, Exception) else _INTERRUPTED_PATIENCE_S
        raise
    finally:
        for feed in live.feeds:
            feed.tell_of_rest(ends=True)
        why, words = (error_type_of(error), error_words_of(error)) if error else (None, None)
        stream.emit(RunEnded(clock.now(), run, live.latest, why, words))
        await asyncio.to_thread(stream.close, patience_s)
