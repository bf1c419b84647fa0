"""What of a row and of its answer travels in a call with many rows: flat records under local ids.

An answer is handed on as the text that the model would have replied had the row been alone in its call, so one parser
decides what is valid. Where a notation knows texts only, the schema says what a text stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import chain, count

import orjson

from ondine_core.notations import Record
from ondine_core.question import Question
from ondine_core.values import Item, Json

__all__ = [
    "ANY_TEXT",
    "THE_COLUMN",
    "answer_record",
    "answer_text",
    "item_record",
    "name_id",
    "read_id",
    "reply_fields",
    "reply_schema",
]

ANY_TEXT: Mapping[str, Json] = {"type": "string"}
"""The schema of a text without constraints."""

THE_COLUMN = "x"
"""What the column of a prompt that reads but one is called in a call with many rows."""

_LONGEST_ID = 20


@lru_cache(maxsize=16)
def reply_fields(question: Question) -> Mapping[str, Mapping[str, Json]]:
    """The schema of each field of an answer; one invented field for what is not a JSON object."""
    json_schema = question.schema.json_schema
    if json_schema is None:
        return {"answer": ANY_TEXT}
    fields: Mapping[str, Mapping[str, Json]] = orjson.loads(json_schema)["properties"]
    return fields


@lru_cache(maxsize=16)
def name_id(question: Question) -> str:
    """What the local id is called: neither as a column that travels nor as one that is asked for."""
    taken = {*item_fields(question), *reply_fields(question)}
    names = chain(("id", "item_id"), (f"item_id_{number}" for number in count(2)))
    return next(name for name in names if name not in taken)


def item_fields(question: Question) -> tuple[str, ...]:
    """What travels of a row: its columns, or its full prompt where the template cannot be said once for all rows.

    A column that travels alone has a short name, since it is said with every row.
    """
    if question.prompt.hoisted is None:
        return ("prompt",)
    return question.prompt.columns if len(question.prompt.columns) != 1 else (THE_COLUMN,)


@lru_cache(maxsize=16)
def reply_schema(question: Question) -> bytes:
    """The schema of one answer wrapped into that of all of them."""
    properties = {name_id(question): {"type": "integer"}, **reply_fields(question)}
    answer = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    answers = {"answers": {"type": "array", "items": answer}}
    return orjson.dumps(
        {"type": "object", "properties": answers, "required": ["answers"], "additionalProperties": False}
    )


def item_record(question: Question, number: int, item: Item) -> Record:
    """A row as it travels."""
    columns = question.prompt.columns
    values = [item.text] if question.prompt.hoisted is None else [item.fields[name] for name in columns]
    return {name_id(question): number, **dict(zip(item_fields(question), values, strict=True))}


def answer_record(question: Question, number: int, text: str) -> Record:
    """The answer `text` as it travels."""
    values = orjson.loads(text) if question.schema.json_schema else dict.fromkeys(reply_fields(question), text)
    return {name_id(question): number, **values}


def answer_text(record: Record, question: Question, *, typed: bool) -> str:
    """The text of an answer from its record, without the id."""
    fields = reply_fields(question)
    if question.schema.json_schema is None:
        (name,) = fields
        answer = record.get(name)
        if answer is None or isinstance(answer, str):
            return answer or ""
    else:
        answer = record if typed else {name: _read(text, fields.get(name, {})) for name, text in record.items()}
    try:
        return orjson.dumps(answer).decode()
    except orjson.JSONEncodeError:  # it is nested deeper than anything that is asked for
        return ""


def read_id(value: Json) -> int | None:
    """The number that `value` is, or says."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) <= _LONGEST_ID:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read(text: Json, kind: Mapping[str, Json]) -> Json:
    """A text as the JSON that its schema asks for; nothing, or `null`, is null where null is allowed."""
    options = kind.get("anyOf", [kind])
    types = [option.get("type") for option in options]
    choices = [choice for option in options for choice in option.get("enum", ())]
    if text in ("", "null") and ("null" in types or None in choices):
        return None
    if "string" in types or text in choices:
        return text
    try:
        return orjson.loads(str(text).strip().lower() if "boolean" in types else str(text))
    except orjson.JSONDecodeError:
        return text
