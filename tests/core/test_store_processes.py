from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

from ondine_core import StoreError, open_store
from ondine_core.store import SqliteStore

TIMEOUT_S = 30.0


def key_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def keys_in(path: Path) -> set[bytes]:
    """What another connection sees in the file."""
    database = sqlite3.connect(path)
    try:
        return {key for (key,) in database.execute("SELECT key FROM answers")}
    finally:
        database.close()


def start(path: Path, script: str) -> subprocess.Popen[str]:
    """Another process with the store open as `store`; the coroutine body `script` runs in it."""
    body = "\n".join(f"        {line}" for line in script.splitlines())
    program = f"""
import asyncio
from ondine_core import Answer, open_store

async def main():
    with open_store({str(path)!r}) as store:
        print("open", flush=True)
{body}

asyncio.run(main())
"""
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.communicate(timeout=TIMEOUT_S)
    assert [process.returncode for process in processes] == [0] * len(processes)


def test_new_file_can_be_opened_by_many_at_once(tmp_path: Path) -> None:
    """Whoever opens a store at the instant others make, open or close it waits its turn, as in a backfill."""
    failed: list[StoreError] = []

    def one(path: Path, ready: threading.Barrier) -> None:
        ready.wait(TIMEOUT_S)
        try:
            SqliteStore(path).close()
        except StoreError as error:
            failed.append(error)

    for number in range(100):
        ready = threading.Barrier(4)
        threads = [threading.Thread(target=one, args=(tmp_path / f"{number}.db", ready)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """Three processes that put two hundred answers each keep all six hundred."""
    script = """
async def one(n):
    await store.put([(n.to_bytes(16, "big"), Answer({"n": n}, "m"))])
for at in range(0, 200, 20):
    await asyncio.gather(*(one(START + at + n) for n in range(20)))"""
    path = tmp_path / "answers.db"
    with open_store(path):
        finish(*(start(path, script.replace("START", str(number * 1000))) for number in range(3)))
    assert keys_in(path) == {key_of(1000 * process + n) for process in range(3) for n in range(200)}


def test_shared_numbers_are_updated_atomically(tmp_path: Path) -> None:
    """Three processes that each add one a hundred times come to three hundred."""
    script = 'for _ in range(100):\n    await store.update("n", lambda n: ((n or (0.0,))[0] + 1,))'
    path = tmp_path / "answers.db"
    with open_store(path) as store:
        finish(*(start(path, script) for _ in range(3)))
        assert asyncio.run(store.update("n", lambda n: n or ())) == (300.0,)


def test_kill_loses_no_answer_whose_put_returned(tmp_path: Path) -> None:
    """After kill -9 of a writing process, every answer whose put had returned is there."""
    script = """
async def work(first):
    for n in range(first, 10**9, 8):
        await store.put([(n.to_bytes(16, "big"), Answer({"n": n}, "m"))])
        print(n, flush=True)
await asyncio.gather(*(work(first) for first in range(8)))"""
    with start(tmp_path / "answers.db", script) as process:
        told = [process.stdout.readline() for _ in range(300)][1:]
        os.kill(process.pid, signal.SIGKILL)
        told += process.stdout.read().splitlines(keepends=True)
    assert process.returncode == -signal.SIGKILL
    whole = {key_of(int(line)) for line in told if line.endswith("\n")}
    assert len(whole) >= 299
    assert whole <= keys_in(tmp_path / "answers.db")


def test_answer_that_cannot_be_written_raises(tmp_path: Path) -> None:
    """An answer that the file cannot carry is an error of its put, which never waits for ever."""
    # A header that is not UTF-8 reaches us like this.
    script = """
try:
    await asyncio.wait_for(store.put([(b"k" * 16, Answer({}, "m", request_id="\\udcff"))]), 1)
except Exception as error:
    print(type(error).__name__)"""
    with start(tmp_path / "answers.db", script) as process:
        assert process.communicate(timeout=TIMEOUT_S)[0].split() == ["open", "StoreError"]
