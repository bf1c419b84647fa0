"""A run over many rows of paths, in a process of its own, and the memory that it takes.

`python -m tests.support.photo_run folder rows` prints calls, calls of a second run, and MiB beyond the table.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import zlib
from pathlib import Path
from random import Random
from struct import pack
from typing import Any

from ondine_core import Call, MediaOptions, Options, Policy, Prompt, Reply, Usage, enrich_sync
from ondine_core.providers.openai_http import chat_body

FILES, BYTES = 1_000, 200_000


class Reader:
    """A model that is sent the whole request, as a provider would be, and keeps nothing of it."""

    max_concurrency: int | None = None
    max_batch_size: int | None = None

    def __init__(self) -> None:
        self.calls = self.shortest = 0

    async def __call__(self, call: Call) -> Reply:
        body = await asyncio.to_thread(chat_body, {"model": "x"}, call)
        self.calls += 1
        self.shortest = min(self.shortest or len(body), len(body))
        await asyncio.sleep(0.02)
        return Reply('{"answer": "seen"}', Usage(10, 0, 5))

    async def aclose(self) -> None:
        """Nothing to close."""


def draw(folder: Path) -> list[str]:
    """Pictures of noise, 200 kB each."""
    names = []
    for number in range(FILES):
        chunks = [
            (b"IHDR", pack(">IIBBBBB", 300, 220, 8, 2, 0, 0, 0)),
            (b"IDAT", Random(number).randbytes(BYTES)),
            (b"IEND", b""),
        ]
        parts = [pack(">I", len(body)) + name + body + pack(">I", zlib.crc32(name + body)) for name, body in chunks]
        names.append(f"{number}.png")
        (folder / names[-1]).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return names


def main(folder: str, rows: str) -> None:
    """Two runs on one store."""
    names = draw(Path(folder))
    table = {"photo": [names[row % FILES] for row in range(int(rows))]}
    prompt = Prompt("What is this? {photo:image}", media=MediaOptions(root=folder))
    options: dict[str, Any] = {"store": Path(folder) / "answers.db", "policy": Policy(max_concurrency=64)}
    model = Reader()
    before = _peak_mib()
    for _ in range(2):
        report = enrich_sync(
            table, prompt=prompt, output={"answer": str}, model=model, options=Options(progress_bar=False, **options)
        )
        assert report.failures == {}
        print(model.calls, end=" ")  # noqa: T201
    assert model.shortest > BYTES * 4 / 3
    print(_peak_mib() - before)  # noqa: T201


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
