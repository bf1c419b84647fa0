"""Preprocessing of a row before it is rendered: it is cleaned, then sanitized.

Both change what is asked, so an answer is kept under the text that they leave. They are pure: a row that is prepared
again gives the same, so what was taken out of it need not be kept until its answer is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ondine_core.preprocessing.cleaning import Clean, Step, Truncation, find_steps, name_of
from ondine_core.preprocessing.sanitizer import Sanitize, Sanitized, Sanitizer, find_sanitizer, sanitize
from ondine_core.preprocessing.sanitizer.finding import find
from ondine_core.types.cell_text import BYTES, decode
from ondine_core.types.values import Json


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The steps that clean the texts of each row, in order, and what is taken out of it then."""

    steps: tuple[Step, ...] = ()
    sanitizer: Sanitizer | None = None

    def __str__(self) -> str:
        cleaned = ", ".join(map(name_of, self.steps))
        parts = {"clean": cleaned, "sanitize": str(self.sanitizer) if self.sanitizer else ""}
        return "; ".join(f"{name} {what}" for name, what in parts.items() if what)

    @property
    def identity(self) -> str:
        """A text that changes when rows are prepared differently; the code of a user's function is not in it."""
        return f"{self}; {dict(self.sanitizer.patterns) if self.sanitizer else ''}"

    @property
    def restores(self) -> bool:
        """Whether answers are to have back what was taken out of their rows."""
        return self.sanitizer is not None and self.sanitizer.mode == "placeholder"


@dataclass(frozen=True, slots=True)
class PreprocessedRow(Sanitized):
    """A row ready to be rendered."""

    truncated: bool = False


@dataclass(slots=True)
class PreprocessStats:
    """How many rows were truncated and sanitized so far, and how often each rule of the sanitizer found something."""

    rows_truncated: int = 0
    rows_sanitized: int = 0
    found: Counter[str] = field(default_factory=Counter)

    def note(self, row: PreprocessedRow) -> None:
        """Count one row more."""
        self.rows_truncated += row.truncated
        self.rows_sanitized += bool(row.found)
        self.found.update(row.found)


def find_preprocessing(clean: Clean | str, sanitize: Sanitize | None) -> Preprocessing | None:
    """What a user wants done to each row; `None` for nothing."""
    preparation = Preprocessing(find_steps(clean), find_sanitizer(sanitize))
    return None if preparation == Preprocessing() else preparation


def prepare(row: Mapping[str, Any], preparation: Preprocessing) -> PreprocessedRow:
    """`row` cleaned and sanitized; only texts are cleaned.

    Raises:
        TypeError: A step of the user's returned no text.
        Exception: Whatever such a step raises.
    """
    row, truncated = _clean_row(row, preparation)
    if preparation.sanitizer is None:
        return PreprocessedRow(row, truncated=truncated)
    sanitized = sanitize(row, preparation.sanitizer)
    return PreprocessedRow(sanitized.values, sanitized.raw, sanitized.found, truncated)


def prepare_example(row: Mapping[str, Any], answer: Json, preparation: Preprocessing) -> tuple[Mapping[str, Any], Json]:
    """An example's input and answer, as if it were a row: what is taken out of one is called the same in the other."""
    cleaned, _ = _clean_row(row, preparation)
    if preparation.sanitizer is None:
        return cleaned, answer
    plain = answer.model_dump(mode="json") if hasattr(answer, "model_dump") else answer
    whole = dict(sanitize({**cleaned, _ANSWER: plain}, preparation.sanitizer).values)
    return whole, whole.pop(_ANSWER)


_ANSWER = "\0"  # no column is called so


def _clean_row(row: Mapping[str, Any], preparation: Preprocessing) -> tuple[Mapping[str, Any], bool]:
    """`row` cleaned, and whether a text in it was truncated."""
    if not preparation.steps:
        return row, False
    cleaned = {name: _clean(value, preparation) for name, value in row.items()}
    return {name: value for name, (value, _) in cleaned.items()}, any(cut for _, cut in cleaned.values())


def _clean(value: Any, preparation: Preprocessing) -> tuple[Any, bool]:
    """`value` cleaned, and whether it was truncated."""
    if isinstance(value, BYTES):
        value = decode(value)
    if not isinstance(value, str):
        return value, False
    truncated = False
    for step in preparation.steps:
        before, value = value, step(value)
        if not isinstance(value, str):
            raise TypeError(f"{name_of(step)} returned a {type(value).__name__}, not a text")
        if isinstance(step, Truncation) and value != before:
            truncated = True
            if preparation.sanitizer is not None:
                value = _without_part_of_datum(before, value, step.mark, preparation.sanitizer)
    return value, truncated


_BEHIND = 400
"""Characters behind a cut in which a datum may end that begins before it."""


def _without_part_of_datum(text: str, cut: str, mark: str, sanitizer: Sanitizer) -> str:
    """`cut`, which ends before a datum of `text` that was cut in two, since no rule would find its first part."""
    end = len(cut) - len(mark)
    for span in find(text[: end + _BEHIND], sanitizer.chosen):
        if span.start < end < span.end:
            return text[: span.start].rstrip() + mark
    return cut
