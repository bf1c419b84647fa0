"""The behaviour of stores, on SQLite and on a real Postgres."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.errors import StoreError
from ondine_core.store import Store, open_store
from ondine_core.store.connect import connect
from ondine_core.types.ledger import CallFinished
from ondine_core.types.protocols import Numbers
from ondine_core.types.values import Answer, Failure, Usage
from tests.support.ledger import KINDS, call_to, fresh_place, keep, key_of, keys_in, look

TIMEOUT_S = 30.0


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where no store has been yet."""
    return fresh_place(request.param, tmp_path)


# -- formats -------------------------------------------------------------------------------------------------------


def test_store_of_format_5_is_migrated(place: str) -> None:
    """Its answers and failures stay, of unknown origin; new ones have theirs."""

    async def fill(store: Store) -> None:
        await keep(store, (key_of(1), Answer({"n": 1}, "m")))
        failures = ((key_of(9), Failure("refused", "no")),)
        await store.settle(CallFinished(call_to(key_of(9)), "refused", failures=failures))

    with open_store(place) as store:
        asyncio.run(fill(store))
    database = connect(place)
    for table in ("origins", "definitions", "replies", "jobs", "job_waits"):
        database.write(partial(database.run, f"DROP TABLE ondine.{table}"))
    database.write(partial(database.run, "ALTER TABLE ondine.calls DROP COLUMN batch"))
    for table in ("answers", "failures"):
        database.write(partial(database.run, f"ALTER TABLE ondine.{table} DROP COLUMN origin"))
    database.write(lambda: database.write_format(5))
    database.close()
    with open_store(place) as store:
        assert asyncio.run(store.get([key_of(1)])) == {key_of(1): Answer({"n": 1}, "m")}
        assert asyncio.run(store.get_failures([key_of(9)])) == {key_of(9): Failure("refused", "no")}
        asyncio.run(keep(store, (key_of(2), Answer({"n": 2}, "m"))))
    origins = dict(look(place, "SELECT key, origin FROM ondine.answers"))
    assert origins[key_of(1)] is None
    assert origins[key_of(2)] is not None


# -- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        Answer({"text": "ünï 🙂\n\0", "list": [1, None, {"a": 2.5}], "none": None}, "openai/m"),
        Answer({"n": 1}, "openai/m", 3, 20, Decimal("0.0000000000000000000000001"), "req-1", 1_700_000_000.123456),
        Answer({}, "", cost_usd=Decimal(0)),
        Answer({"n": 10**30, "text": "\udcff"}, "openai/m"),
    ],
)
def test_answer_is_read_as_it_was_stored(answer: Answer, place: str) -> None:
    """Values, exact cost and provenance are unchanged, and a later answer replaces an earlier one."""

    async def main(store: Store) -> None:
        await keep(store, (key_of(1), Answer({"other": 1}, "other")))
        await keep(store, (key_of(1), answer), (key_of(2), answer))

    with open_store(place) as store:
        asyncio.run(main(store))
    with open_store(place) as store:
        assert asyncio.run(store.get([key_of(n) for n in (2, 1, 3)])) == {key_of(1): answer, key_of(2): answer}


def test_text_that_a_database_refuses_is_escaped(place: str) -> None:
    """An odd header or name does not lose the answer; it is stored and found in a readable form."""
    odd = "a\udcff\0"

    async def main(store: Store) -> None:
        sent = call_to(key_of(1), key_of(2))
        answers, failures = ((key_of(1), Answer({}, "m", request_id=odd)),), ((key_of(2), Failure("invalid", odd)),)
        await store.send(sent)
        await store.settle(CallFinished(sent, "answered", answers=answers, failures=failures))
        assert (await store.get([key_of(1)]))[key_of(1)].request_id == "a\\udcff\\0"
        assert (await store.get_failures([key_of(2)]))[key_of(2)].detail == "a\\udcff\\0"

    with open_store(place) as store:
        asyncio.run(main(store))


