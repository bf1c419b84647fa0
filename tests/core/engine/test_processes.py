"""The laws with real processes, kills, outages and faults, checked by the loopback provider's ledger."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from ondine_core import (
    Audit,
    BudgetExhaustedError,
    Call,
    ChatModel,
    Clock,
    ModelSpec,
    Options,
    Policy,
    Price,
    Progress,
    Reply,
    Report,
    RetryPolicy,
    TransientError,
    Usage,
    enrich,
    enrich_sync,
    open_store,
)
from ondine_core.errors import Kind
from ondine_core.prompts.task import cache_key
from ondine_core.providers import connect
from ondine_core.store.records import split_keys
from tests.support.asking import PROMPT, texts
from tests.support.ledger import KINDS, fresh_place, look
from tests.support.provider import (
    Effect,
    Ledger,
    Provider,
    Slow,
    cut,
    garbage,
    rate_limited,
    shares,
    status,
    while_set,
)
from tests.support.unreliable import MemoryStore
from tests.support.virtual_clock import run_virtually
from tests.support.worker import PRICE, Job, Workers


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as started:
        yield started


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "answers.db")


def billed(ledger: Ledger) -> Decimal:
    """USD for all calls that the provider worked on."""
    return PRICE.cost(Usage(ledger.input_tokens, 0, ledger.output_tokens))


# -- eight processes at once ---------------------------------------------------------------------------------------

PER_S, BURST = 30, 10
LATE_S = 1.5
"""Delay between a booking and the arrival of its call: the entry in the ledger, the loopback, a busy machine.

With a limiter for each process, calls would be early by at least three seconds: 8 x 18 of them come at once.
"""
ATTEMPTS = 5


def run_eight(workers: Workers, base_url: str, place: str, rows: int, **settings: Any) -> list[dict[str, Any]]:
    """The results of eight processes that begin together, each with rows of its own."""
    shared = {"requests_per_minute": 60 * PER_S, "burst": BURST, **settings}
    jobs = [Job(base_url, place, f"run-{n}", first=100 + n * rows, rows=rows, **shared) for n in range(8)]
    results = [workers.wait(process) for process in [workers.start(job) for job in jobs]]
    assert all(result["error"] or result["answers"] == job.texts for job, result in zip(jobs, results, strict=True))
    return results


def shortfall_s(arrivals: Sequence[float]) -> float:
    """By how many seconds the busiest window is too short for its calls at the allowed rate."""
    free_at = itertools.accumulate(arrivals, lambda free, at: max(free, at) + 1 / PER_S, initial=0.0)
    return max(free - at - (BURST - 1) / PER_S for free, at in zip(free_at, arrivals, strict=False))


@pytest.mark.parametrize("kind", KINDS)
def test_eight_processes_share_one_rate_and_use_it(workers: Workers, kind: str, tmp_path: Path) -> None:
    """No window has more calls than burst and rate allow, and at least 95 % of the rate is used.

    A busy machine may keep the processes from using it, so the best of some attempts counts; a loss in the limiter
    would
    show in all of them.
    """
    rows, used = 18, list[float]()
    while not used or (max(used) < 0.95 and len(used) < ATTEMPTS):
        with Provider(latency_s=0.05) as provider:
            run_eight(workers, provider.base_url, fresh_place(kind, tmp_path / str(len(used))), rows)
        arrivals = [asked.arrived_at for asked in provider.ledger.requests]
        assert len(arrivals) == 8 * rows
        assert shortfall_s(arrivals) <= LATE_S
        # From when all eight are at work.
        first_of_each = {
            (int(asked.prompt.split()[-1]) - 100) // rows: asked.arrived_at
            for asked in reversed(provider.ledger.requests)
        }
        assert len(first_of_each) == 8
        later = [at for at in arrivals if at >= max(first_of_each.values())]
        used.append((len(later) - 1) / PER_S / (later[-1] - later[0]))
    assert max(used) >= 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_eight_processes_share_one_budget(workers: Workers, kind: str, tmp_path: Path) -> None:
    """The provider's bill never exceeds the cap and comes close to it; the rate holds as well."""
    cap = Decimal("0.0012")
    with Provider(latency_s=0.05) as provider:
        results = run_eight(workers, provider.base_url, fresh_place(kind, tmp_path), 20, budget_usd=str(cap))
    assert 0.8 * float(cap) <= billed(provider.ledger) <= cap
    assert shortfall_s([asked.arrived_at for asked in provider.ledger.requests]) <= LATE_S
    errors = [result["error"] for result in results if result["error"]]
    assert errors
    assert all(re.search(r"BudgetExhausted.* 'team' .*spent.* rows? .*no answer", error) for error in errors)


