"""Passes events to the observers, each of which has a buffer and a thread of its own.

The run only appends to buffers, so an observer that fails, is slow, or waits for a dead collector affects neither the
run nor another observer. Events that do not fit into its buffer are dropped, counted, and reported at the end.
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
"""The interval at which threads check their buffers; waking one for every event would cost more than the events."""
_AT_ONCE = 64
"""Events that are observed between two readings of the clock, which may cost more than an event."""
_NEVER_DROPPED = frozenset({RunStarted, RunEnded, CallsEnded})
"""Accepted even if the buffer is full, since totals would be wrong without them; they are few."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An opened observer.

    Args:
        name: Its name in messages.
        observe: The observer.
        owned: Whether it was opened for the run, and is closed after it.
        wants: The event types that it receives; `None` for all.
        content: Whether it receives the messages and replies of calls.
        calls_per_second: Ordinary calls a second that it receives one by one; `None` for all.
    """

    name: str
    observe: Observer
    owned: bool
    wants: frozenset[type] | None = None
    content: bool = False
    calls_per_second: float | None = None

    def close(self, timeout_s: float) -> None:
        """Close the observer if it is owned and can be closed."""
        close = getattr(self.observe, "close", None)
        if self.owned and close:
            close(timeout_s)


class Stream:
    """Passes each event to all observers that want it; at most `capacity` events wait for one observer.

    `on_observer_error` is called, from any thread, when an observer first fails, and at the end if it missed events.
    """

    def __init__(
        self,
        observers: Sequence[Opened],
        on_observer_error: Callable[[str], None] = _log.warning,
        capacity: int = 20_000,
    ) -> None:
        self.content = any(opened.content for opened in observers)
        """Whether an observer wants the text of calls."""
        self._threads: list[_ObserverThread] = []
        self._samplers: dict[float | None, tuple[CallSampler, list[_ObserverThread]]] = {}
        for opened in observers:
            thread = _ObserverThread(opened, on_observer_error, capacity)
            self._threads.append(thread)
            rate = opened.calls_per_second
            self._samplers.setdefault(rate, (CallSampler(rate), []))[1].append(thread)

    def emit(self, emitted: Emitted) -> None:
        """Put an event into the buffers of the observers, without waiting."""
        for sampler, threads in self._samplers.values():
            for passed_on in sampler.receive(emitted):
                for thread in threads:
                    thread.put(passed_on)

    def close(self, timeout_s: float) -> None:
        """Wait until the observers have finished, for at most `timeout_s` seconds."""
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

    def put(self, emitted: Emitted) -> None:
        """Put the events that the observer wants into its buffer, as far as there is room."""
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
        """Let the thread end after the events in the buffer, or at `deadline`."""
        self._deadline = deadline
        self._ends.set()

    def wait(self) -> None:
        """Wait for the thread, and report what the observer missed."""
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
                # Pause for as long as it has computed, so it takes at most half of the interpreter's time; but not
                # while half of its buffer is full.
                self._ends.wait(time.thread_time() - began)

    def _try(self, call: Callable[[Any], object], argument: Any) -> None:
        try:
            call(argument)
        except BaseException as error:  # noqa: BLE001  (no error of an observer ends the run)
            self._failed += 1
            if self._failed == 1:
                # The text of the error may contain anything, so it is logged at the level debug only.
                _log.debug("An observer failed.", exc_info=True)
                self._report_error(
                    f"failed with {type(error).__name__}; the run continues without the events on which it fails."
                )

    def _report_error(self, what: str) -> None:
        with suppress(Exception):
            self._on_observer_error(f"The observer {self._opened.name!r} {what}")
