"""Detects that calls are turned away more often than usual, and whether a lower limit changes that."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypeAlias

__all__ = ["CallOutcome", "ChangeDetector", "InFlightCall", "Rejections"]

CallOutcome: TypeAlias = Literal["answered", "limited", "overloaded", "broken"]
"""How a call ended: with a reply (a refusal of its content included), turned away for the rate, turned away or timed
out for want of capacity, or lost for another reason."""

_USUAL_SHARE = 0.02
"""Refusals among calls that are taken for accidents."""
_CHANCE_FACTOR = 1.2
_CHANCE_MARGIN = 0.05
"""Where refusals are due to chance: factor and margin on their measured share."""
_MIN_EXCESS = 3.0
_SURE_EXCESS = 6.0
_CHANCE_EXCESS = 10.0
"""Refusals beyond the usual that are a change: among many calls, among few, and where refusals are due to chance."""
_MIN_CALLS = 20
_MIN_CALLS_RAISED = 5
_MIN_SPAN_S = 0.1
"""Calls, and the time between first and last, that a change must show in; fewer are enough for a raised limit."""
_EXPERIMENTS = 3
_MAX_CHANCE = 0.35
"""Limits that are lowered in vain before refusals are due to chance, and the largest share that can be."""
_MIN_CHANCE = 0.005
_SMOOTHING = 0.01
"""A share by chance is followed by exponential smoothing, and forgotten below the minimum."""


@dataclass(slots=True)
class InFlightCall:
    """A call that has left, and how it ended; `None` while it is in flight, or if it was given up."""

    left_at: float
    number: int = 0  # in the order of departure
    outcome: CallOutcome | None = None


@dataclass(frozen=True, slots=True)
class Rejections:
    """A period of refusals: their share, what was let through, whether most were for the rate, when the first left."""

    share: float
    per_s: float
    limited: bool
    since: float


class ChangeDetector:
    """Adds up refusals in excess of the usual, call by call in the order of departure, and never falls below zero.

    A trickle counts as well as a burst (E. S. Page, "Continuous Inspection Schemes", 1954). Counting starts with a
    refusal, when a limit is used up: what is let through from then on comes at the rate of the limit.
    """

    def __init__(self) -> None:
        self._chance = self._max_chance = self._excess = self._since = 0.0
        self._calls = self._refused = self._limited = 0
        self._shares: list[float] = []
        self._pending = deque[InFlightCall]()

    def reset(self) -> None:
        """Judge only calls that leave from now on."""
        self._pending.clear()
        self._excess = 0.0

    def start(self, call: InFlightCall) -> None:
        """Record a departure."""
        self._pending.append(call)

    def advance(self, known_until: float, *, raised: bool) -> Rejections | None:
        """Judge the calls that are back, or that left before `known_until`; few are enough if a limit was `raised`."""
        while self._pending and (self._pending[0].outcome or self._pending[0].left_at < known_until):
            call = self._pending.popleft()
            self._count(call)
            span_s = call.left_at - self._since
            if call.outcome in ("limited", "overloaded") and self._is_excessive(span_s, raised):
                self.reset()
                share = (self._refused - 1) / (self._calls - 1)
                passed = self._calls - self._refused
                return Rejections(share, passed / span_s, 2 * self._limited > self._refused, self._since)
        return None

    def record_failure_rate(self, share: float) -> bool:
        """Record the share of refusals before a limit is lowered; returns whether it is due to chance instead."""
        self._shares = [*self._shares[1 - _EXPERIMENTS :], share]
        mean = fmean(self._shares)
        are_similar = all(mean / 3 <= one <= 2 * mean for one in self._shares)
        if len(self._shares) < _EXPERIMENTS or not are_similar or mean > _MAX_CHANCE:
            return False
        self._chance = self._max_chance = mean
        self._shares.clear()
        return True

    def end_experiment(self) -> None:
        """Lowering the limit has helped, so the next refusals are no evidence of chance."""
        self._shares.clear()

    def _count(self, call: InFlightCall) -> None:
        refused = call.outcome in ("limited", "overloaded")
        if self._chance:
            smoothed = self._chance + _SMOOTHING * (refused - self._chance)
            self._chance = min(self._max_chance, smoothed) if smoothed > _MIN_CHANCE else 0.0
        if not self._excess:
            self._calls = self._refused = self._limited = 0
            self._since = call.left_at
        self._calls += 1
        self._refused += refused
        self._limited += call.outcome == "limited"
        usual = _CHANCE_FACTOR * self._chance + _CHANCE_MARGIN if self._chance else _USUAL_SHARE
        self._excess = max(0.0, self._excess + refused - usual)

    def _is_excessive(self, span_s: float, raised: bool) -> bool:
        if span_s <= (0.0 if raised else _MIN_SPAN_S) or self._calls == self._refused:
            return False
        enough = self._calls >= (_MIN_CALLS_RAISED if raised else _MIN_CALLS) or self._excess >= _SURE_EXCESS
        return enough and self._excess >= (_CHANCE_EXCESS if self._chance else _MIN_EXCESS)