# -- kill -9 -------------------------------------------------------------------------------------------------------


def repeat(prompt: str) -> Any:
    """The answer to one row, or to several in one call."""
    rows, *_ = prompt.partition("\n")
    if rows.startswith("["):
        return {"answers": [{"id": row["id"], "answer": row["x"]} for row in orjson.loads(rows)]}
    return {"answer": prompt.removeprefix("Repeat: ")}


def read_audit(place: str) -> Audit:
    with open_store(place) as store:
        return asyncio.run(store.audit("run"))


def unseen_rows(place: str, job: Job) -> Counter[str]:
    """How often each row was asked by a call whose outcome the store has not seen."""
    task = job.task
    key_of = cache_key(task)
    rows = {key_of(task.prompt.render({"text": text})): text for text in job.texts}
    return Counter(rows[key] for (keys,) in look(place, "SELECT keys FROM ondine.calls") for key in split_keys(keys))


def test_fifty_kills_lose_nothing(workers: Workers, place: str) -> None:
    """Every row ends with its own answer, and at most what was in flight at a kill is paid again.

    The moments are random, and so is whether a call has one row or five. Every call that left is in the ledger.
    """
    rng, latency_s = random.Random(1), 0.02
    with Provider(repeat, latency_s=latency_s) as provider:
        unknown = 0
        for _ in range(50):
            size = rng.choice([1, 5])
            job = Job(provider.base_url, place, rows=2000, batch_size=size, max_output_tokens=2000, budget_usd="1000")
            so_many = len(provider.ledger.requests) + rng.randrange(12)
            process = workers.start(job)
            provider.ledger.wait_for(lambda ledger, so_many=so_many: len(ledger.requests) >= so_many, 30)
            workers.kill(process, after_s=rng.random() * latency_s)
            before, unknown = unknown, read_audit(place).unknown.calls
            assert unknown - before <= job.concurrency
        last = workers.start(replace(job, concurrency=32, batch_size=5))
        assert workers.wait(last) == {"answers": job.texts, "error": None}

    audit, requests, unseen = read_audit(place), provider.ledger.requests, unseen_rows(place, job)
    asked = Counter(row for request in requests for row in re.findall(r"row \d+", request.prompt))
    assert set(asked) == set(job.texts)
    assert not [row for row in job.texts if asked[row] > 1 + unseen[row]]
    # A call that was recorded but not sent when the process was killed is one more in the ledger.
    assert audit.answered.calls <= len(requests) <= audit.sent == audit.answered.calls + unknown
    assert audit.paid_twice == len(unseen)
    assert audit.answered.usd <= billed(provider.ledger) <= audit.answered.usd + audit.unknown.usd


