"""Failures of a store in Postgres, on a real server: stopped, restarted, unreachable, shared, refusing."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal

import pytest

from ondine_core.errors import ConfigError, OndineError, StoreError
from ondine_core.store import Store, open_store
from ondine_core.store.postgres import PostgresDatabase
from ondine_core.store.schema import migrate
from ondine_core.types.ledger import CallFinished, Origin, RunStarted
from ondine_core.types.protocols import Numbers
from ondine_core.types.values import Answer, Usage
from tests.support.latency import LatencyProxy, latency_proxy
from tests.support.ledger import ORIGIN, call_to, keep, key_of, keys_in
from tests.support.postgres import PASSWORD, USER, server

TIMEOUT_S = 60.0
ANSWER = Answer({"text": "x"}, "m")


@pytest.fixture
def url() -> str:
    """A database without a store."""
    return server().new_database()


def add_one(numbers: Numbers | None) -> Numbers:
    return ((numbers or (0,))[0] + 1,)


async def make_call(store: Store, number: int) -> None:
    call = call_to(key_of(number))
    await store.send(call)
    answers = ((key_of(number), ANSWER),)
    await store.settle(CallFinished(call, "answered", Usage(10, 0, 1), Decimal("0.000003"), answers))


# -- a connection that breaks --------------------------------------------------------------------------------------


def test_every_transaction_takes_effect_once_however_often_the_connection_breaks(url: str) -> None:
    """While another client keeps cutting connections, every call is counted and every step done once."""
    done = threading.Event()

    def cut() -> None:
        name = url.rpartition("/")[2]
        while not done.wait(0.01):
            server().execute(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' "  # noqa: S608
                "AND application_name = 'ondine'"
            )

    async def main(store: Store) -> None:
        async def work(first: int) -> None:
            for number in range(first, first + 40):
                await make_call(store, number)
                await store.update("n", add_one)

        await asyncio.gather(*(work(1000 * worker) for worker in range(8)))

    with open_store(url) as store:
        cutting = threading.Thread(target=cut)
        cutting.start()
        try:
            asyncio.run(main(store))
        finally:
            done.set()
            cutting.join()
        assert asyncio.run(store.update("n", lambda numbers: numbers or ())) == (320,)
        audit = asyncio.run(store.audit("run-1"))
    assert (audit.answered.calls, audit.unknown.calls) == (320, 0)
    assert audit.answered.usd == 320 * Decimal("0.000003")
    assert keys_in(url) == {key_of(1000 * worker + n) for worker in range(8) for n in range(40)}


class CutProxy:
    """A TCP proxy that cuts the connection at some COMMITs, before they are forwarded or after.

    Args:
        breaks: At which COMMITs, counted from 0 from when `live` is set.
        when: `"before"` or `"after"` the server has carried it out.
    """

    def __init__(self, breaks: set[int], when: str) -> None:
        self._breaks, self._when = breaks, when
        self.commits, self.live = -1, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", server().port))
                cut = threading.Event()
                for way in ((client, far, True), (far, client, False)):
                    threading.Thread(target=self._carry, args=(*way, cut), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket, outward: bool, cut: threading.Event) -> None:
        try:
            while data := near.recv(65536):
                if outward and self.live and b"COMMIT" in data:
                    self.commits += 1
                    if self.commits in self._breaks:
                        cut.set()
                        if self._when == "before":
                            return
                elif not outward and cut.is_set():
                    return
                far.sendall(data)
        except OSError:
            return
        finally:
            for end in (near, far):
                # Not only closed: the other direction still listens.
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_transaction_without_a_seen_commit_takes_effect_once(url: str, when: str) -> None:
    """If the connection breaks just before or after a commit, each step is done once and reported right."""
    cable = CutProxy({1, 2, 4}, when)

    async def main(store: Store) -> None:
        cable.live = True
        assert [await store.update("n", add_one) for _ in range(4)] == [(1,), (2,), (3,), (4,)]
        await make_call(store, 1)
        assert (await store.audit("run-1")).answered.calls == 1

    with open_store(url):
        pass
    with open_store(url.replace(str(server().port), str(cable.port))) as store:
        asyncio.run(main(store))
    cable.close()
    assert cable.commits >= 5


def test_restart_of_the_server_is_waited_out(url: str) -> None:
    """A server crash and restart in the middle of a run cost only time."""

    async def main(store: Store) -> None:
        under_way = asyncio.Event()

        async def work(first: int) -> None:
            for number in range(first, first + 100):
                await make_call(store, number)
                await store.update("n", add_one)
                under_way.set()

        working = asyncio.gather(*(work(1000 * worker) for worker in range(4)))
        await under_way.wait()
        await asyncio.to_thread(server().stop)
        await asyncio.to_thread(server().start)
        await working
        assert await store.update("n", add_one) == (401,)
        audit = await store.audit("run-1")
        assert (audit.answered.calls, audit.unknown.calls) == (400, 0)

    with open_store(url) as store:
        asyncio.run(main(store))


def test_starting_server_is_waited_for(url: str) -> None:
    """A store opens once its server does, if both are started together."""
    with ThreadPoolExecutor() as pool:
        server().stop()
        try:
            opening = pool.submit(Store, url)
            with pytest.raises(TimeoutError):
                opening.result(timeout=0.5)
        finally:
            server().start()
        opening.result(timeout=10).close()


def test_unreachable_server_is_an_error_and_nothing_is_half_written(url: str) -> None:
    """After `wait_timeout_s` it names server and database; once the server is back the store works again."""

    async def main(store: Store) -> None:
        await make_call(store, 1)
        server().stop()
        try:
            with pytest.raises(StoreError) as caught:
                await make_call(store, 2)
            with pytest.raises(StoreError):
                await store.get([key_of(1)])
        finally:
            server().start()
        place = f"postgresql://127.0.0.1:{server().port}/{url.rpartition('/')[2]}"
        assert place in str(caught.value)
        assert "Check that the server runs" in str(caught.value)
        assert_no_password(caught.value)
        assert (await store.audit("run-1")).sent == 1
        await make_call(store, 3)

    with open_store(url, wait_timeout_s=0.2) as store:
        asyncio.run(main(store))
    with open_store(url) as store:
        assert asyncio.run(store.audit("run-1")).sent == 2
    assert keys_in(url) == {key_of(1), key_of(3)}


def test_lock_of_another_process_times_out(url: str) -> None:
    """After `wait_timeout_s` it is a StoreError; other names are not delayed."""
    import psycopg

    async def main(store: Store) -> None:
        await store.update("n", add_one)
        with psycopg.connect(url) as other:
            other.execute("SELECT * FROM ondine.numbers WHERE name = 'n' FOR UPDATE")
            with pytest.raises(StoreError, match=r"lock.*stop that one, or wait"):
                await store.update("n", add_one)
            assert await store.update("m", add_one) == (1,)
        assert await store.update("n", add_one) == (2,)

    with open_store(url, wait_timeout_s=0.1) as store:
        asyncio.run(main(store))


def test_a_transaction_is_one_round_trip(url: str) -> None:
    """Calls, answers and changed numbers are one round trip together, so a distant server delays a commit once."""

    async def main(store: Store, proxy: LatencyProxy) -> None:
        await make_call(store, 0)
        for _ in range(2):
            await store.update("n", add_one)  # from the third on, the process knows its numbers
        before = proxy.round_trips
        for number in range(1, 11):
            await make_call(store, number)
            await store.update("n", add_one)
        assert proxy.round_trips - before == 30
        assert await store.update("n", lambda numbers: numbers or ()) == (12,)

    with (
        latency_proxy(server().port, 0.001) as proxy,
        open_store(url.replace(str(server().port), str(proxy.port))) as store,
    ):
        asyncio.run(main(store, proxy))


def test_run_begins_and_ends_with_few_round_trips(url: str) -> None:
    """Two to check an existing store, one to announce a run, and one to read its ledger."""
    with open_store(url):
        pass
    with latency_proxy(server().port, 0.001) as proxy:
        near = url.replace(str(server().port), str(proxy.port))
        database = PostgresDatabase(near, wait_timeout_s=30.0)
        before = proxy.round_trips
        migrate(database)
        assert proxy.round_trips - before == 2
        database.close()
        with open_store(near) as store:
            before = proxy.round_trips
            assert asyncio.run(store.join(RunStarted(b"run-0001", b"question", (1.0, 2.0)))) == {}
            assert asyncio.run(store.audit("run-1")).sent == 0
            assert proxy.round_trips - before == 2


def test_call_that_was_counted_is_not_counted_again(url: str) -> None:
    """A call is assumed to be recorded when it is settled; if it is not, the ledger is still right."""

    async def main(store: Store) -> None:
        call = call_to(key_of(1))
        settled = CallFinished(call, "answered", Usage(10, 0, 1), Decimal("0.000003"), ((key_of(1), ANSWER),))
        await store.send(call)
        await store.settle(settled)
        await asyncio.gather(store.settle(settled), make_call(store, 2))
        audit = await store.audit("run-1")
        assert (audit.answered.calls, audit.unknown.calls) == (2, 0)

    with open_store(url) as store:
        asyncio.run(main(store))


# -- stores that cannot be opened ----------------------------------------------------------------------------------


def assert_no_password(error: BaseException) -> None:
    """The password is nowhere in the error and its causes."""
    message = "".join(traceback.format_exception(error))
    for secret in (PASSWORD, PASSWORD[:6], server().url().partition(f"{USER}:")[2].partition("@")[0]):
        assert secret not in message


@pytest.mark.parametrize(
    ("password", "database", "hint"),
    [
        ("wrong-" + PASSWORD, "postgres", "password authentication failed.*user and password are right"),
        (PASSWORD, "nowhere", "does not exist"),
    ],
    ids=["password", "database"],
)
def test_refused_login_is_an_error_at_once(password: str, database: str, hint: str) -> None:
    """A wrong password or database is a StoreError with server and database, without the password."""
    with pytest.raises(StoreError, match=hint) as caught:
        Store(server().url(database, password))
    assert f"'postgresql://127.0.0.1:{server().port}/{database}'" in str(caught.value)
    assert_no_password(caught.value)


def test_missing_server_is_an_error(url: str) -> None:
    """A port without a listener is a StoreError after the wait time-out."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        elsewhere = url.replace(str(server().port), str(unused.getsockname()[1]))
        with pytest.raises(StoreError, match=r"refused.*Check that the server runs") as caught:
            Store(elsewhere, wait_timeout_s=0.2)
    assert_no_password(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:pa%zz@host/db",
        "postgresql://me:geheim@geheim@host/db",
        "postgresql://me:geheim/geheim@host/db",
        "postgresql://me:5432/geheim@host/db",
        "postgresql://host/db?passwort=geheim",
        "postgresql://host:geheim/db",
    ],
)
def test_unreadable_url_is_not_repeated(url: str) -> None:
    """A password with URL characters is not taken for a host and shown; the error says how to write it."""
    with pytest.raises(ConfigError, match="%40") as caught:
        Store(url)
    assert not re.search("geheim|zz", "".join(traceback.format_exception_only(caught.value)))
    assert caught.value.__context__ is None


