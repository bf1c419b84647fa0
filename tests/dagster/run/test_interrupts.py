"""Runs of a real deployment that are terminated, stopped and killed, checked against the provider's ledger."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal

import dagster as dg
import pytest

from ondine_core.engine.in_thread import run_in_thread
from ondine_core.store import open_store
from ondine_core.types.ledger import Audit
from tests.support.deployed_figures import CONCURRENCY, MAX_CALL_USD, ROWS, billed, is_complete
from tests.support.deployment import Deployment, is_running, until
from tests.support.provider import Ledger, Provider, slow, while_set

pytestmark = pytest.mark.slow

ASSETS = ("terminated", "retried", "stopped", "orphaned")
SETTINGS = {
    "telemetry": {"enabled": False},
    "run_monitoring": {"enabled": True, "poll_interval_seconds": 1},
    "run_retries": {"enabled": True, "max_retries": 0},
}


class Place:
    """The deployment, and a provider for each asset; three of them are slow on request."""

    def __init__(self, deployment: Deployment, ledgers: dict[str, Ledger], is_slow: threading.Event) -> None:
        self.deployment, self.ledgers, self.is_slow = deployment, ledgers, is_slow

    def wait_for_rows(self, asset: str, count: int) -> None:
        """Wait until `count` rows of an asset are answered."""
        self.ledgers[asset].wait_for(lambda ledger: ledger.answered >= count, 600)

    def wait_until_stuck(self, asset: str) -> None:
        """Slow the provider down, and wait until all allowed calls are in flight."""
        before = len(self.ledgers[asset].requests)
        self.is_slow.set()
        self.ledgers[asset].wait_for(lambda ledger: len(ledger.requests) >= before + CONCURRENCY, 120)

    def pids(self, run: str) -> tuple[int, int]:
        """The processes of a run: its step's latest, and its worker."""
        step, worker = (self.deployment.home / f"pids-{run}").read_text().split()
        return int(step), int(worker)

    def wait_until_gone(self, pid: int, within_s: float) -> None:
        until(lambda: not is_running(pid) or None, within_s, f"end of process {pid}")

    def assert_complete(self, asset: str, paid_twice: int) -> None:
        """Every row has its own answer, and at most `paid_twice` rows were paid twice."""
        assert is_complete(self.deployment.home, asset, "all", ROWS)
        billed = self.ledgers[asset].billed_by_prompt
        assert len(billed) == ROWS
        assert sum(billed.values()) - ROWS <= paid_twice

    def audit(self, *runs: str) -> list[Audit]:
        """The store's ledger of some runs."""
        with open_store(self.deployment.home / "storage" / "ondine" / "answers.db") as store:
            return [run_in_thread(lambda run=run: store.audit(run)) for run in runs]

    def assert_spend_is_reported(self, asset: str, run: str) -> None:
        """The last observation of the first run equals the provider's ledger."""
        ledger = self.ledgers[asset]
        metadata = self.deployment.observed(asset, [run])[run]
        assert metadata["ondine/progress/requests"] == len(ledger.requests)
        unknown = metadata["ondine/progress/requests_unknown"]
        assert unknown <= CONCURRENCY
        cost, paid = Decimal(str(metadata["ondine/progress/cost_usd"])), billed(ledger)
        assert paid - unknown * MAX_CALL_USD <= cost <= paid
        assert unknown or cost == paid


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("interrupts")
    with ExitStack() as stack:
        is_slow = threading.Event()
        slowly = {"terminated": 3_600, "orphaned": 2, "retried": 30}
        faults = {name: while_set(is_slow, slow(seconds)) for name, seconds in slowly.items()}
        providers = {asset: stack.enter_context(Provider(latency_s=0.05, fault=faults.get(asset))) for asset in ASSETS}
        urls = {asset: provider.base_url for asset, provider in providers.items()}
        variables = {"TEST_URLS": json.dumps(urls)}
        deployment = stack.enter_context(
            Deployment(home, "tests.support.deployed_project", SETTINGS, variables),
        )
        yield Place(deployment, {asset: provider.ledger for asset, provider in providers.items()}, is_slow)


