"""Events on their way to the observers, each of which has a buffer and a thread of its own.

The run only appends to the buffers. So an observer that fails, or is slow, or waits for a dead collector, costs neither
the run nor another observer anything: what does not fit into its buffer is dropped, counted, and told at the end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import get_args

from ondine_core.telemetry.events import CallEnded, Event, Observer

__all__ = ["Opened", "Stream"]

_log = logging.getLogger(__name__)

_PAUSE_S = 0.1
"""Threads look into their buffers so often; to be woken by every event would cost the run more than the events do."""
_AT_ONCE = 64
"""So many events are observed before the run's thread may go on, which would else wait for the interpreter's 5 ms."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An observer that is ready.

    Args:
        name: What it is called in messages.
        observe: The observer.
        owned: Whether it is closed after the run.
    """

    name: str
    observe: Observer
    owned: bool


class Stream:
    """Hands every event to every observer that wants it.

    Args:
        observers: Who is told.
        on_trouble: Told once when an observer fails, and at the end of what it missed; from any thread.
        capacity: Most events that wait for one observer.
    """

    def __init__(
        self, observers: Sequence[Opened], on_trouble: Callable[[str], None] = _log.warning, capacity: int = 20_000
    ) -> None:
        self.content = any(getattr(opened.observe, "content", False) for opened in observers)
        self._lanes = [_Lane(opened, on_trouble, capacity, strip=self.content) for opened in observers]
        self._takers = {
            kind: tuple(lane.take for lane in self._lanes if lane.wants is None or kind in lane.wants)
            for kind in get_args(Event)
        }

    def emit(self, event: Event) -> None:
        """Take an event; returns at once."""
        for take in self._takers[type(event)]:
            take(event)

    def close(self, timeout_s: float) -> None:
        """Let the observers finish, for so many seconds at most; what they have not seen then, they miss."""
        deadline = time.monotonic() + timeout_s
        for lane in self._lanes:
            lane.finish(deadline)
        for lane in self._lanes:
            lane.wait()


class _Lane:
    """One observer, its buffer and its thread."""

    def __init__(self, opened: Opened, on_trouble: Callable[[str], None], capacity: int, *, strip: bool) -> None:
        self._opened, self._on_trouble, self._capacity = opened, on_trouble, capacity
        self._waiting: deque[Event] = deque()
        self._ends = threading.Event()
        self._deadline = float("inf")
        self._dropped = self._failed = self._seen = 0
        self.wants: frozenset[type] | None = getattr(opened.observe, "wants", None)
        strip = strip and not getattr(opened.observe, "content", False)
        self.take = self._take_without_content if strip else self._take
        self._thread = threading.Thread(target=self._work, name=f"ondine-observer-{opened.name}", daemon=True)
        self._thread.start()

    def _take(self, event: Event) -> None:
        if len(self._waiting) < self._capacity:
            self._waiting.append(event)
        else:
            self._dropped += 1

    def _take_without_content(self, event: Event) -> None:
        self._take(event._replace(content=None) if isinstance(event, CallEnded) else event)

    def finish(self, deadline: float) -> None:
        """Tell the thread to come to an end."""
        self._deadline = deadline
        self._ends.set()

    def wait(self) -> None:
        """Wait for the thread, and tell what the observer missed."""
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        missed = self._dropped + len(self._waiting)
        if missed:
            self._tell(f"was too slow and missed {missed:,} of {missed + self._seen:,} events.")
        elif self._thread.is_alive():
            self._tell("had not delivered everything when its time was up; what it still holds may be lost.")
        if self._failed > 1:
            self._tell(f"failed on {self._failed:,} of {self._seen:,} events.")

    def _work(self) -> None:
        while not self._ends.wait(_PAUSE_S):
            self._observe_waiting()
        self._observe_waiting()
        self._close()

    def _observe_waiting(self) -> None:
        observe, take = self._opened.observe, self._waiting.popleft
        while self._waiting and time.monotonic() < self._deadline:
            for _ in range(min(_AT_ONCE, len(self._waiting))):
                self._seen += 1
                try:
                    observe(take())
                except Exception as error:  # noqa: BLE001  (whatever an observer does, the run goes on)
                    self._has_failed(error)
            time.sleep(0)  # whoever waits for the interpreter gets it

    def _close(self) -> None:
        if self._opened.owned and (close := getattr(self._opened.observe, "close", None)):
            try:
                close(max(0.0, self._deadline - time.monotonic()))
            except Exception as error:  # noqa: BLE001  (as above)
                self._has_failed(error)

    def _has_failed(self, error: Exception) -> None:
        self._failed += 1
        if self._failed == 1:
            # The text of the error may say anything; who wants it sets the level.
            _log.debug("An observer failed.", exc_info=True)
            self._tell(f"failed with {type(error).__name__}; the run goes on without it where it fails.")

    def _tell(self, what: str) -> None:
        with suppress(Exception):
            self._on_trouble(f"The observer {self._opened.name!r} {what}")
