"""How a run goes and what it came to: the counts while it runs, and the report at its end.

Answers are kept as JSON bytes until somebody looks at them: a million of them as Python objects would not fit.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, overload

import orjson

from ondine_core.calibration import Calibrated
from ondine_core.concurrency import Setting
from ondine_core.cost_tracker import CostTracker, Spend
from ondine_core.errors import OndineError
from ondine_core.preparation import Treatment
from ondine_core.values import Answer, Audit, Failure, Json, Key, Outcome

__all__ = ["Outcomes", "Progress", "Report", "Tally"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Args:
        rows_total: All rows.
        rows_done: Those that have an answer, or never will.
        rows_reused: Those of them that were in the store before the run began.
        rows_failed: Those of them that never will.
        spend: Calls, tokens and money so far.
        elapsed_s: Seconds so far.
        rows_unaskable: Those that failed for want of a prompt.
    """

    rows_total: int
    rows_done: int
    rows_reused: int
    rows_failed: int
    spend: Spend
    elapsed_s: float
    rows_unaskable: int = 0

    @property
    def rows_asked(self) -> int:
        """Rows settled by asking; they take the time and the money."""
        return self.rows_done - self.rows_reused - self.rows_unaskable

    @property
    def rows_per_s(self) -> float:
        """Rows settled by asking, per second."""
        return self.rows_asked / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds the rest takes at the present pace, `None` before there is one."""
        return (self.rows_total - self.rows_done) / self.rows_per_s if self.rows_per_s else None

    @property
    def forecast_usd(self) -> Decimal | None:
        """What the whole run will have cost if the rest costs as much a row; `None` before that can be said."""
        if self.spend.usd is None or not self.rows_asked:
            return None
        return self.spend.usd * (self.rows_asked + self.rows_total - self.rows_done) / self.rows_asked

    def followed_by(self, rest: Progress) -> Progress:
        """The whole, when `rest` is about the rows that this one left unanswered (and counts as failed)."""
        return Progress(
            self.rows_total,
            self.rows_done - rest.rows_total + rest.rows_done,
            self.rows_reused + rest.rows_reused,
            self.rows_failed - rest.rows_total + rest.rows_failed,
            self.spend + rest.spend,
            self.elapsed_s + rest.elapsed_s,
            self.rows_unaskable + rest.rows_unaskable,
        )


class Outcomes(Sequence[Outcome]):
    """One outcome a row, in row order, unpacked when it is looked at."""

    def __init__(
        self,
        rows: Sequence[Key | Failure],
        packed: Mapping[Key, bytes | Failure],
        give_back: Callable[[int, Mapping[str, Json]], Mapping[str, Json]] | None = None,
    ) -> None:
        self._rows, self._packed, self._give_back = rows, packed, give_back

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Outcome: ...
    @overload
    def __getitem__(self, index: slice) -> list[Outcome]: ...
    def __getitem__(self, index: int | slice) -> Outcome | list[Outcome]:
        if isinstance(index, slice):
            return [self._unpacked(number) for number in range(*index.indices(len(self)))]
        return self._unpacked(range(len(self))[index])

    def __iter__(self) -> Iterator[Outcome]:
        return map(self._unpacked, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it is compared by its content

    def failures(self) -> Iterator[Failure | None]:
        """The failure of each row, `None` where there is an answer."""
        for row in self._rows:
            found = row if isinstance(row, Failure) else self._packed[row]
            yield found if isinstance(found, Failure) else None

    def with_others(self, indices: Sequence[int], others: Outcomes) -> Outcomes:
        """These, but at `indices` the outcomes of `others`, in that order."""
        rows = list(self._rows)
        for index, row in zip(indices, others._rows, strict=True):
            rows[index] = row
        return Outcomes(rows, {**self._packed, **others._packed}, self._give_back)

    def unique(self) -> Iterator[Answer]:
        """The answers, each once, however many rows share it."""
        return (_unpack(packed) for packed in self._packed.values() if isinstance(packed, bytes))

    def as_kept(self, index: int) -> Outcome:
        """The outcome of a row as the store has it, with placeholders for what was taken out of the row."""
        row = self._rows[index]
        found = row if isinstance(row, Failure) else self._packed[row]
        return found if isinstance(found, Failure) else _unpack(found)

    def _unpacked(self, index: int) -> Outcome:
        outcome = self.as_kept(index)
        # Rows that are asked the same share an answer, in which each finds its own data again.
        if self._give_back is None or isinstance(outcome, Failure):
            return outcome
        return replace(outcome, values=self._give_back(index, outcome.values))


def _pack(answer: Answer) -> bytes:
    cost = None if answer.cost_usd is None else str(answer.cost_usd)
    how = (answer.model, answer.attempts, answer.batch_size, cost, answer.request_id, answer.answered_at)
    # A copy: what orjson returns keeps the buffer of some kilobytes that it was written into.
    return bytes(memoryview(orjson.dumps((answer.values, *how))))


def _unpack(packed: bytes) -> Answer:
    values, model, attempts, batch_size, cost, request_id, answered_at = orjson.loads(packed)
    usd = None if cost is None else Decimal(cost)
    return Answer(values, model, attempts, batch_size, usd, request_id, answered_at)


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to.

    Args:
        outcomes: One a row, in row order.
        columns: Names of the output columns.
        progress: The final counts, spend and duration.
        prompts: Unique prompts among the rows.
        latencies_s: Seconds of each call that was answered, sorted.
        concurrency: What the provider was found to take, from when on.
        audit: The books of the run as the store has them, those of killed attempts at it included.
        calibrated: How rows asked together compare with rows asked alone, where that was to be found out.
        stopped_by: Why the model was not asked about all rows, if it was not.
        treatment: How many rows were truncated and sanitized; `None` if nothing was to be done to rows.
    """

    outcomes: Outcomes
    columns: tuple[str, ...]
    progress: Progress
    prompts: int
    latencies_s: Sequence[float]
    concurrency: Sequence[Setting]
    audit: Audit
    calibrated: Calibrated | None = None
    stopped_by: OndineError | None = None
    treatment: Treatment | None = None

    def followed_by(self, indices: Sequence[int], rest: Report) -> Report:
        """The whole, when `rest` is about the rows at `indices`, which this one left unanswered."""
        return Report(
            self.outcomes.with_others(indices, rest.outcomes),
            self.columns,
            self.progress.followed_by(rest.progress),
            self.prompts,
            sorted((*self.latencies_s, *rest.latencies_s)),
            (*self.concurrency, *rest.concurrency),
            rest.audit,
            self.calibrated or rest.calibrated,
            rest.stopped_by,
            self.treatment,
        )

    @property
    def models(self) -> Counter[str]:
        """How many rows each model answered."""
        return Counter(outcome.model for outcome in self.outcomes if isinstance(outcome, Answer))

    @property
    def spend(self) -> Spend:
        """Calls, tokens and money of this run."""
        return self.progress.spend

    @property
    def error_rate(self) -> float:
        """Failed rows among all, 0 to 1."""
        return self.progress.rows_failed / len(self.outcomes) if self.outcomes else 0.0

    @property
    def failures(self) -> Counter[str]:
        """Failed rows by reason and detail."""
        return Counter(str(failure) for failure in self.outcomes.failures() if failure)

    def column(self, name: str) -> list[Any]:
        """The values of output column `name` in row order, `None` where a row failed."""
        return self.values()[name]

    def values(self, *, as_kept: bool = False) -> dict[str, list[Any]]:
        """All output columns by name; a row that failed has `None` in each.

        Args:
            as_kept: Leave placeholders in the place of what was taken out of rows.
        """
        columns: dict[str, list[Any]] = {name: [] for name in self.columns}
        for outcome in map(self.outcomes.as_kept, range(len(self.outcomes))) if as_kept else self.outcomes:
            values: Mapping[str, Any] = outcome.values if isinstance(outcome, Answer) else {}
            for name, column in columns.items():
                column.append(values.get(name))
        return columns

    def errors(self) -> list[str | None]:
        """Why each row failed, `None` where it has an answer."""
        return [str(failure) if failure else None for failure in self.outcomes.failures()]


