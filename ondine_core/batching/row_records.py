"""Rows and answers in calls with many rows: flat records with local ids.

An answer is passed on as the text that the model would have replied to the row alone, so one parser decides what is
valid. In a format that has only texts, the schema says which type a text stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import chain, count

import orjson

from ondine_core.batching.formats import Record
from ondine_core.prompts.task import Task
from ondine_core.types.values import Item, Json

ANY_TEXT: Mapping[str, Json] = {"type": "string"}
"""The schema of a text without constraints."""

THE_COLUMN = "x"
"""The name of a prompt's only column in a call with many rows."""

_MAX_ID = 20


@lru_cache(maxsize=16)
def reply_fields(task: Task) -> Mapping[str, Mapping[str, Json]]:
    """The schema of each field of an answer; an answer that is not a JSON object has the one field `answer`."""
    json_schema = task.schema.json_schema
    if json_schema is None:
        return {"answer": ANY_TEXT}
    fields: Mapping[str, Mapping[str, Json]] = orjson.loads(json_schema)["properties"]
    return fields


@lru_cache(maxsize=16)
def name_id(task: Task) -> str:
    """The name of the local id, which differs from all input and output columns."""
    taken = {*item_fields(task), *reply_fields(task)}
    names = chain(("id", "item_id"), (f"item_id_{number}" for number in count(2)))
    return next(name for name in names if name not in taken)


def item_fields(task: Task) -> tuple[str, ...]:
    """The fields of a row in a batch: its columns, or its full prompt if the template cannot be sent once for all rows.

    A single column has a short name, because the name is sent with every row.
    """
    if task.prompt.hoisted is None:
        return ("prompt",)
    return task.prompt.columns if len(task.prompt.columns) != 1 else (THE_COLUMN,)


@lru_cache(maxsize=16)
def reply_schema(task: Task) -> bytes:
    """The JSON schema of the reply to a batch: a list of answers with their ids."""
    properties = {name_id(task): {"type": "integer"}, **reply_fields(task)}
    answer = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    answers = {"answers": {"type": "array", "items": answer}}
    return orjson.dumps(
        {"type": "object", "properties": answers, "required": ["answers"], "additionalProperties": False}
    )


def item_record(task: Task, number: int, item: Item) -> Record:
    """The record of a row with the local id `number`."""
    columns = task.prompt.columns
    values = [item.text] if task.prompt.hoisted is None else [item.fields[name] for name in columns]
    return {name_id(task): number, **dict(zip(item_fields(task), values, strict=True))}


def answer_record(task: Task, number: int, text: str) -> Record:
    """The record of the answer `text` with the local id `number`."""
    values = orjson.loads(text) if task.schema.json_schema else dict.fromkeys(reply_fields(task), text)
    return {name_id(task): number, **values}


def answer_text(record: Record, task: Task, *, typed: bool) -> str:
    """The text of an answer from its record, without the id."""
    fields = reply_fields(task)
    if task.schema.json_schema is None:
        (name,) = fields
        answer = record.get(name)
        if answer is None or isinstance(answer, str):
            return answer or ""
    else:
        answer = record if typed else {name: _read(text, fields.get(name, {})) for name, text in record.items()}
    try:
        return orjson.dumps(answer).decode()
    except orjson.JSONEncodeError:  # it is nested deeper than any schema
        return ""


def read_id(value: Json) -> int | None:
    """The id in `value`, which is a number or a text of one; `None` if it is neither."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) <= _MAX_ID:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read(text: Json, kind: Mapping[str, Json]) -> Json:
    """A text as a JSON value of the type in its schema; an empty text or `null` is null if the schema allows that."""
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
