"""Leases with clocks that are set and processes that are suspended: one holder, and each row is paid once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core import Call, Options, Policy, Reply, enrich
from ondine_core.errors import StoreError
from ondine_core.limits.lease import Lease
from ondine_core.store import open_store
from ondine_core.types.clock import Clock
from ondine_core.types.processes import Process, this_process
from tests.support.ledger import KINDS, fresh_place
from tests.support.provider import Effect, Provider, ReceivedRequest, Slow
from tests.support.unreliable import MemoryStore
from tests.support.virtual_clock import run_virtually

TTL_S = 30.0
TIMEOUT_S = 60.0
HERE = this_process()
CONTAINER = HERE._replace(host=HERE.host + 2)
"""Another PID namespace on this machine: its boot clock is the same, its processes are invisible."""
ELSEWHERE = HERE._replace(host=HERE.host + 2, machine=HERE.machine + 2)
UNKNOWN = Process(0.0, 0.0, 0.0)
"""A process of a system without `/proc`."""


@dataclass(frozen=True)
class Holder:
    """A process on a machine with clocks of its own.

    Args:
        process: Where it runs.
        comes_at: When it asks for the lease.
        works_s: How long it holds it.
        wall_off_s: Offset of its wall clock from the true time.
        set_at: When its wall clock is set.
        set_by_s: By how much.
        boot_off_s: Offset of its boot clock from this machine's, where machines are not known.
    """

    process: Process
    comes_at: float
    works_s: float
    wall_off_s: float
    set_at: float
    set_by_s: float
    boot_off_s: float


seconds = st.integers(0, 200).map(float)
jumps = st.sampled_from([0.0, 20.0, 3600.0, -20.0, -3600.0, 1e9]) | st.floats(-1e6, 1e6)
holders = st.builds(
    Holder, st.sampled_from([HERE, CONTAINER, ELSEWHERE, UNKNOWN]), seconds, seconds, jumps, seconds, jumps, seconds
)


@given(st.lists(holders, min_size=2, max_size=5))
def test_setting_clocks_never_gives_the_lease_to_two(group: list[Holder]) -> None:
    """Live holders on one or several machines take turns, whatever their wall clocks show and whenever they are set.

    All get the lease, and the wait for a live holder that returned it is at most a term.
    """
    held: list[tuple[float, float]] = []

    async def work(store: MemoryStore, clock: Clock, holder: Holder) -> None:
        boot_off_s = {HERE.machine: 0.0, ELSEWHERE.machine: -1234.5}.get(holder.process.machine, holder.boot_off_s)

        def now() -> float:
            return clock.now() + holder.wall_off_s + (holder.set_by_s if clock.now() >= holder.set_at else 0.0)

        def boot() -> float:
            return clock.boot() + boot_off_s

        await clock.sleep(holder.comes_at)
        async with Lease(store, "asset", replace(clock, now=now, boot=boot), TTL_S, holder.process).held():
            began = clock.now()
            await clock.sleep(holder.works_s)
            held.append((began, clock.now()))

    async def main(clock: Clock) -> None:
        store = MemoryStore()
        await asyncio.gather(*(work(store, clock, holder) for holder in group))

    run_virtually(main)
    assert len(held) == len(group)
    comes = sorted(holder.comes_at for holder in group)
    for earlier, later in pairwise(held):
        assert earlier[1] <= later[0] <= max(earlier[1], *comes) + TTL_S


@pytest.mark.parametrize(
    ("process", "waits_s"),
    [(CONTAINER, (0, TTL_S)), (ELSEWHERE, (TTL_S, 1.5 * TTL_S)), (UNKNOWN, (TTL_S, 1.5 * TTL_S))],
)
def test_lease_of_a_lost_holder_is_free_after_a_term(process: Process, waits_s: tuple[float, float]) -> None:
    """An invisible dead holder is waited for, whatever the wall clocks show.

    On this machine for the rest of its term by the boot clock, on another one for a term from the first look at it.
    """

    async def main(clock: Clock) -> None:
        store = MemoryStore()
        holding = Lease(store, "asset", replace(clock, now=lambda: 1e9), TTL_S, process).held()
        await holding.__aenter__()
        left = dict(store.numbers)
        await holding.__aexit__(None, None, None)
        store.numbers.update(left)  # the state after a kill
        await clock.sleep(TTL_S / 3)
        started_at = clock.now()
        async with Lease(store, "asset", replace(clock, now=lambda: 2e9), TTL_S).held():
            shortest_s, max_s = waits_s
            assert shortest_s <= clock.now() - started_at <= max_s

    run_virtually(main)


def test_term_of_the_holder_counts() -> None:
    """A waiting process with a shorter term does not take the lease from a live holder that renews it rarely."""

    async def main(clock: Clock) -> None:
        store, log = MemoryStore(), list[str]()

        async def hold(name: str, process: Process, ttl_s: float, works_s: float) -> None:
            async with Lease(store, "asset", clock, ttl_s, process).held():
                log.append(f"{name} begins")
                await clock.sleep(works_s)
                log.append(f"{name} ends")

        await asyncio.gather(hold("slow", ELSEWHERE, 600.0, 5000.0), hold("quick", HERE, 1.0, 1.0))
        assert log == ["slow begins", "slow ends", "quick begins", "quick ends"]

    run_virtually(main)


RUN = """
import sys
from ondine_core import ModelSpec, OndineError, Options, Origin, Policy, enrich_sync

