"""Ordinary calls that are told together, gathered column by column: that costs a call less than an event of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from ondine_core.telemetry.events import Booked, CallsEnded, Endpoint, Held, Run
from ondine_core.values import Usage

__all__ = ["Rest"]

_MOST = 1_000
_LONGEST_S = 2.0


@dataclass(slots=True)
class Rest:
    """Calls to one model, made for one reason, that nobody has been told of yet; arguments as those of `CallsEnded`."""

    run: Run
    endpoint: Endpoint
    stage: str
    _at: float = 0.0
    _began_at: float = float("inf")
    _prompts: int = 0
    _durations_s: list[float] = field(default_factory=list)
    _usages: list[Usage | None] = field(default_factory=list)
    _usds: list[Decimal | None] = field(default_factory=list)
    _waits: list[Held | Booked] = field(default_factory=list)

    def add(  # noqa: PLR0913, PLR0917  (columns)
        self,
        at: float,
        prompts: int,
        duration_s: float,
        usage: Usage | None,
        usd: Decimal | None,
        waits: Iterable[Held | Booked] = (),
    ) -> bool:
        """Take a call; returns whether it is time to tell."""
        self._at, self._began_at = at, min(self._began_at, at - duration_s)
        self._prompts += prompts
        self._durations_s.append(duration_s)
        self._usages.append(usage)
        self._usds.append(usd)
        self._waits.extend(waits)
        return len(self._usds) >= _MOST or at - self._began_at > _LONGEST_S

    def event(self) -> CallsEnded:
        """What there is to tell."""
        each = (tuple(self._durations_s), tuple(self._usages), tuple(self._usds))
        held_s = tuple(wait.waited_s for wait in self._waits if isinstance(wait, Held))
        booked_s = tuple(wait.waited_s for wait in self._waits if isinstance(wait, Booked))
        of = (self.run, self.endpoint, self.stage)
        return CallsEnded(self._at, *of, self._began_at, self._prompts, *each, held_s, booked_s)
