"""Measures how far answers to the same rows agree if they are asked alone and together, by column.

Floats may differ in their last digits, and texts in the space around them. Free text can say the same in other words,
so its columns are reported but do not decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose, sqrt
from typing import Any, TypeAlias

from ondine_core.prompts.output_schema import Column
from ondine_core.types.values import Json, Key

Values: TypeAlias = Mapping[str, Json] | None
"""The answer of a row by column, `None` for a row that failed."""

_Z_95 = 1.959963984540054
_SAME_NUMBER = 1e-9
"""The relative tolerance of floats; whole numbers have none, since they may be long identifiers."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often a column has the same value if rows are asked alone and together.

    `compared` rows have an answer in at least one of the two ways, and `agreed` of them the same one; `low` and `high`
    are the ends of Wilson's 95 % interval for the share. Only columns with `decides` decide about the batch size.
    """

    column: str
    agreed: int
    compared: int
    low: float
    high: float
    decides: bool = True

    @property
    def share(self) -> float:
        """The share of rows that agree, from 0 to 1; 1 if none was compared."""
        return self.agreed / self.compared if self.compared else 1.0

    def __str__(self) -> str:
        return (
            f"column {self.column!r} agrees in {self.agreed} of {self.compared} rows "
            f"({self.share:.2f}, 95 % interval {self.low:.2f} to {self.high:.2f})"
        )


@dataclass(frozen=True, slots=True)
class Calibration:
    """A comparison of rows that were asked one a call and `batch_size` a call."""

    rows: int
    batch_size: int
    columns: tuple[Agreement, ...]

    @property
    def lowest(self) -> Agreement:
        """The deciding column with the smallest share."""
        return min((column for column in self.columns if column.decides), key=lambda column: column.share)


def wilson(agreed: int, compared: int) -> tuple[float, float]:
    """The 95 % score interval for a proportion.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American
    Statistical Association 22 (1927), 209-212. Unlike the textbook interval it stays within 0 and 1, and is not of
    length 0 when all rows agree.
    """
    if not compared:
        return 0.0, 1.0
    share, z2 = agreed / compared, _Z_95**2
    middle = (share + z2 / (2 * compared)) / (1 + z2 / compared)
    half = _Z_95 * sqrt(share * (1 - share) / compared + z2 / (4 * compared**2)) / (1 + z2 / compared)
    # Exactly 0 and 1 at the ends, in spite of rounding.
    low = max(0.0, middle - half) if agreed else 0.0
    high = min(1.0, middle + half) if agreed < compared else 1.0
    return low, high


def compare(
    alone: Mapping[Key, Values], batched: Mapping[Key, Values], columns: Sequence[Column], batch_size: int
) -> Calibration:
    """Compare the answers to the same rows, asked one a call and `batch_size` a call.

    Floats are the same within a relative 1e-9, texts if they are equal without the space around them, all else if it is
    equal. A row with an answer in one way only disagrees; a row without any answer is not compared.

    Free text never agrees word by word. Its columns do not decide, unless there are no others.
    """
    rows = [(alone.get(key), batched.get(key)) for key in dict.fromkeys((*alone, *batched))]
    pairs = [(one, other) for one, other in rows if one is not None or other is not None]
    free = {column.name for column in columns if _is_free_text(column.json_schema)}
    agreements = []
    for column in columns:
        agreed = sum(
            one is not None and other is not None and _same(one.get(column.name), other.get(column.name))
            for one, other in pairs
        )
        decides = column.name not in free or len(free) == len(columns)
        agreements.append(Agreement(column.name, agreed, len(pairs), *wilson(agreed, len(pairs)), decides))
    return Calibration(len(rows), batch_size, tuple(agreements))


def _same(one: Json, other: Json) -> bool:  # noqa: PLR0911  (one case a kind)
    match one, other:
        case (bool(), _) | (_, bool()):
            return one is other
        case (int(), int()):
            return one == other
        case (int() | float(), int() | float()):
            return isclose(one, other, rel_tol=_SAME_NUMBER)
        case (str(), str()):
            return one.strip() == other.strip()
        case (list(), list()):
            return len(one) == len(other) and all(map(_same, one, other))
        case (dict(), dict()):
            return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
        case _:
            return bool(one == other)


_CLOSED = ("enum", "const", "format", "pattern")


def _is_free_text(kind: Mapping[str, Any]) -> bool:
    """Whether values have a text that can be put in other words."""
    parts = [*kind.get("anyOf", ()), *kind.get("oneOf", ()), *kind.get("properties", {}).values()]
    if isinstance(kind.get("items"), Mapping):
        parts.append(kind["items"])
    if any(map(_is_free_text, parts)):
        return True
    types = kind.get("type")
    is_text = types == "string" or (isinstance(types, list) and "string" in types)
    return is_text and not any(word in kind for word in _CLOSED)
