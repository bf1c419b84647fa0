"""Runs on several workers behind a broker, each with a disk of its own; they share only Postgres.

This is the deployment of `docs/scale-out.md` with Celery, made of that guide's blocks: runs are queued in Redis,
workers
take them from there, and Dagster's storage, the answers, the budget and the rate are in Postgres.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal

import dagster as dg
import pytest
import yaml

from tests.support.deployed_figures import (
    CONCURRENCY,
    PARTS,
    ROWS,
    ROWS_A_PART,
    billed,
    is_complete,
    keeps_rate,
)
from tests.support.deployment import Deployment, is_running, until
from tests.support.guide import blocks
from tests.support.ledger import read_budget
from tests.support.postgres import server
from tests.support.provider import Ledger, Provider, slow, while_set
from tests.support.redis import find_program, redis_server

REDIS = find_program()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(REDIS is None, reason="There is no Redis server: apt install redis-server."),
]


class Place:
    """The deployment, its store, and a provider for each asset; that of `terminated` is slow on request."""

    def __init__(
        self, deployment: Deployment, store: str, ledgers: dict[str, Ledger], is_slow: threading.Event
    ) -> None:
        self.deployment, self.store, self.ledgers, self.is_slow = deployment, store, ledgers, is_slow

    def worker_of(self, run: str) -> int:
        """The process of a run and its step, one of a pool."""
        return int((self.deployment.home / f"pids-{run}").read_text().split()[0])

    def counted_requests(self, asset: str, run: str) -> int:
        """The number of calls in a run's last report."""
        figures = self.deployment.observed(asset, [run]).get(run, {})
        return int(figures.get("ondine/progress/requests", 0))

    def is_complete(self, asset: str) -> bool:
        """Whether every row of an unpartitioned asset has its own answer, and hardly any was paid twice."""
        paid = sum(self.ledgers[asset].billed_by_prompt.values())
        return is_complete(self.deployment.home, asset, "all", ROWS) and paid - ROWS <= CONCURRENCY


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("head")
    store = server().new_database()
    with ExitStack() as stack:
        broker = stack.enter_context(redis_server(str(REDIS)))
        is_slow = threading.Event()
        faults = {"terminated": while_set(is_slow, slow(1)), "spread": None, "stopped": None, "stepwise": None}
        providers = {name: stack.enter_context(Provider(latency_s=0.05, fault=fault)) for name, fault in faults.items()}
        (written,) = blocks("yaml", "CeleryRunLauncher")
        settings = {"telemetry": {"enabled": False}, **yaml.safe_load(written)}
        settings["run_monitoring"]["poll_interval_seconds"] = 1  # shorter waits for a lost worker
        variables = {
            "TEST_URLS": json.dumps({name: provider.base_url for name, provider in providers.items()}),
            "TEST_STORE": store,
            "TEST_EXECUTOR": "celery",
        }
        environment = stack.enter_context(pytest.MonkeyPatch.context())  # this process opens the instance, too
        environment.setenv("CELERY_BROKER_URL", broker)
        environment.setenv("DAGSTER_POSTGRES_URL", server().new_database().replace("://", "+psycopg2://"))
        deployment = stack.enter_context(Deployment(home, "tests.support.deployed_project", settings, variables))
        config = home / "celery.yaml"
        (written,) = blocks("yaml", "# celery.yaml\n")
        config.write_text(written, encoding="utf-8")
        (command,) = blocks("console", "dagster-celery worker start")
        program, *arguments = shlex.split(command.removeprefix("$ ").replace(config.name, str(config)))
        for name in ("one", "two"):
            folder = tmp_path_factory.mktemp("workers") / name
            deployment.start(program, *arguments, "-n", name, "--", "--concurrency", "2", home=folder)
        yield Place(deployment, store, {name: provider.ledger for name, provider in providers.items()}, is_slow)


def test_workers_share_answers_budget_and_rate_through_postgres(place: Place) -> None:
    """Three partitions, one launched twice, on two workers: asked once, at one rate, from one budget."""
    launched = [place.deployment.launch("spread", {"dagster/partition": part}) for part in (*PARTS, PARTS[0])]
    runs = [place.deployment.finished(run) for run in launched]
    assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    ledger = place.ledgers["spread"]
    assert all(is_complete(place.deployment.home, "spread", part, ROWS_A_PART) for part in PARTS)
    assert set(ledger.billed_by_prompt.values()) == {1}
    assert len(ledger.requests) == len(PARTS) * ROWS_A_PART
    assert len({place.worker_of(run) for run in launched}) >= 2

    assert keeps_rate(ledger)
    assert read_budget(place.store, "spread") == (billed(ledger), billed(ledger))
    events = place.deployment.materialized("spread")
    assert sum(Decimal(str(event.metadata["ondine/cost_usd"].value)) for event in events) == billed(ledger)


def test_terminate_reaches_the_worker(place: Place) -> None:
    """Terminate in the UI stops the calls of a run that a worker took from the queue; answers are kept."""
    # Dagster's launcher does not record the termination request, so a retry would follow.
    run = place.deployment.launch("terminated", {"dagster/max_retries": "0"})
    ledger = place.ledgers["terminated"]
    ledger.wait_for(lambda ledger: ledger.answered >= ROWS // 4, 600)
    place.is_slow.set()
    place.deployment.terminate(run)
    # The launcher's health check has Dagster's monitor end the run as soon as the task is revoked: the step may still
    # be cleaning up.
    assert place.deployment.finished(run).status in {dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE}
    until(lambda: place.counted_requests("terminated", run) == len(ledger.requests) or None, 300, "figure of all calls")
    assert len(ledger.requests) < ROWS
    place.is_slow.clear()
    again = place.deployment.launch("terminated")
    assert place.deployment.finished(again).status == dg.DagsterRunStatus.SUCCESS
    assert place.is_complete("terminated")


def test_killed_worker_is_replaced(place: Place) -> None:
    """After kill -9 the run is retried on another worker, which does not wait, and does only the rest."""
    run = place.deployment.launch("stopped")
    ledger = place.ledgers["stopped"]
    ledger.wait_for(lambda ledger: ledger.answered >= ROWS // 4, 600)
    worker = place.worker_of(run)
    os.kill(worker, signal.SIGKILL)
    until(lambda: not is_running(worker) or None, 60, "end of the worker")
    assert place.deployment.finished(run).status == dg.DagsterRunStatus.FAILURE
    retry = place.deployment.retry_of(run)
    assert place.deployment.finished(retry).status == dg.DagsterRunStatus.SUCCESS
    assert place.is_complete("stopped")


def test_celery_executor_distributes_steps_over_workers(place: Place) -> None:
    """The guide's other executor: a run not launched by Celery gives its step to a worker."""
    module = ("-m", "tests.support.deployed_project")
    run = place.deployment.start("dagster", "job", "execute", *module, "-j", "stepwise_job")
    assert run.wait(600) == 0
    assert is_complete(place.deployment.home, "stepwise", "all", ROWS_A_PART)
    (found,) = place.deployment.instance.get_runs(dg.RunsFilter(job_name="stepwise_job"))
    assert "Submitting celery task" in place.deployment.log(found.run_id)
