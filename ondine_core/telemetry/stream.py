"""Events on their way to the observers, each of which has a buffer and a thread of its own.

The run only appends to a list that a thread hands on. So an observer that fails, or is slow, or waits for a dead
collector, costs neither the run nor another observer anything: what does not fit into its buffer is dropped, counted,
and told at the end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ondine_core.telemetry.events import (
    BatchEnded,
    Booked,
    CallEnded,
    CallsEnded,
    Event,
    Held,
    Observer,
    RunEnded,
    RunStarted,
)

__all__ = ["Opened", "Stream"]

_log = logging.getLogger(__name__)

_PAUSE_S = 0.2
"""Events are handed on so often; to wake a thread for every event would cost the run more than the events do."""
_AT_ONCE = 64
"""So many events are observed between two looks at the clock, which cost more than an event may."""
_TURN_S = 0.002
"""An observer that has computed for so long rests as long, so that it takes half of the interpreter's time at most;
unless half of its buffer is full, since it was asked for all of it."""
_FEW = frozenset({RunStarted, RunEnded, CallsEnded})
"""Taken although the buffer is full, since without them nothing adds up."""
_OF_CALLS = frozenset({BatchEnded, Booked, CallEnded, Held})
"""What is told of each ordinary call, where somebody wants it."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An observer that is ready.

    Args:
        name: What it is called in messages.
        observe: The observer.
        owned: Whether it is closed after the run.
        wants: Event types that it is told of, `None` for all.
        content: Whether it is told what was said.
        calls_per_second: How many ordinary calls it wants to be told of one by one, `None` for all.
    """

    name: str
    observe: Observer
    owned: bool
    wants: frozenset[type] | None = None
    content: bool = False
    calls_per_second: float | None = None


class Stream:
    """Hands every event to every observer that wants it.

    Args:
        observers: Who is told.
        on_observer_error: Told once when an observer fails, and at the end of what it missed; from any thread.
        capacity: Most events that wait for one observer.
    """

    def __init__(
        self,
        observers: Sequence[Opened],
        on_observer_error: Callable[[str], None] = _log.warning,
        capacity: int = 20_000,
    ) -> None:
        self.content = any(opened.content for opened in observers)
        """Whether one of them wants to know what was said."""
        rates = [
            opened.calls_per_second if opened.wants is None or opened.wants & _OF_CALLS else 0.0 for opened in observers
        ]
        self.calls_per_second = None if None in rates else max(filter(None, rates), default=0.0)
        """How many ordinary calls the one wants to be told of one by one who wants most."""
        self._lanes = [_Lane(opened, on_observer_error, capacity) for opened in observers]
        self._new: deque[Event] = deque()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ondine-observers", daemon=True)
        self._thread.start()
        self.emit: Callable[[Event], None] = self._new.append
        """Takes an event, from the run's own thread, where every microsecond counts; all else is done in others."""

    def close(self, timeout_s: float) -> None:
        """Let the observers finish, for at most some seconds; later events are dropped."""
        deadline = time.monotonic() + timeout_s
        self._ends.set()
        self._thread.join(timeout_s)
        for lane in self._lanes:
            lane.finish(deadline)
        for lane in self._lanes:
            lane.wait()

    def _work(self) -> None:
        while not self._ends.wait(_PAUSE_S):
            self._hand_on()
        self._hand_on()

    def _hand_on(self) -> None:
        events = [self._new.popleft() for _ in range(len(self._new))]
        if not events:
            return
        bare = [_without_content(event) for event in events] if self.content else events
        for lane in self._lanes:
            lane.give(events if lane.opened.content else bare)


class _Lane:
    """One observer, its buffer and its thread."""

    def __init__(self, opened: Opened, on_observer_error: Callable[[str], None], capacity: int) -> None:
        self.opened = opened
        self._on_trouble = on_observer_error
        self._capacity = capacity
        self._waiting: deque[Event] = deque()
        self._given, self._ends = threading.Event(), threading.Event()
        self._deadline = float("inf")
        self._taken = self._dropped = self._failed = 0
        self._thread = threading.Thread(target=self._work, name=f"ondine-observer-{opened.name}", daemon=True)
        self._thread.start()

    def give(self, events: Sequence[Event]) -> None:
        """Take those that the observer wants and the buffer holds."""
        wants, room = self.opened.wants, max(0, self._capacity - len(self._waiting))
        wanted = events if wants is None else [event for event in events if type(event) in wants]
        taken = wanted if len(wanted) <= room else [*wanted[:room], *(e for e in wanted[room:] if type(e) in _FEW)]
        self._taken += len(taken)
        self._dropped += len(wanted) - len(taken)
        if taken:
            self._waiting.extend(taken)
            self._given.set()

    def finish(self, deadline: float) -> None:
        """Tell the thread to come to an end."""
        self._deadline = deadline
        self._ends.set()
        self._given.set()

    def wait(self) -> None:
        """Wait for the thread, and tell what the observer missed."""
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        unseen = len(self._waiting)
        missed, seen = self._dropped + unseen, self._taken - unseen
        if missed:
            self._tell(f"was too slow and missed {missed:,} of {missed + seen:,} events.")
        elif self._thread.is_alive():
            self._tell("had not delivered everything when its time was up; what it still holds may be lost.")
        if self._failed > 1:
            self._tell(f"failed {self._failed:,} times in {seen:,} events.")

    def _work(self) -> None:
        while not self._ends.is_set():
            self._given.wait()
            self._given.clear()
            self._observe_waiting()
        self._observe_waiting()
        self._close()

    def _observe_waiting(self) -> None:
        observe = self.opened.observe
        take = self._waiting.popleft
        began = time.thread_time()
        while self._waiting and time.monotonic() < self._deadline:
            try:
                for _ in range(min(_AT_ONCE, len(self._waiting))):
                    observe(take())
            except BaseException as error:  # noqa: BLE001  (whatever an observer does, the run goes on)
                self._has_failed(error)
            took_s = time.thread_time() - began
            if took_s > _TURN_S:
                if len(self._waiting) < self._capacity // 2:
                    self._ends.wait(took_s)
                began = time.thread_time()

    def _close(self) -> None:
        close = getattr(self.opened.observe, "close", None)
        if self.opened.owned and close:
            try:
                close(max(0.0, self._deadline - time.monotonic()))
            except BaseException as error:  # noqa: BLE001  (as above)
                self._has_failed(error)

    def _has_failed(self, error: BaseException) -> None:
        self._failed += 1
        if self._failed == 1:
            # The text of the error may say anything; who wants it sets the level.
            _log.debug("An observer failed.", exc_info=True)
            self._tell(f"failed with {type(error).__name__}; the run goes on without it where it fails.")

    def _tell(self, what: str) -> None:
        with suppress(Exception):
            self._on_trouble(f"The observer {self.opened.name!r} {what}")


def _without_content(event: Event) -> Event:
    return event._replace(content=None) if isinstance(event, CallEnded) else event
