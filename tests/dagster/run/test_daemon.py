"""Concurrent backfills through Dagster's own daemon, checked against the provider's ledger."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import dagster as dg
import pytest

from tests.support.deployed_figures import DAYS, PARTS, ROWS_A_DAY, ROWS_A_PART, billed, is_complete, keeps_rate
from tests.support.deployment import Deployment
from tests.support.ledger import read_budget
from tests.support.provider import Ledger, Provider

pytestmark = pytest.mark.slow

CAP, RAISED = "1.1", "100"
SETTINGS = {
    "telemetry": {"enabled": False},
    "concurrency": {"runs": {"max_concurrent_runs": 4}, "pools": {"default_limit": 3, "granularity": "op"}},
    "run_coordinator": {
        "module": "dagster.core.run_coordinator",
        "class": "QueuedRunCoordinator",
        "config": {"dequeue_interval_seconds": 1, "dequeue_use_threads": True, "dequeue_num_workers": 4},
    },
    "run_monitoring": {"enabled": True, "poll_interval_seconds": 2, "free_slots_after_run_end_seconds": 1},
}


@dataclass(frozen=True)
class Backfilled:
    """The results of three concurrent backfills, one of them repeated."""

    deployment: Deployment
    ledgers: dict[str, Ledger]
    paced: list[dg.DagsterRun]
    ranged: list[dg.DagsterRun]
    capped: list[dg.DagsterRun]
    spent_when_capped: Decimal
    repeated: list[dg.DagsterRun]

    def charged(self, asset: str) -> tuple[Decimal, Decimal]:
        """USD charged to the budget of an asset, and the part known to be spent."""
        return read_budget(self.store, asset)

    @property
    def store(self) -> Path:
        """The default one."""
        return self.deployment.home / "storage" / "ondine" / "answers.db"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backfilled]:
    home = tmp_path_factory.mktemp("daemon")
    (home / "budget").write_text(CAP)
    with Provider(latency_s=0.05) as paced, Provider(latency_s=0.05) as ranged, Provider(latency_s=0.05) as capped:
        providers = {"paced": paced, "ranged": ranged, "capped": capped}
        variables = {
            "TEST_URLS": json.dumps({name: provider.base_url for name, provider in providers.items()}),
            "TEST_EXECUTOR": "in_process",
        }
        with Deployment(home, "tests.support.deployed_project", SETTINGS, variables, reloads=True) as running:
            many = running.backfill("paced", DAYS)  # uses all available slots, so that they run concurrently
            first = running.backfill("capped", PARTS)
            several = running.backfill("ranged", DAYS)
            capped_runs = running.finished_all(first, len(PARTS), 900)
            spent = billed(capped.ledger)
            (home / "budget").write_text(RAISED)
            running.reload()
            failed = sum(run.status == dg.DagsterRunStatus.FAILURE for run in capped_runs)
            repeated = running.finished_all(running.repeat_failed(first), failed, 900)
            yield Backfilled(
                running,
                {name: provider.ledger for name, provider in providers.items()},
                running.finished_all(many, len(DAYS), 900),
                running.finished_all(several, 2, 900),
                capped_runs,
                spent,
                repeated,
            )


def test_partitions_in_processes_of_their_own_are_paid_once(done: Backfilled) -> None:
    """Four partitions in four processes: each row is asked once and has its own answer, and the ledgers agree."""
    assert [run.status for run in done.paced] == [dg.DagsterRunStatus.SUCCESS] * len(DAYS)
    assert all(is_complete(done.deployment.home, "paced", day, ROWS_A_DAY) for day in DAYS)
    ledger = done.ledgers["paced"]
    assert set(ledger.billed_by_prompt.values()) == {1}
    assert len(ledger.billed_by_prompt) == len(ledger.requests) == len(DAYS) * ROWS_A_DAY
    events = done.deployment.materialized("paced")
    assert sorted(event.partition or "" for event in events) == DAYS
    assert sum(Decimal(str(event.metadata["ondine/cost_usd"].value)) for event in events) == billed(ledger)
    assert sum(event.metadata["ondine/requests"].value for event in events) == len(ledger.requests)
    assert done.charged("paced") == (billed(ledger), billed(ledger))


def test_partitions_in_processes_of_their_own_share_one_rate(done: Backfilled) -> None:
    """No window has more calls than burst and rate allow, over all runs."""
    assert keeps_rate(done.ledgers["paced"])


def test_runs_were_concurrent(done: Backfilled) -> None:
    """Otherwise these tests would prove nothing."""
    runs = (*done.paced, *done.ranged, *done.capped, *done.repeated)
    records = [done.deployment.instance.get_run_record_by_id(run.run_id) for run in runs]
    spans = [(record.start_time, record.end_time) for record in records if record]
    assert max(sum(start <= at < end for start, end in spans) for at, _ in spans) >= 2


def test_budget_exhausted_midway_stops_the_remaining_runs(done: Backfilled) -> None:
    """Nothing beyond the cap is spent, and the failed runs say what is used up and what to do."""
    statuses = Counter(run.status for run in done.capped)
    assert statuses[dg.DagsterRunStatus.FAILURE] + statuses[dg.DagsterRunStatus.SUCCESS] == len(PARTS)
    assert 0.5 * float(CAP) < done.spent_when_capped <= Decimal(CAP)
    for run in done.capped:
        if run.status == dg.DagsterRunStatus.FAILURE:
            (message,) = done.deployment.failures(run.run_id)
            assert "BudgetExhaustedError" in message
            assert "'capped'" in message
            assert "Raise max_cost_usd" in message


def test_failed_partitions_continue_with_a_higher_budget(done: Backfilled) -> None:
    """Repeating them asks only rows without an answer; the partitions end complete."""
    assert done.repeated
    assert {run.status for run in done.repeated} == {dg.DagsterRunStatus.SUCCESS}
    ledger = done.ledgers["capped"]
    assert set(ledger.billed_by_prompt.values()) == {1}
    assert len(ledger.billed_by_prompt) == len(PARTS) * ROWS_A_PART
    assert all(is_complete(done.deployment.home, "capped", part, ROWS_A_PART) for part in PARTS)
    assert done.charged("capped")[1] == billed(ledger)


def test_run_of_several_partitions_stores_each_with_its_own_rows(done: Backfilled) -> None:
    """Four partitions in two runs of two: each is materialized with its own rows and paid once."""
    assert [run.status for run in done.ranged] == [dg.DagsterRunStatus.SUCCESS] * 2
    assert all(is_complete(done.deployment.home, "ranged", day, ROWS_A_DAY) for day in DAYS)
    ledger = done.ledgers["ranged"]
    assert set(ledger.billed_by_prompt.values()) == {1}
    assert len(ledger.requests) == len(DAYS) * ROWS_A_DAY
    assert sorted(event.partition or "" for event in done.deployment.materialized("ranged")) == DAYS
    assert done.charged("ranged") == (billed(ledger), billed(ledger))
