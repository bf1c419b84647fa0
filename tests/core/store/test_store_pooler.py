"""A store behind a real PgBouncer, in each of its modes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from decimal import Decimal

import psycopg
import pytest

from ondine_core.errors import StoreError
from ondine_core.store import Store, open_store
from ondine_core.types.ledger import CallFinished
from ondine_core.types.protocols import Numbers
from ondine_core.types.values import Answer, Usage
from tests.support.ledger import call_to, key_of, keys_in
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres import server

pytestmark = pytest.mark.slow
TIMEOUT_S = 120.0
ANSWER = Answer({"text": "x"}, "m")


@pytest.fixture
def url() -> str:
    """A database without a store."""
    return server().new_database()


@pytest.fixture(scope="module")
def pooler() -> Iterator[int]:
    """The port of a pooler in transaction mode."""
    with pgbouncer("transaction") as port:
        yield port


def through(port: int, url: str) -> str:
    return url.replace(f":{server().port}/", f":{port}/")


def add_one(numbers: Numbers | None) -> Numbers:
    return ((numbers or (0,))[0] + 1,)


async def work(store: Store, first: int, calls: int = 25) -> None:
    for number in range(first, first + calls):
        call = call_to(key_of(number))
        await store.send(call)
        await store.update("n", add_one)
        await store.settle(
            CallFinished(call, "answered", Usage(10, 0, 1), Decimal("0.000003"), ((key_of(number), ANSWER),))
        )


async def work_concurrently(store: Store, first: int) -> None:
    await asyncio.gather(*(work(store, first + 100 * lane) for lane in range(4)))


def run_clients(address: str, clients: int = 6) -> list[BaseException]:
    """Let the stores of several processes work concurrently; returns the errors they raised."""
    errors: list[BaseException] = []

    def client(number: int) -> None:
        try:
            with open_store(address) as store:
                asyncio.run(work_concurrently(store, 1000 * number))
        except BaseException as error:  # noqa: BLE001  (the test looks at it)
            errors.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_more_clients_than_sessions_lose_nothing(mode: str, url: str) -> None:
    """Stores that share fewer server sessions keep every answer and count every call once."""
    with pgbouncer(mode, default_pool_size=3 if mode == "transaction" else 10) as port:
        assert run_clients(through(port, url)) == []
    with open_store(url) as store:
        assert asyncio.run(store.update("n", lambda numbers: numbers or ())) == (600,)
        audit = asyncio.run(store.audit("run-1"))
    assert (audit.answered.calls, audit.unknown.calls) == (600, 0)
    assert len(keys_in(url)) == 600


def test_pooled_session_is_left_clean(pooler: int, url: str) -> None:
    """After use it has no settings, prepared statements or locks of the store."""
    address = through(pooler, url)
    looks = (
        "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name NOT IN ('application_name')",
        "SELECT name FROM pg_prepared_statements",
        "SELECT name FROM pg_cursors",
        "SELECT locktype FROM pg_locks WHERE locktype = 'advisory'",
    )
    with psycopg.connect(address, autocommit=True, prepare_threshold=None) as other:
        before = [other.execute(look).fetchall() for look in looks]  # type: ignore[arg-type]
    assert run_clients(address, 3) == []
    connections = [psycopg.connect(address, autocommit=True, prepare_threshold=None) for _ in range(3)]
    for connection in connections:
        connection.execute("BEGIN")  # so that each has a server session of its own
    for connection in connections:
        after = [connection.execute(look).fetchall() for look in looks]  # type: ignore[arg-type]
        assert after == before
        assert connection.execute("SHOW lock_timeout").fetchall() == [("0",)]
        connection.close()


def test_failed_transaction_leaves_the_session_clean(pooler: int, url: str) -> None:
    """After a step that raises and after a lock time-out, and the store continues."""

    async def main(store: Store) -> None:
        await store.update("n", add_one)
        with pytest.raises(ZeroDivisionError):
            await store.update("n", lambda _: (1 / 0,))
        with psycopg.connect(url) as other:
            other.execute("SELECT * FROM ondine.numbers WHERE name = 'n' FOR UPDATE")
            with pytest.raises(StoreError, match="Another process has held the lock"):
                await store.update("n", add_one)
        assert await store.update("n", add_one) == (2,)

    with open_store(through(pooler, url), wait_timeout_s=0.5) as store:
        asyncio.run(main(store))
    with psycopg.connect(through(pooler, url), autocommit=True, prepare_threshold=None) as other:
        assert other.execute("SHOW lock_timeout").fetchall() == [("0",)]


def test_statement_mode_is_refused_with_the_remedy(url: str) -> None:
    """A pooler in statement mode is refused when the store opens."""
    with pgbouncer("statement") as port, pytest.raises(StoreError, match="set pool_mode to transaction or session"):
        Store(through(port, url), wait_timeout_s=20)


def test_setting_that_the_pooler_refuses_is_named(pooler: int, url: str) -> None:
    """By default no startup parameter is sent that a pooler refuses; one in the URL is an error with the fix."""
    with open_store(through(pooler, url)):
        pass
    with pytest.raises(StoreError, match="Leave `options` and other settings out of the URL"):
        Store(through(pooler, url) + "?options=-c%20statement_timeout%3D5000", wait_timeout_s=20)


def test_full_pooler_is_waited_for_then_an_error(url: str) -> None:
    """After the wait time-out the message says what is used up."""
    with pgbouncer("transaction", max_client_conn=1) as port:
        address = through(port, url)
        with open_store(address), pytest.raises(StoreError, match="All connections of the server or pooler are taken"):
            Store(address, wait_timeout_s=0.5)
        first = Store(address)
        timer = threading.Timer(0.5, first.close)
        timer.start()
        with open_store(address) as store:
            asyncio.run(work(store, 0, 1))
        timer.join()
