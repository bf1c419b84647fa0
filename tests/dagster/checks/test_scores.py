"""Accuracy and F1 against their definitions, and equality of labels."""

from __future__ import annotations

import datetime as dt
import enum
from collections import Counter
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_dagster.checks.scores import NO_ANSWER, as_label, score, shown

LABELS = ("a", "b", "c")
ROWS = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None])), min_size=1, max_size=30)


def scored(rows: list[tuple[str, str | None]]):  # noqa: ANN201
    labels, answers = zip(*rows, strict=True)
    return score("mood", labels, answers, [answer is not None for answer in answers])


def defined_f1(rows: list[tuple[str, str | None]], label: str) -> float:
    """F1 by precision and recall, from the textbook definition."""
    met = sum(one == other == label for one, other in rows)
    answered, expected = sum(other == label for _, other in rows), sum(one == label for one, _ in rows)
    if not met:
        return 0.0
    precision, recall = met / answered, met / expected
    return 2 * precision * recall / (precision + recall)


@given(ROWS)
def test_scores_equal_their_definitions(rows: list[tuple[str, str | None]]) -> None:
    """Macro F1 is the mean over all labels that occur; a missing answer is not a label."""
    found = scored(rows)
    seen = {value for row in rows for value in row if value is not None}
    assert found.accuracy == pytest.approx(sum(one == other for one, other in rows) / len(rows))
    assert found.f1 == pytest.approx(sum(defined_f1(rows, label) for label in seen) / len(seen))
    assert 0 <= found.f1 <= 1
    by_name = {shown(label.label): label for label in found.labels}
    assert set(by_name) == seen
    for name, label in by_name.items():
        assert label.f1 == pytest.approx(defined_f1(rows, name))
        assert (label.expected, label.answered) == (
            sum(one == name for one, _ in rows),
            sum(other == name for _, other in rows),
        )


@given(ROWS)
def test_every_row_is_in_the_confusion_counts_once(rows: list[tuple[str, str | None]]) -> None:
    """Also a row without an answer, under a name that no label has."""
    confusion = scored(rows).confusion
    assert sum(confusion.values()) == len(rows)
    unanswered = sum(count for (_, answer), count in confusion.items() if answer == NO_ANSWER)
    assert unanswered == Counter(answer for _, answer in rows)[None]


class Mood(enum.Enum):
    """A label as a member."""

    GOOD = "good"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (4, 4.0),
        (4, np.int64(4)),
        (0.1 + 0.2, 0.3),
        (" good\n", "good"),
        (Mood.GOOD, "good"),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (np.array(["a", "b"]), ["a", "b"]),
        ({"b": 1, "a": (1.0,)}, {"a": [1], "b": 1}),
        (True, np.bool_(True)),
    ],
)
def test_labels_match_across_types(one: Any, other: Any) -> None:
    """A label in any frame type matches its JSON answer."""
    assert as_label(one) == as_label(other)


@pytest.mark.parametrize(
    ("one", "other"), [(True, 1), ("4", 4), (None, "null"), ("good", "Good"), (0.1, 0.1001), ("(no answer)", NO_ANSWER)]
)
def test_labels_that_do_not_match(one: Any, other: Any) -> None:
    """Nothing is converted by guessing."""
    assert as_label(one) != (other if other == NO_ANSWER else as_label(other))


def test_decimals_of_a_database_are_compared_as_the_answers_are() -> None:
    """As numbers with numbers, and as texts with the decimals of an output, which are texts."""
    labels = [Decimal("0.1"), Decimal("4.00"), Decimal("0.10"), Decimal("0.2")]
    assert score("price", labels, [0.1, 4, "0.10", 0.1], [True] * 4).accuracy == 0.75


@pytest.mark.parametrize(
    ("label", "answer", "is_met"),
    [
        (pd.Timestamp("2026-01-02"), "2026-01-02", True),
        (pd.Timestamp("2026-01-02", tz="Europe/Berlin"), "2026-01-02", True),
        (pd.Timestamp("2026-01-02 10:30").to_pydatetime(), "2026-01-02T10:30:00Z", True),
        (pd.Timestamp("2026-01-02 10:30").to_pydatetime(), "2026-01-02T10:30:00", True),
        (pd.Timestamp("2026-01-02 11:30", tz="Europe/Berlin"), "2026-01-02T10:30:00Z", True),
        (pd.Timestamp("2026-01-02 10:30"), "2026-01-02", False),
        (pd.Timestamp("2026-01-03"), "2026-01-02", False),
        (pd.Timestamp("2026-01-02"), "yesterday", False),
    ],
)
def test_timestamps_are_compared_as_the_answers_are(label: dt.datetime, answer: str, is_met: bool) -> None:
    """With dates as dates, since pandas has timestamps only, and with times in any time zone."""
    assert score("day", [label], [answer], [True]).accuracy == is_met
