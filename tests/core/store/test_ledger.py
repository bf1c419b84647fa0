"""The ledger is exact to the call and to the dollar, whatever is sent and settled, and whenever the process dies."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondine_core.providers.pricing import Price
from ondine_core.store import Store, open_store
from ondine_core.types.ledger import Audit, CallFinished, CallStarted, Origin, UsageTotals
from ondine_core.types.values import Answer, Failure, Usage
from tests.support.ledger import KINDS, call_to, fresh_place, key_of, look
from tests.support.postgres import server

TIMEOUT_S = 60.0
RUNS = ("run-1", "run-2")
PRICE = Price(Decimal("0.00000015"), Decimal("0.0000006"), Decimal("0.000000075"))

# -- any sequence --------------------------------------------------------------------------------------------------

keys = st.integers(0, 5).map(key_of)
tokens = st.integers(0, 10**6)
answers = st.builds(Answer, st.fixed_dictionaries({"n": st.integers(0, 9)}), st.just("m"))
failures = st.builds(
    Failure,
    st.sampled_from(["invalid", "refused"]),
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=5),
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[CallStarted, CallFinished]:
    """A call, and its possible outcomes."""
    origin = Origin(draw(st.sampled_from(RUNS)), draw(st.sampled_from("ab")), draw(st.sampled_from(["", "p"])))
    most = draw(st.none() | tokens.map(lambda count: count * PRICE.output))
    stage = draw(st.sampled_from(["ask", "repair"]))
    asked = tuple(draw(st.lists(keys, max_size=3)))
    sent = CallStarted(draw(st.binary(min_size=16, max_size=16)), origin, "m", stage, asked, draw(tokens) / 1.0, most)
    usage = Usage(*draw(st.tuples(tokens, tokens, tokens, tokens, tokens)))
    return sent, CallFinished(
        sent,
        draw(st.sampled_from(["answered", "refused"])),
        usage,
        draw(st.sampled_from([PRICE.cost(usage), None])) if draw(st.booleans()) else PRICE.cost(usage),
        tuple(draw(st.lists(st.tuples(keys, answers), max_size=3))),
        tuple(draw(st.lists(st.tuples(keys, failures), max_size=2))),
        draw(st.integers(0, 3)),
    )


@dataclass
class Model:
    """The ledger in plain Python."""

    open: dict[bytes, CallStarted] = field(default_factory=dict)
    seen: list[CallFinished] = field(default_factory=list)
    answers: dict[bytes, Answer] = field(default_factory=dict)
    failures: dict[bytes, Failure] = field(default_factory=dict)

    def settle(self, settled: CallFinished) -> None:
        if self.open.pop(settled.sent.call, None):
            self.seen.append(settled)
        self.answers |= dict(settled.answers)
        self.failures = {
            key: failure for key, failure in (self.failures | dict(settled.failures)).items() if key not in self.answers
        }

    def audit(self, run: str, asset: str | None) -> Audit:
        assets = "ab" if asset is None else (asset,)
        seen = [one for one in self.seen if one.sent.origin.run == run and one.sent.origin.asset in assets]
        open_ = [one for one in self.open.values() if one.origin.run == run and one.origin.asset in assets]
        lost = [sent.at_most_usd for sent in open_]
        return Audit(
            self._line([one for one in seen if one.outcome == "answered"]),
            self._line([one for one in seen if one.outcome == "refused"]),
            UsageTotals(len(lost), usd=None if None in lost else sum(lost, Decimal(0))),
            sum(one.paid_twice for one in seen),
        )

    @staticmethod
    def _line(seen: list[CallFinished]) -> UsageTotals:
        usd = None if any(one.usd is None for one in seen) else sum((one.usd for one in seen), Decimal(0))
        return UsageTotals(len(seen), sum((one.usage for one in seen), Usage()), usd)


# What happens to a call: recorded and settled concurrently with others, settled again, or never.
CALL_STATES = ("settled", "settled twice", "never recorded", "lost")
histories = st.lists(st.lists(st.tuples(calls(), st.sampled_from(CALL_STATES)), max_size=6), max_size=5)


async def make_calls(store: Store, model: Model, group: list[tuple[tuple[CallStarted, CallFinished], str]]) -> None:
    """Make these calls concurrently."""
    recorded = [call for call, state in group if state != "never recorded"]
    await asyncio.gather(*(store.send(sent) for sent, _ in recorded))
    model.open |= {sent.call: sent for sent, _ in recorded}
    seen = [settled for (_, settled), state in group for _ in range(2 if "twice" in state else 1) if state != "lost"]
    await asyncio.gather(*(store.settle(settled) for settled in seen))
    for settled in seen:
        model.settle(settled)


def check(store: Store, model: Model) -> None:
    every = [key_of(n) for n in range(6)]

    async def main() -> None:
        for run, asset in product(RUNS, (None, "a", "b")):
            assert await store.audit(run, asset) == model.audit(run, asset)
        assert await store.get_unseen() == {key for sent in model.open.values() for key in sent.keys}
        assert await store.get(every) == model.answers
        assert await store.get_failures(every) == model.failures

    asyncio.run(main())


def agree(place: str, history: list[list[tuple[tuple[CallStarted, CallFinished], str]]]) -> None:
    """The store is closed and opened between groups, so that nothing of it is in memory only."""
    model = Model()
    called: set[bytes] = set()
    for group in history:
        once = [one for one in group if one[0][0].call not in called and not called.add(one[0][0].call)]
        with open_store(place) as store:
            asyncio.run(make_calls(store, model, once))
            check(store, model)
    with open_store(place) as store:
        check(store, model)


@settings(deadline=None, max_examples=60)
@given(histories)
def test_ledger_agrees_with_a_model(history: list[list[tuple[tuple[CallStarted, CallFinished], str]]]) -> None:
    """After any sequence of calls, audit, answers, failures and open calls equal those of a model in plain Python."""
    with tempfile.TemporaryDirectory() as folder:
        agree(f"{folder}/answers.db", history)


@settings(deadline=None, max_examples=25)
@given(histories)
def test_ledger_in_postgres_agrees_with_a_model(
    history: list[list[tuple[tuple[CallStarted, CallFinished], str]]],
) -> None:
    """The same on a server."""
    url = server().url()
    server().execute("DROP SCHEMA IF EXISTS ondine CASCADE", url)
    agree(url, history)


# -- money ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where no store has been yet."""
    return fresh_place(request.param, tmp_path)


