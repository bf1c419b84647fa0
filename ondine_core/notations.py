"""How records are written and read as text: JSON, JSON lines, CSV and XML.

Whatever a value contains, it stays one value of one record; what cannot be read for sure is left out or refused whole.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape, quoteattr

import orjson

from ondine_core.values import Json

__all__ = ["NOTATIONS", "Notation", "Record"]

Record = Mapping[str, Json]
"""An item or an answer as it travels: its local id, and its fields."""


@dataclass(frozen=True, slots=True)
class Notation:
    """A notation for records.

    Args:
        name: What it is called.
        ask: How the model is told to reply; `{example}` is the shape of an answer.
        write: Records to text.
        read: Text to records, as far as it can be read; `None` if it cannot be read at all.
        structured: Whether a provider can be held to it by JSON schema.
        typed: Whether values keep their JSON types on the way; otherwise they are texts.
    """

    name: str
    ask: str
    write: Callable[[Sequence[Record]], str]
    read: Callable[[str], list[dict[str, Json]] | None]
    structured: bool = False
    typed: bool = True


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
    found = []
    for line in text.split("\n"):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found or None


def _write_csv(records: Sequence[Record]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().rstrip("\n")


def _read_csv(text: str) -> list[dict[str, Json]] | None:
    try:
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except csv.Error:
        return None
    # A row with too few or too many cells has shifted: it is left out, and so asked again.
    return [row for row in rows if None not in row and None not in row.values()] or None


def _write_xml(records: Sequence[Record]) -> str:
    return "<items>\n" + "\n".join(f"<item>{_xml_fields(record)}</item>" for record in records) + "\n</items>"


def _xml_fields(record: Record) -> str:
    return "".join(
        f"<field name={quoteattr(name)}>{escape(_xml_text(value))}</field>" for name, value in record.items()
    )


def _xml_text(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(char for char in text if char >= " " or char in "\t\n")


def _read_xml(text: str) -> list[dict[str, Json]] | None:
    if "<!" in text:  # no document types: entities are how small texts become huge ones
        return None
    try:
        root = ET.fromstring(text)  # noqa: S314
    except ET.ParseError:
        return None
    return [{part.get("name", ""): part.text or "" for part in item} for item in root] or None


NOTATIONS = (
    Notation("json", 'Reply {{"answers":{example}}}, one each.', _write_json, _read_json, structured=True),
    Notation("jsonl", "Reply with one line per item, nothing else: {example}", _write_jsonl, _read_jsonl),
    Notation(
        "csv",
        "Reply in CSV with a header, one line per item, nothing else:\n{example}",
        _write_csv,
        _read_csv,
        typed=False,
    ),
    Notation("xml", "Reply in XML, one <item> per item, nothing else:\n{example}", _write_xml, _read_xml, typed=False),
)
