"""Detects that calls are turned away more often than usual, and whether a lower limit changes that."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypeAlias

CallOutcome: TypeAlias = Literal["answered", "limited", "overloaded", "broken"]
"""How a call ended: with a reply (a refusal of its content included), turned away for the rate, turned away or timed
out for want of capacity, or lost for another reason."""

_USUAL_SHARE = 0.02  # refusals among calls that are taken for accidents
_EXCESS = 3.0  # refusals beyond the usual that are a change
_EXCESS_OF_FEW = 6.0  # the same among few calls
_EXCESS_OF_CHANCE = 10.0  # the same where refusals are due to chance
_FEW_CALLS = 20  # fewer say little about a limit, unless it was known and raised
_MIN_SPAN_S = 0.1  # calls that left in less time say nothing about a rate
_EXPERIMENTS = 3  # limits that are lowered in vain before refusals are due to chance
_MAX_CHANCE = 0.35  # a larger share of refusals has a cause
_MIN_CHANCE = 0.005  # a share by chance that falls below this has passed
_SMOOTHING = 0.01  # of the share by chance, exponential


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

    def start(self, call: InFlightCall) -> None:
        """Record a departure."""
        self._pending.append(call)

    def reset(self) -> None:
        """Judge only calls that leave from now on."""
        self._pending.clear()
        self._excess = 0.0

    def advance(self, known_until: float, *, raised: bool) -> Rejections | None:
        """Judge the calls that are back, or that left before `known_until`; few are enough if a limit was `raised`."""
        while self._pending and (self._pending[0].outcome or self._pending[0].left_at < known_until):
            call = self._pending.popleft()
            refused = call.outcome in ("limited", "overloaded")
            self._count(call, refused=refused)
            span_s = call.left_at - self._since
            if refused and span_s > (0.0 if raised else _MIN_SPAN_S) and self._is_change(raised=raised):
                self.reset()
                passed = self._calls - self._refused
                share = 1 - passed / (self._calls - 1)  # the first is left out: it was refused, as counting starts so
                return Rejections(share, passed / span_s, 2 * self._limited > self._refused, self._since)
        return None

    def record_failure_rate(self, share: float, *, in_vain: bool) -> bool:
        """Record the share of refusals, and that a limit was lowered `in_vain`; returns whether they are by chance."""
        self._shares = [*self._shares[1 - _EXPERIMENTS :], share] if in_vain else [share]
        mean = fmean(self._shares)
        are_similar = all(mean / 3 <= one <= 2 * mean for one in self._shares)
        if len(self._shares) < _EXPERIMENTS or not are_similar or mean > _MAX_CHANCE:
            return False
        self._chance = self._max_chance = mean
        return True

    def _count(self, call: InFlightCall, *, refused: bool) -> None:
        if self._chance:
            smoothed = self._chance + _SMOOTHING * (refused - self._chance)
            self._chance = min(self._max_chance, smoothed) if smoothed > _MIN_CHANCE else 0.0
        if not self._excess:
            self._calls = self._refused = self._limited = 0
            self._since = call.left_at
        self._calls += 1
        self._refused += refused
        self._limited += call.outcome == "limited"
        usual = 1.2 * self._chance + 0.05 if self._chance else _USUAL_SHARE
        self._excess = max(0.0, self._excess + refused - usual)

    def _is_change(self, *, raised: bool) -> bool:
        if self._chance:
            least = _EXCESS_OF_CHANCE
        else:
            least = _EXCESS_OF_FEW if self._calls < _FEW_CALLS and not raised else _EXCESS
        return self._excess >= least and self._refused < self._calls
