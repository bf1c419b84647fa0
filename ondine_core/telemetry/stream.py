"""Passes events to the observers, each of which has a buffer and a thread of its own.

The run only appends to buffers, so an observer that fails, is slow, or waits for a dead collector costs neither the run
nor another observer anything: what does not fit into its buffer is dropped, counted, and reported at the end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ondine_core.telemetry.call_sampler import CallSampler, Emitted, OrdinaryCall
from ondine_core.telemetry.events import CallEnded, CallsEnded, Event, Observer, RunEnded, RunStarted

_log = logging.getLogger(__name__)

_PAUSE_S = 0.2
"""Interval at which observers look for events; waking a thread for every event would cost more than the events."""
_AT_ONCE = 64
"""Events that are observed between two looks at the clock, which cost more than an event may."""
_NEVER_DROPPED = frozenset({RunStarted, RunEnded, CallsEnded})
"""Taken although the buffer is full, since without them nothing adds up; they are few."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An observer that is ready, what it is called in messages, whether it is closed after the run, and what it wants.

    `wants` are the event types that it receives, and `calls_per_second` how many ordinary calls it receives one by one;
    `None` stands for all.
    """

    name: str
    observe: Observer
    owned: bool
    wants: frozenset[type] | None = None
    content: bool = False
    calls_per_second: float | None = None

    def close(self, timeout_s: float) -> None:
        """Close it, if it was opened for the run and can be closed."""
        close = getattr(self.observe, "close", None)
        if self.owned and close:
            close(timeout_s)


class Stream:
    """Hands every event to every observer that wants it; at most `capacity` events wait for one observer.

    `on_observer_error` is called, from any thread, once when an observer fails, and at the end with what it missed.
    """

    def __init__(
        self,
        observers: Sequence[Opened],
        on_observer_error: Callable[[str], None] = _log.warning,
        capacity: int = 20_000,
    ) -> None:
        self.content = any(opened.content for opened in observers)
        """Whether one of them wants the text of calls."""
        self._threads: list[_ObserverThread] = []
        self._samplers: dict[float | None, tuple[CallSampler, list[_ObserverThread]]] = {}
        for opened in observers:
            thread = _ObserverThread(opened, on_observer_error, capacity)
            self._threads.append(thread)
            rate = opened.calls_per_second
            self._samplers.setdefault(rate, (CallSampler(rate), []))[1].append(thread)

    def emit(self, emitted: Emitted) -> None:
        """Take an event, in the run's own thread; it is observed in others."""
        for sampler, threads in self._samplers.values():
            for one in sampler.receive(emitted):
                for thread in threads:
                    thread.give(one)

    def close(self, timeout_s: float) -> None:
        """Let the observers finish, for at most some seconds."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.finish(deadline)
        for thread in self._threads:
            thread.wait()


class _ObserverThread:
    """One observer, its buffer and its thread."""

    def __init__(self, opened: Opened, on_observer_error: Callable[[str], None], capacity: int) -> None:
        self._opened = opened
        self._on_observer_error = on_observer_error
        self._capacity = capacity
        self._waiting: deque[Event] = deque()
        self._ends = threading.Event()
        self._deadline = float("inf")
        self._taken = self._dropped = self._failed = 0
        self._thread = threading.Thread(target=self._work, name=f"ondine-observer-{opened.name}", daemon=True)
        self._thread.start()

    def give(self, emitted: Emitted) -> None:
        """Take what the observer wants and the buffer holds."""
        wants = self._opened.wants
        for event in emitted.events() if isinstance(emitted, OrdinaryCall) else (emitted,):
            if wants is not None and type(event) not in wants:
                continue
            if len(self._waiting) >= self._capacity and type(event) not in _NEVER_DROPPED:
                self._dropped += 1
                continue
            if isinstance(event, CallEnded) and event.content and not self._opened.content:
                event = event._replace(content=None)  # another observer asked for it  # noqa: PLW2901
            self._taken += 1
            self._waiting.append(event)

    def finish(self, deadline: float) -> None:
        """Ask the thread to end."""
        self._deadline = deadline
        self._ends.set()

    def wait(self) -> None:
        """Wait for the thread, and tell what the observer missed."""
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        unseen = len(self._waiting)
        missed, seen = self._dropped + unseen, self._taken - unseen
        if missed:
            self._report_error(f"was too slow and missed {missed:,} of {missed + seen:,} events.")
        elif self._thread.is_alive():
            self._report_error("had not delivered all events when its time was up; the rest may be lost.")
        if self._failed > 1:
            self._report_error(f"failed {self._failed:,} times in {seen:,} events.")

    def _work(self) -> None:
        while not self._ends.wait(_PAUSE_S):
            self._observe_waiting()
        self._observe_waiting()
        self._try(self._opened.close, max(0.0, self._deadline - time.monotonic()))

    def _observe_waiting(self) -> None:
        while self._waiting and time.monotonic() < self._deadline:
            began = time.thread_time()
            for _ in range(min(_AT_ONCE, len(self._waiting))):
                self._try(self._opened.observe, self._waiting.popleft())
            if len(self._waiting) < self._capacity // 2:
                # It rests as long as it has computed, so that it takes half of the interpreter's time at most; unless
                # half of its buffer is full, since it was asked for all of it.
                self._ends.wait(time.thread_time() - began)

    def _try(self, call: Callable[[Any], object], argument: Any) -> None:
        try:
            call(argument)
        except BaseException as error:  # noqa: BLE001  (no error of an observer ends the run)
            self._failed += 1
            if self._failed == 1:
                # The text of the error may say anything; who wants it sets the level.
                _log.debug("An observer failed.", exc_info=True)
                self._report_error(
                    f"failed with {type(error).__name__}; the run continues without the events on which it fails."
                )

    def _report_error(self, what: str) -> None:
        with suppress(Exception):
            self._on_observer_error(f"The observer {self._opened.name!r} {what}")
