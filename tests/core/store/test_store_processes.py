"""Processes that share a store, and the effects of killing one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ondine_core.errors import StoreError
from ondine_core.store import Store, open_store
from tests.support.ledger import KINDS, fresh_place, key_of, keys_in

TIMEOUT_S = 60.0


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where no store has been yet."""
    return fresh_place(request.param, tmp_path)


def start(place: str, script: str) -> subprocess.Popen[str]:
    """Another process with the store open as `store`, which runs the coroutine body `script`."""
    body = "\n".join(f"        {line}" for line in script.splitlines())
    program = f"""
import asyncio, os
from ondine_core.store import open_store
from ondine_core.types.ledger import Origin, CallStarted, CallFinished
from ondine_core.types.values import Answer

async def keep(store, n):
    sent = CallStarted(os.urandom(16), Origin("run-1"), "m", "ask", (), 0.0)
    await store.send(sent)
    await store.settle(CallFinished(sent, "answered", answers=((n.to_bytes(16, "big"), Answer({{"n": n}}, "m")),)))

async def main():
    with open_store({place!r}) as store:
        print("open", flush=True)
{body}

asyncio.run(main())
"""
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.communicate(timeout=TIMEOUT_S)
    assert [process.returncode for process in processes] == [0] * len(processes)


@pytest.mark.parametrize(("kind", "times"), [("sqlite", 100), ("postgres", 5)])
def test_new_store_can_be_opened_by_many_processes_at_once(kind: str, times: int, tmp_path: Path) -> None:
    """A process that opens it while others create, open or close it waits its turn, as in a backfill."""
    failed: list[StoreError] = []

    def one(place: str, ready: threading.Barrier) -> None:
        ready.wait(TIMEOUT_S)
        try:
            Store(place).close()
        except StoreError as error:
            failed.append(error)

    for number in range(times):
        ready = threading.Barrier(4)
        folder = tmp_path / str(number)
        threads = [threading.Thread(target=one, args=(place, ready)) for place in [fresh_place(kind, folder)] * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


def test_concurrent_writers_lose_nothing(place: str) -> None:
    """Three processes with the same 300 calls each, in any order, keep every answer and count every call."""
    script = """
for at in range(0, 300, 50):
    order = sorted(range(at, at + 50), key=lambda n: os.urandom(4))
    await asyncio.gather(*(keep(store, n) for n in order))"""
    with open_store(place) as store:
        finish(*(start(place, script) for _ in range(3)))
        assert asyncio.run(store.audit("run-1")).answered.calls == 900
    assert keys_in(place) == {key_of(n) for n in range(300)}


def test_shared_numbers_are_updated_atomically(place: str) -> None:
    """Three processes that each add 1 a hundred times to several names arrive at 300."""
    script = """
async def add(name):
    for _ in range(100):
        await store.update(name, lambda n: ((n or (0.0,))[0] + 1,))
await asyncio.gather(*map(add, sorted("abcd", key=lambda _: os.urandom(4))))"""
    with open_store(place) as store:
        finish(*(start(place, script) for _ in range(3)))
        assert [asyncio.run(store.update(name, lambda n: n or ())) for name in "abcd"] == [(300.0,)] * 4


def test_kill_loses_no_answer_whose_settlement_returned(place: str) -> None:
    """After kill -9 of a writer every settled answer is there."""
    script = """
async def work(first):
    for n in range(first, 10**9, 8):
        await keep(store, n)
        print(n, flush=True)
await asyncio.gather(*(work(first) for first in range(8)))"""
    with start(place, script) as process:
        lines = [process.stdout.readline() for _ in range(300)][1:]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().splitlines(keepends=True)
    assert process.returncode == -signal.SIGKILL
    whole = {key_of(int(line)) for line in lines if line.endswith("\n")}
    assert len(whole) >= 299
    assert whole <= keys_in(place)


def test_unclosed_store_does_not_block_the_exit(place: str) -> None:
    """And its settled answers are kept."""
    program = f"""
import asyncio, os
from ondine_core.store import Store
from ondine_core.types.ledger import Origin, CallStarted, CallFinished
from ondine_core.types.values import Answer
sent = CallStarted(os.urandom(16), Origin("run-1"), "m", "ask", (), 0.0)
store = Store({place!r})
asyncio.run(store.settle(CallFinished(sent, "answered", answers=((bytes(16), Answer({{}}, "m")),))))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=TIMEOUT_S)
    assert keys_in(place) == {bytes(16)}


def test_store_opened_before_a_fork_is_an_error_in_the_new_process(place: str) -> None:
    """It would wait for a thread that it does not have; the store still works in the first process."""
    program = f"""
import asyncio, os
from ondine_core.errors import StoreError
from ondine_core.store import open_store
with open_store({place!r}) as store:
    process = os.fork()
    if not process:
        try:
            asyncio.run(store.get([bytes(16)]))
        except StoreError as error:
            print(error, flush=True)
        store.close()
        os._exit(0)
    os.waitpid(process, 0)
    print(asyncio.run(store.update("a", lambda _: (1.0,))))
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    error, result = ended.stdout.splitlines()
    assert error.endswith("was opened before this process was forked; open it in each process.")
    assert result == "(1.0,)"


def test_relative_path_is_that_of_the_folder_in_which_the_store_was_opened(tmp_path: Path) -> None:
    """A change of the working directory does not make the files seem removed."""
    program = """
import asyncio, os
from ondine_core.store import open_store
with open_store("answers.db") as store:
    os.chdir("/")
    asyncio.run(store.update("a", lambda _: (1.0,)))
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=TIMEOUT_S)
    with open_store(tmp_path / "answers.db") as store:
        assert asyncio.run(store.update("a", lambda numbers: numbers or ())) == (1.0,)
