"""What fits into one call: the model's window, the limit of its reply, and how much a row takes of both.

Limits come from the price list (`model_data`). A model that is not listed is not limited here: its provider decides,
and a refused call is asked again in halves. Counts are estimated rather too high: that makes a call smaller than
necessary, while one that is too low makes it fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import orjson

from ondine_core.errors import ConfigError
from ondine_core.providers.media_limits import MediaLimits
from ondine_core.providers.pricing import find_entry, find_max_output_tokens
from ondine_core.providers.wire_text import utf8_length
from ondine_core.types.field_types import check_type, check_types
from ondine_core.types.numbers import is_whole
from ondine_core.types.values import Item, Json, ModelSpec

_MAX_ROWS = 100


# -- the model's limits --------------------------------------------------------------------------------------------


def get_context_limit(model: str) -> int | None:
    """The most tokens of a prompt and its reply for `model`, named as in `openai/gpt-4o-mini`; `None` if not known.

    For some models the price list has the limit of the prompt alone. It is used for both together, which is safe.
    """
    entry = find_entry(model) or {}
    # Old entries have only `max_tokens`, to be used then by the price list's legend.
    return _whole(entry.get("max_input_tokens")) or _whole(entry.get("max_tokens"))


def get_output_limit(spec: ModelSpec) -> int | None:
    """The most tokens that one reply can have: the smaller of the user's and the model's limit; `None` without both."""
    limits = (spec.max_output_tokens, _whole(find_max_output_tokens(spec.listed_as)))
    return min(filter(None, limits), default=None)


def _whole(figure: Any) -> int | None:
    return figure if isinstance(figure, int) and figure > 0 else None


# -- estimates -----------------------------------------------------------------------------------------------------

_BYTES_A_TOKEN = 2
TOKENS_A_MESSAGE = 8
"""Tokens that a chat format adds to a message: three or four by OpenAI's documentation; twice that to be safe."""
USUAL_TOKENS_A_MESSAGE = 4
"""The same for estimates, which should be close rather than safe."""
MAX_TOKENS_A_MESSAGE = 16
"""The same for a bound on the cost of a call: more than any chat format adds."""


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of `text` for any model: half the number of its bytes in UTF-8.

    Measured with the encodings of GPT-3.5 to GPT-5, prose in ten languages has 2.4 to 10 bytes a token, code 4 and JSON
    2.1. Random characters have as few as 1.1, so a call with only hashes and pictographs may have twice as many tokens
    as estimated.
    """
    return -(-utf8_length(text) // _BYTES_A_TOKEN)


_FREE_TEXT = 400
_TEXT = 120
_ITEMS = 3
_FILLER = "It arrived a day late, but what was inside the box is as good as we had hoped and works. "
_PLAIN: Mapping[str, Json] = {"integer": 12345, "number": 12345.67, "boolean": False, "null": None}
_FORMATS: Mapping[str, Json] = {"date": "2026-01-01", "date-time": "2026-01-01T00:00:00.000+00:00"}


def estimate_answer_tokens(json_schema: bytes | None, count: Callable[[str], int] = estimate_tokens) -> int:
    """Tokens expected of one answer in a batch before the first reply: those of a made-up answer."""
    return max(1, count(make_up_answer(json_schema)))


def make_up_answer(json_schema: bytes | None, rank: float = 1.0, texts: float = 1.0) -> str:
    """An answer in a batch, as JSON, of the length to expect with this schema.

    A choice is its longest option, a text has 120 characters (400 without a schema; `maxLength` if that is less), a
    list has three items (`maxItems` if that is less), and numbers and dates have their usual lengths.

    `rank` selects the option of a choice by length (0 the shortest, 0.5 the middle one, 1 the longest); `texts` is a
    factor for the length of texts.
    """
    usual = _FREE_TEXT if json_schema is None else _TEXT

    def text(max_length: float) -> str:
        length = int(min(max_length, usual * texts))
        return (_FILLER * (length // len(_FILLER) + 1))[:length]

    def choose(options: Sequence[Json]) -> Json:
        return sorted(options, key=lambda option: len(orjson.dumps(option)))[round(rank * (len(options) - 1))]

    answer = {"answer": text(inf)} if json_schema is None else _made_up(orjson.loads(json_schema), text, choose)
    return orjson.dumps({"id": 100, **answer}).decode()


def _made_up(  # noqa: PLR0911  (one case a kind)
    kind: Mapping[str, Any], text: Callable[[float], str], choose: Callable[[Sequence[Json]], Json]
) -> Any:
    match kind:
        case {"enum": [_, *_] as options}:
            return choose(options)
        case {"const": value}:
            return value
        case {"anyOf": [_, *_] as options} | {"oneOf": [_, *_] as options}:
            return choose([_made_up(option, text, choose) for option in options])
        case {"properties": Mapping() as properties}:
            return {name: _made_up(child, text, choose) for name, child in properties.items()}
        case {"type": "array"}:
            item = _made_up(kind.get("items", {}), text, choose)
            return [item] * min(kind.get("maxItems", _ITEMS), _ITEMS)
        case {"type": str(name)} if name in _PLAIN:
            return _PLAIN[name]
        case {"format": str(name)} if name in _FORMATS:
            return _FORMATS[name]
        case _:
            return text(kind.get("maxLength", inf))


# -- packing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CallCapacity:
    """The limits of a call, and how much of them it takes.

    Args:
        window_tokens: Most tokens of prompt and reply together, `None` if unknown.
        output_tokens: Most tokens of a reply, `None` if unknown.
        fixed_tokens: Tokens of a call before its first row.
        answer_tokens: Tokens expected of one answer.
        reserved_tokens: Tokens that the request reserves for the reply, whatever its length.
        weigh: Counts the tokens that a prompt adds to a call.
        bound: An upper bound on these tokens that is faster to compute; `None` if there is none.
        media: How many images and documents a request may carry, `None` if the prompt has none.
        media_bytes: Bytes of a call before its first row.
        media_images: Images of a call before its first row.
    """

    window_tokens: int | None = None
    output_tokens: int | None = None
    fixed_tokens: int = 0
    answer_tokens: int = 1
    reserved_tokens: int = 0
    weigh: Callable[[Item], int] = field(default=lambda item: estimate_tokens(item.text), repr=False, compare=False)
    bound: Callable[[Item], int] | None = field(default=None, repr=False, compare=False)
    media: MediaLimits | None = None
    media_bytes: int = 0
    media_images: int = 0

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether `rows` rows of `tokens` tokens in all, and their answers, fit into one call."""
        answers = rows * self.answer_tokens
        if self.output_tokens is not None and answers > self.output_tokens:
            return False
        if self.window_tokens is None:
            return True
        return self.fixed_tokens + tokens + max(answers, self.reserved_tokens) <= self.window_tokens


