"""The state of a run: outcomes by key, and the counts of its progress."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

from ondine_core.engine.cost_tracker import CostTracker
from ondine_core.engine.outcomes import pack_answer
from ondine_core.types.progress import Progress, add_usd
from ondine_core.types.values import Failure, Key, Outcome


class RunState:
    """Outcomes by key, and the counts of the progress.

    Args:
        rows: Number of all rows.
        copies: Number of rows of each prompt that several rows ask.
        tracker: Tracks calls and cost.
        elapsed_s: Returns the seconds since the start of the run.
        on_progress: Called by `report_progress`.
        unaskable: Number of rows of which no prompt could be made.
        skipped: Number of skipped rows.
    """

    def __init__(  # noqa: PLR0913
        self,
        rows: int,
        copies: Mapping[Key, int],
        tracker: CostTracker,
        elapsed_s: Callable[[], float],
        on_progress: Callable[[Progress], None],
        *,
        unaskable: int = 0,
        skipped: int = 0,
    ) -> None:
        self._rows = rows
        self._copies = copies
        self._elapsed_s = elapsed_s
        self._on_progress = on_progress
        self._unaskable = unaskable
        self._skipped = skipped
        self._done = unaskable + skipped
        self._failed = unaskable
        self._reused = 0
        self._reused_usd: Decimal | None = Decimal(0)
        self.any_answer = False
        self.tracker = tracker
        self.outcomes: dict[Key, bytes | Failure] = {}
        self.latencies_s = array("d")

    def reuse(self, outcomes: Mapping[Key, Outcome]) -> None:
        """Record outcomes that were in the store."""
        self.settle(outcomes.items())
        self._reused += sum(self._copies.get(key, 1) for key in outcomes)
        for outcome in outcomes.values():
            self._reused_usd = add_usd(self._reused_usd, outcome.cost_usd)

    def settle(self, outcomes: Iterable[tuple[Key, Outcome]]) -> None:
        """Record the outcomes of a batch."""
        for key, outcome in outcomes:
            failed = isinstance(outcome, Failure)
            self.outcomes[key] = outcome if isinstance(outcome, Failure) else pack_answer(outcome)
            rows = self._copies.get(key, 1)  # faster than `rows_of`: this runs for every answer
            self._done += rows
            self._failed += rows * failed
            self.any_answer = self.any_answer or not failed

    def report_progress(self) -> None:
        """Report progress."""
        self._on_progress(self.progress)

    def rows_of(self, key: Key) -> int:
        """Number of rows with this prompt."""
        return self._copies.get(key, 1)

    @property
    def rows_left(self) -> int:
        """Number of rows without an outcome."""
        return self._rows - self._done

    @property
    def progress(self) -> Progress:
        """The counts so far."""
        return Progress(
            rows_total=self._rows,
            rows_done=self._done,
            rows_reused=self._reused,
            rows_failed=self._failed,
            spend=self.tracker.spend,
            elapsed_s=self._elapsed_s(),
            rows_unaskable=self._unaskable,
            rows_skipped=self._skipped,
            reused_usd=self._reused_usd,
        )
