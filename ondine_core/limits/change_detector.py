"""Detects that calls are turned away more often than usual, and whether a lower limit changes that.

Refusals by chance (a gateway that drops one call in ten) look like a limit at first. Lowering the limit is the
experiment that tells them apart: it ends the refusals that the limit has caused and changes nothing about the others.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypeAlias

__all__ = ["CallOutcome", "ChangeDetector", "InFlightCall", "Rejections"]

CallOutcome: TypeAlias = Literal["answered", "limited", "overloaded", "broken"]
"""How a call ended: with a reply (a refusal of its content included), turned away for the rate, turned away or timed
out for want of capacity, or lost for another reason."""
TURNED_AWAY = ("limited", "overloaded")

_USUAL = 0.02
"""Share of calls that may be turned away without a reason."""
_EXCESS, _CALLS, _FEW = 3.0, 20, 5
"""Refusals in excess of the usual, among at least this many calls, that are no accident."""
_EXPERIMENTS, _MAX_CHANCE = 3, 0.35
"""Lowering the limit this often without effect shows that a share, up to the given one, is due to chance."""


@dataclass(slots=True)
class InFlightCall:
    """A call that has left.

    Args:
        left_at: When.
        outcome: How it ended; `None` while it is in flight, or if it was given up.
    """

    left_at: float
    outcome: CallOutcome | None = None


@dataclass(frozen=True, slots=True)
class Rejections:
    """A period in which calls were turned away more often than usual.

    Args:
        share: Calls that were turned away among all of the period.
        per_s: Calls a second that were let through between the first and the last refusal.
    """

    share: float
    per_s: float
    limited: bool
    since: float


class ChangeDetector:
    """Adds up refusals in excess of the usual, call by call in the order of departure, and never falls below zero.

    A trickle counts as well as a burst (E. S. Page, "Continuous Inspection Schemes", 1954). Counting starts with a
    refusal, when the limit is used up: what is let through from then on comes at the rate of the limit.
    """

    def __init__(self) -> None:
        self.chance = 0.0
        self._pending = deque[InFlightCall]()
        self._shares: list[float] = []
        self.reset()

    def reset(self) -> None:
        """Judge only calls that leave from now on."""
        self._pending.clear()
        self._restart()

    def _restart(self) -> None:
        self._excess, self._calls, self._refused, self._limited, self._since = 0.0, 0, 0, 0, 0.0

    def start(self, call: InFlightCall) -> None:
        """Take note of a departure."""
        self._pending.append(call)

    def advance(self, known_until: float, *, raised: bool) -> Rejections | None:
        """Judge the calls whose outcome is known; calls that left before `known_until` count as let through."""
        while self._pending and (self._pending[0].outcome or self._pending[0].left_at < known_until):
            found = self._count(self._pending.popleft(), _FEW if raised else _CALLS)
            if found:
                return found
        return None

    def _count(self, call: InFlightCall, calls: int) -> Rejections | None:
        refused = call.outcome in TURNED_AWAY
        if self.chance:
            self.chance = min(self._cap, self.chance + 0.01 * (refused - self.chance))
            if self.chance < 0.005:
                self.chance = 0.0
        if not (refused or self._excess):
            return None
        if not self._excess:
            self._restart()
            self._since = call.left_at
        usual = 1.5 * self.chance + 0.05 if self.chance else _USUAL
        self._excess = max(0.0, self._excess + refused - usual)
        self._calls += 1
        self._refused += refused
        self._limited += call.outcome == "limited"
        passed = self._calls - self._refused
        if not refused or self._excess < (10 if self.chance else _EXCESS) or (self._calls < calls and self._excess < 6) or not passed or call.left_at <= self._since + (0.0 if calls == _FEW else 0.1):
            return None
        found = Rejections(
            self._refused / self._calls, passed / (call.left_at - self._since), 2 * self._limited > self._refused, self._since
        )
        self.reset()
        return found

    def record_failure_rate(self, share: float) -> bool:
        """Take note of a share after which the limit is lowered; returns whether it is due to chance instead."""
        self._shares = [*self._shares[1 - _EXPERIMENTS :], share]
        mean = fmean(self._shares)
        alike = all(mean / 2 <= one <= 2 * mean for one in self._shares)
        if len(self._shares) < _EXPERIMENTS or not alike or mean > _MAX_CHANCE:
            return False
        self.chance = self._cap = mean
        self._shares.clear()
        return True

    def forget_experiments(self) -> None:
        """The last time that the limit was lowered, it helped."""
        self._shares.clear()
