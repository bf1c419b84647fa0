"""Type checkers accept correct code of a user, and reject wrong code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONSUMER = Path(__file__).with_name("consumer.py")
WRONG = CONSUMER.read_text(encoding="utf-8").count("# type: ignore[")


def run(*command: str | Path) -> None:
    variables = {"MYPY_CACHE_DIR": str(ROOT / ".mypy_cache" / "consumer"), **os.environ}
    ended = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_mypy_in_strict_mode_agrees() -> None:
    """Without the settings of this repository; an unused ignore is an error that was not raised."""
    assert WRONG >= 9
    run(sys.executable, "-m", "mypy", "--strict", "--config-file=", CONSUMER)


def test_pyright_in_strict_mode_agrees(tmp_path: Path) -> None:
    """It reads only its own ignores, and each must be needed."""
    assert CONSUMER.read_text(encoding="utf-8").count("# pyright: ignore[") == WRONG
    settings = {
        "include": [str(CONSUMER)],
        "typeCheckingMode": "strict",
        "enableTypeIgnoreComments": False,
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    run(sys.executable, "-m", "basedpyright", "-p", tmp_path, "--pythonpath", sys.executable)
