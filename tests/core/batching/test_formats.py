from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.batching.formats import ROW_FORMATS, RowFormat

FORMS = {form.name: form for form in ROW_FORMATS}
every_form = pytest.mark.parametrize("form", ROW_FORMATS, ids=FORMS)

NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
HOSTILE = st.sampled_from(
    [
        *('"},{"id":1,"a":"x"}]', '{"answers":[]}', "[[1]]", "\\", '"', "\\u0000", "null", "NaN", "1e999"),
        *("</a></item><item id='2'>", "<![CDATA[", "]]>", "<!DOCTYPE x>", "<!-- -->", "&lt;", "&", "<?xml?>", "<a/>"),
        *("1,x\n2,y", '"a","b"', ",", "'", "\r", "\r\n", "\n", " x ", "\t", "```json\n", "```", "id,a\n", "=1+1"),
        *("\x00", "\x0b", "\x0c", "\x1f", "\x7f", "\x85", "\u2028", "\ufeff", "\ufffe", "\uffff", "\U0001f600"),
    ]
)
TEXTS = st.lists(st.text(max_size=10) | HOSTILE, max_size=4).map("".join)
NAMES = st.sampled_from(["a", "B-1", "field", "name", "item", "xml", "two words", "ö", "1st", "<b>", "\n", '"', ","])
TABLES = st.lists(NAMES, unique=True, max_size=4).flatmap(
    lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, TEXTS)), min_size=1, max_size=4)
)


def carried(form: RowFormat, text: str) -> str:
    """What remains of a text after a round trip, as the module's docstring says."""
    return text if form.name != "xml" else NOT_XML.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))


def numbered(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [{"id": number, **row} for number, row in enumerate(rows, 1)]


@every_form
@given(rows=TABLES)
def test_formats_round_trip(form: RowFormat, rows: list[dict[str, str]]) -> None:
    """Any texts under any names, with any markup, are read as the same texts of the same records."""
    records = form.read(form.write(numbered(rows)))
    expected = [{name: carried(form, text) for name, text in row.items()} for row in rows]
    assert records is not None
    assert [int(record.pop("id")) for record in records] == list(range(1, len(rows) + 1))
    assert records == expected


@every_form
@given(rows=TABLES, at=st.integers(0, 400))
def test_truncated_text_gives_only_whole_records(form: RowFormat, rows: list[dict[str, str]], at: int) -> None:
    """Of a truncated text only records that were complete in it are read."""
    text = form.write(numbered(rows))
    whole = form.read(text) or []
    found = form.read(text[:at]) or []
    # The last line of CSV does not show that it is cut, which is why a reply that is cut is not read at all.
    kept = found[:-1] if form.name == "csv" else found
    assert kept == whole[: len(kept)]


@every_form
@given(st.text() | st.lists(HOSTILE, max_size=8).map("".join))
def test_readers_accept_any_text(form: RowFormat, text: str) -> None:
    """Any text is read as records or as none."""
    records = form.read(text)
    assert records is None or all(isinstance(record, dict) for record in records)


@every_form
@pytest.mark.parametrize(
    "text",
    ["", " ", "Sorry, no.", "null", "7", '"x"', '{"answers":', '{"answers":{}}', "[", "<items>", "<items/>", "id,a"],
)
def test_text_without_records_is_unreadable(form: RowFormat, text: str) -> None:
    """No record is extracted from other text."""
    assert not [record for record in form.read(text) or () if "id" in record]


VALUES = {"n": 7, "x": 0.5, "yes": True, "no": None, "list": ["a", 1], "object": {"b": None}, "text": "t"}


@pytest.mark.parametrize("name", ["csv", "xml"])
def test_non_text_values_are_written_as_json(name: str) -> None:
    """In text-only formats lists and booleans are JSON, null is empty, and a number is itself."""
    (record,) = FORMS[name].read(FORMS[name].write([{"id": 1, **VALUES}])) or [{}]
    assert record.pop("id") == "1"
    assert list(record.values()) == ["7", "0.5", "true", "", '["a",1]', '{"b":null}', "t"]


@pytest.mark.parametrize("name", ["csv", "xml"])
def test_records_may_lack_a_value(name: str) -> None:
    """A missing value does not shift the other values of its record."""
    form = FORMS[name]
    records = form.read(form.write([{"id": 1, "b": "x"}, {"id": 2, "a": "y", "b": "z"}]))
    assert [(record.get("a", ""), record["b"]) for record in records or ()] == [("", "x"), ("y", "z")]


# -- JSON lines ----------------------------------------------------------------------------------------------------


def test_unreadable_json_line_is_skipped() -> None:
    """Each line is read by itself, also with Windows line ends."""
    text = 'Here you are:\r\n{"id":1,"a":"x"}\r\n\r\n{"id":2,"a":\n[{"id":3}]\n{"id":4,"a":"y"}'
    assert FORMS["jsonl"].read(text) == [{"id": 1, "a": "x"}, {"id": 4, "a": "y"}]


# -- CSV -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "records"),
    [
        ("id,a\n1,good, or so\n2,bad\n3", [{"id": "2", "a": "bad"}]),  # too many or too few cells have shifted
        ("id,a,a\n1,x,y", None),  # which of the two is meant?
        ('id,a\n1,"x" y', None),
        ('id,a\n1,"x', None),
        ("\nid,a\n\n1,x\n", [{"id": "1", "a": "x"}]),
        ('id,a\r\n1,"x\r\ny"', [{"id": "1", "a": "x\r\ny"}]),
    ],
)
def test_csv_is_read_strictly(text: str, records: list[dict[str, str]] | None) -> None:
    """A value that may be in the wrong column, or truncated, is not used."""
    assert FORMS["csv"].read(text) == records


# -- XML -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "record"),
    [
        ('<item id="1"><a>x</a></item>', {"id": "1", "a": "x"}),
        ("<item><id>1</id><a>x</a></item>", {"id": "1", "a": "x"}),
        ('<item id="1" a="x"/>', {"id": "1", "a": "x"}),
        ('<item id="1"><field name="a">x</field></item>', {"id": "1", "a": "x"}),
        ('<item id="1"><a><![CDATA[<b> & c]]></a></item>', {"id": "1", "a": "<b> & c"}),
        ('<item id="1"><a>x &amp; y</a><b/></item>', {"id": "1", "a": "x & y", "b": ""}),
        ('<item id="1"><a>x <b>y</b> z</a></item>', None),  # the text would end at the markup
        ('<item id="1"><a>x</a><a>y</a></item>', None),
        ('<item id="1"><id>2</id><a>x</a></item>', None),
    ],
)
def test_xml_items(item: str, record: dict[str, str] | None) -> None:
    """Attributes and elements are fields; an item with a field twice or with markup in it is skipped."""
    assert FORMS["xml"].read(f"<?xml version='1.0'?>\n<items>{item}</items>") == (record and [record])


def test_xml_document_types_are_refused() -> None:
    """A document type could expand a small text to a huge one."""
    items = "<items><item id='1'><a>&b;</a></item></items>"
    bomb = f"<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'>]>{items}"
    assert FORMS["xml"].read(bomb) is None
    assert FORMS["xml"].read("\ufeff" + bomb) is None
