"""Overlapping runs ask each prompt once between them, also at the same moment."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondine_core import open_store
from ondine_core.api import answer
from ondine_core.engine.in_thread import run_in_thread
from ondine_core.engine.options import Options
from ondine_core.engine.policy import Policy
from ondine_core.engine.report import Report
from ondine_core.errors import TransientError
from ondine_core.prompts.task import compile_task
from ondine_core.types.clock import Clock
from ondine_core.types.ledger import CallStarted, RunStarted
from ondine_core.types.values import Call, Failure, ModelSpec, Reply, Usage
from tests.support.asking import ask, echo_each, options, texts
from tests.support.ledger import KINDS, ORIGIN, fresh_place, key_of, look
from tests.support.provider import Ledger, Provider, error, first, matching, slow, while_set
from tests.support.unreliable import MemoryStore, UnreliableModel, schedules
from tests.support.virtual_clock import run_virtually
from tests.support.worker import Job, Workers

by_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as started:
        yield started


def asked(ledger: Ledger) -> Counter[str]:
    """How often each row was sent, alone or in a batch."""
    return Counter(row for request in ledger.requests for row in re.findall(r"row \d+", request.prompt))


# -- processes -----------------------------------------------------------------------------------------------------


@by_kind
@pytest.mark.parametrize("batch_size", [1, 20])
def test_processes_that_overlap_ask_each_row_once(workers: Workers, kind: str, batch_size: int, tmp_path: Path) -> None:
    """Eight processes with overlapping shares of 380 rows: the provider sees each row once."""
    place = fresh_place(kind, tmp_path)
    starts = [0, 0, 0, 0, 50, 100, 200, 280]
    with Provider(echo_each, latency_s=0.05) as provider:
        jobs = [
            Job(provider.base_url, place, f"run-{n}", first=start, rows=100, batch_size=batch_size)
            for n, start in enumerate(starts)
        ]
        results = [workers.wait(process) for process in [workers.start(job) for job in jobs]]
    assert [result["answers"] for result in results] == [job.texts for job in jobs]
    assert asked(provider.ledger) == Counter(f"row {number}" for number in (*range(200), *range(200, 380)))
    assert look(place, "SELECT COUNT(*) FROM ondine.runs") == [(0,)]
    assert look(place, "SELECT COUNT(*) FROM ondine.claims") == [(0,)]


@by_kind
def test_prompts_of_a_killed_process_are_taken_over(workers: Workers, kind: str, tmp_path: Path) -> None:
    """Its end is noticed without a wait; only the calls that it had in flight may be paid twice."""
    place, hangs = fresh_place(kind, tmp_path), threading.Event()
    with Provider(echo_each, latency_s=0.02, fault=while_set(hangs, slow(3_600))) as provider:
        job = Job(provider.base_url, place, rows=60, concurrency=4, timeout_s=15)
        hangs.set()
        killed = workers.start(job)
        provider.ledger.wait_for(lambda ledger: len(ledger.requests) == job.concurrency, 30)
        other = workers.start(replace(job, run="other"))
        provider.ledger.wait_for(lambda ledger: len(ledger.requests) == 2 * job.concurrency, 30)
        hangs.clear()
        assert max(asked(provider.ledger).values()) == 1
        workers.kill(killed)
        os.kill(other, signal.SIGTERM)  # the run's own calls hang, too, and are awaited
        workers.wait(other)
        last = workers.start(replace(job, run="last"))
        assert workers.wait(last) == {"answers": job.texts, "error": None}
    found = asked(provider.ledger)
    assert set(found) == set(job.texts)
    assert sum(found.values()) == len(job.texts) + 2 * job.concurrency


# -- one process ---------------------------------------------------------------------------------------------------


@by_kind
def test_two_threads_with_one_store_ask_each_row_once(kind: str, tmp_path: Path) -> None:
    """Each in an event loop of its own, over the same open store."""
    with open_store(fresh_place(kind, tmp_path)) as store, Provider(latency_s=0.02) as provider:
        chosen = options(store, max_concurrency=4)  # type: ignore[arg-type]
        reports: list[Report] = []
        threads = [threading.Thread(target=lambda: reports.append(ask(provider, texts(60), chosen))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [report.column("answer") for report in reports] == [texts(60)["text"]] * 2
    assert set(asked(provider.ledger).values()) == {1}
    assert sum(report.progress.rows_reused for report in reports) == 60


def test_run_without_concurrent_runs_writes_no_claims(tmp_path: Path) -> None:
    """So claims cost it nothing."""
    place = tmp_path / "answers.db"
    during: list[object] = []
    with Provider(fault=lambda _: during.extend(look(place, "SELECT COUNT(*) FROM ondine.claims"))) as provider:
        ask(provider, texts(10), options(place))
    assert set(during) == {(0,)}
    assert look(place, "SELECT COUNT(*) FROM ondine.runs") == [(0,)]


def test_runs_of_different_tasks_write_no_claims(tmp_path: Path) -> None:
    """Runs that ask something else do not overlap."""
    place = tmp_path / "answers.db"
    during: list[object] = []
    hangs = threading.Event()
    hangs.set()
    with (
        Provider(fault=while_set(hangs, slow(3_600))) as busy,
        Provider(fault=lambda _: during.extend(look(place, "SELECT COUNT(*) FROM ondine.claims"))) as provider,
    ):
        other = threading.Thread(target=lambda: ask(busy, texts(3), options(place), prompt="Else: {text}", timeout_s=2))
        other.start()
        busy.ledger.wait_for(lambda ledger: len(ledger.requests) == 3)
        ask(provider, texts(10), options(place))
        hangs.clear()
        other.join()
    assert set(during) == {(0,)}


def test_row_that_failed_in_another_run_is_asked(tmp_path: Path) -> None:
    """A failure is not an answer; by default a run retries what failed in another."""
    refused = matching("row 3", first(1, error(400, "flagged", "content_filter")))
    with Provider(latency_s=0.05, fault=refused) as provider:
        reports: list[Report] = []
        chosen = options(tmp_path / "answers.db", max_concurrency=2)
        threads = [threading.Thread(target=lambda: reports.append(ask(provider, texts(8), chosen))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(report.progress.rows_failed for report in reports) == [0, 1]
    assert asked(provider.ledger) == Counter({"row 3": 2} | {f"row {n}": 1 for n in range(8) if n != 3})


# -- virtual time --------------------------------------------------------------------------------------------------

QUESTION = compile_task("Say: {text}", {"answer": str}, ModelSpec("test/unreliable", max_output_tokens=1000))
POLICY = Policy(max_concurrency=4, max_repairs=1)
tables = st.lists(st.sampled_from([f"t{n}" for n in range(12)]), min_size=1, max_size=12, unique=True)


async def run_at(clock: Clock, store: MemoryStore, model: UnreliableModel, table: list[str], start_s: float) -> Report:
    await clock.sleep(start_s)
    chosen = Options(store=store, policy=POLICY, clock=clock)  # type: ignore[arg-type]
    return await answer({"text": table}, QUESTION, chosen, model)


@settings(max_examples=60)
@given(st.lists(st.tuples(tables, st.floats(0, 0.5)), min_size=2, max_size=5))
def test_each_prompt_is_asked_once_whenever_runs_start(runs: list[tuple[list[str], float]]) -> None:
    """Every run has all its answers, and together the runs ask each distinct text once."""
    store, model = MemoryStore(), UnreliableModel(((), "none"))

    async def main(clock: Clock) -> list[Report]:
        return await asyncio.gather(*(run_at(clock, store, model, table, start_s) for table, start_s in runs))

    for (table, _), report in zip(runs, run_virtually(main), strict=True):
        assert report.column("answer") == table
    assert sorted(model.asked) == sorted({text for table, _ in runs for text in table})
    assert not store.runs


@settings(max_examples=60)
@given(st.lists(st.tuples(tables, st.floats(0, 0.5)), min_size=2, max_size=4), schedules)
def test_runs_end_whatever_fails_in_other_runs(runs: list[tuple[list[str], float]], schedule: tuple) -> None:
    """No run waits for ever for another; each row has an answer of its own text, or a failure."""
    store, model = MemoryStore(), UnreliableModel((schedule[0], "none"))

    async def main(clock: Clock) -> list[Report | BaseException]:
        asking = (run_at(clock, store, model, table, start_s) for table, start_s in runs)
        return await asyncio.gather(*asking, return_exceptions=True)

    for (table, _), report in zip(runs, run_virtually(main), strict=True):
        if isinstance(report, BaseException):
            assert isinstance(report, TransientError)
            continue
        for text, outcome in zip(table, report.outcomes, strict=True):
            assert isinstance(outcome, Failure) or outcome.values == {"answer": text}


class Stuck:
    """A model whose calls never end."""

    max_concurrency: int | None = 4
    max_batch_size: int | None = None

    async def __call__(self, _call: Call) -> Reply:
        await asyncio.Event().wait()
        return Reply("", Usage())

    async def aclose(self) -> None:
        """Nothing to close."""


def test_suspended_process_is_waited_for_as_long_as_a_call_may_take() -> None:
    """Then its prompts are taken over and counted as possibly paid twice."""
    store, model = MemoryStore(), UnreliableModel(((), "none"))

    async def main(clock: Clock) -> tuple[Report, float]:
        chosen = Options(store=store, policy=POLICY, clock=clock)  # type: ignore[arg-type]
        stands = asyncio.create_task(answer({"text": ["a", "b"]}, QUESTION, chosen, Stuck()))
        await clock.sleep(1)
        report = await answer({"text": ["a", "b", "c"]}, QUESTION, chosen, model)
        took_s = clock.elapsed() - 1
        stands.cancel()
        await asyncio.wait([stands])
        return report, took_s

    report, took_s = run_virtually(main)
    assert report.column("answer") == ["a", "b", "c"]
    wait_timeout_s = QUESTION.model.max_call_s + 30
    assert wait_timeout_s <= took_s < wait_timeout_s + 5
    assert report.audit.paid_twice == 2


# -- the store -----------------------------------------------------------------------------------------------------


def sent(run: bytes, number: int, *keys: int, is_shared: bool = True) -> CallStarted:
    call = run + number.to_bytes(8, "big")
    return CallStarted(call, ORIGIN, "m", "ask", tuple(map(key_of, keys)), 0.0, None, b"q" * 16, is_shared)


@by_kind
def test_call_whose_prompts_are_claimed_is_not_recorded(kind: str, tmp_path: Path) -> None:
    """It learns which prompts are claimed, claims none of its others, and leaves no trace."""
    one, two = b"1" * 8, b"2" * 8

    async def main() -> None:
        assert await store.join(RunStarted(one, b"q" * 16, (1.0,))) == {}
        assert await store.send(sent(one, 1, 1, 2, is_shared=False)) is None
        assert await store.join(RunStarted(two, b"q" * 16, (2.0,))) == {one: (1.0,)}
        assert await store.send(sent(two, 1, 2, 3)) == {key_of(2)}
        assert await store.send(sent(two, 2, 3)) == frozenset()
        assert await store.send(sent(one, 2, 1, 2)) == frozenset(), "its own claim does not block it"
        assert {key: claim.run for key, claim in (await store.get_claims([key_of(n) for n in range(5)])).items()} == {
            key_of(1): one,
            key_of(2): one,
            key_of(3): two,
        }
        await store.release([sent(one, 2).call])
        assert await store.send(sent(two, 3, 1)) == frozenset()
        await store.leave(one)
        assert await store.send(sent(two, 4, 2)) == frozenset()

    place = fresh_place(kind, tmp_path)
    with open_store(place) as store:
        run_in_thread(main)
    calls = {bytes(call)[-1] for (call,) in look(place, "SELECT call FROM ondine.calls") if bytes(call)[:8] == two}  # type: ignore[call-overload]
    assert calls == {2, 3, 4}
