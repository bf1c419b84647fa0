"""Batch strategies: write a batch as one call, and split its reply into answers.

A strategy is a value made of pure functions. It is not part of an answer's key, since an answer is valid for its row
whatever else was in the call. In a call with many rows the instructions come first and once, identical from call to
call, so the provider's prefix cache discounts them; the rows come last, as data with local ids. Answers are joined to
rows by id only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from traceback import extract_tb
from typing import Any

import orjson

from ondine_core.batching.formats import ROW_FORMATS, RowFormat
from ondine_core.batching.row_records import (
    ANY_TEXT,
    THE_COLUMN,
    answer_record,
    answer_text,
    item_record,
    name_id,
    read_id,
    reply_fields,
    reply_schema,
)
from ondine_core.errors import ConfigError
from ondine_core.prompts.task import Task
from ondine_core.providers.reply_text import strip_fence
from ondine_core.providers.wire_text import storable_text
from ondine_core.types.field_types import check_types
from ondine_core.types.values import Batch, Call, Item, Message


@dataclass(frozen=True, slots=True)
class BatchStrategy:
    """A way to put prompts into calls.

    Args:
        name: Its name in settings and reports.
        encode: Returns the call that asks for all items of a batch.
        decode: Returns the text of each answer in a reply, by its place `1..n` in the batch. A missing place has no
            answer that can be identified; `None` means that no answer can be read.
        carried: Returns the text that an item adds to a call, for counting its tokens.
    """

    name: str
    encode: Callable[[Batch, Task], Call] = field(repr=False)
    decode: Callable[[Batch, str, Task], Mapping[int, str] | None] = field(repr=False)
    carried: Callable[[Item, Task], str] = field(default=lambda item, _task: item.text, repr=False)

    def __post_init__(self) -> None:
        check_types(self, ConfigError)


def encode(strategy: BatchStrategy, batch: Batch, task: Task) -> Call:
    """The call that asks for all items of `batch`, with the images and documents that it refers to.

    Raises:
        ConfigError: The strategy, which may be the user's own, returned something else than a call with messages.
    """
    call: Any = strategy.encode(batch, task)
    if not isinstance(call, Call):
        raise ConfigError(f"encode of the strategy {strategy.name!r} returned a {type(call).__name__}, not a Call.")
    if not call.messages or not all(isinstance(message, Message) for message in call.messages):
        raise ConfigError(f"encode of the strategy {strategy.name!r} returned a Call without messages of Message(...).")
    if not task.prompt.media_columns:
        return call
    media = dict(task.prompt.example_media)
    for item in batch.items:
        media |= item.media
    return replace(call, media=media)


# -- one prompt a call ---------------------------------------------------------------------------------------------


def _encode_one(batch: Batch, task: Task) -> Call:
    (item,) = batch.items
    note = f"\n\n({_COMPLAINT.format(batch.complaint)})" if batch.complaint else ""
    head, fixed = _beside_row(task)
    lead = task.prompt.lead
    fixed_chars = len(lead) if item.text.startswith(lead) else 0
    messages = (*head, Message("user", item.text + note))
    return Call(messages, task.schema.json_schema, fixed, fixed_chars=fixed_chars)


@lru_cache(maxsize=16)
def _beside_row(task: Task) -> tuple[tuple[Message, ...], str]:
    """The messages before a row's own, examples included, and the user's text that is the same for every row."""
    return task.prompt.head, task.prompt.fixed


_COMPLAINT = "An earlier reply to this could not be used: {}. Reply in exactly the form asked for."

ONE_PER_CALL = BatchStrategy("one", _encode_one, lambda _batch, text, _task: {1: text})
"""The strategy for one row a call: the prompt itself."""


# -- many prompts a call -------------------------------------------------------------------------------------------


def explain_fallback(task: Task) -> str | None:
    """The reason why batches save less than possible, if the template cannot be sent once for all rows; else `None`."""
    if task.prompt.hoisted is not None:
        return None
    return (
        "The prompt's template has logic that depends on the row, so each row of a batch carries its full prompt. "
        "With plain placeholders only, the instructions would be sent once a call."
    )


_FEWEST_IDS_A_ROW = 2
_EXAMPLE_ID = 100
"""Has the form of a row's id, but no row has it."""


def draw_ids(count: int, rng: random.Random) -> tuple[int, ...]:
    """Ids for the rows of one call, in ascending order.

    Each call has other ids, so a reply to another call is not taken for the reply to this one. Three digits are one
    token, like one digit.
    """
    digits = max(3, len(str(_FEWEST_IDS_A_ROW * count)))
    return tuple(sorted(rng.sample(range(10 ** (digits - 1) + 1, 10**digits), count)))


def _ids(batch: Batch) -> Sequence[int]:
    return batch.ids or range(1, len(batch.items) + 1)


