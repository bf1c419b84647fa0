"""How a run goes and what it came to: the counts while it runs, and the report at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ondine_core.cost_tracker import CostTracker, Spend
from ondine_core.values import Answer, Failure, Key, Outcome

__all__ = ["Progress", "Report", "Tally"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. `rows_reused` of the `rows_done` were in the store before it began."""

    rows_total: int
    rows_done: int
    rows_reused: int
    rows_failed: int
    spend: Spend
    elapsed_s: float

    @property
    def rows_per_s(self) -> float:
        """Rows settled by asking, per second."""
        return (self.rows_done - self.rows_reused) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds the rest takes at the present pace, `None` before there is one."""
        return (self.rows_total - self.rows_done) / self.rows_per_s if self.rows_per_s else None


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to.

    Args:
        outcomes: One a row, in row order.
        columns: Names of the output columns.
        progress: The final counts, spend and duration.
        prompts: Unique prompts among the rows.
        latencies_s: Seconds of each call that was answered, sorted.
    """

    outcomes: Sequence[Outcome]
    columns: tuple[str, ...]
    progress: Progress
    prompts: int
    latencies_s: Sequence[float]

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
        return Counter(str(outcome) for outcome in self.outcomes if isinstance(outcome, Failure))

    def column(self, name: str) -> list[Any]:
        """The values of output column `name` in row order, `None` where a row failed."""
        return [outcome.values[name] if isinstance(outcome, Answer) else None for outcome in self.outcomes]

    def errors(self) -> list[str | None]:
        """Why each row failed, `None` where it has an answer."""
        return [str(outcome) if isinstance(outcome, Failure) else None for outcome in self.outcomes]


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
        self._done = self._reused = self._failed = 0
        self.tracker = tracker
        self.outcomes: dict[Key, Outcome] = {}
        self.latencies_s: list[float] = []

    def unaskable(self) -> None:
        """Count a row whose prompt could not be rendered."""
        self._done += 1
        self._failed += 1

    def reuse(self, answers: Mapping[Key, Answer]) -> None:
        """Take answers that were in the store."""
        self.outcomes.update(answers)
        rows = sum(self._copies[key] for key in answers)
        self._done += rows
        self._reused += rows

    def settle(self, answers: Sequence[tuple[Key, Answer]], failures: Sequence[tuple[Key, Failure]]) -> None:
        """Take what asking came to."""
        self.outcomes.update(answers)
        self.outcomes.update(failures)
        self._done += sum(self._copies[key] for key, _ in (*answers, *failures))
        self._failed += sum(self._copies[key] for key, _ in failures)

    @property
    def any_answer(self) -> bool:
        """Whether anything was answered, now or before."""
        return any(isinstance(outcome, Answer) for outcome in self.outcomes.values())

    def tell(self) -> None:
        """Tell whoever watches."""
        self._on_progress(self.progress)

    @property
    def progress(self) -> Progress:
        """The counts so far."""
        spend = self.tracker.spend
        return Progress(self._rows, self._done, self._reused, self._failed, spend, self._elapsed_s())