place, base_url, name, rows = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
options = Options(store=place, origin=Origin(name), lease="asset", lease_ttl_s=1.0, policy=Policy(max_concurrency=8))
table = {"text": [f"row {number}" for number in range(rows)]}
model = ModelSpec("openai_compatible/m", base_url=base_url)
try:
    enrich_sync(table, prompt="Repeat: {text}", output={"answer": "string"}, model=model, options=options)
    print("done")
except OndineError as error:
    print(type(error).__name__, error)
"""


@contextmanager
def start(place: str, base_url: str, name: str, rows: int) -> Iterator[subprocess.Popen[str]]:
    """A process of its own, killed in the end if it still runs or is suspended."""
    command = [sys.executable, "-c", RUN, place, base_url, name, str(rows)]
    with subprocess.Popen(command, stdout=-1, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def stuck(first: int, count: int) -> Callable[[ReceivedRequest], Effect]:
    """Delay these requests so that a process can be suspended while it waits for them."""
    numbers = iter(range(10**9))
    return lambda _: Slow(headers_s=2.0) if first <= next(numbers) < first + count else None


@pytest.mark.parametrize("kind", KINDS)
def test_process_suspended_past_its_lease_makes_no_further_call(kind: str, tmp_path: Path) -> None:
    """Suspended with eight calls in flight, overtaken by another process and resumed, it makes no further call.

    By the provider's list of requests every row was asked once, except for the eight in flight.
    """
    place, rows = fresh_place(kind, tmp_path), 60
    with open_store(place):
        pass
    with Provider(fault=stuck(16, 8)) as provider, start(place, provider.base_url, "stopped", rows) as stopped:
        provider.ledger.wait_for(lambda ledger: len(ledger.requests) == 24, TIMEOUT_S)
        os.kill(stopped.pid, signal.SIGSTOP)
        with start(place, provider.base_url, "second", rows) as second:
            assert second.communicate(timeout=TIMEOUT_S)[0] == "done\n"
        asked = len(provider.ledger.requests)
        provider.ledger.wait_for(lambda ledger: ledger.in_flight == 0, TIMEOUT_S)
        os.kill(stopped.pid, signal.SIGCONT)
        output, _ = stopped.communicate(timeout=TIMEOUT_S)
    assert "'asset' was lost to another process" in output
    assert asked == len(provider.ledger.requests) == rows + 8


def test_process_suspended_without_being_overtaken_continues(tmp_path: Path) -> None:
    """Suspended past its term, it still has its lease."""
    place, rows = str(tmp_path / "answers.db"), 40
    with Provider(fault=stuck(16, 8)) as provider, start(place, provider.base_url, "stopped", rows) as stopped:
        provider.ledger.wait_for(lambda ledger: len(ledger.requests) == 24, TIMEOUT_S)
        os.kill(stopped.pid, signal.SIGSTOP)
        provider.ledger.wait_for(lambda ledger: ledger.in_flight == 0, TIMEOUT_S)
        os.kill(stopped.pid, signal.SIGCONT)
        assert stopped.communicate(timeout=TIMEOUT_S)[0] == "done\n"
        assert len(provider.ledger.requests) == rows


@dataclass
class FallsAsleep:
    """A model whose machine is suspended for an hour at some call; meanwhile another may take the lease."""

    at_call: int
    overtaken: Callable[[], None]
    calls: int = 0
    slept_s: float = 0.0
    max_concurrency: int | None = None
    max_batch_size: int | None = None

    async def __call__(self, call: Call) -> Reply:
        self.calls += 1
        if self.calls == self.at_call:
            self.slept_s = 3600.0
            self.overtaken()
        await asyncio.sleep(0.1)
        return Reply(json.dumps({"answer": call.messages[-1].content}))

    async def aclose(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(("overtaken", "calls"), [(True, 20), (False, 100)])
def test_laptop_after_sleep_calls_only_if_it_still_has_the_lease(overtaken: bool, calls: int) -> None:
    """Timers stop during sleep, so no renewal is due at wake-up; the next call checks the lease."""
    store = MemoryStore()

    def overtake() -> None:
        if overtaken:
            (name,) = (name for name in store.numbers if name.startswith("lease:"))
            store.numbers[name] = (17.0, 1e9, *ELSEWHERE, 1e9, TTL_S)

    model = FallsAsleep(20, overtake)

    async def main(clock: Clock) -> None:
        clock = replace(clock, boot=lambda: clock.elapsed() + model.slept_s)
        policy = Policy(max_concurrency=32)
        options = Options(store=store, policy=policy, lease="asset", lease_ttl_s=TTL_S, clock=clock)
        table = {"text": [f"row {number}" for number in range(100)]}
        expected = pytest.raises(StoreError, match="'asset' was lost") if overtaken else nullcontext()
        with expected:
            await enrich(table, prompt="{text}", output={"answer": "string"}, model=model, options=options)

    run_virtually(main)
    assert model.calls == calls
    # Calls that were recorded but not sent have no unknown outcome.
    assert any(line.outcome == "refused" for line in store.lines) is overtaken
