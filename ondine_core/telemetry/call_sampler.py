"""Which ordinary calls an observer receives one by one; the others are gathered into one event.

A run of a million rows makes a million calls. No tool shows a million events, and an event for each costs more than
gathering them does. So each observer says how many it wants, which are chosen here. Other calls are all passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from ondine_core.telemetry import events
from ondine_core.telemetry.events import Booked, CallEnded, CallsEnded, Event, Held

_BURST = 100
_MAX_CALLS = 1_000
"""Most calls gathered in one event; until then they are held in memory, and lost if the process is killed."""
_MAX_AGE_S = 2.0
"""None waits longer than that for the next call, so that what a dashboard shows is seconds old."""


class OrdinaryCall(NamedTuple):
    """A call that answered all prompts of its batch at the first attempt, and what it waited for before it left."""

    call: CallEnded
    waits: tuple[Held | Booked, ...] = ()

    def events(self) -> list[Event]:
        """All events of its batch."""
        call = self.call
        return [*self.waits, call, events.BatchEnded(call.at, call.batch, call.batch.prompts, 0, 0)]


Emitted: TypeAlias = Event | OrdinaryCall
"""What a run emits: events, and ordinary calls that are events by themselves or gathered in one."""


class CallSampler:
    """Passes on `per_second` ordinary calls, a hundred more at the start or after a quieter time, and gathers the rest.

    Without a rate it passes on all.
    """

    def __init__(self, per_second: float | None) -> None:
        self._per_second = per_second
        self._left = float(_BURST)
        self._at = 0.0
        self._gathered: dict[tuple[events.Endpoint, str], list[OrdinaryCall]] = {}

    def receive(self, emitted: Emitted) -> Sequence[Emitted]:
        """What is to be passed on now."""
        if isinstance(emitted, OrdinaryCall):
            return (emitted,) if self.takes(emitted.call.batch.began_at) else self._gather(emitted)
        if isinstance(emitted, events.Progressed | events.RunEnded) and self._gathered:
            ends = isinstance(emitted, events.RunEnded)
            due = [kind for kind, calls in self._gathered.items() if ends or _is_due(calls, emitted.at)]
            return [*(_gather_ordinary(self._gathered.pop(kind)) for kind in due), emitted]
        return (emitted,)

    def takes(self, at: float) -> bool:
        """Whether a call that begins at that second is one of them."""
        if self._per_second is None:
            return True
        since = max(0.0, at - self._at)
        self._left = min(_BURST, self._left + since * self._per_second)
        self._at = max(at, self._at)
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def _gather(self, ordinary: OrdinaryCall) -> Sequence[Emitted]:
        call = ordinary.call
        kind = (call.batch.endpoint, call.sent.stage)
        calls = self._gathered.setdefault(kind, [])
        calls.append(ordinary)
        return [_gather_ordinary(self._gathered.pop(kind))] if _is_due(calls, call.at) else ()


def _is_due(calls: Sequence[OrdinaryCall], at: float) -> bool:
    return len(calls) >= _MAX_CALLS or at - calls[0].call.at > _MAX_AGE_S


def _gather_ordinary(ordinary: Sequence[OrdinaryCall]) -> CallsEnded:
    return gather([one.call for one in ordinary], [wait for one in ordinary for wait in one.waits])


def gather(calls: Sequence[CallEnded], waits: Sequence[Held | Booked] = ()) -> CallsEnded:
    """Calls to one model, made for one reason, and their waits, as one event."""
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
