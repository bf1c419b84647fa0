"""A lease has at most one holder, and no process waits for a dead one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.errors import StoreError
from ondine_core.limits.lease import Lease
from ondine_core.store import open_store
from ondine_core.types.clock import Clock
from ondine_core.types.protocols import Numbers
from tests.support.ledger import KINDS, fresh_place
from tests.support.unreliable import MemoryStore
from tests.support.virtual_clock import run_virtually

TTL_S = 60.0
TIMEOUT_S = 30.0
POLL_S = TTL_S / 6


@dataclass(frozen=True)
class Worker:
    """Arrives at an instant, works for a time, and may be killed on the way."""

    comes_at: float
    works_s: float
    killed_after_s: float | None
    latency_s: float


class Reach(MemoryStore):
    """One process's connection to the shared store; nothing passes once the process is dead."""

    def __init__(self, shared: MemoryStore, latency_s: float) -> None:
        super().__init__()
        self._shared, self._latency_s = shared, latency_s
        self.dead = False

    async def update(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
        # A request that was sent arrives, even if its caller is gone.
        return await asyncio.shield(asyncio.ensure_future(self._pass_on(name, step)))

    async def _pass_on(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
        await asyncio.sleep(self._latency_s)
        if self.dead:
            raise StoreError("dead")
        return await self._shared.update(name, step)


seconds = st.integers(0, 300).map(float)
workers = st.builds(Worker, seconds, seconds, st.none() | seconds, st.floats(0, TTL_S / 12))


@dataclass
class Held:
    """When a worker began and ceased to hold the lease, and whether it was killed then."""

    worker: Worker
    start: float
    end: float
    killed: bool


async def work(worker: Worker, shared: MemoryStore, clock: Clock, log: list[Held]) -> None:
    store = Reach(shared, worker.latency_s)
    await clock.sleep(worker.comes_at)
    try:
        async with Lease(store, "asset", clock, TTL_S).held():
            held = Held(worker, clock.now(), float("inf"), killed=False)
            log.append(held)
            if worker.killed_after_s is not None and worker.killed_after_s < worker.works_s:
                await clock.sleep(worker.killed_after_s)
                store.dead = held.killed = True
            else:
                await clock.sleep(worker.works_s)
            held.end = clock.now()
    except StoreError:
        assert store.dead


@given(st.lists(workers, min_size=1, max_size=6))
def test_one_holder_at_a_time_and_no_waiting_for_the_dead(group: list[Worker]) -> None:
    """No two workers hold the lease at once, all get it, and none waits for a dead one."""
    log: list[Held] = []

    async def main(clock: Clock) -> None:
        shared = MemoryStore()
        await asyncio.gather(*(work(worker, shared, clock, log) for worker in group))

    run_virtually(main)
    assert len(log) == len(group)
    for earlier, later in pairwise(log):
        assert earlier.end <= later.start
        free_at = earlier.end + (TTL_S if earlier.killed else 0)
        slack_s = POLL_S + 4 * TTL_S / 12
        assert later.start <= max(free_at, min(other.worker.comes_at for other in log[log.index(later) :])) + slack_s


def test_lease_outlasts_its_term_while_it_is_renewed() -> None:
    """A holder that works for hours keeps the lease; a waiting process is informed how long it may take."""
    waits: list[float] = []

    async def main(clock: Clock) -> None:
        store = MemoryStore()

        async def hold(works_s: float) -> float:
            async with Lease(store, "asset", clock, TTL_S).held(waits.append):
                started = clock.now()
                await clock.sleep(works_s)
            return started

        first, second = await asyncio.gather(hold(7200), hold(1))
        assert first == 0
        assert 7200 <= second <= 7200 + POLL_S

    run_virtually(main)
    assert 7200 / TTL_S <= len(waits) <= 7200 / TTL_S * 2 + 1
    assert all(TTL_S / 2 <= left_s <= TTL_S for left_s in waits)


def test_lease_taken_by_another_cancels_the_body() -> None:
    """A suspended holder that finds the lease taken is cancelled with an error that says what happened."""

    async def main(clock: Clock) -> None:
        store = MemoryStore()

        async def hold() -> None:
            async with Lease(store, "asset", clock, TTL_S).held():
                await store.update("lease:asset", lambda _: (17.0, 10_000.0))
                await clock.sleep(10_000)

        with pytest.raises(StoreError, match=r"'asset' was lost.*run again"):
            await hold()
        assert clock.now() <= TTL_S / 3
        assert store.numbers["lease:asset"] == (17.0, 10_000.0), "the other's lease is left alone"
        assert not asyncio.current_task().cancelling()

    run_virtually(main)


def test_lease_that_cannot_be_renewed_cancels_the_body() -> None:
    """If the store fails to renew the lease, the body ends with the store's error."""

    async def main(clock: Clock) -> None:
        store = Reach(MemoryStore(), 0)

        async def hold() -> None:
            async with Lease(store, "asset", clock, TTL_S).held():
                store.dead = True
                await clock.sleep(10_000)

        with pytest.raises(StoreError, match="dead"):
            await hold()

    run_virtually(main)


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
def test_lease_is_given_back_whatever_ends_the_body(error: type[BaseException]) -> None:
    """An error or a cancellation of the body passes through unchanged, and the lease is free immediately."""

    async def main(clock: Clock) -> None:
        store = MemoryStore()
        with pytest.raises(error):
            async with Lease(store, "asset", clock, TTL_S).held():
                raise error
        async with Lease(store, "asset", clock, TTL_S).held():
            assert clock.now() == 0

    run_virtually(main)


def test_cancelled_wait_leaves_no_lease_behind() -> None:
    """A caller that is cancelled while the store grants the lease does not hold it."""

    async def main(clock: Clock) -> None:
        shared = MemoryStore()

        async def wait() -> None:
            async with Lease(Reach(shared, 5), "asset", clock, TTL_S).held():
                raise AssertionError

        waiting = asyncio.create_task(wait())
        await clock.sleep(1)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        async with Lease(shared, "asset", clock, TTL_S).held():
            assert clock.now() <= TTL_S / 6

    run_virtually(main)


HOLDER = """
import asyncio, sys, time
from ondine_core.limits.lease import Lease
from ondine_core.store import open_store

async def main():
    with open_store(sys.argv[1]) as store:
        async with Lease(store, "asset", ttl_s=float(sys.argv[2])).held():
            print("held", flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


@contextmanager
def holder(place: str, ttl_s: float, *wrapper: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease until it is killed."""
    command = [*wrapper, sys.executable, "-c", HOLDER, place, str(ttl_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def seconds_to_take(place: str, ttl_s: float) -> float:
    """How long it takes this process to get the lease."""

    async def take() -> float:
        started = time.monotonic()
        with open_store(place) as store:
            async with Lease(store, "asset", ttl_s=ttl_s).held():
                return time.monotonic() - started

    return asyncio.run(asyncio.wait_for(take(), TIMEOUT_S))


@pytest.mark.parametrize("kind", KINDS)
def test_lease_of_a_process_killed_on_this_machine_is_free_at_once(kind: str, tmp_path: Path) -> None:
    """After kill -9 of the holder another process does not wait, even if the parent has not reaped it yet."""
    place = fresh_place(kind, tmp_path)
    with holder(place, TIMEOUT_S) as process:
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still a zombie
        assert seconds_to_take(place, TIMEOUT_S) < TIMEOUT_S / 6


def test_lease_of_a_suspended_process_is_free_after_its_term(tmp_path: Path) -> None:
    """A suspended holder might continue, so it is waited for until its term is over."""
    place, ttl_s = str(tmp_path / "answers.db"), 1.0
    with holder(place, ttl_s) as process:
        os.kill(process.pid, signal.SIGSTOP)
        assert ttl_s / 2 <= seconds_to_take(place, ttl_s) <= TIMEOUT_S


def test_lease_of_an_invisible_process_is_free_after_its_term(tmp_path: Path) -> None:
    """The process id of a holder in another container proves nothing, so its term is waited for."""
    unshare = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("This machine makes no name spaces.")
    place, ttl_s = str(tmp_path / "answers.db"), 3.0
    with holder(place, ttl_s, *unshare) as process:
        taking = seconds_to_take(place, ttl_s) if process.kill() is None else 0.0
        assert ttl_s / 2 <= taking <= TIMEOUT_S
