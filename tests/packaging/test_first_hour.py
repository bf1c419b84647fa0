"""A stranger's first hour: the quickstart, followed to the letter in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from dagster import __version__ as dagster_version

from tests.packaging.conftest import ROOT, Distributions

pytestmark = pytest.mark.slow

BLOCKS = re.compile(r'^```(console|python title="([^"]+)")\n(.*?)^```', re.DOTALL | re.MULTILINE)


def script(page: str) -> str:
    """The page as a shell script: its files are written and its commands run, in the order of the page."""
    lines = ["set -euxo pipefail"]
    for _, file, text in BLOCKS.findall(page):
        if file:
            lines += [f"mkdir -p {Path(file).parent}", f"cat > {file} <<'END_OF_FILE'\n{text}END_OF_FILE"]
        else:
            lines += [line.removeprefix("$ ") for line in text.splitlines()]
            assert all(line.startswith("$ ") for line in text.splitlines()), text
    return "\n".join(lines)


def test_the_quickstart_ends_with_an_enriched_asset_and_a_passing_test(
    distributions: Distributions, tmp_path: Path
) -> None:
    """Literally, but that the wheel is the one just built and `create-dagster` goes with the Dagster that is here."""
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    wheel = shlex.quote(f"ondine-dagster[local] @ {distributions.wheel.as_uri()}")
    changes = {"create-dagster@latest": f"create-dagster@{dagster_version}", "'ondine-dagster[local]'": wheel}
    for said, meant in changes.items():
        assert page.count(said) == 1
        page = page.replace(said, meant)
    kept = {"PATH", "HOME", "LANG", "SSL_CERT_FILE", "XDG_CACHE_HOME", "TMPDIR", "PYENV_ROOT"}
    environment = {name: value for name, value in os.environ.items() if name in kept or name.startswith("UV_")}
    ended = subprocess.run(
        ["bash", "-c", script(page)],  # noqa: S607
        cwd=tmp_path,
        env=environment
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DAGSTER_DISABLE_TELEMETRY": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    counts = re.findall(r"sentiment_counts - (\{.*\})", ended.stdout)
    assert len(counts) == 1, ended.stdout
    assert counts[0] in page, counts
    assert re.search(r"^1 passed", ended.stdout, re.MULTILINE), ended.stdout
    with sqlite3.connect(tmp_path / "shop" / ".dagster_home" / "storage" / "ondine" / "answers.db") as answers:
        # The second launch asked nothing.
        assert answers.execute("SELECT sum(calls) FROM ledger").fetchone() == (3,)