def test_usd_is_the_sum_of_tokens_times_price(place: str) -> None:
    """Thousands of calls of less than a hundredth of a cent add up exactly, without a rounding error."""
    usages = [Usage(n % 7, n % 3, n % 5) for n in range(2000)]

    async def main(store: Store) -> None:
        async def one(usage: Usage) -> None:
            call = call_to()
            await store.send(call)
            await store.settle(CallFinished(call, "answered", usage, PRICE.cost(usage)))

        await asyncio.gather(*map(one, usages))
        line = (await store.audit("run-1")).answered
        assert line.usage == sum(usages, Usage())
        assert line.usd == PRICE.cost(line.usage)

    with open_store(place) as store:
        asyncio.run(main(store))


def test_price_finer_than_a_pico_dollar_is_rounded_once_a_call(place: str) -> None:
    """The cost of a call is rounded to the nearest pico-dollar, a bound upwards."""
    usd = Decimal("0.0000123456789012345")

    async def main(store: Store) -> None:
        for _ in range(10):
            call = call_to()
            await store.send(call)
            await store.settle(CallFinished(call, "answered", usd=usd))
        call = call_to()
        await store.send(CallStarted(call.call, call.origin, "m", "ask", (), 0.0, usd))
        audit = await store.audit("run-1")
        assert abs(audit.answered.usd - 10 * usd) <= 10 * Decimal("0.5e-12")
        assert usd <= audit.unknown.usd < usd + Decimal("1e-12")

    with open_store(place) as store:
        asyncio.run(main(store))


def test_calls_are_entered_under_the_day_they_were_sent(place: str) -> None:
    """The UTC date."""
    almost_midnight = 1_767_225_599.9

    async def main(store: Store) -> None:
        for sent_at in (almost_midnight, almost_midnight + 0.2):
            call = call_to()
            sent = CallStarted(call.call, call.origin, "m", "ask", (), sent_at)
            await store.send(sent)
            await store.settle(CallFinished(sent, "answered"))

    with open_store(place) as store:
        asyncio.run(main(store))
    assert sorted(look(place, "SELECT day FROM ondine.ledger")) == [("2025-12-31",), ("2026-01-01",)]