def test_store_does_not_show_its_password(url: str) -> None:
    """Neither the store nor its attributes show it."""
    with open_store(url) as store:
        assert PASSWORD not in repr(store) + repr(store.location) + repr(vars(store))


def test_missing_driver_is_an_error_with_the_install_command() -> None:
    """For a Postgres URL without psycopg; importing the package works without it."""
    program = """
import sys
sys.modules["psycopg"] = None
from ondine_core import OndineError, open_store
try:
    with open_store("postgresql://me:geheim@host/db"):
        pass
except OndineError as error:
    print(type(error).__name__, error)
"""
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.startswith("ConfigError")
    assert "pip install 'ondine-dagster[postgres]'" in output
    assert "geheim" not in output


def test_psycopg_is_loaded_only_for_a_postgres_url() -> None:
    """A store in a file does not import the driver."""
    program = """
import sys
from ondine_core import open_store
with open_store(":memory:"):
    print("psycopg" in sys.modules)
"""
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output == "False\n"


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (["CREATE SCHEMA ondine", "CREATE TABLE ondine.runs (id int)"], "something else.*name another store"),
        (["UPDATE ondine.numbers SET numbers = '[99]' WHERE name = 'format'"], "format 99.*upgrade"),
    ],
)
def test_foreign_or_newer_schema_is_refused(spoil: list[str], hint: str, url: str) -> None:
    """It is a StoreError that says so, and nothing is changed."""
    if "UPDATE" in spoil[0]:
        with open_store(url):
            pass
    for statement in spoil:
        server().execute(statement, url)
    with pytest.raises(StoreError, match=hint):
        Store(url)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_encoding_of_the_session_does_not_matter(encoding: str, url: str) -> None:
    """Where the database has another one for its clients, all texts are written and read as they are."""
    server().execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET client_encoding = '{encoding}'")
    sent = call_to(key_of(1), origin=Origin("r\u6f22", "\u6f22"))
    for _ in range(2):
        with open_store(url) as store:
            asyncio.run(store.send(sent))
            assert asyncio.run(store.audit("r\u6f22")).unknown.calls == 1


