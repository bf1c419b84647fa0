"""Server failures in the middle of a run: waited out or reported clearly, never paid for silently."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from itertools import count

import psycopg
import pytest

from ondine_core.errors import StoreError
from ondine_core.store import Store, open_store
from ondine_core.types.protocols import Numbers
from ondine_core.types.values import Answer
from tests.support.asking import ask, options, texts
from tests.support.ledger import call_to, keep, key_of, keys_in
from tests.support.postgres import server
from tests.support.provider import Effect, Provider, ReceivedRequest

TIMEOUT_S = 120.0
ANSWER = Answer({"text": "x"}, "m")
_guests = count()


@pytest.fixture
def url() -> str:
    """A database without a store."""
    return server().new_database()


def name_of(url: str) -> str:
    return url.rpartition("/")[2]


def new_user(url: str, options: str = "") -> tuple[str, str]:
    """A user without superuser rights who may create the schema, and the user's URL."""
    guest = f"visitor_{next(_guests)}"
    server().execute(f"CREATE USER {guest} PASSWORD 'guest' {options}")
    server().execute(f"GRANT CREATE ON DATABASE {name_of(url)} TO {guest}")
    return guest, f"postgresql://{guest}:guest@127.0.0.1:{server().port}/{name_of(url)}"


def cut_connections(url: str) -> None:
    server().execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name_of(url)}'"  # noqa: S608
    )


def add_one(numbers: Numbers | None) -> Numbers:
    return ((numbers or (0,))[0] + 1,)


async def write(store: Store, number: int = 1) -> None:
    await keep(store, (key_of(number), ANSWER))


def drop_schema(url: str) -> None:
    server().execute("DROP SCHEMA ondine CASCADE", url)


def replace_schema(url: str) -> None:
    drop_schema(url)
    with open_store(url):
        pass


def empty_tables(url: str) -> None:
    server().execute("TRUNCATE ondine.answers, ondine.numbers, ondine.calls, ondine.ledger, ondine.failures", url)


def replace_database(url: str) -> None:
    drop_database(url)
    server().execute(f"CREATE DATABASE {name_of(url)}")


def drop_database(url: str) -> None:
    server().execute(f"DROP DATABASE {name_of(url)} WITH (FORCE)")


# -- a store that was emptied --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_schema, "tables of the store were removed"),
        (replace_schema, "was emptied or replaced while this process used it"),
        (empty_tables, "was emptied or replaced while this process used it"),
        (replace_database, "tables of the store were removed"),
        (drop_database, "does not exist.*what it held is gone"),
    ],
)
def test_emptied_store_is_an_error_before_the_next_call(spoil: Callable[[str], None], message: str, url: str) -> None:
    """It says what happened and what it costs, and does not claim that the answers are safe."""

    async def main(store: Store) -> None:
        await write(store)
        spoil(url)
        with pytest.raises(StoreError, match=message) as caught:
            await store.send(call_to(key_of(2)))
        assert "safe" not in str(caught.value)
        with pytest.raises(StoreError):
            await store.update("n", add_one)

    with open_store(url, wait_timeout_s=0.5) as store:
        asyncio.run(main(store))


@pytest.mark.parametrize("spoil", [drop_schema, replace_schema])
def test_run_stops_when_its_store_is_emptied(spoil: Callable[[str], None], url: str) -> None:
    """Only calls in flight are still made: no answer is bought for a store that lost its contents."""
    asked = count(1)

    def fault(_: ReceivedRequest) -> Effect:
        if next(asked) == 20:
            spoil(url)
        return None

    with Provider(fault=fault) as provider:
        with pytest.raises(StoreError, match=r"removed|emptied"):
            ask(provider, texts(500), options(url))
        assert next(asked) <= 1 + 20 + 2 * 8


def test_store_that_a_newer_version_migrates_in_use_is_an_error_before_the_next_call(url: str) -> None:
    """It says to upgrade, and nothing is written into tables that this version does not know."""

    async def main(store: Store) -> None:
        await write(store)
        server().execute("UPDATE ondine.numbers SET numbers = '[99]' WHERE name = 'format'", url)
        with pytest.raises(StoreError, match=r"has format 99.*upgrade ondine-dagster"):
            await store.send(call_to(key_of(2)))
        with pytest.raises(StoreError, match="has format 99"):
            await store.update("n", add_one)

    with open_store(url) as store:
        asyncio.run(main(store))


