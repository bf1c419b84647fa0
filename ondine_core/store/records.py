"""Converts values to rows and rows to values, in the caller, so that a bad value fails only its own request.

Text from providers may contain what a database refuses (a lone surrogate, a NUL). It is escaped, so that a paid answer
is not lost because of an odd header.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import date
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import orjson

from ondine_core.errors import StoreError
from ondine_core.store.database import Database, Row
from ondine_core.types.ledger import CallFinished, CallStarted, Origin
from ondine_core.types.protocols import Numbers
from ondine_core.types.values import Answer, Failure, Json, Key, Usage

ANSWER_COLUMNS = ("key", "values", "model", "attempts", "batch_size", "cost_usd", "request_id", "answered_at", "origin")
FAILURE_COLUMNS = ("key", "reason", "detail", "model", "attempts", "cost_usd", "failed_at", "origin")
REPLY_COLUMNS = ("key", "reply", "kept_at", "origin")
CALL_COLUMNS = (
    *("call", "run", "asset", "partition", "model", "stage"),
    *("keys", "sent_at", "at_most_pico_usd", "batch"),
)
LINE_COLUMNS = ("run", "asset", "partition", "model", "stage", "outcome", "day")
"""The columns that identify a line of the ledger."""
AMOUNT_COLUMNS = (
    *("calls", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens", "cache_write_tokens"),
    *("pico_usd", "unpriced_calls", "at_most_calls", "paid_twice"),
)
"""The sums in a line of the ledger."""

_KEY_BYTES = 16
ORIGIN_BYTES = 8
"""The ids of all calls of a run begin with the same bytes, this many."""
DAY_S = 86400.0
_PICO = 10**12
_EPOCH = date(1970, 1, 1).toordinal()
_MAX_INTEGER = 2**60
"""Sums of a few such amounts fit into 64 bits."""
_OPTIONAL_TEXT = (str, type(None))
_ANSWER_TYPES = frozenset(
    (bytes, bytes, str, int, int, cost, request_id, float) for cost in _OPTIONAL_TEXT for request_id in _OPTIONAL_TEXT
)
_FAILURE_TYPES = frozenset((bytes, str, str, str, int, cost) for cost in _OPTIONAL_TEXT)
"""Checked when a row is read, since SQLite stores a value of any type in a column of any type."""


class DamagedRowError(ValueError):
    """A row that a store cannot have written."""

    def __init__(self, key: Key, reason: str) -> None:
        super().__init__(f"{key.hex() if isinstance(key, bytes) else repr(key)} ({reason})")


class SentRow(NamedTuple):
    """A call that is about to leave, and its row of `calls`."""

    started: CallStarted
    row: Row


class SettledRows(NamedTuple):
    """The rows of a settled call: `amounts` of the `line` in the ledger, answers, failures and replies."""

    call: bytes
    line: tuple[str, ...]
    amounts: tuple[int, ...]
    answers: tuple[Row, ...]
    failures: tuple[Row, ...]
    replies: tuple[Row, ...]


class Update(NamedTuple):
    """A function that replaces the numbers called `name`."""

    name: str
    step: Callable[[Numbers | None], Numbers]


class Change(NamedTuple):
    """Any other change, made before all other entries of its transaction; `names` are those of the numbers it changes.

    `work` must not raise, and is called again if the connection breaks before the commit.
    """

    work: Callable[[Database], Any]
    names: tuple[str, ...] = ()


Entry: TypeAlias = SentRow | SettledRows | Update | Change
"""One write, requested by one caller."""


def to_sent_row(sent: CallStarted) -> SentRow:
    """Convert a call that is about to leave to a row.

    Raises:
        StoreError: Its maximum cost is implausible.
    """
    bound = sent.at_most_usd
    if bound is not None and bound * _PICO > _MAX_INTEGER:
        raise StoreError(f"A call of model {sent.model!r} may cost {bound} USD, which is not plausible.")
    row = (
        sent.call,
        *clean_origin(sent.origin),
        clean(sent.model),
        sent.stage,
        b"".join(sent.keys),
        sent.sent_at,
        to_pico_bound(bound),
        sent.batch,
    )
    return SentRow(sent, row)


def to_settled_rows(settled: CallFinished) -> SettledRows:
    """Convert the outcome of a call to rows.

    Raises:
        StoreError: Its tokens or its cost are implausible.
    """
    sent = settled.sent
    usage = settled.usage
    usd = settled.usd
    amounts = (
        1,
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        usage.cache_write_tokens,
        0 if usd is None else _to_pico(usd, ROUND_HALF_EVEN),
        int(usd is None),
        int(settled.at_most),
        int(settled.paid_twice),
    )
    if max(amounts) > _MAX_INTEGER:
        raise StoreError(
            f"A call of model {sent.model!r} reports implausible figures, which are not stored: {usage!r}, {usd} USD."
        )
    line = (*clean_origin(sent.origin), clean(sent.model), sent.stage)
    run = sent.call[:ORIGIN_BYTES]
    return SettledRows(
        sent.call,
        (*line, settled.outcome, day_of(sent.sent_at)),
        amounts,
        tuple([_to_answer_row(key, answer, run) for key, answer in settled.answers]),
        tuple([_to_failure_row(key, failure, settled, run) for key, failure in settled.failures]),
        tuple([(key, clean(reply), sent.sent_at, run) for key, reply in settled.replies]),
    )


def to_answer(row: Row) -> tuple[Key, Answer]:
    """Convert a row of `answers`.

    Raises:
        DamagedRowError: The row is damaged.
    """
    key, values, model, attempts, batch_size, cost, request_id, answered_at = row
    _check_types(row, _ANSWER_TYPES)
    try:
        columns: dict[str, Json] = json.loads(values) if values.startswith(b" ") else orjson.loads(values)
    except ValueError as error:
        raise DamagedRowError(key, f"values are not JSON, {error}") from error
    if not isinstance(columns, dict):
        raise DamagedRowError(key, "values are not a JSON object")
    return key, Answer(columns, model, attempts, batch_size, _to_usd(key, cost), request_id, answered_at)


def _check_types(row: Row, allowed: frozenset[tuple[type, ...]]) -> None:
    types = tuple(map(type, row))
    if types not in allowed:
        raise DamagedRowError(row[0], f"columns are of types {', '.join(kind.__name__ for kind in types)}")


def _to_usd(key: Key, cost: Any) -> Decimal | None:
    if cost is None:
        return None
    try:
        usd = Decimal(cost)
    except (ArithmeticError, TypeError, ValueError):
        usd = Decimal("NaN")
    if not usd.is_finite():
        raise DamagedRowError(key, "cost_usd is not a number")
    return usd


def split_keys(keys: bytes) -> list[Key]:
    """Split the keys in a row of `calls`."""
    return [keys[at : at + _KEY_BYTES] for at in range(0, len(keys), _KEY_BYTES)]


def from_pico(pico_usd: int | Decimal) -> Decimal:
    """Convert pico-dollars to USD."""
    return Decimal(pico_usd).scaleb(-12)


def to_usage(tokens: Sequence[int]) -> Usage:
    """Convert the tokens of a line of the ledger, in the order of its columns."""
    input_tokens, cached, output_tokens, reasoning, cache_write = tokens
    return Usage(input_tokens, cached, output_tokens, reasoning, cache_write)


@lru_cache(4096)
def clean(text: str) -> str:
    """Escape in `text` what one of the databases refuses."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def clean_origin(origin: Origin) -> tuple[str, str, str]:
    """Run, asset and partition, escaped by `clean`."""
    return clean(origin.run), clean(origin.asset), clean(origin.partition)


