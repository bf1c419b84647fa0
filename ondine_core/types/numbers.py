"""Whether a value that a user gave is a number in a range."""

from __future__ import annotations

from decimal import Decimal
from math import inf, nan
from numbers import Integral, Real
from typing import Any


def is_number(value: object, least: float, most: float | None = None) -> bool:
    """Whether `value` is a real number from `least` to `most`, by default any finite one; a boolean is not."""
    is_real = isinstance(value, Real) or (isinstance(value, Decimal) and not value.is_nan())
    number: Any = value if is_real and not isinstance(value, bool) else nan
    return bool(least <= number < inf if most is None else least <= number <= most)


def is_positive(value: object) -> bool:
    """Whether `value` is a finite number of more than 0."""
    return is_number(value, 0) and value != 0


def is_whole(value: object, least: int) -> bool:
    """Whether `value` is a whole number of at least `least`; a boolean is not."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least