def test_terminate_stops_the_calls_and_keeps_what_was_answered(place: Place) -> None:
    """Terminate in the UI ends a step with hanging calls, reports the spend, and the next run asks only the rest."""
    run = place.deployment.launch("terminated")
    place.wait_for_rows("terminated", ROWS // 4)
    step, _ = place.pids(run)
    place.is_slow.set()
    place.deployment.terminate(run)
    place.wait_until_gone(step, 40)
    calls = len(place.ledgers["terminated"].requests)
    assert place.deployment.finished(run).status == dg.DagsterRunStatus.CANCELED
    assert len(place.ledgers["terminated"].requests) == calls < ROWS
    place.assert_spend_is_reported("terminated", run)

    place.is_slow.clear()
    again = place.deployment.launch("terminated")
    assert place.deployment.finished(again).status == dg.DagsterRunStatus.SUCCESS
    place.assert_complete("terminated", CONCURRENCY)
    (event,) = place.deployment.materialized("terminated")
    assert event.metadata["ondine/requests"].value == len(place.ledgers["terminated"].requests) - calls


def test_killed_step_continues_by_its_retry_policy(place: Place) -> None:
    """SIGTERM, then kill -9: each attempt continues without waiting for a dead one, and the audit is exact."""
    run = place.deployment.launch("retried")
    place.wait_for_rows("retried", ROWS // 4)
    first, worker = place.pids(run)
    place.wait_until_stuck("retried")
    os.kill(first, signal.SIGTERM)
    place.is_slow.clear()
    place.wait_until_gone(first, 25)
    place.assert_spend_is_reported("retried", run)

    place.wait_for_rows("retried", ROWS // 2)
    second, same_worker = place.pids(run)
    assert second != first
    assert same_worker == worker
    # A call recorded but not sent when its process was killed would be in the store's ledger only.
    place.wait_until_stuck("retried")
    os.kill(second, signal.SIGKILL)
    place.is_slow.clear()
    killed_at = time.monotonic()
    place.wait_for_rows("retried", ROWS // 2 + 2 * CONCURRENCY)
    assert time.monotonic() - killed_at < 50, "The lease of the killed attempt was waited for."

    assert place.deployment.finished(run).status == dg.DagsterRunStatus.SUCCESS
    place.assert_complete("retried", 2 * CONCURRENCY)
    (audit,) = place.audit(run)
    ledger = place.ledgers["retried"]
    assert audit.sent == len(ledger.requests)
    assert audit.answered.calls == ROWS
    assert audit.answered.usd is not None
    assert billed(ledger) - audit.unknown.calls * MAX_CALL_USD <= audit.answered.usd <= billed(ledger)


def test_stopped_run_worker_is_replaced_by_a_run_retry(place: Place) -> None:
    """SIGTERM, as when its machine is drained: the spend is reported, and a new run does the rest."""
    run = place.deployment.launch("stopped", {"dagster/max_retries": "1"})
    place.wait_for_rows("stopped", ROWS // 4)
    step, worker = place.pids(run)
    os.kill(worker, signal.SIGTERM)
    place.wait_until_gone(step, 40)
    place.assert_spend_is_reported("stopped", run)
    assert place.deployment.finished(run).status == dg.DagsterRunStatus.FAILURE

    assert place.deployment.finished(place.deployment.retry_of(run)).status == dg.DagsterRunStatus.SUCCESS
    place.assert_complete("stopped", CONCURRENCY)


def test_step_that_outlives_its_run_worker_is_waited_for(place: Place) -> None:
    """After kill -9 of a run worker its step continues; a new run waits for it, finds all answers and pays nothing."""
    run = place.deployment.launch("orphaned")
    place.wait_for_rows("orphaned", ROWS // 8)
    orphan, worker = place.pids(run)
    place.is_slow.set()
    os.kill(worker, signal.SIGKILL)
    assert place.deployment.finished(run).status == dg.DagsterRunStatus.FAILURE
    assert is_running(orphan)

    again = place.deployment.launch("orphaned")
    until(lambda: "Another process is running" in place.deployment.log(again) or None, 600, "run that waits")
    assert place.ledgers["orphaned"].answered < ROWS
    place.is_slow.clear()
    assert place.deployment.finished(again).status == dg.DagsterRunStatus.SUCCESS
    until(lambda: len(place.deployment.materialized("orphaned")) == 2 or None, 600, "end of both steps")
    place.assert_complete("orphaned", 0)
    events = place.deployment.materialized("orphaned")
    assert sorted(event.metadata["ondine/requests"].value for event in events) == [0, ROWS]
    assert sorted(event.metadata["ondine/rows_reused"].value for event in events) == [0, ROWS]
