"""Ordinary calls that are told together, gathered column by column: that costs a call less than an event of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from ondine_core.telemetry.events import CallsEnded, Endpoint, Run
from ondine_core.types.values import Usage

__all__ = ["CallAggregator"]

_MOST = 1_000
"""So many calls are told together at most; until then they are held in memory, and lost if the process is killed."""
_LONGEST_S = 2.0
"""None waits longer than that for the next call, so that what a dashboard shows is seconds old."""


@dataclass(slots=True)
class CallAggregator:
    """Calls to one model, made for one reason, that no event has reported yet."""

    run: Run
    endpoint: Endpoint
    stage: str
    _first_at: float = field(init=False, default=float("inf"))
    _at: float = field(init=False, default=0.0)
    _began_at: float = field(init=False, default=float("inf"))
    _prompts: int = field(init=False, default=0)
    _durations_s: list[float] = field(init=False, default_factory=list)
    _usages: list[Usage] = field(init=False, default_factory=list)
    _usds: list[Decimal | None] = field(init=False, default_factory=list)
    _held_s: list[float] = field(init=False, default_factory=list)
    _booked_s: list[float] = field(init=False, default_factory=list)

    def add(self, at: float, prompts: int, duration_s: float, usage: Usage, usd: Decimal | None) -> None:
        """Take a call that came at `at`."""
        self._first_at, self._at = min(self._first_at, at), at
        self._began_at = min(self._began_at, at - duration_s)
        self._prompts += prompts
        self._durations_s.append(duration_s)
        self._usages.append(usage)
        self._usds.append(usd)

    def add_waits(self, held_s: float | None, booked_s: float | None) -> None:
        """Take what a call waited, if it did."""
        if held_s is not None:
            self._held_s.append(held_s)
        if booked_s is not None:
            self._booked_s.append(booked_s)

    def is_due(self, at: float) -> bool:
        """Whether it is time to tell."""
        return len(self._usds) >= _MOST or at - self._first_at > _LONGEST_S

    def event(self) -> CallsEnded:
        """What there is to tell."""
        return CallsEnded(
            self._at,
            self.run,
            self.endpoint,
            self.stage,
            self._began_at,
            self._prompts,
            tuple(self._durations_s),
            tuple(self._usages),
            tuple(self._usds),
            tuple(self._held_s),
            tuple(self._booked_s),
        )
