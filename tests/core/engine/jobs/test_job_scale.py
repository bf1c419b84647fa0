"""Batch jobs of many rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server_process import free_port, run_server

ROOT = Path(__file__).parents[4]
ROWS = 100_000


@pytest.fixture
def base_url(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "tests.support.job_server", "openai", str(port)]
    origin = f"http://127.0.0.1:{port}"
    with run_server(command, f"{origin}/control/ready", tmp_path / "log", {"PYTHONPATH": str(ROOT)}):
        yield f"{origin}/v1"


@pytest.mark.slow
def test_batch_jobs_of_100_000_rows_take_at_most_400_mib(base_url: str, tmp_path: Path) -> None:
    """At most 400 MiB beyond the table; one row that changes later is a job of one request."""
    command = [sys.executable, "-m", "tests.support.job_scale", base_url, str(tmp_path / "answers.db"), str(ROWS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["lost"], found["first"], found["second"]) == (0, ROWS, 1)
    assert found["mib"] <= 400