def test_database_that_escapes_backslashes_is_refused(url: str) -> None:
    """The driver would write keys that are never found again, and each row would be asked for ever."""
    server().execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET standard_conforming_strings = off")
    with pytest.raises(StoreError, match=r"standard_conforming_strings off; set it to on for this user"):
        Store(url)


def test_server_without_ssl_is_refused_at_once(url: str) -> None:
    """If the address requires it; waiting would not help."""
    began = time.monotonic()
    with pytest.raises(StoreError, match="does not support SSL"):
        Store(f"{url}?sslmode=require")
    assert time.monotonic() - began < 10


def test_database_in_another_encoding_is_refused(url: str) -> None:
    """A database that cannot hold every text is refused when it is opened."""
    del url
    server().execute("CREATE DATABASE old ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(StoreError, match="encoded as 'LATIN1'"):
        Store(server().url("old"))


def test_missing_right_to_create_a_schema_names_the_grant(url: str) -> None:
    """With an existing schema the store works."""
    database = url.rpartition("/")[2]
    server().execute("CREATE USER guest PASSWORD 'guest'")
    guest = f"postgresql://guest:guest@127.0.0.1:{server().port}/{database}"
    with pytest.raises(StoreError, match=r"permission denied.*GRANT CREATE ON DATABASE"):
        Store(guest)
    server().execute("CREATE SCHEMA ondine AUTHORIZATION guest", url)
    with open_store(guest) as store:
        asyncio.run(keep(store, (key_of(1), ANSWER)))
    assert keys_in(guest) == {key_of(1)}


def test_store_shares_a_database_with_others(url: str) -> None:
    """All tables are in a schema of their own; tables of the same names elsewhere are not touched."""
    server().execute("CREATE TABLE answers (id int)", url)
    with open_store(url) as store:
        asyncio.run(keep(store, (key_of(1), ANSWER)))
    assert server().execute("SELECT * FROM public.answers", url) == []
    places = server().execute("SELECT DISTINCT schemaname FROM pg_tables WHERE tablename IN ('calls', 'ledger')", url)
    assert places == [("ondine",)]


def test_closed_store_leaves_no_mark(url: str) -> None:
    """The marks of writers are removed when they close."""
    with open_store(url) as store:
        asyncio.run(keep(store, (key_of(1), ANSWER)))
    assert server().execute("SELECT name FROM ondine.numbers", url) == [("format",)]


def test_postgres_scheme_and_driver_options_are_accepted(url: str) -> None:
    """`postgres://` means the same, and any option of the driver may follow."""
    with open_store(url.replace("postgresql", "postgres") + "?application_name=mine&connect_timeout=3") as store:
        asyncio.run(keep(store, (key_of(1), Answer({}, ORIGIN.asset))))
        assert server().execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mine'") == [(1,)]


def test_unreadable_url_is_an_ondine_error() -> None:
    """It can be caught with the other errors of the package."""
    with pytest.raises(OndineError):
        Store("postgresql://[::1/db")
