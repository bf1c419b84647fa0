"""100,000 rows of image paths: memory use, and what is asked a second time."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.pictures import uncompressed
from tests.support.provider import Provider

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
ROWS, FILES, SIDE_PX = 100_000, 1_000, 258
MOST_MIB = 500


def image(number: int, *, changed: bool = False) -> bytes:
    """A file of about 200 kB, different for each number; `changed` differs in one byte of its pixels."""
    pixels = bytearray(random.Random(number).randbytes(3 * SIDE_PX * SIDE_PX))
    pixels[0] ^= changed
    return uncompressed(SIDE_PX, bytes(pixels))


def test_files_are_read_when_their_calls_leave(tmp_path: Path) -> None:
    """1,000 calls for 1,000 files, at most 500 MiB beyond the frame; then one for the only file that differs."""
    folder, home = tmp_path / "images", tmp_path / "home"
    for made in (folder, home, folder / "copies"):
        made.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    names = [f"{number}.png" for number in range(FILES)]
    moved = [f"copies/{name}" for name in names[:10]]
    for number, name in enumerate(names):
        (folder / name).write_bytes(image(number))
    for name in names[:10]:
        shutil.copy(folder / name, folder / "copies")
    (folder / "changed.png").write_bytes(image(0, changed=True))

    with Provider(lambda _: {"answer": "noise"}) as provider:

        def calls(paths: list[str], rows: int) -> int:
            """The calls of a materialization of `rows` rows in a process of its own."""
            (tmp_path / "paths").write_text("\n".join(paths), encoding="utf-8")
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "tests.support.image_rows",
                    folder,
                    provider.base_url,
                    str(rows),
                    tmp_path / "paths",
                ],
                cwd=ROOT,
                env=os.environ | {"DAGSTER_HOME": str(home)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            found: dict[str, Any] = json.loads(done.stdout)
            assert (found["ondine/rows_total"], found["ondine/rows_failed"]) == (rows, 0)
            assert found["mib"] <= MOST_MIB
            return int(found["ondine/requests"])

        assert calls(names, ROWS) == len(provider.ledger.requests) == FILES
        assert calls([*moved, *names[10:-1], "changed.png"], FILES) == 1
        assert len(provider.ledger.requests) == FILES + 1