def test_look_up_of_any_size_is_answered(place: str) -> None:
    """No key, or more keys than a query can have."""
    keys = [key_of(number) for number in range(5000)]

    async def main(store: Store) -> None:
        assert await store.get([]) == await store.get_failures([]) == {}
        await keep(store)
        await keep(store, *((key, Answer({"n": n}, "m")) for n, key in enumerate(keys[::2])))
        found = await store.get(keys)
        assert [found[key].values["n"] if key in found else None for key in keys[:4]] == [0, None, 1, None]
        assert len(found) == 2500

    with open_store(place) as store:
        asyncio.run(main(store))


def test_settle_returns_when_the_answer_is_durable(place: str) -> None:
    """After settle returns another connection sees the answer."""

    async def main(store: Store) -> None:
        for number in range(10):
            await keep(store, (key_of(number), Answer({"n": number}, "m")))
            assert key_of(number) in keys_in(place)

    with open_store(place) as store:
        asyncio.run(main(store))


def test_send_returns_when_the_call_is_recorded(place: str) -> None:
    """After send returns another connection sees the call."""

    async def main(store: Store) -> None:
        sent = call_to(key_of(1), key_of(2))
        await store.send(sent)
        assert look(place, "SELECT call, keys FROM ondine.calls") == [(sent.call, key_of(1) + key_of(2))]
        assert await store.get_unseen() == {key_of(1), key_of(2)}

    with open_store(place) as store:
        asyncio.run(main(store))


def test_cancelled_settle_is_kept(place: str) -> None:
    """An answer whose caller is cancelled while it waits is stored, since it was paid; others are not affected."""

    async def main() -> None:
        with open_store(place) as store:
            calls = [call_to(key_of(n)) for n in range(50)]
            for call in calls:
                await store.send(call)
            settled = [CallFinished(call, "answered", answers=((call.keys[0], Answer({}, "m")),)) for call in calls]
            tasks = [asyncio.create_task(store.settle(one)) for one in settled]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
            assert results[1::2] == [None] * 25
            assert len(await store.get([key_of(n) for n in range(50)])) == 50

    asyncio.run(main())


# -- failures ------------------------------------------------------------------------------------------------------

ANSWER, OTHER, FAILURE = Answer({"n": 1}, "m"), Answer({"n": 2}, "m"), Failure("invalid", "no JSON")


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("outcomes", "left"),
    [
        ([FAILURE], FAILURE),
        ([Failure("refused", "x"), FAILURE], FAILURE),
        ([FAILURE, ANSWER], ANSWER),
        ([ANSWER, FAILURE], ANSWER),
        ([ANSWER, OTHER], OTHER),
    ],
)
def test_answer_takes_precedence_over_a_failure(
    outcomes: list[Answer | Failure], left: object, together: bool, place: str
) -> None:
    """An answer replaces a failure, never the reverse; of two of a kind the later counts; in one commit or several."""
    key = key_of(1)

    def settled(outcome: Answer | Failure) -> CallFinished:
        if isinstance(outcome, Answer):
            return CallFinished(call_to(key), "answered", answers=((key, outcome),))
        return CallFinished(call_to(key), "answered", failures=((key, outcome),))

    async def main(store: Store) -> None:
        if together:
            await asyncio.gather(*(store.settle(settled(outcome)) for outcome in outcomes))
        else:
            for outcome in outcomes:
                await store.settle(settled(outcome))
        assert {**await store.get([key]), **await store.get_failures([key])} == {key: left}

    with open_store(place) as store:
        asyncio.run(main(store))


# -- numbers -------------------------------------------------------------------------------------------------------


def test_steps_on_one_name_in_one_commit_follow_one_another(place: str) -> None:
    """Steps on another name do not affect them."""

    def add(numbers: Numbers | None) -> Numbers:
        return ((numbers or (0,))[0] + 1,)

    async def main(store: Store) -> None:
        results = await asyncio.gather(*(store.update(f"n{n % 2}", add) for n in range(100)))
        assert sorted(results) == sorted([(n,) for n in range(1, 51)] * 2)
        assert await store.update("n0", lambda numbers: numbers or ()) == (50,)

    with open_store(place) as store:
        asyncio.run(main(store))


