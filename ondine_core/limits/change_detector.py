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

_USUAL, _ADD, _TIMES = 0.02, 0.05, 1.2  # share that may be turned away; added to and multiplied with one due to chance
_EXCESS, _SURE_EXCESS, _CHANCE_EXCESS = 3.0, 6.0, 10.0  # refusals that are no accident: usually, among few, with chance
_CALLS, _RAISED_CALLS, _MIN_SPAN_S = 20, 5, 0.1  # among so many calls, or a few after a limit was raised; in this time
_EXPERIMENTS, _MAX_CHANCE, _MIN_CHANCE, _SMOOTHING = 3, 0.35, 0.005, 0.01  # that show, and follow, refusals by chance


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
        usual = _TIMES * self._chance + _ADD if self._chance else _USUAL
        self._excess = max(0.0, self._excess + refused - usual)

    def _is_excessive(self, span_s: float, raised: bool) -> bool:
        if span_s <= (0.0 if raised else _MIN_SPAN_S) or self._calls == self._refused:
            return False
        enough = self._calls >= (_RAISED_CALLS if raised else _CALLS) or self._excess >= _SURE_EXCESS
        return enough and self._excess >= (_CHANCE_EXCESS if self._chance else _EXCESS)