def test_server_that_lost_confirmed_writes_is_an_error(url: str) -> None:
    """A replica behind the primary is noticed at the next write."""

    async def main(store: Store) -> None:
        await write(store, 1)
        await write(store, 2)
        server().execute("UPDATE ondine.numbers SET numbers = '[1, 0, 0]' WHERE name LIKE 'writer:%'", url)
        with pytest.raises(StoreError, match="has lost transactions that its server had confirmed"):
            await write(store, 3)

    with open_store(url) as store:
        asyncio.run(main(store))


def test_pruned_mark_of_a_writer_is_no_error(url: str) -> None:
    """Another process may remove the mark of a writer that was silent for long."""

    async def main(store: Store) -> None:
        await write(store, 1)
        server().execute("DELETE FROM ondine.numbers WHERE name LIKE 'writer:%'", url)
        await write(store, 2)

    with open_store(url) as store:
        asyncio.run(main(store))
    assert keys_in(url) == {key_of(1), key_of(2)}


# -- a server that refuses for a while -----------------------------------------------------------------------------


def make_read_only(url: str, guest: str) -> Callable[[], object]:
    server().execute(f"ALTER USER {guest} SET default_transaction_read_only = on")
    return lambda: server().execute(f"ALTER USER {guest} SET default_transaction_read_only = off", url)


def change_password(url: str, guest: str) -> Callable[[], object]:
    server().execute(f"ALTER USER {guest} PASSWORD 'other'")
    return lambda: server().execute(f"ALTER USER {guest} PASSWORD 'guest'", url)


def refuse_connections(url: str, guest: str) -> Callable[[], object]:
    server().execute(f"ALTER USER {guest} CONNECTION LIMIT 0")
    return lambda: server().execute(f"ALTER USER {guest} CONNECTION LIMIT -1", url)


REFUSALS = [
    pytest.param(make_read_only, "takes no writes", id="read-only"),
    pytest.param(change_password, "password authentication failed", id="password"),
    pytest.param(refuse_connections, "All connections of the server or pooler are taken", id="connections"),
]


@pytest.mark.parametrize(("refuse", "message"), REFUSALS)
def test_temporary_refusal_is_waited_out(
    refuse: Callable[[str, str], Callable[[], object]], message: str, url: str
) -> None:
    """Read-only during a failover, a password rotation, no free connection: the run continues afterwards."""
    del message
    guest, address = new_user(url)

    async def main(store: Store) -> None:
        await write(store, 1)
        relent = refuse(url, guest)
        cut_connections(url)
        waiting = asyncio.create_task(write(store, 2))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.3)
        await asyncio.to_thread(relent)
        await waiting

    with open_store(address) as store:
        asyncio.run(main(store))
    assert keys_in(url) == {key_of(1), key_of(2)}


@pytest.mark.parametrize(("refuse", "message"), REFUSALS)
def test_lasting_refusal_is_an_error(
    refuse: Callable[[str, str], Callable[[], object]], message: str, url: str
) -> None:
    """After `wait_timeout_s` it says what the server refuses; nothing is half written, and the store recovers."""
    guest, address = new_user(url)

    async def main(store: Store) -> None:
        await write(store, 1)
        relent = refuse(url, guest)
        cut_connections(url)
        with pytest.raises(StoreError, match=message):
            await write(store, 2)
        relent()
        await write(store, 3)

    with open_store(address, wait_timeout_s=0.5) as store:
        asyncio.run(main(store))
    assert keys_in(url) == {key_of(1), key_of(3)}


