"""Whether a value that a user gave is a number in a range."""

from __future__ import annotations

from decimal import Decimal
from math import inf, nan
from numbers import Integral, Real
from typing import Any


def is_number(value: object, least: float, most: float = inf) -> bool:
    """Whether `value` is a real number from `least` to `most`; a text and NaN are not."""
    is_real = isinstance(value, Real) or (isinstance(value, Decimal) and not value.is_nan())
    number: Any = value if is_real else nan
    return bool(least <= number <= most)


def is_whole(value: object, least: int) -> bool:
    """Whether `value` is a whole number of at least `least`."""
    return isinstance(value, Integral) and int(value) >= least