class Tally:
    """The state of a run: outcomes by key, and the counts that progress shows."""

    def __init__(
        self,
        rows: int,
        copies: Mapping[Key, int],
        tracker: CostTracker,
        elapsed_s: Callable[[], float],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._rows, self._copies, self._elapsed_s, self._on_progress = rows, copies, elapsed_s, on_progress
        self._done = self._reused = self._failed = self._unaskable = 0
        self.any_answer = False
        self.tracker = tracker
        self.outcomes: dict[Key, bytes | Failure] = {}
        self.latencies_s = array("d")

    def unaskable(self) -> None:
        """Count a row whose prompt could not be rendered."""
        self._done += 1
        self._failed += 1
        self._unaskable += 1

    def reuse(self, outcomes: Mapping[Key, Outcome]) -> None:
        """Take outcomes that were in the store."""
        self._take(outcomes.items())
        self._reused += sum(self._copies.get(key, 1) for key in outcomes)

    def settle(self, outcomes: Sequence[tuple[Key, Outcome]]) -> None:
        """Take what asking came to."""
        self._take(outcomes)

    def _take(self, outcomes: Iterable[tuple[Key, Outcome]]) -> None:
        for key, outcome in outcomes:
            failed = isinstance(outcome, Failure)
            self.outcomes[key] = outcome if isinstance(outcome, Failure) else _pack(outcome)
            rows = self._copies.get(key, 1)
            self._done += rows
            self._failed += rows * failed
            self.any_answer = self.any_answer or not failed

    def tell(self) -> None:
        """Tell whoever watches."""
        self._on_progress(self.progress)

    def rows_of(self, key: Key) -> int:
        """Rows that ask for one prompt."""
        return self._copies.get(key, 1)

    @property
    def rows_left(self) -> int:
        """Rows that have no outcome yet."""
        return self._rows - self._done

    @property
    def progress(self) -> Progress:
        """The counts so far."""
        spend = self.tracker.spend
        elapsed_s = self._elapsed_s()
        return Progress(self._rows, self._done, self._reused, self._failed, spend, elapsed_s, self._unaskable)
