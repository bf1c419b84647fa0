"""Writes records as text and reads them again: JSON, JSON lines, CSV and XML.

A value stays one value of one record, whatever it contains. A record that cannot be read with certainty is left out, or
the whole text is refused. JSON, JSON lines and CSV keep every text unchanged. XML has no control characters and one
kind of line end, so others become spaces and line feeds.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any, Literal, TypeAlias
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape, quoteattr

import orjson

from ondine_core.errors import ConfigError
from ondine_core.types.field_types import check_types
from ondine_core.types.values import Json

RowFormatName: TypeAlias = Literal["json", "jsonl", "csv", "xml"]
"""The names of the formats below, which are the values of `batch_format`."""

Record = Mapping[str, Json]
"""A row or an answer in a call with many rows: its local id, and its fields."""


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A format in which the rows and the answers of a call are written.

    Args:
        name: Its name, as in `batch_format`.
        ask: The instruction how to reply; `{example}` is replaced by an example of an answer.
        write: Writes records as text.
        read: Returns the records of a text that can be read; `None` if none can.
        structured: Whether a provider can enforce it by JSON schema.
        typed: Whether values keep their JSON types; otherwise they become texts.
    """

    name: str
    ask: str
    write: Callable[[Sequence[Record]], str]
    read: Callable[[str], list[dict[str, Json]] | None]
    structured: bool = False
    typed: bool = True

    def __post_init__(self) -> None:
        check_types(self, ConfigError)
        try:
            self.ask.format(example="")
        except (LookupError, ValueError) as error:
            raise ConfigError(
                f"ask={self.ask!r} cannot be filled: {{example}} is its only placeholder; double other braces."
            ) from error

    def write_text(self, records: Sequence[Record]) -> str:
        """`records` as `write` writes them."""
        text: Any = self.write(records)
        if not isinstance(text, str):
            raise ConfigError(f"write of the RowFormat {self.name!r} returned a {type(text).__name__}, not a text.")
        return text


def _write_json(records: Sequence[Record]) -> str:
    return orjson.dumps(records).decode()


def _read_json(text: str) -> list[dict[str, Json]] | None:
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    answers = data.get("answers") if isinstance(data, dict) else data
    return [answer for answer in answers if isinstance(answer, dict)] if isinstance(answers, list) else None


def _write_jsonl(records: Sequence[Record]) -> str:
    return "\n".join(orjson.dumps(record).decode() for record in records)


def _read_jsonl(text: str) -> list[dict[str, Json]] | None:
    records = []
    for line in text.split("\n"):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records or None


def _write_csv(records: Sequence[Record]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    names = list(dict.fromkeys(name for record in records for name in record))
    writer.writerow(names)
    writer.writerows([_cell(record.get(name)) for name in names] for record in records)
    return out.getvalue().rstrip("\n")


def _cell(value: Json) -> str | float:
    """A value in a format of texts and numbers: null becomes an empty text, and other values are written as JSON."""
    if value is None:
        return ""
    is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return value if is_plain else orjson.dumps(value).decode()


def _read_csv(text: str) -> list[dict[str, Json]] | None:
    try:
        header, *rows = filter(None, csv.reader(io.StringIO(text), strict=True))
    except (csv.Error, ValueError):
        return None
    if len(set(header)) < len(header):
        return None
    # In a row with too few or too many cells values may have shifted, so it is left out and asked again.
    return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)] or None


def _write_xml(records: Sequence[Record]) -> str:
    return "<items>\n" + "\n".join(map(_write_xml_item, records)) + "\n</items>"


def _write_xml_item(record: Record) -> str:
    (name, number), *fields = record.items()
    return f"<item {name}={quoteattr(str(number))}>{''.join(starmap(_write_xml_field, fields))}</item>"


def _write_xml_field(name: str, value: Json) -> str:
    text = escape(_xml_text(str(_cell(value))))
    if _XML_NAME.fullmatch(name):
        return f"<{name}>{text}</{name}>"
    return f"<field name={quoteattr(_xml_text(name))}>{text}</field>"


_XML_NAME = re.compile(r"(?!xml)[a-z_][\w.-]*", re.ASCII | re.IGNORECASE)
_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _xml_text(text: str) -> str:
    return _NOT_XML.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))


def _read_xml(text: str) -> list[dict[str, Json]] | None:
    if "<!DOCTYPE" in text:  # its entities can expand a small text to a huge one
        return None
    try:
        root = ET.fromstring(text)  # noqa: S314
    except ET.ParseError:
        return None
    records = map(_read_xml_item, root)
    return [record for record in records if record is not None] or None


def _read_xml_item(item: ET.Element) -> dict[str, Json] | None:
    """The attributes and elements of an item; `None` if a name occurs twice, or an element has inner elements."""
    pairs = [*item.items(), *((_xml_name(part), part.text or "") for part in item)]
    record: dict[str, Json] = dict(pairs)
    return None if len(record) < len(pairs) or any(len(part) for part in item) else record


def _xml_name(part: ET.Element) -> str:
    return part.get("name", part.tag) if part.tag == "field" else part.tag


ROW_FORMATS = (
    RowFormat("json", 'Reply {{"answers":{example}}}, one each.', _write_json, _read_json, structured=True),
    RowFormat("jsonl", "Reply only JSON lines, one each: {example}", _write_jsonl, _read_jsonl),
    RowFormat("csv", "Reply only CSV with a header, one line each:\n{example}", _write_csv, _read_csv, typed=False),
    RowFormat("xml", "Reply only XML, one <item> each:\n{example}", _write_xml, _read_xml, typed=False),
)
