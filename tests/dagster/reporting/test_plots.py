"""The plot of a run's answers."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from ondine_dagster.reporting.plots import distributions

SVG = "{http://www.w3.org/2000/svg}"


def drawn(markdown: str) -> ET.Element:
    """The plot inside `markdown`, as a browser parses it."""
    found = re.fullmatch(r"!\[.*]\(<data:image/svg\+xml,([^<>\n]*)>\)", markdown)
    assert found
    return ET.fromstring(unquote(found[1]))  # noqa: S314  (our own)


def texts(picture: ET.Element) -> list[str]:
    return [part.text or "" for part in picture.iter(f"{SVG}text")]


def test_values_are_counted_and_the_most_frequent_comes_first() -> None:
    """A closed set is ordered by frequency, with shares of all rows; null answers come last."""
    markdown = distributions({"mood": ["good", "bad", "good", None, "good"], "summary": [str(n) for n in range(20)]})
    assert markdown is not None
    assert len(markdown) < 1000  # otherwise Dagster hides it behind a link
    picture = drawn(markdown)
    assert texts(picture) == ["mood", "good: 3 (60%)", "bad: 1 (20%)", "(no value): 1 (20%)"]
    assert [re.findall(r"h(\d+)", bars.attrib["d"]) for bars in picture.iter(f"{SVG}path")] == [["220", "73"], ["73"]]


def test_failed_rows_have_a_bar_of_their_own() -> None:
    """In each column, in another colour than null answers."""
    columns = {"mood": ["good", "bad", None, None, None], "score": [1, None, 2, None, None]}
    markdown = distributions(columns, failed=2)
    assert markdown is not None
    picture = drawn(markdown)
    failed, no_value = "(failed): 2 (40%)", "(no value): 1 (20%)"
    mood, score = ["good: 1 (20%)", "bad: 1 (20%)"], ["1: 1 (20%)", "2: 1 (20%)"]
    assert texts(picture) == ["mood", *mood, no_value, failed, "score", *score, no_value, failed]
    colours = [bars.attrib["stroke"] for bars in picture.iter(f"{SVG}path")]
    assert len(colours) == len(set(colours)) == 3
    assert distributions({"mood": [None, None]}, failed=2) is None
    with_skipped = distributions({"mood": ["good", None, None]}, failed=1, skipped=1)
    assert with_skipped is not None
    assert texts(drawn(with_skipped)) == ["mood", "good: 1 (33%)", "(skipped): 1 (33%)", "(failed): 1 (33%)"]


def test_columns_are_left_out_before_the_picture_is_hidden_behind_a_link() -> None:
    """Dagster shows 999 characters in place; the first column is drawn in any case."""
    columns = {f"column {number}": list("abcdefgh") for number in range(4)}
    markdown = distributions(columns)
    assert markdown is not None
    assert len(markdown) < 1000
    assert [text for text in texts(drawn(markdown)) if text.startswith("column")] == ["column 0"]


def test_many_numbers_are_drawn_in_ranges() -> None:
    """In numeric order, with every number in a bar."""
    markdown = distributions({"score": list(range(100))})
    assert markdown is not None
    labels = texts(drawn(markdown))
    assert labels[1].startswith("0 to 12.38: ")
    assert sum(int(label.partition(": ")[2].partition(" ")[0]) for label in labels[1:]) == 100


def test_free_text_lists_and_empty_columns_are_not_drawn() -> None:
    """Free text, lists and empty columns are not drawn."""
    assert distributions({"summary": [str(n) for n in range(20)], "tags": [["a"], ["a"]], "none": [None, None]}) is None


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text() | st.lists(st.integers())


@given(st.dictionaries(st.text(), st.lists(VALUES, max_size=30), max_size=8))
def test_any_answers_can_be_drawn(columns: dict[str, list[Any]]) -> None:
    """Markup, control characters, infinities and mixed types give neither a broken plot nor an error."""
    markdown = distributions(columns)
    if markdown is not None:
        drawn(markdown)