@pytest.mark.parametrize(
    "bad",
    [lambda _: 1 / 0, lambda _: (float("nan"),), lambda _: (2.0**63, 2**64), lambda _: "x", lambda _: next(iter(()))],
)
def test_step_that_fails_fails_its_own_caller_only(bad: object, place: str) -> None:
    """A step that raises or returns invalid numbers changes nothing; others in its commit succeed."""

    async def main(store: Store) -> None:
        await store.update("n", lambda _: (7.0,))
        failed, kept, sent = await asyncio.gather(
            store.update("n", bad),
            store.update("n", lambda numbers: (*numbers, 8.0)),
            store.send(call_to(key_of(1))),
            return_exceptions=True,
        )
        assert isinstance(failed, (ArithmeticError, TypeError, ValueError, RuntimeError))
        assert (kept, sent) == ((7.0, 8.0), None)

    with open_store(place) as store:
        asyncio.run(main(store))


def test_usage_beyond_64_bits_fails_its_own_caller_only(place: str) -> None:
    """Other answers of the commit are stored."""

    async def main(store: Store) -> None:
        absurd = CallFinished(call_to(key_of(1)), "answered", Usage(2**70))
        dear = call_to(key_of(1))._replace(at_most_usd=Decimal("1e9"))
        kept, *failed = await asyncio.gather(
            keep(store, (key_of(2), ANSWER)), store.settle(absurd), store.send(dear), return_exceptions=True
        )
        assert [type(error) for error in failed] == [StoreError] * 2
        assert kept is None

    with open_store(place) as store:
        asyncio.run(main(store))
    assert keys_in(place) == {key_of(2)}


# -- one thread, any number of event loops -------------------------------------------------------------------------


def commits(place: str) -> int:
    """The number of transactions, as counted by the single writer that marks them."""
    marks = look(place, "SELECT numbers FROM ondine.numbers WHERE name LIKE 'writer:%%'")
    return max(json.loads(numbers)[0] for (numbers,) in marks)


def test_many_callers_share_a_commit(tmp_path: Path) -> None:
    """Ten thousand concurrent calls are settled in a few transactions."""
    place = fresh_place("postgres", tmp_path)  # where they can be counted

    async def main(store: Store) -> None:
        before = commits(place)
        await asyncio.gather(*(keep(store, (key_of(n), Answer({"n": n}, "m"))) for n in range(10_000)))
        assert 1 <= commits(place) - before <= 100

    with open_store(place) as store:
        asyncio.run(keep(store))
        asyncio.run(main(store))
    assert len(keys_in(place)) == 10_000


def test_close_writes_pending_answers(place: str) -> None:
    """Answers handed over before are written, and none after."""

    async def main() -> None:
        store = Store(place)
        call = call_to(key_of(1))
        settling = asyncio.create_task(store.settle(CallFinished(call, "answered", answers=((key_of(1), ANSWER),))))
        await asyncio.sleep(0)
        store.close()
        await settling
        store.close()
        with pytest.raises(StoreError, match="closed"):
            await store.get([key_of(1)])

    asyncio.run(main())
    assert keys_in(place) == {key_of(1)}


def test_another_thread_may_close_a_store_in_use(place: str) -> None:
    """Writes that wait for the event loop's next turn are carried out before the store ends, and it does end."""

    async def main() -> None:
        store, is_free = Store(place), threading.Event()
        reading = asyncio.ensure_future(store.read(lambda _: is_free.wait(10)))
        await asyncio.sleep(0)
        finished = CallFinished(call_to(key_of(1)), "answered", answers=((key_of(1), ANSWER),))
        settling = asyncio.create_task(store.settle(finished))
        await asyncio.sleep(0)
        closing = threading.Thread(target=store.close, daemon=True)
        closing.start()
        time.sleep(0.1)  # noqa: ASYNC251  (the event loop comes to the write after that)
        await asyncio.sleep(0)
        is_free.set()
        await asyncio.gather(reading, settling)
        closing.join(10)
        assert not closing.is_alive()

    asyncio.run(main())
    assert keys_in(place) == {key_of(1)}