def test_audit_after_kills_equals_the_provider(workers: Workers, place: str) -> None:
    """After a kill with all calls in flight: sent, answered, unknown, paid twice and dollars are exact."""
    rng, stuck_from = random.Random(2), 0

    def stuck(_: object) -> Effect:
        return Slow(headers_s=60.0) if len(provider.ledger.requests) > stuck_from else None

    with Provider(latency_s=0.02, fault=stuck) as provider:
        # That many are in flight from the first moment on.
        job = Job(provider.base_url, place, first=100, rows=200, concurrency=4, budget_usd="1")
        for kills in range(1, 6):
            stuck_from = len(provider.ledger.requests) + rng.randrange(40)
            process = workers.start(job)
            provider.ledger.wait_for(lambda ledger, most=stuck_from + job.concurrency: len(ledger.requests) == most, 30)
            workers.kill(process)
            audit = read_audit(place)
            assert (audit.sent, audit.unknown.calls) == (len(provider.ledger.requests), kills * job.concurrency)
            assert audit.answered.calls == provider.ledger.answered
        stuck_from = 10**9
        assert workers.wait(workers.start(job)) == {"answers": job.texts, "error": None}
    ledger, audit = provider.ledger, read_audit(place)
    assert (audit.sent, audit.answered.calls) == (len(ledger.requests), len(job.texts))
    assert audit.paid_twice == sum(times > 1 for times in ledger.billed_by_prompt.values())
    # Every call costs the same.
    assert audit.answered.usd == billed(ledger) * audit.answered.calls / audit.sent


# -- one process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("calls", "output_tokens"), [(10, 5), (10, 20), (800, 5)])
def test_cap_for_n_calls_pays_for_n_calls_at_concurrency_200(calls: int, output_tokens: int) -> None:
    """At concurrency 200 no call beyond the cap is paid; the error names cap, spend and rows left."""
    cents = Price(Decimal(0), Decimal("0.002"), Decimal(0))  # five tokens, a cent a reply
    table = {"text": [f"row {number}" for number in range(1000, 2200)]}
    options = Options(policy=Policy(max_concurrency=200), price=cents, max_cost_usd=Decimal(calls) / 100)
    with Provider(latency_s=0.1) as provider:
        model = ModelSpec("openai_compatible/m", base_url=provider.base_url, max_output_tokens=output_tokens)
        with pytest.raises(BudgetExhaustedError) as raised:
            enrich_sync(table, prompt=PROMPT, output={"answer": "string"}, model=model, options=options)
    paid, dearest = provider.ledger.output_tokens // 5, output_tokens // 5
    assert calls - dearest < paid <= calls
    message = str(raised.value)
    assert f"max_cost_usd={options.max_cost_usd}" in message
    assert f"${paid / 100:.6f} is spent" in message
    assert f"{1200 - paid:,} rows have no answer yet" in message


def test_mixed_faults_lose_no_row(place: str) -> None:
    """With 10 % 429, 10 % 500, 5 % dropped and 5 % malformed replies every row has its own answer.

    No more calls are made than the faults cost. A test on virtual time, below, bounds the time lost.
    """
    table, rows = texts(600), 600
    faults = shares((0.1, status(429)), (0.1, status(500)), (0.05, cut), (0.05, garbage), seed=1)
    policy = Policy(max_concurrency=32, retry=RetryPolicy(max_lost=12))
    with Provider(latency_s=0.08, fault=faults) as provider:
        model = ModelSpec("openai_compatible/m", base_url=provider.base_url)
        options = Options(store=place, policy=policy)
        report = enrich_sync(table, prompt=PROMPT, output={"answer": "string"}, model=model, options=options)
    assert report.column("answer") == table["text"]
    # Three calls in ten fail.
    assert rows / 0.8 <= len(provider.ledger.requests) <= rows / 0.6


# -- outages -------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A model that records when each of its calls left and returned, and whether it was answered."""

    model: ChatModel
    calls: list[tuple[float, float, bool]] = field(default_factory=list)
    max_concurrency: int | None = None
    max_batch_size: int | None = None

    async def __call__(self, call: Call) -> Reply:
        left_at, answered = time.monotonic(), False
        try:
            reply = await self.model(call)
            answered = True
            return reply
        finally:
            self.calls.append((left_at, time.monotonic(), answered))

    async def aclose(self) -> None:
        await self.model.aclose()


