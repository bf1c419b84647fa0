"""Runs at work on the same texts at the same moment: each text is paid once, and no run waits for ever."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondine_core import Clock, Options, Origin, Policy, RefusedError, Reply, TransientError, enrich
from ondine_core.books import Claim
from ondine_core.store import open_store
from ondine_core.values import Answer, Call
from tests.support.asking import PROMPT
from tests.support.books import KINDS, call_to, fresh_place, keep, key_of, look
from tests.support.provider import Provider, Slow
from tests.support.unreliable import MemoryStore
from tests.support.virtual_clock import run_virtually
from tests.support.worker import OUTPUT, Job, Workers

TIMES_OUT_S = 1.0


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as started:
        yield started


def repeat(prompt: str) -> Any:
    """The answer to one row, or to several in one call."""
    rows, *_ = prompt.partition("\n")
    if rows.startswith("["):
        return {"answers": [{"id": row["id"], "answer": row["x"]} for row in orjson.loads(rows)]}
    return {"answer": prompt.removeprefix("Repeat: ")}


def paid_texts(provider: Provider) -> list[str]:
    """The rows of all calls, as often as they were asked."""
    asked = []
    for request in provider.books.requests:
        rows, *_ = request.prompt.partition("\n")
        if rows.startswith("["):
            asked += [row["x"] for row in orjson.loads(rows)]
        else:
            asked.append(request.prompt.removeprefix("Repeat: "))
    return asked


# -- real processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 20])
def test_eight_processes_pay_each_text_once(workers: Workers, kind: str, batch_size: int, tmp_path: Path) -> None:
    """Rows overlap, orders differ; every process has all its answers, and the provider was asked each text once."""
    with Provider(repeat, latency_s=0.05) as provider:
        job = Job(provider.base_url, fresh_place(kind, tmp_path), batch_size=batch_size, max_output_tokens=2000)
        jobs = [replace(job, run=f"run-{n}", first=100 + 20 * n, rows=120, seed=n) for n in range(8)]
        results = [workers.wait(process) for process in [workers.start(job) for job in jobs]]
    for job, result in zip(jobs, results, strict=True):
        assert result == {"answers": job.texts, "error": None}
    paid = paid_texts(provider)
    assert len(paid) == len(set(paid)) == 120 + 7 * 20
    assert look(job.store, "SELECT COUNT(*) FROM ondine.claims") == [(0,)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_process_had_in_flight_is_asked_at_once(workers: Workers, kind: str, tmp_path: Path) -> None:
    """The process that waits for it takes over without waiting for a time-out, and the audit says paid twice."""
    stuck = threading.Event()
    place = fresh_place(kind, tmp_path)
    with Provider(latency_s=0.01, fault=lambda _: None if stuck.is_set() else Slow(headers_s=30.0)) as provider:
        job = Job(provider.base_url, place, first=100, rows=20, concurrency=4)
        holder = workers.start(replace(job, run="holder"))
        provider.books.wait_for(lambda books: len(books.requests) == 4, 30)
        stuck.set()
        waiter = workers.start(replace(job, run="waiter"))
        provider.books.wait_for(lambda books: len(books.requests) == 20, 30)
        workers.kill(holder)
        assert workers.wait(waiter) == {"answers": job.texts, "error": None}
    assert len(provider.books.requests) == 24
    with open_store(place) as store:
        assert asyncio.run(store.audit("waiter")).paid_twice == 4


@pytest.mark.slow
def test_what_a_stopped_process_had_in_flight_is_taken_over_in_time(workers: Workers, tmp_path: Path) -> None:
    """A suspended holder delays another run by no more than the call's time-out and ten seconds."""
    stuck = threading.Event()
    with Provider(latency_s=0.01, fault=lambda _: None if stuck.is_set() else Slow(headers_s=60.0)) as provider:
        job = Job(provider.base_url, str(tmp_path / "s.db"), first=100, rows=10, concurrency=2, timeout_s=TIMES_OUT_S)
        holder = workers.start(replace(job, run="holder", timeout_s=60.0))
        provider.books.wait_for(lambda books: len(books.requests) == 2, 30)
        os.kill(holder, signal.SIGSTOP)
        stuck.set()
        try:
            waiter = workers.start(replace(job, run="waiter"))
            assert workers.wait(waiter) == {"answers": job.texts, "error": None}
        finally:
            os.kill(holder, signal.SIGCONT)
            workers.kill(holder)
    assert len(provider.books.requests) == 12


def test_two_threads_of_one_process_pay_each_text_once(tmp_path: Path) -> None:
    """Also with a store object each."""
    reports: dict[int, list[Any]] = {}
    with Provider(latency_s=0.02) as provider:
        jobs = [Job(provider.base_url, str(tmp_path / "s.db"), f"run-{n}", 100, 60, seed=n) for n in range(2)]

        def work(number: int) -> None:
            reports[number] = jobs[number].run_here()["answers"]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert reports == {number: job.texts for number, job in enumerate(jobs)}
    assert sorted(paid_texts(provider)) == sorted(jobs[0].texts)