def _encode(row_format: RowFormat, batch: Batch, task: Task) -> Call:
    fixed = _fixed_part(row_format, task)
    items = [item_record(task, number, item) for number, item in zip(_ids(batch), batch.items, strict=True)]
    note = f"\n{_COMPLAINT.format(batch.complaint)}" if batch.complaint else ""
    schema = reply_schema(task) if row_format.structured else None
    return Call((*fixed, Message("user", row_format.write_text(items) + note)), schema, fixed[0].content)


@lru_cache(maxsize=16)
def _fixed_part(row_format: RowFormat, task: Task) -> tuple[Message, ...]:
    """The messages that are the same for every batch: the task with the format of a reply, and the examples."""
    prompt, fields = task.prompt, reply_fields(task)
    if prompt.hoisted is None:
        instruction = 'Do for each item what its "prompt" says.'
    elif len(prompt.columns) == 1:
        instruction = f'Do for each item ({{{prompt.columns[0]}}}: its "{THE_COLUMN}"):\n{prompt.hoisted}'
    else:
        instruction = f"Do for each item ({{column}}: its data):\n{prompt.hoisted}"
    example = row_format.write_text([{name_id(task): _EXAMPLE_ID, **dict.fromkeys(fields, "...")}])
    instruction += f"\n{row_format.ask.format(example=example)}"
    described = {name: kind for name, kind in fields.items() if kind != ANY_TEXT}
    if described and not row_format.structured:
        instruction += f"\nFields: {orjson.dumps(described).decode()}"
    system = "\n\n".join(filter(None, (prompt.system, instruction)))
    if not prompt.examples:
        return (Message("system", system),)
    items = [
        item_record(task, number, Item(b"", prompt.render(row), prompt.fields(row)))
        for number, (row, _) in enumerate(prompt.examples, 1)
    ]
    answers = [answer_record(task, number, text) for number, (_, text) in enumerate(prompt.examples, 1)]
    shown = orjson.dumps({"answers": answers}).decode() if row_format.structured else row_format.write_text(answers)
    return Message("system", system), Message("user", row_format.write_text(items)), Message("assistant", shown)


def _decode(row_format: RowFormat, batch: Batch, text: str, task: Task) -> Mapping[int, str] | None:
    # Some formats fail with lone surrogates, which a wrong decoder may have left in the reply.
    records = row_format.read(strip_fence(storable_text(text)))
    if records is None:
        return None
    name = name_id(task)
    places = {number: place for place, number in enumerate(_ids(batch), 1)}
    answers: dict[int, str] = {}
    doubtful: set[int] = set()
    has_unknown_id = False
    for record in records:
        number = read_id(record.pop(name, None))
        place = None if number is None else places.get(number)
        if place is None:
            has_unknown_id |= number is not None
            continue
        answer = answer_text(record, task, typed=row_format.typed)
        # Of two different answers to one row, neither is used.
        if answers.setdefault(place, answer) != answer:
            doubtful.add(place)
    # A model that counts from 0 leaves out the last row, and gives each other row the answer of the next one.
    if has_unknown_id and len(answers) < len(batch.items):
        return None
    return {place: answer for place, answer in answers.items() if place not in doubtful}


def _carried(row_format: RowFormat, item: Item, task: Task) -> str:
    return row_format.write_text([item_record(task, 1, item)])


def strategy_for(row_format: RowFormat) -> BatchStrategy:
    """The strategy that writes the rows of a call, and reads its answers, in this format."""
    return BatchStrategy(
        row_format.name, partial(_encode, row_format), partial(_decode, row_format), partial(_carried, row_format)
    )


def report_first_error(strategy: BatchStrategy, report: Callable[[str], None]) -> BatchStrategy:
    """`strategy`, whose first error in `decode` is reported by type and place: its message may have texts of rows."""
    reported: list[str] = []

    def decode(batch: Batch, text: str, task: Task) -> Mapping[int, str] | None:
        try:
            return strategy.decode(batch, text, task)
        except Exception as error:
            if not reported:
                frames = [frame for frame in extract_tb(error.__traceback__) if frame.filename != __file__]
                place = f" ({Path(frames[0].filename).name}:{frames[0].lineno})" if frames else ""
                reported.append(
                    f"decode of the strategy {strategy.name!r} raised {type(error).__name__}{place}; each batch on "
                    "which it does so is asked again in halves."
                )
                report(reported[0])
            raise

    return replace(strategy, decode=decode)


STRATEGIES: Mapping[str, BatchStrategy] = {row_format.name: strategy_for(row_format) for row_format in ROW_FORMATS}
"""The strategies for several rows a call, by name."""


def find_strategy(name: str) -> BatchStrategy:
    """The strategy called `name`."""
    if name not in tuple(STRATEGIES):  # compared one by one, as a wrong name may not be hashable
        raise ConfigError(f"batch_format={name!r}; valid are {', '.join(map(repr, STRATEGIES))}.")
    return STRATEGIES[name]
