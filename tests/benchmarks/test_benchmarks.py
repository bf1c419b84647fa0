from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.findings import findings, table
from tests.benchmarks.plotting import plot
from tests.benchmarks.scenarios import Scale

ROOT = Path(__file__).parents[2]
SCALE = Scale(100, 100, 100, 3, limit=100)


def test_the_benchmark_runs(tmp_path: Path) -> None:
    """The command measures, checks that every row has its own answer, and writes its files; speed is not tested."""
    command = [sys.executable, "-m", "tests.benchmarks", "few", "store", "--scale", "tiny", "--output", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode in (0, 1), ran.stderr
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [run["client"] for run in written["runs"]] == ["aiohttp", "ondine", "1 a call", "20 a call"]
    assert all(run["rows_per_s"] > 0 and run["wrong"] == 0 for run in written["runs"])
    assert written["runs"][1]["server"]["requests"] == 200
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == ran.stdout
    assert (tmp_path / "rows_per_s.svg").read_text(encoding="utf-8").startswith("<svg")


def test_an_unknown_scenario_is_an_error() -> None:
    """The message lists the known scenarios."""
    command = [sys.executable, "-m", "tests.benchmarks", "fast"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert "no such scenario: fast; there are compare" in ran.stderr


def runs(client: str, *rows_per_s: float) -> list[dict[str, object]]:
    """One run of `client` for each figure."""
    figures = {"cpu_ms_per_row": 0.5, "peak_rss_mib": 50, "start_up_s": 1, "tokens_per_row": 40, "server": {}}
    return [
        {"scenario": "one row a call", "client": client, "repetition": number, "rows_per_s": figure, **figures}
        for number, figure in enumerate(rows_per_s)
    ]


def test_target_is_the_median_of_paired_ratios() -> None:
    """Consecutive runs are compared in pairs; the target is not the ratio of two medians."""
    measured = [*runs("aiohttp", 1000, 100, 1000), *runs("ondine", 800, 80, 200)]
    found = {finding.what: finding for finding in findings(measured, SCALE)}
    ratio = found["rows/s relative to aiohttp"]
    assert (ratio.value, ratio.low, ratio.high, ratio.met) == (0.8, 0.2, 0.8, True)
    assert not found.keys() & {"rows/s relative to litellm", "rows/s when all answers are stored"}


def test_tables_and_pictures_show_every_client() -> None:
    """The table has medians with their spread, and the picture has a bar for each client."""
    measured = [*runs("aiohttp", 1000, 1200, 1100), *runs("ondine", 900)]
    assert "| one row a call | aiohttp | 1,100 (1,000 to 1,200) |" in table(measured)
    assert "| one row a call | ondine | 900 |" in table(measured)
    assert plot(measured).count("<rect") == 3