# -- real processes ------------------------------------------------------------------------------------------------

# Each line it writes is a call that was sent; the model's reply is a line it reads.
SENDER = """
import asyncio, os, sys
from decimal import Decimal
from ondine_core.store import open_store
from ondine_core.types.ledger import Origin, CallStarted, CallFinished
from ondine_core.types.values import Answer, Usage

async def main(place, workers):
    loop = asyncio.get_running_loop()
    replies = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(replies), sys.stdin)
    waiting = {}

    async def listen():
        while line := await replies.readline():
            waiting.pop(line.strip()).set_result(None)

    async def work(worker):
        while True:
            call = os.urandom(16)
            sent = CallStarted(call, Origin("run-1", "asset"), "m", "ask", (call,), 0.0, Decimal("0.001"))
            await store.send(sent)
            reply = waiting[call.hex().encode()] = loop.create_future()
            os.write(1, call.hex().encode() + b"\\n")
            await reply
            await store.settle(CallFinished(sent, "answered", Usage(1), Decimal("0.0005"), ((call, Answer({}, "m")),)))

    with open_store(place) as store:
        listening = asyncio.create_task(listen())
        await asyncio.gather(*map(work, range(workers)))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""
WORKERS = 8


def start(place: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SENDER, place, str(WORKERS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )


def audit(place: str) -> Audit:
    with open_store(place) as store:
        return asyncio.run(store.audit("run-1"))


@pytest.mark.parametrize("seed", range(3))
def test_ledger_is_exact_after_a_kill_with_calls_in_flight(seed: int, place: str) -> None:
    """After a kill with all calls in flight the ledger has the calls sent, answered and of unknown outcome."""
    rng = random.Random(seed)
    left, answered = 0, 0
    for _ in range(2):
        with start(place) as process:
            in_flight: list[bytes] = []
            for _ in range(rng.randrange(200)):
                in_flight.append(process.stdout.readline())
                left += 1
                if rng.random() < 0.8:
                    process.stdin.write(in_flight.pop(rng.randrange(len(in_flight))))
                    answered += 1
                if len(in_flight) == WORKERS:
                    process.stdin.write(in_flight.pop())
                    answered += 1
            while len(in_flight) < WORKERS:
                in_flight.append(process.stdout.readline())
                left += 1
            # Every worker waits for a reply, so each has settled its last call.
            os.kill(process.pid, signal.SIGKILL)
    ledger = audit(place)
    assert (ledger.sent, ledger.answered.calls, ledger.unknown.calls) == (left, answered, 2 * WORKERS)
    assert ledger.answered.usd == answered * Decimal("0.0005")
    assert ledger.unknown.usd == 2 * WORKERS * Decimal("0.001")


@pytest.mark.parametrize("seed", range(3))
def test_no_call_is_missing_after_a_kill_at_any_moment(seed: int, place: str) -> None:
    """No sent call is missing or duplicated; at most those about to be sent are recorded in addition."""
    rng = random.Random(seed)
    calls_left: Counter[bytes] = Counter()
    for _ in range(3):
        with start(place) as process:
            for _ in range(rng.randrange(1, 300)):
                line = process.stdout.readline()
                calls_left[line.strip()] += 1
                process.stdin.write(line)
            os.kill(process.pid, signal.SIGKILL)
            calls_left.update(line.strip() for line in process.stdout.read().splitlines(keepends=True) if b"\n" in line)
    ledger = audit(place)
    assert calls_left.total() <= ledger.sent <= calls_left.total() + 3 * WORKERS
    unseen = {call.hex().encode() for (call,) in look(place, "SELECT call FROM ondine.calls")}
    kept = {key.hex().encode() for (key,) in look(place, "SELECT key FROM ondine.answers")}
    assert not unseen & kept, "a call is settled with its answer or not at all"
    assert len(unseen | kept) == ledger.sent
    assert set(calls_left) <= unseen | kept
