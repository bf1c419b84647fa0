"""Preprocesses a row before it is rendered: cleans it, then sanitizes it.

Both change the prompt, so an answer is stored under the changed text. Both are pure: preparing a row again gives the
same result, so data removed from a row need not be kept until its answer arrives.
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
    """The steps that clean the texts of each row, in order, and the sanitizer that follows them."""

    steps: tuple[Step, ...] = ()
    sanitizer: Sanitizer | None = None

    def __str__(self) -> str:
        cleaned = ", ".join(map(name_of, self.steps))
        parts = {"clean": cleaned, "sanitize": str(self.sanitizer) if self.sanitizer else ""}
        return "; ".join(f"{name} {what}" for name, what in parts.items() if what)

    @property
    def identity(self) -> str:
        """A text that changes if rows are prepared differently, except by the code of a user's function."""
        return f"{self}; {dict(self.sanitizer.patterns) if self.sanitizer else ''}"

    @property
    def restores(self) -> bool:
        """Whether placeholders in answers are replaced by the data of their rows."""
        return self.sanitizer is not None and self.sanitizer.mode == "placeholder"


@dataclass(frozen=True, slots=True)
class PreprocessedRow(Sanitized):
    """A row ready to be rendered."""

    truncated: bool = False


@dataclass(slots=True)
class PreprocessStats:
    """The numbers of rows truncated and sanitized so far, and of matches by rule of the sanitizer."""

    rows_truncated: int = 0
    rows_sanitized: int = 0
    found: Counter[str] = field(default_factory=Counter)

    def note(self, row: PreprocessedRow) -> None:
        """Count a row."""
        self.rows_truncated += row.truncated
        self.rows_sanitized += bool(row.found)
        self.found.update(row.found)


def find_preprocessing(clean: Clean | str, sanitize: Sanitize | None) -> Preprocessing | None:
    """Compile the user's settings; `None` if rows stay as they are."""
    preparation = Preprocessing(find_steps(clean), find_sanitizer(sanitize))
    return None if preparation == Preprocessing() else preparation


def prepare(row: Mapping[str, Any], preparation: Preprocessing) -> PreprocessedRow:
    """Clean the texts of `row` and sanitize it.

    Raises:
        TypeError: A step of the user's returned something else than a text.
        Exception: Any error of such a step.
    """
    row, truncated = _clean_row(row, preparation)
    if preparation.sanitizer is None:
        return PreprocessedRow(row, truncated=truncated)
    sanitized = sanitize(row, preparation.sanitizer)
    return PreprocessedRow(sanitized.values, sanitized.raw, sanitized.found, truncated)


def prepare_example(row: Mapping[str, Any], answer: Json, preparation: Preprocessing) -> tuple[Mapping[str, Any], Json]:
    """Prepare the input and the answer of an example together, so equal data get the same placeholder in both."""
    cleaned, _ = _clean_row(row, preparation)
    if preparation.sanitizer is None:
        return cleaned, answer
    plain = answer.model_dump(mode="json") if hasattr(answer, "model_dump") else answer
    whole = dict(sanitize({**cleaned, _ANSWER: plain}, preparation.sanitizer).values)
    return whole, whole.pop(_ANSWER)


_ANSWER = "\0"  # no column has this name


def _clean_row(row: Mapping[str, Any], preparation: Preprocessing) -> tuple[Mapping[str, Any], bool]:
    """The cleaned row, and whether a text in it was truncated."""
    if not preparation.steps:
        return row, False
    cleaned = {name: _clean(value, preparation) for name, value in row.items()}
    return {name: value for name, (value, _) in cleaned.items()}, any(cut for _, cut in cleaned.values())


def _clean(value: Any, preparation: Preprocessing) -> tuple[Any, bool]:
    """The cleaned value, and whether it was truncated."""
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
                value = _without_cut_datum(before, value, step.mark, preparation.sanitizer)
    return value, truncated


_MAX_DATUM = 400
"""Characters behind a cut within which a datum that begins before the cut must end."""


def _without_cut_datum(text: str, cut: str, mark: str, sanitizer: Sanitizer) -> str:
    """`cut` without the first part of a datum of `text` that was cut in two, as no rule would find that part."""
    end = len(cut) - len(mark)
    for span in find(text[: end + _MAX_DATUM], sanitizer.chosen):
        if span.start < end < span.end:
            return text[: span.start].rstrip() + mark
    return cut