def most_in_a_second(times: Sequence[float]) -> int:
    """The most of these times within any one second."""
    times, recent, most = sorted(times), deque[float](), 0
    for at in times:
        recent.append(at)
        while recent[0] <= at - 1:
            recent.popleft()
        most = max(most, len(recent))
    return most


def most_in_flight(calls: Sequence[tuple[float, float]]) -> int:
    """The most of these calls that were in flight at the same time."""
    steps = sorted([(left, 1) for left, _ in calls] + [(back, -1) for _, back in calls])
    return max(itertools.accumulate(step for _, step in steps))


def test_an_outage_of_five_seconds() -> None:
    """During 503s and then refused connections no row of a run with 50 calls in flight is lost.

    Few calls probe the provider, and afterwards nearly as many are in flight as before. A test on virtual time, below,
    bounds the probes a second and the time to full speed.
    """
    table, half_s, began = texts(1000), 2.5, list[float]()
    busy = threading.Event()

    def report_progress(now: Progress) -> None:
        if now.rows_done >= 500 and not began:
            began.append(time.monotonic())
            busy.set()
            later = asyncio.get_running_loop().call_later
            later(half_s, provider.disconnect, half_s)
            later(1.5 * half_s, busy.clear)

    async def main() -> Report:
        options = Options(policy=Policy(max_concurrency=50), on_progress=report_progress)
        try:
            return await enrich(table, prompt=PROMPT, output={"answer": "string"}, model=model, options=options)
        finally:
            await model.aclose()

    with Provider(latency_s=0.15, fault=while_set(busy, status(503))) as provider:
        model = Watched(connect(ModelSpec("openai_compatible/m", base_url=provider.base_url)))
        assert asyncio.run(main()).column("answer") == table["text"]
    start, end = began[0], began[0] + 2 * half_s
    # Without probing 50 workers would make thousands of calls in these seconds. Each makes two before the outage is
    # noticed; on a busy machine the second ones leave late.
    assert sum(start <= left < end for left, *_ in model.calls) <= 3 * 50
    assert most_in_flight([(left, back) for left, back, answered in model.calls if answered and left >= end]) >= 40


# -- on virtual time, through the whole engine ---------------------------------------------------------------------


@dataclass
class Timed:
    """A model that answers `Repeat: x` with `x`, unless it refuses at the instant of the call.

    Args:
        refuse: From the instant to the error, if any.
        latency_s: Seconds that answers take, with a log-normal spread.
        calls: When each call arrived, and whether it was answered.
    """

    refuse: Callable[[float], TransientError | None]
    latency_s: float
    calls: list[tuple[float, bool]] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    max_concurrency: int | None = None
    max_batch_size: int | None = None

    async def __call__(self, call: Call) -> Reply:
        now = asyncio.get_running_loop().time()
        error = self.refuse(now)
        self.calls.append((now, error is None))
        await asyncio.sleep(0.01 if error else self.latency_s * self.rng.lognormvariate(0, 0.4))
        if error:
            raise error
        return Reply(orjson.dumps(repeat(call.messages[-1].content)).decode())

    async def aclose(self) -> None:
        """Nothing to close."""

    def ask(
        self, rows: int, policy: Policy | None = None, on_progress: Callable[[Progress], None] = lambda _: None
    ) -> Report:
        """Ask it about this many rows, 50 concurrently."""
        table, policy = texts(rows), policy or Policy(max_concurrency=50)

        async def main(clock: Clock) -> Report:
            options = Options(store=MemoryStore(), policy=policy, clock=clock, on_progress=on_progress)
            return await enrich(table, prompt=PROMPT, output={"answer": "string"}, model=self, options=options)

        report = run_virtually(main)
        assert all(found in (text, None) for found, text in zip(report.column("answer"), table["text"], strict=True))
        return report


