"""Detects that calls are refused more often than usual, and finds the limit that explains it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypeAlias

CallOutcome: TypeAlias = Literal["answered", "limited", "overloaded", "broken"]
"""How a call ended: with a reply (or a refusal of its content), refused by a rate limit, refused or timed out because
capacity was missing, or failed for another reason."""

_USUAL_SHARE = 0.02  # share of refused calls that is normal
_MIN_CALLS = 10  # calls since counting started, before which no change is reported
_EXCESS = 2.0  # refusals in excess of the usual that are a change, plus
_EXCESS_S = 0.02  # as many as calls are let through in this time
_EXCESS_OF_CHANCE = 5.0  # replaces `_EXCESS` while refusals are due to chance
_EXPERIMENTS = 3  # if this many rates in a row lead to the same share of refusals, these are due to chance
_MAX_CHANCE = 0.5  # a larger share of refusals is not due to chance
_MIN_CHANCE = 0.005  # a smaller share of refusals by chance counts as none
_CHANCE_FACTOR = 1.4  # a share of refusals of up to this times the share by chance, plus the usual, is no change
_CHANCE_COUNTED = 0.6  # part of the share by chance by which a rate is corrected; beside a limit it is overestimated
_SMOOTHING = 0.01  # of the share by chance, exponential
_MISPLACED = 0.1  # maximum share of calls that do not end as a limit on calls in flight predicts


@dataclass(slots=True)
class InFlightCall:
    """A call that has left, and its outcome; `None` while it is in flight, or if it was given up."""

    left_at: float
    number: int = 0  # in the order of departure
    ahead: int = 0  # earlier calls that were in flight, or had been refused, when it left
    outcome: CallOutcome | None = None

    @property
    def is_refused(self) -> bool:
        """Whether the provider refused it because of a limit or missing capacity."""
        return self.outcome in ("limited", "overloaded")


@dataclass(frozen=True, slots=True)
class _JudgedCall:
    call: InFlightCall
    occupancy: int  # earlier calls that were in flight when it left and were not refused later


@dataclass(frozen=True, slots=True)
class Refusals:
    """The explanation of refusals: a limit on calls in flight, chance, or else the rate `per_s`."""

    per_s: float  # calls that were let through meanwhile
    in_flight: int | None  # the limit on calls in flight, if it explains the refusals
    by_chance: bool  # whether the same share of calls is refused at any rate


class ChangeDetector:
    """Adds up refusals in excess of the usual, call by call in the order of departure; the sum is never negative.

    So a trickle is detected as well as a burst (CUSUM: E. S. Page, "Continuous Inspection Schemes", 1954). Counting
    starts with a refusal, when a limit is used up: calls are let through at the rate of the limit from then on.
    """

    def __init__(self) -> None:
        self._pending = deque[InFlightCall]()
        self._period: list[_JudgedCall] = []  # since counting started
        self._passed = 0  # calls of the period that were let through
        self._excess = 0.0
        self._chance = self._max_chance = 0.0  # share of calls that are refused by chance
        self._shares: list[float] = []  # of refusals, in successive periods at no higher rate than was let through
        self._last_per_s = 0.0
        self._reset_at = -1.0
        self._last_judged = 0  # number of a call
        self._refused = 0  # refused calls up to the last judged one
        self._refused_back = 0  # all refused calls

    def start(self, call: InFlightCall, in_flight: int) -> None:
        """Record that a call leaves while `in_flight` earlier ones are in flight."""
        call.ahead = in_flight + self._refused_back
        self._pending.append(call)

    def finish(self, call: InFlightCall) -> None:
        """Record that a call has ended."""
        if call.is_refused:
            self._refused_back += 1
            self._refused += call.number <= self._last_judged

    def reset(self, now: float) -> None:
        """Count only calls that leave from now on."""
        self._reset_at = now
        self._last_per_s = 0.0
        self._restart()

    def advance(self, known_until: float, now: float, tried_per_s: float | None) -> Refusals | None:
        """Judge the calls that have ended or left before `known_until`, and explain a change.

        `tried_per_s` is the rate at which calls leave, `None` if it is not limited.
        """
        while self._pending and (self._pending[0].outcome or self._pending[0].left_at < known_until):
            call = self._pending.popleft()
            judged = _JudgedCall(call, call.ahead - self._refused)
            self._last_judged = call.number
            self._refused += call.is_refused
            if call.left_at > self._reset_at and self._is_change(judged):
                refusals = self._explain(tried_per_s)
                self.reset(now)
                self._last_per_s = refusals.per_s
                return refusals
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
        min_excess = _EXCESS_OF_CHANCE if self._chance else _EXCESS
        return (self._excess - min_excess) * span_s > _EXCESS_S * self._passed

    def _explain(self, tried_per_s: float | None) -> Refusals:
        period = self._period
        share = 1 - self._passed / (len(period) - 1)  # without the first call, which is always refused
        span_s = period[-1].call.left_at - period[0].call.left_at
        per_s = self._passed / (1 - _CHANCE_COUNTED * self._chance) / span_s
        in_flight = _find_limit(period)
        kept_rate = tried_per_s is not None and tried_per_s <= self._last_per_s
        by_chance = self._is_chance(share, kept_rate=kept_rate)
        return Refusals(per_s, in_flight, by_chance and in_flight is None)

    def _is_chance(self, share: float, *, kept_rate: bool) -> bool:
        """Whether the same share was refused repeatedly, although calls kept to the rate that was let through."""
        self._shares = [*self._shares[1 - _EXPERIMENTS :], share] if kept_rate else [share]
        mean = fmean(self._shares)
        are_similar = all(mean / 3 < earlier < 2 * mean for earlier in self._shares)
        if len(self._shares) < _EXPERIMENTS or not are_similar or mean > _MAX_CHANCE:
            return False
        self._chance = mean
        self._max_chance = 1.2 * mean
        return True


def _find_limit(period: list[_JudgedCall]) -> int | None:
    """Find the number of calls in flight from which on calls are refused, and below which they are answered."""
    refused = sorted(judged.occupancy for judged in period if judged.call.is_refused)
    answered = [judged.occupancy for judged in period if judged.call.outcome == "answered"]
    limit = refused[int(_MISPLACED * len(refused))]
    misplaced = sum(occupancy >= limit for occupancy in answered)
    return limit if limit > 0 and answered and misplaced <= _MISPLACED * len(answered) else None