def test_too_many_clients_are_waited_for_when_a_store_opens(url: str) -> None:
    """A store opens when a connection is free, or says after the time-out what is used up."""
    _, address = new_user(url, "CONNECTION LIMIT 1")
    with open_store(address), pytest.raises(StoreError, match="All connections of the server or pooler are taken"):
        Store(address, wait_timeout_s=0.3)
    first = Store(address)
    timer = threading.Timer(0.3, first.close)
    timer.start()
    with open_store(address) as store:
        asyncio.run(write(store))
    timer.join()


# -- lasting errors ------------------------------------------------------------------------------------------------


def test_revoked_permission_ends_the_run_with_the_reason(url: str) -> None:
    """A right that is revoked in the middle of a run ends it with the reason."""
    guest, _ = new_user(url)
    address = f"postgresql://{guest}:guest@127.0.0.1:{server().port}/{name_of(url)}"
    with open_store(url):
        pass
    server().execute(f"GRANT USAGE ON SCHEMA ondine TO {guest}", url)
    server().execute(f"GRANT ALL ON ALL TABLES IN SCHEMA ondine TO {guest}", url)

    async def main(store: Store) -> None:
        await write(store, 1)
        server().execute(f"REVOKE INSERT ON ondine.calls FROM {guest}", url)
        with pytest.raises(StoreError, match=r"permission denied for table calls.*Let this user"):
            await write(store, 2)

    with open_store(address) as store:
        asyncio.run(main(store))


def test_full_disk_is_an_error_and_later_writes_succeed(url: str) -> None:
    """The failed write leaves nothing behind."""
    failing = """
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$"""

    async def main(store: Store) -> None:
        call = call_to(key_of(1))
        await store.send(call)
        server().execute(failing, url)
        server().execute("CREATE TRIGGER full_disk BEFORE INSERT ON ondine.answers EXECUTE FUNCTION fail()", url)
        with pytest.raises(StoreError, match=r"No space left.*Free some space"):
            await write(store, 2)
        server().execute("DROP TRIGGER full_disk ON ondine.answers", url)
        await write(store, 3)
        assert (await store.audit("run-1")).answered.calls == 1

    with open_store(url) as store:
        asyncio.run(main(store))


# -- a server that hangs -------------------------------------------------------------------------------------------


def test_frozen_connection_is_replaced_and_its_work_done_once(url: str) -> None:
    """A connection that never answers is cut; what the server executes later takes no effect twice."""

    async def main(store: Store) -> None:
        assert await store.update("n", add_one) == (1,)
        [(pid,)] = server().execute(
            f"SELECT pid FROM pg_stat_activity WHERE datname = '{name_of(url)}' AND application_name = 'ondine'"  # noqa: S608
        )
        os.kill(pid, signal.SIGSTOP)
        try:
            assert await store.update("n", add_one) == (2,)
        finally:
            os.kill(pid, signal.SIGCONT)
        while server().execute(f"SELECT FROM pg_stat_activity WHERE pid = {pid}"):
            pass  # until what it had received is carried out
        assert await store.update("n", add_one) == (3,)

    with open_store(url, wait_timeout_s=0.5) as store:
        asyncio.run(main(store))


def test_concurrent_changes_of_one_number_lose_no_step(url: str) -> None:
    """Numbers that others change meanwhile are read again: no step is lost or done twice."""
    stores = [Store(url) for _ in range(3)]

    async def main() -> None:
        async def worker(store: Store) -> None:
            for _ in range(30):
                await store.update("n", add_one)

        await asyncio.gather(*(worker(store) for store in stores for _ in range(4)))
        assert await stores[0].update("n", lambda numbers: numbers or ()) == (360,)

    asyncio.run(main())
    for store in stores:
        store.close()


def test_waiting_for_a_lock_is_not_a_broken_connection(url: str) -> None:
    """A lock that another client holds for less than `wait_timeout_s` is waited for."""

    async def main(store: Store) -> None:
        await store.update("n", add_one)
        with psycopg.connect(url) as other:
            other.execute("SELECT * FROM ondine.numbers WHERE name = 'n' FOR UPDATE")
            waiting = asyncio.create_task(store.update("n", add_one))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waiting), 0.3)
        assert await waiting == (2,)

    with open_store(url, wait_timeout_s=20.0) as store:
        asyncio.run(main(store))
