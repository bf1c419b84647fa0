"""A limit that was measured: kept for a while, then raised ever faster until calls are refused again."""

from __future__ import annotations

from math import exp
from typing import Literal, TypeAlias

LimitKind: TypeAlias = Literal["in flight", "per second"]

_USED_SHARE = 0.98  # of a measured rate; what is left over lets the provider catch up
_STEEPNESS = 2.0  # a limit grows by exp(steepness * t**3), t in hold times after the first
_HOLD_FACTOR = 5.0  # the hold time grows by this when more was tried in vain
_MAX_HOLDS = 16.0  # feedback times that it is at most
_RISEN = 1.5  # a limit that is higher by this factor is a new one
_MIN_PER_S = 0.1  # the lowest rate


class ProbedLimit:
    """One limit, on calls in flight or on calls a second."""

    def __init__(self) -> None:
        self.value: float | None = None  # `None` while no limit has shown
        self.kind: LimitKind = "per second"
        self._measured = self._used_s = 0.0
        self._hold_s = 1.0

    @property
    def per_s(self) -> float | None:
        """The calls a second that are allowed, `None` for any number."""
        return self.value if self.kind == "per second" else None

    @property
    def in_flight(self) -> float | None:
        """The calls in flight that are allowed, `None` for any number."""
        return self.value if self.kind == "in flight" else None

    def use(self, seconds: float, max_value: float) -> None:
        """Record that the limit held calls back for some time; above `max_value` there is none any more."""
        self._used_s += seconds
        beyond = max(0.0, self._used_s / self._hold_s - 1)
        value = self._measured * exp(min(_STEEPNESS * beyond**3, 100.0))
        self.value = None if value > max_value else value

    def lower(self, kind: LimitKind, measured: float, feedback_s: float) -> None:
        """Set the limit to what was let through while calls were refused; it takes `feedback_s` to see an effect."""
        is_rate = kind == "per second"
        if self.value is None or kind != self.kind or measured > _RISEN * self._measured:
            self._hold_s = feedback_s
        elif self._used_s > self._hold_s:  # it was raised in vain
            self._hold_s = min(_MAX_HOLDS * feedback_s, _HOLD_FACTOR * self._hold_s)
            measured = max(measured, self._measured) if is_rate else measured
        else:  # it is lower than it was
            self._hold_s = min(self._hold_s, _HOLD_FACTOR * feedback_s)
        self.kind = kind
        self.value = self._measured = max(_MIN_PER_S, _USED_SHARE * measured) if is_rate else measured
        self._used_s = 0.0
