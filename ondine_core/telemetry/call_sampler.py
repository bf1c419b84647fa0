"""Chooses the ordinary calls that an observer receives one by one, and gathers the others into one event.

A run of a million rows makes a million calls. No tool shows a million events, and passing each on costs more than
gathering them. So each observer limits the ordinary calls a second that it receives. Other calls are all passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from ondine_core.telemetry import events
from ondine_core.telemetry.events import Booked, CallEnded, CallsEnded, Event, Held

_BURST = 100
_MAX_CALLS = 1_000
"""Most calls gathered in one event; until then they are in memory, and lost if the process is killed."""
_MAX_AGE_S = 2.0
"""The longest time for which calls are gathered, so that dashboards are at most seconds behind."""


class OrdinaryCall(NamedTuple):
    """A call that answered all prompts of its batch at the first attempt, with its waits before it was sent."""

    call: CallEnded
    waits: tuple[Held | Booked, ...] = ()

    def events(self) -> list[Event]:
        """All events of its batch."""
        call = self.call
        return [*self.waits, call, events.BatchEnded(call.at, call.batch, call.batch.prompts, 0, 0)]


Emitted: TypeAlias = Event | OrdinaryCall
"""What a run emits: events, and ordinary calls, which observers receive one by one or gathered."""


class CallSampler:
    """Passes on `per_second` ordinary calls, up to a hundred more after a quiet time, and gathers the others.

    Without a rate it passes on all calls.
    """

    def __init__(self, per_second: float | None) -> None:
        self._per_second = per_second
        self._available = float(_BURST)
        self._updated_at = 0.0
        self._gathered: dict[tuple[events.Endpoint, str], list[OrdinaryCall]] = {}

    def receive(self, emitted: Emitted) -> Sequence[Emitted]:
        """What to pass on now."""
        if isinstance(emitted, OrdinaryCall):
            return (emitted,) if self.takes(emitted.call.batch.began_at) else self._gather(emitted)
        if isinstance(emitted, events.Progressed | events.RunEnded) and self._gathered:
            ends = isinstance(emitted, events.RunEnded)
            due = [kind for kind, calls in self._gathered.items() if ends or _is_due(calls, emitted.at)]
            return [*(_gather_ordinary(self._gathered.pop(kind)) for kind in due), emitted]
        return (emitted,)

    def takes(self, at: float) -> bool:
        """Whether to pass on a call that begins at this time, in epoch seconds."""
        if self._per_second is None:
            return True
        passed_s = max(0.0, at - self._updated_at)
        self._available = min(_BURST, self._available + passed_s * self._per_second)
        self._updated_at = max(at, self._updated_at)
        if self._available < 1:
            return False
        self._available -= 1
        return True

    def _gather(self, ordinary: OrdinaryCall) -> Sequence[Emitted]:
        call = ordinary.call
        kind = (call.batch.endpoint, call.sent.stage)
        calls = self._gathered.setdefault(kind, [])
        calls.append(ordinary)
        return [_gather_ordinary(self._gathered.pop(kind))] if _is_due(calls, call.at) else ()


def _is_due(calls: Sequence[OrdinaryCall], at: float) -> bool:
    return len(calls) >= _MAX_CALLS or at - calls[0].call.at > _MAX_AGE_S


def _gather_ordinary(calls: Sequence[OrdinaryCall]) -> CallsEnded:
    return gather([ordinary.call for ordinary in calls], [wait for ordinary in calls for wait in ordinary.waits])


def gather(calls: Sequence[CallEnded], waits: Sequence[Held | Booked] = ()) -> CallsEnded:
    """One event for calls to one model with the same `stage`, and their waits."""
    first = calls[0]
    return CallsEnded(
        calls[-1].at,
        first.batch.run,
        first.batch.endpoint,
        first.sent.stage,
        min(call.at - call.duration_s for call in calls),
        sum(call.batch.prompts for call in calls),
        tuple(call.duration_s for call in calls),
        tuple(call.usage for call in calls if call.usage is not None),
        tuple(call.usd for call in calls),
        tuple(wait.waited_s for wait in waits if isinstance(wait, Held)),
        tuple(wait.waited_s for wait in waits if isinstance(wait, Booked)),
    )