class Hanging(list[bytes]):
    """Keys whose look-up blocks until it is released."""

    def __init__(self, *keys: bytes) -> None:
        super().__init__(keys)
        self.busy, self.go_on = threading.Event(), threading.Event()

    def __len__(self) -> int:
        self.busy.set()
        self.go_on.wait(TIMEOUT_S)
        return super().__len__()


def test_event_loop_does_not_write_while_the_thread_uses_the_database(place: str) -> None:
    """Even a small write waits for the work that the store's thread has begun."""
    keys = Hanging(key_of(9))

    async def main(store: Store) -> None:
        look_up = asyncio.create_task(store.get(keys))
        await asyncio.to_thread(keys.busy.wait, TIMEOUT_S)
        update = asyncio.create_task(store.update("rate", lambda _: (1.0,)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not update.done()
        keys.go_on.set()
        assert (await look_up, await update) == ({}, (1.0,))

    with open_store(place) as store:
        asyncio.run(main(store))


def stop_while_busy(store: Store) -> None:
    """An event loop that is shut down while a settlement waits behind other work of the store's thread."""
    keys = Hanging(key_of(9))

    async def main() -> None:
        look_up = asyncio.create_task(store.get(keys))
        await asyncio.to_thread(keys.busy.wait, TIMEOUT_S)
        settle = asyncio.create_task(
            store.settle(CallFinished(call_to(key_of(1)), "answered", answers=((key_of(1), ANSWER),)))
        )
        for _ in range(5):
            await asyncio.sleep(0)
        look_up.cancel()
        settle.cancel()

    asyncio.run(main())
    keys.go_on.set()


def test_answer_survives_the_end_of_its_event_loop(place: str) -> None:
    """An answer that waits for its write when the event loop is shut down is written."""
    with open_store(place) as store:
        stop_while_busy(store)
    assert keys_in(place) == {key_of(1)}


def test_store_works_on_after_an_event_loop_was_stopped(place: str) -> None:
    """A store shared by two runs serves the second after the first was stopped in the middle."""
    with open_store(place) as store:
        stop_while_busy(store)
        asyncio.run(asyncio.wait_for(keep(store, (key_of(2), ANSWER)), TIMEOUT_S))
    assert key_of(2) in keys_in(place)


def test_one_store_serves_several_event_loops_at_once(place: str) -> None:
    """Each caller gets its own answer, with an event loop in each of several threads."""

    async def main(store: Store, first: int) -> None:
        await asyncio.gather(*(keep(store, (key_of(first + n), Answer({"n": first + n}, "m"))) for n in range(100)))
        found = await asyncio.gather(*(store.get([key_of(first + n)]) for n in range(100)))
        assert [one[key_of(first + n)].values for n, one in enumerate(found)] == [{"n": first + n} for n in range(100)]

    failed: list[BaseException] = []

    def run(store: Store, first: int) -> None:
        try:
            asyncio.run(main(store, first))
        except BaseException as error:  # noqa: BLE001  (asserted below)
            failed.append(error)

    with open_store(place) as store:
        threads = [threading.Thread(target=run, args=(store, 1000 * n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    assert len(keys_in(place)) == 400


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_writes_take_effect_in_order(sizes: list[int]) -> None:
    """However many entries gather and whichever thread writes them."""

    def then(number: int) -> Callable[[Numbers | None], Numbers]:
        return lambda before: (*(before or ()), float(number))

    async def main(store: Store) -> Numbers:
        numbers, asked = itertools.count(), list[asyncio.Task[Numbers]]()
        for size in sizes:
            asked += [asyncio.create_task(store.update("order", then(next(numbers)))) for _ in range(size)]
            await asyncio.sleep(0)
        return (await asyncio.gather(*asked))[-1]

    with open_store(":memory:") as store:
        assert asyncio.run(main(store)) == tuple(range(sum(sizes)))
