"""100,000 rows of paths to images: what is held in memory, and what is asked a second time."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.image_rows import ROWS
from tests.support.pictures import saved
from tests.support.provider import Provider

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
FILES, SIDE_PX = 1_000, 258
MOST_MIB = 500


def image(number: int, *, changed: bool = False) -> bytes:
    """A file of about 200 kB, another one for each number; `changed` in one byte of its pixels."""
    pixels = bytearray(random.Random(number).randbytes(3 * SIDE_PX * SIDE_PX))
    pixels[0] ^= changed
    return saved(Image.frombytes("RGB", (SIDE_PX, SIDE_PX), bytes(pixels)), "png", compress_level=0)


def test_files_are_read_when_their_calls_leave(tmp_path: Path) -> None:
    """1,000 calls for 1,000 files, at most 500 MiB beyond the frame, none for what is known, also by another path."""
    folder, home, paths = tmp_path / "images", tmp_path / "home", tmp_path / "paths"
    for made in (folder, home):
        made.mkdir()
    names = [f"{number}.png" for number in range(FILES)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(image(number))
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")

    with Provider(lambda _: {"answer": "noise"}) as provider:

        def run() -> dict[str, Any]:
            paths.write_text("\n".join(names), encoding="utf-8")
            done = subprocess.run(
                [sys.executable, "-m", "tests.support.image_rows", folder, provider.base_url, paths],
                cwd=ROOT,
                env=os.environ | {"DAGSTER_HOME": str(home)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            assert (found["ondine/rows_total"], found["ondine/rows_failed"]) == (ROWS, 0)
            assert found["mib"] <= MOST_MIB
            return found

        first = run()
        assert first["ondine/requests"] == len(provider.books.requests) == FILES
        assert run()["ondine/requests"] == 0
        # The same content elsewhere.
        (folder / "copies").mkdir()
        for number in range(10):
            (folder / names[number]).rename(folder / "copies" / names[number])
            names[number] = f"copies/{names[number]}"
        assert run()["ondine/requests"] == 0
        (folder / names[0]).write_bytes(image(0, changed=True))
        assert run()["ondine/requests"] == 1
        assert len(provider.books.requests) == FILES + 1
