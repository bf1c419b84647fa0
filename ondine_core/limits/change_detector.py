"""Detects that calls are refused more often than usual, and what explains it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypeAlias

CallOutcome: TypeAlias = Literal["answered", "limited", "overloaded", "broken"]
"""How a call ended: with a reply (also a refusal of its content), refused by a rate limit, refused or timed out because
of missing capacity, or lost for another reason."""

_USUAL_SHARE = 0.02  # refusals among calls that are taken for accidents
_MIN_CALLS = 10  # fewer say nothing
_EXCESS = 2.0  # refusals beyond the usual that are a change, and
_EXCESS_S = 0.02  # besides as many as calls are let through in this time
_EXCESS_OF_CHANCE = 5.0  # the same as `_EXCESS` where refusals are due to chance
_EXPERIMENTS = 3  # rates that lead to the same share of refusals, which is due to chance then
_MAX_CHANCE = 0.5  # a larger share of refusals has a cause
_MIN_CHANCE = 0.005  # a share by chance that falls below this has passed
_CHANCE_FACTOR = 1.4  # beyond the usual share, this many times the share by chance is no change
_CHANCE_COUNTED = 0.6  # part of the share by chance that a rate is corrected for; beside a limit it is overestimated
_SMOOTHING = 0.01  # of the share by chance, exponential
_MISPLACED = 0.1  # share of calls, at most, that do not end as a limit on calls in flight would have it


@dataclass(slots=True)
class InFlightCall:
    """A call that has left, and how it ended; `None` while it is in flight, or if it was given up."""

    left_at: float
    number: int = 0  # in the order of departure
    ahead: int = 0  # earlier calls that were in flight, or had come back refused, as it left
    outcome: CallOutcome | None = None

    @property
    def is_refused(self) -> bool:
        """Whether it was refused."""
        return self.outcome in ("limited", "overloaded")


@dataclass(frozen=True, slots=True)
class _JudgedCall:
    call: InFlightCall
    occupancy: int  # earlier calls that were in flight as it left and were not refused


@dataclass(frozen=True, slots=True)
class Refusals:
    """What was let through while calls were refused, and what explains the refusals; a rate if nothing else does."""

    per_s: float
    in_flight: int | None  # the limit on calls in flight that explains them
    by_chance: bool  # whether the same share of calls is refused at any rate


class ChangeDetector:
    """Adds up refusals in excess of the usual, call by call in the order of departure, and never falls below zero.

    A trickle counts as well as a burst (E. S. Page, "Continuous Inspection Schemes", 1954). Counting starts with a
    refusal, when a limit is used up: what is let through from then on comes at the rate of the limit.
    """

    def __init__(self) -> None:
        self._pending = deque[InFlightCall]()
        self._period: list[_JudgedCall] = []  # since counting started
        self._passed = 0  # of these, how many were let through
        self._excess = self._chance = self._max_chance = 0.0
        self._shares: list[float] = []  # that were found one after the other while no more was let through
        self._last_per_s = 0.0
        self._reset_at = -1.0
        self._last_judged = 0  # number of a call
        self._refused = 0  # calls, of those up to the last judged one
        self._refused_back = 0  # calls, of all

    def start(self, call: InFlightCall, in_flight: int) -> None:
        """Record that a call leaves while `in_flight` earlier ones are in flight."""
        call.ahead = in_flight + self._refused_back
        self._pending.append(call)

    def finish(self, call: InFlightCall) -> None:
        """Record that a call is back."""
        if call.is_refused:
            self._refused_back += 1
            self._refused += call.number <= self._last_judged

    def reset(self, now: float) -> None:
        """Count only calls that leave from now on."""
        self._reset_at = now
        self._last_per_s = 0.0
        self._restart()

    def advance(self, known_until: float, now: float, tried_per_s: float | None) -> Refusals | None:
        """Judge calls that are back, or left before `known_until`; `tried_per_s` is the rate, if one is limited."""
        while self._pending and (self._pending[0].outcome or self._pending[0].left_at < known_until):
            call = self._pending.popleft()
            judged = _JudgedCall(call, call.ahead - self._refused)
            self._last_judged = call.number
            self._refused += call.is_refused
            if call.left_at > self._reset_at and self._is_change(judged):
                found = self._explain(tried_per_s)
                self.reset(now)
                self._last_per_s = found.per_s
                return found
        return None

    def _restart(self) -> None:
        self._period = []
        self._passed = 0
        self._excess = 0.0

    def _is_change(self, judged: _JudgedCall) -> bool:
        refused = judged.call.is_refused
        if self._chance:
            smoothed = self._chance + _SMOOTHING * (refused - self._chance)
            self._chance = min(self._max_chance, smoothed) if smoothed > _MIN_CHANCE else 0.0
        if not (refused or self._period):
            return False
        self._period.append(judged)
        self._passed += not refused
        self._excess += refused - _USUAL_SHARE - _CHANCE_FACTOR * self._chance
        if self._excess <= 0:
            self._restart()
        if not refused or len(self._period) < _MIN_CALLS or not self._passed:
            return False
        span_s = judged.call.left_at - self._period[0].call.left_at
        least = _EXCESS_OF_CHANCE if self._chance else _EXCESS
        return (self._excess - least) * span_s > _EXCESS_S * self._passed

    def _explain(self, tried_per_s: float | None) -> Refusals:
        period = self._period
        share = 1 - self._passed / (len(period) - 1)  # the first is left out: it was refused, as counting starts so
        span_s = period[-1].call.left_at - period[0].call.left_at
        per_s = self._passed / (1 - _CHANCE_COUNTED * self._chance) / span_s
        in_flight = _find_limit(period)
        in_vain = tried_per_s is not None and tried_per_s <= self._last_per_s
        return Refusals(per_s, in_flight, self._is_chance(share, in_vain=in_vain) and in_flight is None)

    def _is_chance(self, share: float, *, in_vain: bool) -> bool:
        """Whether the same share was refused again and again when no more calls were made than were let through."""
        self._shares = [*self._shares[1 - _EXPERIMENTS :], share] if in_vain else [share]
        mean = fmean(self._shares)
        are_similar = all(mean / 3 < one < 2 * mean for one in self._shares)
        if len(self._shares) < _EXPERIMENTS or not are_similar or mean > _MAX_CHANCE:
            return False
        self._chance = mean
        self._max_chance = 1.2 * mean
        return True


def _find_limit(period: list[_JudgedCall]) -> int | None:
    """The number of calls in flight at which calls are refused and below which they are answered, if there is one."""
    refused = sorted(judged.occupancy for judged in period if judged.call.is_refused)
    answered = [judged.occupancy for judged in period if judged.call.outcome == "answered"]
    limit = refused[int(_MISPLACED * len(refused))]
    misplaced = sum(occupancy >= limit for occupancy in answered)
    return limit if limit > 0 and answered and misplaced <= _MISPLACED * len(answered) else None
