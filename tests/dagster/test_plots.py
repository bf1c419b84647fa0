"""The picture of what a run wrote."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from ondine_dagster.plots import distributions

SVG = "{http://www.w3.org/2000/svg}"


def drawn(markdown: str) -> ET.Element:
    """The picture inside `markdown`, as a browser would parse it."""
    found = re.fullmatch(r"!\[.*]\(<data:image/svg\+xml,([^<>\n]*)>\)", markdown)
    assert found
    return ET.fromstring(unquote(found[1]))  # noqa: S314  (our own)


def texts(picture: ET.Element) -> list[str]:
    return [part.text or "" for part in picture.iter(f"{SVG}text")]


def test_values_are_counted_and_the_most_frequent_comes_first() -> None:
    """A closed set is drawn by frequency, with shares; what is missing is not counted."""
    markdown = distributions({"mood": ["good", "bad", "good", None, "good"], "summary": [str(n) for n in range(20)]})
    assert markdown is not None
    assert len(markdown) < 1000  # else Dagster hides it behind a link
    picture = drawn(markdown)
    assert texts(picture) == ["mood", "good: 3 (75%)", "bad: 1 (25%)"]
    (bars,) = picture.iter(f"{SVG}path")
    assert re.findall(r"h(\d+)", bars.attrib["d"]) == ["220", "73"]


def test_many_numbers_are_drawn_in_ranges() -> None:
    """Numbers keep their order, and every one of them is in a bar."""
    markdown = distributions({"score": list(range(100))})
    assert markdown is not None
    labels = texts(drawn(markdown))
    assert labels[1].startswith("0 to 12.38: ")
    assert sum(int(label.partition(": ")[2].partition(" ")[0]) for label in labels[1:]) == 100


def test_nothing_worth_a_picture_has_none() -> None:
    """Free text, lists and empty columns are not drawn."""
    assert distributions({"summary": [str(n) for n in range(20)], "tags": [["a"], ["a"]], "none": [None, None]}) is None


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text() | st.lists(st.integers())


@given(st.dictionaries(st.text(), st.lists(VALUES, max_size=30), max_size=8))
def test_whatever_models_write_can_be_drawn(columns: dict[str, list[Any]]) -> None:
    """Markup, control characters, infinities and mixed types make no broken picture and no error."""
    markdown = distributions(columns)
    if markdown is not None:
        drawn(markdown)
