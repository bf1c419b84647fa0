"""What fits into one call: the model's window, the bound on its reply, and how much a row takes of both.

Limits come from `model_data`, by way of `pricing`. What is not listed is not limited here: the provider decides, and a
call it refuses is asked again in halves. All counts are estimates on the safe side: one that is too high makes a call
smaller than necessary, one that is too low makes it fail.
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
    """The most tokens that `model`, named as in `openai/gpt-4o-mini`, takes in; `None` when that is not known.

    For many models the file means prompt and reply together, for some the prompt alone. It is taken for both together,
    which never promises room that is not there.
    """
    entry = find_entry(model) or {}
    # Old entries have but one figure, which the file's legend says to take instead.
    return _whole(entry.get("max_input_tokens")) or _whole(entry.get("max_tokens"))


def get_output_limit(spec: ModelSpec) -> int | None:
    """The most tokens that one reply can have: what the user allows and what the model can, whichever is less."""
    known = [limit for limit in (spec.max_output_tokens, _whole(find_max_output_tokens(spec.listed_as))) if limit]
    return min(known, default=None)


def _whole(figure: Any) -> int | None:
    return figure if isinstance(figure, int) and figure > 0 else None


# -- estimates -----------------------------------------------------------------------------------------------------

_BYTES_A_TOKEN = 2
TOKENS_A_MESSAGE = 8
"""What frames a message of a chat: by OpenAI's account three or four with its models; twice that to be safe."""
USUAL_TOKENS_A_MESSAGE = 4
"""The same for an estimate, which should be near and not safe."""
MAX_TOKENS_A_MESSAGE = 16
"""The same for a bound on what a call can cost: more than any chat format adds."""


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of `text` for any model: half the number of its bytes in UTF-8.

    Measured with the encodings of GPT-3.5 to GPT-5, prose has 2.4 to 10 bytes a token in any of ten languages, code 4
    and JSON 2.1. Random characters have down to 1.1: a call of nothing but hashes and pictographs may turn out twice as
    long as estimated.
    """
    return -(-utf8_length(text) // _BYTES_A_TOKEN)


_FREE_TEXT = 400
_TEXT = 120
_ITEMS = 3
_FILLER = "It arrived a day late, but what was inside the box is as good as we had hoped and works. "
_PLAIN: Mapping[str, Json] = {"integer": 12345, "number": 12345.67, "boolean": False, "null": None}
_FORMATS: Mapping[str, Json] = {"date": "2026-01-01", "date-time": "2026-01-01T00:00:00.000+00:00"}


def estimate_answer_tokens(json_schema: bytes | None, count: Callable[[str], int] = estimate_tokens) -> int:
    """Tokens that one answer in a batch is expected to take, until answers have been seen: those of a made-up one."""
    return max(1, count(make_up_answer(json_schema)))


def make_up_answer(json_schema: bytes | None, rank: float = 1.0, texts: float = 1.0) -> str:
    """An answer in a batch, as long as answers of this schema may be expected to be.

    A choice is its longest option, a text has 120 characters (400 if it is all that is asked for, or `maxLength` if
    that is less), a list three items (or `maxItems` if that is less), and numbers and dates are as long as they usually
    are.

    `rank` says which option of a choice is taken, by length (0 the shortest, 0.5 the middle one, 1 the longest);
    `texts` is a factor for the length of texts.
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
    """What a call has room for.

    Args:
        window_tokens: Most tokens of prompt and reply together, `None` if unknown.
        output_tokens: Most tokens of a reply, `None` if unknown.
        fixed_tokens: Tokens of a call before its first row.
        answer_tokens: Tokens expected of one answer.
        reserved_tokens: Tokens that the request itself sets aside for the reply, however long that gets.
        weigh: Tokens that a prompt adds to a call.
        bound: The most tokens that it can add, if that is found sooner.
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

    `output_tokens` is 0 if the provider does not say how long the reply was; one that was `cut` would have been longer.
    """
    if not output_tokens:
        return capacity
    # A quarter is added since rows differ; a cut reply would have been longer by an unknown amount.
    seen = -(-output_tokens * (8 if cut else 5) // (rows * 4))
    gap = seen - capacity.answer_tokens
    return replace(capacity, answer_tokens=max(1, capacity.answer_tokens + (gap if gap > 0 else int(gap / 8))))


def suggest_batch_size(capacity: CallCapacity, row_tokens: int, max_rows: int = _MAX_ROWS) -> int:
    """The largest number of rows of `row_tokens` tokens each that fit into one call; at least 1, at most `max_rows`."""
    _check_size(capacity, row_tokens, max_rows=max_rows)
    return max(1, min([max_rows, *(fitting for _, fitting in _largest(capacity, row_tokens))]))


def validate_batch_size(batch_size: int, capacity: CallCapacity, row_tokens: int = 0) -> str | None:
    """Why calls cannot carry `batch_size` rows of `row_tokens` tokens each, and what they can; `None` if they can.

    It is advice rather than an error: batches are closed before they get too large, so nothing fails.
    """
    _check_size(capacity, row_tokens, batch_size=batch_size)
    bound = explain_bound(batch_size, capacity, row_tokens)
    return bound and f"{bound}; calls will carry about {suggest_batch_size(capacity, row_tokens, batch_size)} rows."


def _check_size(capacity: CallCapacity, row_tokens: int, **rows: int) -> None:
    """Refuse what is no capacity, no number of tokens, or no number of rows."""
    check_type("capacity", capacity, CallCapacity, ConfigError)
    check_types(capacity, ConfigError)
    if not is_whole(row_tokens, 0):
        raise ConfigError(f"row_tokens={row_tokens!r} must be a whole number of at least 0.")
    for name, count in {"answer_tokens": capacity.answer_tokens, **rows}.items():
        if not is_whole(count, 1):
            raise ConfigError(f"{name}={count!r} must be a whole number of at least 1.")


def explain_bound(batch_size: int, capacity: CallCapacity, row_tokens: int = 0) -> str | None:
    """What keeps calls from carrying `batch_size` rows of `row_tokens` tokens each; `None` if nothing does."""
    for figure, fitting in _largest(capacity, row_tokens):
        if batch_size > max(1, fitting):
            per_row = f" and {row_tokens} a row" if row_tokens else ""
            return f"batch_size={batch_size!r} exceeds {figure}, at {capacity.answer_tokens} tokens an answer{per_row}"
    return None


def _largest(capacity: CallCapacity, row_tokens: int) -> list[tuple[str, int]]:
    """Each figure that bounds a call, in words, and the rows that it allows."""
    found = []
    if capacity.output_tokens is not None:
        bound = f"the size of one reply (max_output_tokens={capacity.output_tokens!r})"
        found.append((bound, capacity.output_tokens // capacity.answer_tokens))
    if capacity.window_tokens is not None:
        left = capacity.window_tokens - capacity.fixed_tokens
        rows = left // (row_tokens + capacity.answer_tokens)
        if left < capacity.reserved_tokens:
            rows = 0
        elif row_tokens:
            rows = min(rows, (left - capacity.reserved_tokens) // row_tokens)
        fixed = f"{capacity.fixed_tokens} go to instructions"
        bound = f"the model's window of {capacity.window_tokens} tokens, of which {fixed}"
        found.append((bound, rows))
    return found
