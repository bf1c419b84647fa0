"""Scores answers against known labels: accuracy, and precision, recall and F1 of each label.

A row without an answer agrees with no label. Values are compared as JSON: texts without the space around them, numbers
as numbers (4 is 4.0), and dates and times as ISO texts; nothing else is guessed.
"""

from __future__ import annotations

import datetime as dt
import enum
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

from ondine_core.types.values import Json

_DATE_LENGTH = 10
NO_ANSWER = "(no answer)"
"""The answer of an unanswered row in the confusion counts; it is not JSON, so no label is equal to it."""


@dataclass(frozen=True, slots=True)
class LabelScore:
    """The counts of one label, a JSON text: rows with this label, rows with this answer, and rows with both (`met`)."""

    label: str
    expected: int
    answered: int
    met: int

    @property
    def precision(self) -> float:
        """The share of rows with this answer that have this label; 0 if no row has the answer."""
        return self.met / self.answered if self.answered else 0.0

    @property
    def recall(self) -> float:
        """The share of rows with this label that have this answer; 0 if no row has the label."""
        return self.met / self.expected if self.expected else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return 2 * self.met / (self.expected + self.answered)


@dataclass(frozen=True)
class Score:
    """The score of a column's answers against its labels.

    `confusion` has the number of rows by label and answer, both as JSON text; rows without an answer have `NO_ANSWER`.
    """

    column: str
    confusion: Mapping[tuple[str, str], int]

    @cached_property
    def rows(self) -> int:
        """The number of labelled rows."""
        return sum(self.confusion.values())

    @property
    def accuracy(self) -> float:
        """The share of rows whose answer is their label."""
        return sum(rows for (label, answer), rows in self.confusion.items() if label == answer) / self.rows

    @property
    def f1(self) -> float:
        """The arithmetic mean of the F1 scores of all labels that were expected or answered.

        This is the recommended one of two definitions of macro F1: J. Opitz, S. Burst, "Macro F1 and Macro F1",
        arXiv:1911.03347 (2019).
        """
        labels = self.labels
        return sum(label.f1 for label in labels) / len(labels)

    @cached_property
    def labels(self) -> tuple[LabelScore, ...]:
        """The labels that were expected or answered, the most expected first."""
        expected, answered = Counter[str](), Counter[str]()
        for (label, answer), rows in self.confusion.items():
            expected[label] += rows
            answered[answer] += rows
        del answered[NO_ANSWER]
        names = sorted(expected.keys() | answered.keys(), key=lambda name: (-expected[name], name))
        met = Counter({label: rows for (label, answer), rows in self.confusion.items() if label == answer})
        return tuple(LabelScore(name, expected[name], answered[name], met[name]) for name in names)


def score(column: str, labels: Sequence[Any], answers: Sequence[Any], answered: Sequence[bool]) -> Score:
    """Compare `answers` with `labels`, row by row.

    `answered` says which rows have an answer, since an answer may also be `None`.
    """
    confusion = Counter[tuple[str, str]]()
    for label, answer, is_answered in zip(labels, answers, answered, strict=True):
        confusion[as_label(_convert(label, answer)), as_label(answer) if is_answered else NO_ANSWER] += 1
    return Score(column, confusion)


def _convert(label: Any, answer: Any) -> Any:
    """Convert a label of a type that JSON lacks: a decimal to a number, a timestamp to the text of an equal answer."""
    if isinstance(label, Decimal) and isinstance(answer, int | float):
        return float(label)
    if isinstance(label, dt.datetime) and isinstance(answer, str) and _is_same_time(label, answer.strip()):
        return answer
    return label


def _is_same_time(label: dt.datetime, answer: str) -> bool:
    """Whether a text is the date or the time of `label`; times without a zone are in UTC."""
    try:
        time = dt.datetime.fromisoformat(answer)
    except ValueError:
        return False
    if len(answer) == _DATE_LENGTH:
        return label.replace(tzinfo=None) == time
    return label.replace(tzinfo=label.tzinfo or dt.UTC) == time.replace(tzinfo=time.tzinfo or dt.UTC)


def shown(label: str) -> str:
    """A label for display: a text without its quotes."""
    return str(json.loads(label)) if label.startswith('"') else label


def as_label(value: Any) -> str:
    """`value` as JSON text, which is the same for values that count as equal."""
    return json.dumps(_plain(value), ensure_ascii=False, sort_keys=True)


def _plain(value: Any) -> Json:  # noqa: PLR0911  (one case a kind)
    match value:
        case bool() | None | int():
            return value
        case enum.Enum():
            return _plain(value.value)
        case str():
            return value.strip()
        case float():
            return int(value) if value.is_integer() else float(f"{value:.9g}")
        case dt.date():
            return value.isoformat()
        case Mapping():
            return {str(name): _plain(child) for name, child in value.items()}
        case list() | tuple():
            return [_plain(child) for child in value]
        case _ if hasattr(value, "tolist"):  # of NumPy
            return _plain(value.tolist())
        case _:
            return str(value)
