"""How prompts travel: a strategy writes a batch as one call and takes the reply apart again.

A strategy is a value, a pair of pure functions. Which one is used is not part of an answer's key: an answer is an
answer, however many others came in the same call. In a call with many rows the instructions are said once and first,
byte-identical from call to call, so that a provider's prefix cache discounts them; rows come last, as data, with local
ids. Answers are joined to rows by id only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import orjson

from ondine_core.errors import ConfigError
from ondine_core.notations import NOTATIONS, Notation, Record
from ondine_core.question import Question
from ondine_core.schema import strip_fence
from ondine_core.values import Batch, Call, Item, Json, Message

__all__ = ["CSV", "JSON", "JSONL", "ONE_PER_CALL", "STRATEGIES", "XML", "Strategy", "find_strategy", "pack"]


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way to put prompts into calls.

    Args:
        name: How it is called in settings and reports.
        encode: Batch and question to the call that asks for all of its items.
        decode: Batch, reply text and question to the text of each answer, by local id `1..n`. An id that is absent was
            not answered, or not in a way that can be told; `None` means that the reply cannot be read at all.
    """

    name: str
    encode: Callable[[Batch, Question], Call]
    decode: Callable[[Batch, str, Question], Mapping[int, str] | None]


def pack(items: Iterable[Item], size: int, repairs: int) -> Iterator[Batch]:
    """Group `items` into batches of at most `size`, lazily and in order, each with its number of repairs."""
    source = iter(items)
    while group := tuple(islice(source, size)):
        yield Batch(group, repairs)


# -- one prompt a call ---------------------------------------------------------------------------------------------


def _encode_one(batch: Batch, question: Question) -> Call:
    (item,) = batch.items
    note = f"\n\n({_COMPLAINT.format(batch.complaint)})" if batch.complaint else ""
    return Call((*question.prompt.head, Message("user", item.text + note)), question.schema.json_schema)


_COMPLAINT = "An earlier reply to this could not be used: {}. Reply in exactly the form asked for."

ONE_PER_CALL = Strategy("one", _encode_one, lambda _batch, text, _question: {1: text})
"""The plain prompt, nothing around it."""


# -- many prompts a call -------------------------------------------------------------------------------------------


def _encode(form: Notation, batch: Batch, question: Question) -> Call:
    fixed = _fixed_part(form, question)
    items = [_item_record(question, number, item) for number, item in enumerate(batch.items, 1)]
    note = f"\n{_COMPLAINT.format(batch.complaint)}" if batch.complaint else ""
    schema = _reply_schema(question.schema.json_schema, _reply_fields(question)) if form.structured else None
    return Call((*fixed, Message("user", form.write(items) + note)), schema)


@lru_cache(maxsize=16)
def _fixed_part(form: Notation, question: Question) -> tuple[Message, ...]:
    """Everything that is the same for every batch: the task, the form of a reply, and the examples."""
    prompt, fields = question.prompt, _reply_fields(question)
    if prompt.hoisted is None:
        task = 'Do for each item what its "prompt" says.'
    else:
        task = f"Do for each item ({{column}}: its data):\n{prompt.hoisted}"
    ask = form.ask.format(example=form.write([{_id_name(fields): 1, **dict.fromkeys(fields, "...")}]))
    about = "" if form.structured or question.schema.json_schema is None else f"\nFields: {_properties(question)}"
    system = "\n\n".join(filter(None, (prompt.system, f"{task}\n{ask}{about}")))
    if not prompt.examples:
        return (Message("system", system),)
    items = [
        _item_record(question, number, Item(b"", prompt.render(row), prompt.fields(row)))
        for number, (row, _) in enumerate(prompt.examples, 1)
    ]
    answers = [_answer_record(question, number, text) for number, (_, text) in enumerate(prompt.examples, 1)]
    shown = orjson.dumps({"answers": answers}).decode() if form.structured else form.write(answers)
    return Message("system", system), Message("user", form.write(items)), Message("assistant", shown)


