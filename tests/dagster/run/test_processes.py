"""Kills and interrupts of real processes, checked against the provider's ledger."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from tests.support.deployment import environment, is_running, until
from tests.support.provider import Provider, slow, while_set
from tests.support.step_project import answers

ROWS = 400
CONCURRENCY = 8
REPOSITORY = Path(__file__).parents[3]


HANGS = threading.Event()


@pytest.fixture
def provider() -> Iterator[Provider]:
    HANGS.clear()
    with Provider(latency_s=0.05, fault=while_set(HANGS, slow(3_600))) as running:
        yield running


@pytest.fixture
def start(tmp_path: Path, provider: Provider) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start a run worker; it is killed in the end if it still runs."""
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    variables = {
        "TEST_BASE_URL": provider.base_url,
        "TEST_ROWS": str(ROWS),
        "TEST_STEP_PID_FILE": str(tmp_path / "step.pid"),
    }
    workers: list[subprocess.Popen[bytes]] = []

    def run() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.support.step_project"]
        with (tmp_path / "log").open("ab") as log:
            given = environment(tmp_path, variables)
            workers.append(subprocess.Popen(command, cwd=REPOSITORY, env=given, stdout=log, stderr=log))
        return workers[-1]

    yield run
    for worker in workers:
        worker.kill()
        worker.wait()


def step_pid(home: Path) -> int:
    return int((home / "step.pid").read_text(encoding="utf-8"))


def wait_until_gone(pid: int, within_s: float) -> None:
    """Wait until no process `pid` exists."""
    until(lambda: not is_running(pid) or None, within_s, f"end of the step {pid}")


def stored_table(home: Path) -> pd.DataFrame:
    return pd.read_pickle(home / "storage" / "answers")


def test_after_kill_9_of_the_step_only_calls_in_flight_are_paid_again(
    tmp_path: Path, provider: Provider, start: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """Every answer stored before the kill is reused, and every row ends with its own answer."""
    worker = start()
    provider.ledger.wait_for(lambda ledger: ledger.answered >= ROWS // 3, 300)
    os.kill(step_pid(tmp_path), signal.SIGKILL)
    assert worker.wait(300) == 1
    paid_before = sum(provider.ledger.billed_by_prompt.values())
    assert paid_before < ROWS

    assert start().wait(300) == 0
    assert sum(provider.ledger.billed_by_prompt.values()) - ROWS <= CONCURRENCY
    assert len(provider.ledger.billed_by_prompt) == ROWS
    table = stored_table(tmp_path)
    assert table["answer"].tolist() == table["text"].tolist() == [f"row {number}" for number in range(ROWS)]


def test_sigterm_to_the_run_stops_the_step_at_once_and_keeps_the_answers(
    tmp_path: Path, provider: Provider, start: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """Terminate ends a step with hanging calls, sends no further call, reports the spend, and keeps the answers."""
    worker = start()
    provider.ledger.wait_for(lambda ledger: ledger.answered >= ROWS // 3, 300)
    HANGS.set()
    hanging = len(provider.ledger.requests) + CONCURRENCY
    provider.ledger.wait_for(lambda ledger: len(ledger.requests) >= hanging, 300)
    calls = len(provider.ledger.requests)
    pid = step_pid(tmp_path)
    worker.send_signal(signal.SIGTERM)
    wait_until_gone(pid, 40)  # less than the 60 s time-out of a call
    HANGS.clear()
    worker.wait(300)
    assert len(provider.ledger.requests) == calls < ROWS

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        observed = instance.fetch_observations(answers.key, limit=1).records[0].asset_observation
        assert observed is not None
        assert 0 < observed.metadata["ondine/progress/rows_done"].value < ROWS
        assert observed.metadata["ondine/progress/requests"].value == calls

    assert start().wait(300) == 0
    assert len(provider.ledger.requests) - ROWS <= CONCURRENCY
    assert stored_table(tmp_path)["answer"].tolist() == [f"row {number}" for number in range(ROWS)]
