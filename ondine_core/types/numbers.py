"""Checks that a value given by a user is a number in a range."""

from __future__ import annotations

from decimal import Decimal
from math import inf
from numbers import Integral, Real
from typing import Any


def is_number(value: object, least: float, most: float | None = None) -> bool:
    """Whether `value` is a real number of at least `least` and at most `most`, or finite; a boolean is none."""
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        return False
    if isinstance(value, Decimal) and value.is_nan():  # comparing it is an error
        return False
    number: Any = value
    return bool(least <= number < inf if most is None else least <= number <= most)


def is_positive(value: object) -> bool:
    """Whether `value` is a finite number greater than 0."""
    return is_number(value, 0) and value != 0


def is_whole(value: object, least: int) -> bool:
    """Whether `value` is a whole number of at least `least`; a boolean is not."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least
