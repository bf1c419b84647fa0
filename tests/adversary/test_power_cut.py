"""The disk after a power cut, computed from what a process really wrote and synced.

A process that stores answers runs under `strace`, which records in order every write with its bytes, every sync, and
every answer reported as stored. From this record the disk is rebuilt as a cut at any moment may leave it: everything
written before the last completed sync of a file began is there, and each later sector of 512 bytes is there or not, at
random. So the test proves what SQLite and the store ask of the kernel, not that a disk really syncs.
"""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ondine_core.store import open_store
from tests.support.ledger import key_of, keys_in

TIMEOUT_S = 120.0
SECTOR = 512
TRACED = "trace=pwrite64,fsync,fdatasync,ftruncate,unlink,write"
KEEP = """
import asyncio, os, signal, sys
from ondine_core.store import open_store
from ondine_core.types.values import Answer
from tests.support.ledger import keep, key_of

async def main():
    loop = asyncio.get_running_loop()
    with open_store(sys.argv[1], durability=sys.argv[2]) as store:
        n, end = 0, loop.time() + float(sys.argv[3])
        while loop.time() < end or n < 200:
            await keep(store, *((key_of(m), Answer({"text": "x" * 300}, "m")) for m in range(n, n + 5)))
            n += 5
            os.write(1, b"kept %d\\n" % n)
            await asyncio.sleep(0.005)
        os.kill(os.getpid(), signal.SIGKILL)  # no last sync

asyncio.run(main())
"""
LINE = re.compile(r'^\d+ +(?:<\.\.\. )?(\w+)(?:\((?:\d+<([^>]*)>|"([^"]*)")(?:, "([^"]*)")?([^"]*))?')


@dataclass
class Disk:
    """The files of a folder as synced, and the writes since."""

    synced: dict[str, bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    written: dict[str, list[tuple[int, bytes | None]]] = field(default_factory=lambda: defaultdict(list))
    """Offset and bytes; or a new size, and `None`."""

    def cut(self, folder: Path, rng: random.Random) -> None:
        """Write the files as a power cut may leave them."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        luck = rng.choice([0.0, 0.5, 1.0])
        for name in {*self.synced, *self.written}:
            content = bytearray(self.synced[name])
            for offset, data in self.written[name]:
                if data is None:
                    continue
                for at in range(0, len(data), SECTOR):
                    if rng.random() < luck:
                        put(content, offset + at, data[at : at + SECTOR])
            (folder / name).write_bytes(content)

    def sync(self, name: str, writes: int) -> None:
        """The first `writes` writes are on the disk now."""
        for offset, data in self.written[name][:writes]:
            if data is None:
                del self.synced[name][offset:]
            else:
                put(self.synced[name], offset, data)
        del self.written[name][:writes]


def put(content: bytearray, offset: int, data: bytes) -> None:
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def unhex(text: str | None) -> bytes:
    return bytes.fromhex((text or "").replace("\\x", ""))


def replay(log: Path) -> Iterator[tuple[Disk, int, int]]:
    """After each call: the disk, the number of answers reported, and how many of them before the last sync began."""
    disk, kept, safe = Disk(), 0, 0
    syncing: dict[str, tuple[str, int, int]] = {}
    for line in log.read_text(encoding="ascii").splitlines():
        found = LINE.match(line)
        if found is None:
            continue
        call, opened, named, data, rest = found.groups()
        name = Path(unhex(opened or named).decode()).name
        thread = line.split(maxsplit=1)[0]
        if call == "write" and unhex(data).startswith(b"kept "):
            kept = int(unhex(data).split()[1])
        elif call == "pwrite64" and not name.endswith("-shm") and rest is not None:
            offset = int(re.findall(r"\d+", rest)[1])
            disk.written[name].append((offset, unhex(data)))
        elif call == "ftruncate" and not name.endswith("-shm") and rest is not None:
            disk.written[name].append((int(re.findall(r"\d+", rest)[0]), None))
        elif call == "unlink":
            disk.written.pop(name, None)
            disk.synced.pop(name, None)
        elif call in ("fsync", "fdatasync"):
            if rest is not None:
                syncing[thread] = (name, len(disk.written[name]), kept)
            if "unfinished" not in line:
                synced, writes, before = syncing.pop(thread)
                disk.sync(synced, writes)
                safe = max(safe, before) if synced.endswith("-wal") else safe
        yield disk, kept, safe


@pytest.fixture
def strace() -> list[str]:
    """`strace`, if this machine has it and allows it."""
    command = ["strace", "-f", "-y", "-xx", "-s", "5000", "-e", TRACED]
    if (
        shutil.which("strace") is None
        or subprocess.run([*command, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("strace, which records what a process writes, is not installed or not allowed here.")
    return command


@pytest.mark.parametrize("durability", ["process", "power"])
def test_power_cut_loses_at_most_the_unsynced_answers(durability: str, strace: list[str], tmp_path: Path) -> None:
    """After a cut at any moment the database is intact and has every answer from before the last sync began.

    By default the log is synced repeatedly during the run; with `"power"` before an answer is reported.
    """
    log, path = tmp_path / "log", tmp_path / "store" / "answers.db"
    command = [*strace, "-o", str(log), sys.executable, "-c", KEEP, str(path), durability, "4"]
    subprocess.run(command, check=False, capture_output=True, timeout=TIMEOUT_S)
    record = [(kept, safe) for _, kept, safe in replay(log)]
    assert record[-1][0] >= 100
    assert len({safe for _, safe in record}) >= 3, "The log was hardly ever synced."

    rng = random.Random(1)
    begun = next(number for number, (kept, _) in enumerate(record) if kept)
    cuts = {*rng.sample(range(begun, len(record)), 40), len(record) - 1}
    for number, (disk, kept, safe) in enumerate(replay(log)):
        if number not in cuts:
            continue
        disk.cut(tmp_path / "cut", rng)
        with open_store(tmp_path / "cut" / "answers.db"):  # in the first second its tables may have to be created again
            found = keys_in(tmp_path / "cut" / "answers.db")
        promised = kept if durability == "power" else safe
        assert {key_of(n) for n in range(promised)} <= found
        database = sqlite3.connect(tmp_path / "cut" / "answers.db")
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        database.close()
