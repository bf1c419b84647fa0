"""A limit that was measured: kept for a while, then raised ever faster until calls are refused again."""

from __future__ import annotations

from math import exp
from typing import Literal, TypeAlias

LimitKind: TypeAlias = Literal["in flight", "per second"]

_USED_SHARE = 0.98  # share of a measured rate that is used; the rest lets the provider catch up
_STEEPNESS = 2.0  # a limit grows by exp(steepness * t**3), t in hold times after the first
_HOLD_FACTOR = 5.0  # factor by which the hold time grows when a raised limit led to refusals
_MAX_HOLDS = 16.0  # maximum hold time, in feedback times
_RISEN = 1.5  # a measured limit that is higher by this factor counts as a new limit
_MIN_PER_S = 0.1  # lowest rate


class ProbedLimit:
    """One limit, on calls in flight or on calls a second."""

    def __init__(self) -> None:
        self.value: float | None = None  # `None` while no limit is known
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
        """Record that the limit delayed calls by `seconds`; it is given up when it grows beyond `max_value`."""
        self._used_s += seconds
        beyond = max(0.0, self._used_s / self._hold_s - 1)
        value = self._measured * exp(min(_STEEPNESS * beyond**3, 100.0))
        self.value = None if value > max_value else value

    def lower(self, kind: LimitKind, measured: float, feedback_s: float) -> None:
        """Set the limit to what was let through while calls were refused; a limit shows its effect in `feedback_s`."""
        is_rate = kind == "per second"
        if self.value is None or kind != self.kind or measured > _RISEN * self._measured:
            self._hold_s = feedback_s
        elif self._used_s > self._hold_s:  # raising it led to refusals
            self._hold_s = min(_MAX_HOLDS * feedback_s, _HOLD_FACTOR * self._hold_s)
            measured = max(measured, self._measured) if is_rate else measured
        else:  # the provider lowered it
            self._hold_s = min(self._hold_s, _HOLD_FACTOR * feedback_s)
        self.kind = kind
        self.value = self._measured = max(_MIN_PER_S, _USED_SHARE * measured) if is_rate else measured
        self._used_s = 0.0
