"""The state that all parts of a run share: the task, the runtime, and the outcomes so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ondine_core.engine.interpreting import Interpreter
from ondine_core.engine.other_runs import OtherRuns
from ondine_core.engine.policy import Policy
from ondine_core.engine.run_state import RunState
from ondine_core.engine.runtime import Runtime
from ondine_core.engine.stop_signal import StopSignal
from ondine_core.prompts.task import Task
from ondine_core.types.clock import Clock
from ondine_core.types.ledger import Origin
from ondine_core.types.values import Failure, Key, Outcome


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all parts of a run share.

    `budget_run` is the run whose budgets are charged. `first` has the first row of each prompt, `unseen` the prompts of
    calls of unknown outcome. `others` also knows which prompts batch jobs have in flight.
    """

    task: Task
    columns: Mapping[str, Sequence[Any]]
    first: Mapping[Key, int]
    runtime: Runtime
    policy: Policy
    origin: Origin
    budget_run: str
    clock: Clock
    others: OtherRuns
    interpreter: Interpreter
    run_state: RunState
    started_at: float
    stop: StopSignal = field(default_factory=StopSignal)
    unseen: set[Key] = field(default_factory=set)

    def pending(self) -> list[tuple[Key, int]]:
        """The prompts without an outcome that no batch job has in flight, each with its first row."""
        known, in_jobs = self.run_state.outcomes, self.others.in_jobs
        return [(key, row) for key, row in self.first.items() if key not in known and key not in in_jobs]

    def reuse(self, found: Mapping[Key, Outcome]) -> None:
        """Record outcomes that were in the store."""
        self.run_state.reuse(found)
        self._emit_failed(found.items())

    def settle(self, outcomes: Sequence[tuple[Key, Outcome]]) -> None:
        """Record outcomes of prompts that are not asked, or not any more."""
        self.run_state.settle(outcomes)
        self._emit_failed(outcomes)

    def _emit_failed(self, outcomes: Iterable[tuple[Key, Outcome]]) -> None:
        rows_of = self.run_state.rows_of
        failed = ((outcome, rows_of(key)) for key, outcome in outcomes if isinstance(outcome, Failure))
        self.runtime.emitter.rows_failed(failed)