def _to_answer_row(key: Key, answer: Answer, origin: bytes) -> Row:
    cost, request_id = answer.cost_usd, answer.request_id
    return (
        key,
        _dump(answer.values),
        clean(answer.model),
        answer.attempts,
        answer.batch_size,
        None if cost is None else str(cost),
        None if request_id is None else clean(request_id),
        answer.answered_at,
        origin,
    )


def _to_failure_row(key: Key, failure: Failure, settled: CallFinished, origin: bytes) -> Row:
    cost = None if failure.cost_usd is None else str(failure.cost_usd)
    return (
        key,
        failure.reason,
        clean(failure.detail),
        clean(failure.model),
        failure.attempts,
        cost,
        settled.sent.sent_at,
        origin,
        # For the condition of the statement: a failure is stored only if no answer that could be reused exists.
        key,
        settled.reuse_since,
    )


def to_failure(row: Row) -> tuple[Key, Failure]:
    """Convert a row of `failures`.

    Raises:
        DamagedRowError: The row is damaged.
    """
    key, reason, detail, model, attempts, cost = row
    _check_types(row, _FAILURE_TYPES)
    return key, Failure(reason, detail, model, attempts, _to_usd(key, cost))


def _dump(values: Any) -> bytes:
    try:
        # A copy, since the bytes that orjson returns occupy a buffer of some kilobytes until they are written.
        return bytes(memoryview(orjson.dumps(values)))
    except TypeError:
        # Integers beyond 64 bits and lone surrogates. The space marks text that orjson cannot read either.
        return b" " + json.dumps(values).encode()


def to_pico_bound(usd: Decimal | None) -> int | None:
    """Convert a maximum cost to whole pico-dollars, rounded up."""
    return None if usd is None else _to_pico(usd, ROUND_CEILING)


def _to_pico(usd: Decimal, rounding: str) -> int:
    return int((usd * _PICO).to_integral_value(rounding))


def day_of(at: float) -> str:
    """The date (UTC) of an instant."""
    return _name_day(int(at // DAY_S))


@lru_cache(16)
def _name_day(days: int) -> str:
    return date.fromordinal(_EPOCH + days).isoformat()
