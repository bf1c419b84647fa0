"""One outcome for each row, in little memory: answers are JSON bytes until they are read.

A million answers as Python objects would take too much memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import overload

import orjson

from ondine_core.types.values import Answer, Failure, Json, Key, RowKey, RowOutcome, Skipped


class Outcomes(Sequence[RowOutcome]):
    """One outcome a row, in row order, unpacked when it is read."""

    def __init__(
        self,
        rows: Sequence[RowKey],
        packed: Mapping[Key, bytes | Failure],
        give_back: Callable[[int, Mapping[str, Json]], Mapping[str, Json]] | None = None,
    ) -> None:
        self._rows = rows
        self._packed = packed
        self._give_back = give_back

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> RowOutcome: ...
    @overload
    def __getitem__(self, index: slice) -> list[RowOutcome]: ...
    def __getitem__(self, index: int | slice) -> RowOutcome | list[RowOutcome]:
        if isinstance(index, slice):
            return [self._read(number) for number in range(*index.indices(len(self)))]
        return self._read(range(len(self))[index])

    def __iter__(self) -> Iterator[RowOutcome]:
        return map(self._read, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it is compared by its content

    def failures(self) -> Iterator[Failure | None]:
        """The failure of each row, `None` where there is an answer or the row was skipped."""
        for row in self._rows:
            outcome = self._packed[row] if isinstance(row, bytes) else row
            yield outcome if isinstance(outcome, Failure) else None

    def answered(self) -> Iterator[bool]:
        """Whether each row has an answer."""
        return (isinstance(row, bytes) and isinstance(self._packed[row], bytes) for row in self._rows)

    def skipped(self) -> Iterator[Skipped | None]:
        """Why each row was skipped, `None` where it was not."""
        return (row if isinstance(row, Skipped) else None for row in self._rows)

    def part(self, rows: slice) -> Outcomes:
        """Those of some rows, as the store has them."""
        return Outcomes(self._rows[rows], self._packed)

    def with_others(self, indices: Sequence[int], others: Outcomes) -> Outcomes:
        """A copy with the outcomes of `others` at `indices`, in that order."""
        rows = list(self._rows)
        for index, row in zip(indices, others._rows, strict=True):
            rows[index] = row
        return Outcomes(rows, {**self._packed, **others._packed}, self._give_back)

    def as_kept(self, index: int) -> RowOutcome:
        """The outcome of a row as the store has it, with placeholders for the row's sanitized data."""
        row = self._rows[index]
        outcome = self._packed[row] if isinstance(row, bytes) else row
        return _unpack(outcome) if isinstance(outcome, bytes) else outcome

    def _read(self, index: int) -> RowOutcome:
        outcome = self.as_kept(index)
        # Rows with the same prompt share an answer; the placeholders stand for the data of each row.
        if self._give_back is None or not isinstance(outcome, Answer):
            return outcome
        return replace(outcome, values=self._give_back(index, outcome.values))


def pack_answer(answer: Answer) -> bytes:
    """Convert `answer` to JSON."""
    cost = None if answer.cost_usd is None else str(answer.cost_usd)
    origin = (answer.model, answer.attempts, answer.batch_size, cost, answer.request_id, answer.answered_at)
    # A copy, since the bytes that orjson returns occupy a buffer of some kilobytes.
    return bytes(memoryview(orjson.dumps((answer.values, *origin))))


def _unpack(packed: bytes) -> Answer:
    values, model, attempts, batch_size, cost, request_id, answered_at = orjson.loads(packed)
    usd = None if cost is None else Decimal(cost)
    return Answer(values, model, attempts, batch_size, usd, request_id, answered_at)
