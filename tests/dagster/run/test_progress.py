"""How often a running step reports, on a simulated clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import dagster as dg

from ondine_core.types.progress import Progress, Spend
from ondine_dagster.run.progress import Watch


@dataclass
class Step:
    """The part of a step's context that is used, and a clock."""

    seconds: float = 0.0
    lines: list[float] = field(default_factory=list)
    observations: list[tuple[float, dg.AssetObservation]] = field(default_factory=list)
    run: Any = field(default_factory=lambda: SimpleNamespace(run_id="r"))
    instance: Any = field(default_factory=lambda: SimpleNamespace(get_run_by_id=lambda _: None))
    has_partition_key: bool = False
    has_partition_key_range: bool = False

    @property
    def log(self) -> Any:
        return SimpleNamespace(info=lambda _: self.lines.append(self.seconds))

    def asset_key_for_output(self) -> dg.AssetKey:
        return dg.AssetKey("moods")

    def log_event(self, event: dg.AssetObservation) -> None:
        self.observations.append((self.seconds, event))


def watched(seconds: int) -> Step:
    """A step that runs for `seconds`, with ten seconds between reports."""
    step: Any = Step()
    watch = Watch(step, now=lambda: step.seconds)
    for second in range(seconds + 1):
        step.seconds = float(second)
        watch.keep(Progress(1000, second, 0, 0, Spend(calls=second, usd=Decimal(second)), step.seconds))
        watch.tick()
    return step  # type: ignore[no-any-return]


def test_lines_keep_their_pace_and_observations_become_rarer() -> None:
    """The asset's page keeps every observation: 100 in ten hours, not 3,600; at most ten minutes apart."""
    step = watched(36_000)
    assert len(step.lines) == 3_600
    times = [seconds for seconds, _ in step.observations]
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[:9] == [10.0] * 9
    assert gaps == sorted(gaps)
    assert gaps[-1] == 600
    assert len(times) < 120


def test_step_shorter_than_the_interval_reports_no_progress() -> None:
    """However early its first rows are answered: a backfill of short runs would have an observation for each."""
    step = watched(9)
    assert (step.lines, step.observations) == ([], [])


def test_figures_of_a_running_step_have_keys_of_their_own() -> None:
    """So plots show materializations only; a summary line leads them."""
    _, observation = watched(20).observations[-1]
    found = {key: value.value for key, value in observation.metadata.items()}
    assert all(key.startswith("ondine/progress/") for key in found)
    assert next(iter(found.items())) == (
        "ondine/progress/summary",
        "20 of 1,000 rows, 1.0 rows/s, about 980 s left, $20.0000",
    )
    assert (found["ondine/progress/rows_done"], found["ondine/progress/cost_usd"]) == (20, 20.0)
