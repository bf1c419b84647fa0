"""Many rows that name few files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_hundred_thousand_rows_of_paths_take_little_memory(tmp_path: Path) -> None:
    """Each of 1,000 files is asked about once, a second run asks nothing, and no file stays in memory."""
    command = [sys.executable, "-m", "tests.support.photo_run", str(tmp_path), "100000"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    calls, calls_in_all, mib = map(float, said.split())
    assert (calls, calls_in_all) == (1000, 1000)
    assert mib <= 500