def learn_answer_tokens(capacity: CallCapacity, rows: int, output_tokens: int, *, cut: bool = False) -> CallCapacity:
    """`capacity` after a reply: a longer answer than expected counts at once, a shorter one gradually.

    `output_tokens` is 0 if the provider does not report the length of the reply; `cut` says that the reply was cut.
    """
    if not output_tokens:
        return capacity
    # A quarter is added since rows differ; a cut reply is doubled, since its full length is not known.
    seen = -(-output_tokens * (8 if cut else 5) // (rows * 4))
    change = seen - capacity.answer_tokens
    if change < 0:
        change = int(change / 8)
    return replace(capacity, answer_tokens=max(1, capacity.answer_tokens + change))


def suggest_batch_size(capacity: CallCapacity, row_tokens: int, max_rows: int = _MAX_ROWS) -> int:
    """The largest number of rows of `row_tokens` tokens each that fit into one call; at least 1, at most `max_rows`."""
    _check_size(capacity, row_tokens, max_rows=max_rows)
    return max(1, min([max_rows, *(rows for _, rows in _bounds(capacity, row_tokens))]))


def validate_batch_size(batch_size: int, capacity: CallCapacity, row_tokens: int = 0) -> str | None:
    """A message if calls cannot carry `batch_size` rows of `row_tokens` tokens each; `None` if they can.

    It says what limits them, and how many rows calls will have instead: packing closes a batch before it is too large.
    """
    _check_size(capacity, row_tokens, batch_size=batch_size)
    bound = explain_bound(batch_size, capacity, row_tokens)
    if bound is None:
        return None
    return f"{bound}; calls will carry about {suggest_batch_size(capacity, row_tokens, batch_size)} rows."


def _check_size(capacity: CallCapacity, row_tokens: int, **rows: int) -> None:
    """Refuse a capacity or numbers that are not valid, with a `ConfigError`."""
    check_type("capacity", capacity, CallCapacity, ConfigError)
    check_types(capacity, ConfigError)
    if not is_whole(row_tokens, 0):
        raise ConfigError(f"row_tokens={row_tokens!r} must be a whole number of at least 0.")
    for name, count in {"answer_tokens": capacity.answer_tokens, **rows}.items():
        if not is_whole(count, 1):
            raise ConfigError(f"{name}={count!r} must be a whole number of at least 1.")


def explain_bound(batch_size: int, capacity: CallCapacity, row_tokens: int = 0) -> str | None:
    """The limit that `batch_size` rows of `row_tokens` tokens each exceed, in words; `None` if they fit."""
    for limit, rows in _bounds(capacity, row_tokens):
        if batch_size > max(1, rows):
            per_row = f" and {row_tokens} a row" if row_tokens else ""
            return f"batch_size={batch_size!r} exceeds {limit}, at {capacity.answer_tokens} tokens an answer{per_row}"
    return None


def _bounds(capacity: CallCapacity, row_tokens: int) -> list[tuple[str, int]]:
    """Each known limit of a call, in words, with the number of rows that it allows."""
    bounds = []
    if capacity.output_tokens is not None:
        limit = f"the size of one reply (max_output_tokens={capacity.output_tokens!r})"
        bounds.append((limit, capacity.output_tokens // capacity.answer_tokens))
    if capacity.window_tokens is not None:
        left = capacity.window_tokens - capacity.fixed_tokens
        rows = left // (row_tokens + capacity.answer_tokens)
        if left < capacity.reserved_tokens:
            rows = 0
        elif row_tokens:
            rows = min(rows, (left - capacity.reserved_tokens) // row_tokens)
        fixed = f"{capacity.fixed_tokens} go to instructions"
        bounds.append((f"the model's window of {capacity.window_tokens} tokens, of which {fixed}", rows))
    return bounds