def sliding_window(calls: int) -> Callable[[float], TransientError | None]:
    """Refuse calls beyond this number in any second."""
    served = deque[float]()

    def refuse(now: float) -> TransientError | None:
        while served and served[0] <= now - 1:
            served.popleft()
        if len(served) >= calls:
            return TransientError("slow down", kind="limited")
        served.append(now)
        return None

    return refuse


@pytest.mark.parametrize(("per_s", "latency_s"), [(20, 0.3), (50, 0.2)])
def test_unconfigured_rate_limit_is_found_and_used(per_s: int, latency_s: float) -> None:
    """In four minutes at least 95 % of the provider's limit is used, and less than 2 % of calls are refused."""
    model = Timed(sliding_window(per_s), latency_s)
    report = model.ask(240 * per_s)
    assert not report.failures
    assert 240 / report.progress.elapsed_s >= 0.95
    assert report.spend.refused < 0.02 * report.spend.calls


def test_unconfigured_rate_limit_is_found_on_a_real_server() -> None:
    """Calls refused at the start are less than a third of all, and the limit is used from then on.

    A test on virtual time, above, bounds how much of it is used; without discovery calls would wait for seconds each.
    """
    table, per_s = texts(200), 60
    with Provider(latency_s=0.05, fault=rate_limited(per_s)) as provider:
        model = ModelSpec("openai_compatible/m", base_url=provider.base_url)
        report = enrich_sync(table, prompt=PROMPT, output={"answer": "string"}, model=model)
    assert report.column("answer") == table["text"]
    assert 200 / report.progress.elapsed_s >= 0.3 * per_s
    assert report.spend.refused < report.spend.calls / 3


@pytest.mark.parametrize("seconds", [5, 60])
@pytest.mark.parametrize("kind", ["overloaded", "broken"])
def test_an_outage_is_waited_out(kind: Kind, seconds: int) -> None:
    """With 50 calls in flight at most five calls a second probe, no row is lost, full speed within 5 s after it."""
    start, end = 5, 5 + seconds
    model = Timed(lambda now: TransientError("down", kind=kind) if start <= now < end else None, 0.1)
    assert not model.ask(4000).failures
    assert most_in_a_second([at for at, _ in model.calls if start + 1 <= at < end]) <= 5
    served = [at for at, answered in model.calls if answered]
    before, after = (sum(first <= at < first + 1 for at in served) for first in (start - 1, end + 4))
    assert after >= 0.8 * before


def test_one_minute_run_with_30_percent_faults_keeps_65_percent_of_its_speed() -> None:
    """Where three calls in ten fail at once, a run is at least 65 % as fast as without, first and last row included."""
    rng = random.Random(1)
    errors = [TransientError("429", kind="limited"), TransientError("500"), TransientError("lost", cost_unknown=True)]

    def faulty(_: float) -> TransientError | None:
        return rng.choice(errors) if rng.random() < 0.3 else None

    healthy, ill = (Timed(fault, 1.0).ask(2500).progress.elapsed_s for fault in (lambda _: None, faulty))
    assert healthy >= 0.65 * ill


def test_run_of_seconds_with_faults_keeps_a_third_of_its_speed() -> None:
    """A run that ends before the fault rate is known answers nine rows in ten at a third of the fault-free speed."""
    rng, rows = random.Random(1), 600
    errors = [TransientError("429", kind="limited"), TransientError("500"), TransientError("lost", cost_unknown=True)]
    policy = Policy(max_concurrency=32, retry=RetryPolicy(max_lost=12))

    def seconds(refuse: Callable[[float], TransientError | None]) -> float:
        done_at: list[float] = []

        def report_progress(now: Progress) -> None:
            if now.rows_done >= 0.9 * rows:
                done_at.append(now.elapsed_s)

        assert not Timed(refuse, 0.08).ask(rows, policy, report_progress).failures
        return done_at[0]

    def faulty(_: float) -> TransientError | None:
        return rng.choice(errors) if rng.random() < 0.3 else None

    assert seconds(lambda _: None) >= 0.35 * seconds(faulty)