def _decode(form: Notation, batch: Batch, text: str, question: Question) -> Mapping[int, str] | None:
    records = form.read(strip_fence(text))
    if records is None:
        return None
    name, fields = _id_name(_reply_fields(question)), _reply_fields(question)
    found: dict[int, str] = {}
    doubtful: set[int] = set()
    for record in records:
        number = _local_id(record.pop(name, None), len(batch.items))
        if number is None:
            continue
        answer = _answer_text(form, record, question, fields)
        # Two different answers to one row: which is right is not for us to guess.
        if found.setdefault(number, answer) != answer:
            doubtful.add(number)
    return {number: answer for number, answer in found.items() if number not in doubtful}


def _local_id(value: Json, count: int) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= count else None


# -- what travels --------------------------------------------------------------------------------------------------


def _item_record(question: Question, number: int, item: Item) -> Record:
    fields = {"prompt": item.text} if question.prompt.hoisted is None else item.fields
    return {_id_name(fields): number, **fields}


def _reply_fields(question: Question) -> tuple[str, ...]:
    """The names of an answer's fields on the wire; one invented field for what is not a JSON object."""
    return tuple(_wire_properties(question.schema.json_schema)) if question.schema.json_schema else ("answer",)


def _id_name(fields: Iterable[str]) -> str:
    return "id" if "id" not in fields else "item_id"


def _answer_record(question: Question, number: int, text: str) -> Record:
    fields = _reply_fields(question)
    values = orjson.loads(text) if question.schema.json_schema else {fields[0]: text}
    return {_id_name(fields): number, **values}


def _answer_text(form: Notation, record: Mapping[str, Json], question: Question, fields: Sequence[str]) -> str:
    """The text that `schema.parse` would be given had the row been alone in its call."""
    if question.schema.json_schema is None:
        return str(record.get(fields[0]) or "")
    if form.typed:
        return json.dumps(record)
    kinds = _wire_properties(question.schema.json_schema)
    return json.dumps({name: _from_text(text, kinds.get(name, {})) for name, text in record.items()})


def _from_text(text: Json, kind: Mapping[str, Json]) -> Json:
    """A value of a notation that knows only texts, as the JSON that its schema asks for."""
    options = [option.get("type") for option in kind.get("anyOf", [kind])]
    if text in ("", None) and "null" in options:
        return None
    if "string" in options or text is None:
        return text
    try:
        return orjson.loads(str(text).strip().lower() if "boolean" in options else str(text))
    except orjson.JSONDecodeError:
        return text


def _properties(question: Question) -> str:
    return json.dumps(_wire_properties(question.schema.json_schema or b"{}"), ensure_ascii=False)


@lru_cache(maxsize=64)
def _wire_properties(json_schema: bytes) -> Mapping[str, Any]:
    properties: Mapping[str, Any] = orjson.loads(json_schema).get("properties", {})
    return properties


@lru_cache(maxsize=64)
def _reply_schema(json_schema: bytes | None, fields: tuple[str, ...]) -> bytes:
    """The schema of one answer wrapped into that of all of them."""
    one = _wire_properties(json_schema) if json_schema else {fields[0]: {"type": "string"}}
    properties = {_id_name(fields): {"type": "integer"}, **one}
    answer = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    answers = {"answers": {"type": "array", "items": answer}}
    return orjson.dumps(
        {"type": "object", "properties": answers, "required": ["answers"], "additionalProperties": False}
    )


JSON, JSONL, CSV, XML = (Strategy(form.name, partial(_encode, form), partial(_decode, form)) for form in NOTATIONS)
STRATEGIES: Mapping[str, Strategy] = {strategy.name: strategy for strategy in (JSON, JSONL, CSV, XML)}
"""The strategies for several rows a call, by name."""


def find_strategy(name: str) -> Strategy:
    """The strategy called `name`.

    Raises:
        ConfigError: There is none.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"batch_format={name!r}; valid are {', '.join(map(repr, STRATEGIES))}.")
    return STRATEGIES[name]