# -- the store's part ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_claims_all_its_prompts_or_none(kind: str, tmp_path: Path) -> None:
    """It is not noted when another has one of them in flight, or one is answered; both are said by prompt."""
    a, b, c, d = map(key_of, range(4))
    answer = Answer({"x": 1}, "openai/m", 1, 1, None, None, 1000.0)

    async def main() -> None:
        with open_store(place) as store, open_store(place) as other:
            first, second = (replace(call_to(*keys), claim=Claim()) for keys in ((a, b), (b, c, d)))
            await keep(store, (d, answer))
            assert await store.send(first) == {}
            assert await other.send(second) == {b: first.call, d: None}
            assert {key: holder.call for key, holder in (await other.get_holders([a, b, c])).items()} == {
                a: first.call,
                b: first.call,
            }
            assert await other.get_unseen() == {a, b}
            # An answer from before `reuse_since` is none, one that cannot be used neither.
            assert await other.send(replace(second, claim=Claim(reuse_since=1000.5))) == {b: first.call}
            assert await other.send(replace(second, claim=Claim(unusable=frozenset([d])))) == {b: first.call}
            taking = Claim(take_over=frozenset([first.call]), unusable=frozenset([d]))
            assert await other.send(replace(second, claim=taking)) == {}
            # What was taken over is not given up by its old holder.
            await store.release(first)
            assert (await store.get_holders([a, b, c, d])).keys() == {b, c, d}

    place = fresh_place(kind, tmp_path)
    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_of_calls_that_claim_at_the_same_moment_one_wins(kind: str, tmp_path: Path) -> None:
    """Through one store object in one transaction, and through several in transactions of their own."""

    async def main() -> None:
        with ExitStack() as opened:
            stores = [opened.enter_context(open_store(place)) for _ in range(3)]
            for number in range(20):
                calls = [replace(call_to(key_of(2 * number), key_of(2 * number + 1)), claim=Claim()) for _ in range(6)]
                sent = await asyncio.gather(*(stores[at % 3].send(call) for at, call in enumerate(calls)))
                assert sum(not taken for taken in sent) == 1

    place = fresh_place(kind, tmp_path)
    asyncio.run(main())


# -- on virtual time, through the whole engine ---------------------------------------------------------------------


class Model:
    """Answers `Repeat: x` with `x`; some texts it refuses, some calls it loses, and of some no reply comes for long."""

    max_concurrency = max_batch_size = None

    def __init__(self, refused: frozenset[str], lost: frozenset[int], slow: frozenset[int]) -> None:
        self.refused, self.lost, self.slow, self.calls = refused, lost, slow, list[str]()

    async def __call__(self, call: Call) -> Reply:
        text, number = call.messages[-1].content.removeprefix("Repeat: "), len(self.calls)
        self.calls.append(text)
        await asyncio.sleep(200.0 if number in self.slow else 1.0)
        if number in self.lost:
            raise TransientError("lost", cost_unknown=True)
        if text in self.refused:
            raise RefusedError("no")
        return Reply(orjson.dumps({"answer": text}).decode())

    async def aclose(self) -> None:
        """Nothing to close."""


numbers = st.frozensets(st.integers(0, 15), max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    tables=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=10), min_size=2, max_size=4),
    refused=numbers,
    lost=numbers,
    slow=numbers,
    retry=st.booleans(),
)
def test_runs_that_share_texts_all_end(
    tables: list[list[int]], refused: frozenset[int], lost: frozenset[int], slow: frozenset[int], *, retry: bool
) -> None:
    """Each row has an outcome of its own; without slow or lost calls each text that is not refused is paid once."""
    model = Model(frozenset(f"row {number}" for number in refused), lost, slow)
    store = MemoryStore()

    async def one(table: list[int], clock: Clock, name: str) -> list[Any]:
        policy = Policy(max_concurrency=3, retry_failed_rows=retry)
        options = Options(store=store, policy=policy, clock=clock, origin=Origin(name))
        rows = {"text": [f"row {number}" for number in table]}
        report = await enrich(rows, prompt=PROMPT, output=OUTPUT, model=model, options=options)
        return report.column("answer")

    async def main(clock: Clock) -> list[list[Any]]:
        return await asyncio.gather(*(one(table, clock, f"run-{at}") for at, table in enumerate(tables)))

    found = run_virtually(main)
    assert found == [[None if number in refused else f"row {number}" for number in table] for table in tables]
    if not (lost or slow):
        answered = [text for text in model.calls if text not in model.refused]
        assert len(answered) == len(set(answered))
    assert not store.claims
