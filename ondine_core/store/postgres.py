"""A store in a schema of its own, `ondine`, of a Postgres database, for processes on any number of machines.

A connection that breaks is made anew, and what was under way is done again. Whether a transaction was kept although the
connection broke before Postgres said so is read from a mark that each transaction leaves: one row a writer, the number
of its last transaction. So every transaction takes effect once. The password stays inside the driver.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from ondine_core.errors import StoreError
from ondine_core.store.database import Row
from ondine_core.store.driver import explain, is_about_connection, load_driver, may_come_up, parse

if TYPE_CHECKING:
    import psycopg

__all__ = ["PostgresDatabase"]

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_IN_THE_WAY = ("40001", "40P01")
"""Two transactions could not both go on; whoever is told so tries again."""

_LIMITS = "SELECT set_config('lock_timeout', %s, FALSE), set_config('idle_in_transaction_session_timeout', %s, FALSE)"
_LOCK = "SELECT pg_advisory_xact_lock(k) FROM unnest(%s::bigint[]) AS k"
# No row comes back when the mark is there already. If the transaction that left it still ends, this waits for it.
_MARK = """
    INSERT INTO ondine.numbers AS old (name, numbers) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE
    SET numbers = excluded.numbers WHERE old.numbers <> excluded.numbers RETURNING name"""
_TABLES = """
    SELECT relname, pg_total_relation_size(oid) FROM pg_class
    WHERE relkind = 'r' AND relnamespace = to_regnamespace('ondine')"""
_FORMAT = """
    INSERT INTO ondine.numbers VALUES ('format', ?) ON CONFLICT (name) DO UPDATE SET numbers = excluded.numbers"""
_TYPES = {"BLOB": "BYTEA", "INTEGER": "BIGINT", "REAL": "DOUBLE PRECISION"}


class PostgresDatabase:
    """A `Database` on a Postgres server.

    Args:
        url: As in `postgresql://user:password@host:5432/database`.
        patience_s: How long to wait for a server that is gone, or for the lock of another process.
        create: Whether to make the schema if there is none.

    Raises:
        ConfigError: The URL cannot be read, or the driver is not installed.
        StoreError: The server cannot be reached or refuses.
    """

    def __init__(self, url: str, *, patience_s: float, create: bool) -> None:
        self._driver = load_driver()
        self._settings, self.place = parse(url)
        self._patience_s = patience_s
        # The time lets `prune` clear away the marks of writers that were killed.
        self._writer, self._opened_at, self._writes = f"writer:{secrets.token_hex(8)}", time.time(), 0
        self._leaves_marks = False
        self._connection = self._insist_on_connection(time.monotonic() + patience_s, may_come_up)
        try:
            if create and self.read(lambda: self.select("SELECT to_regnamespace('ondine') IS NULL")) == [(True,)]:
                self.write(lambda: self.run("CREATE SCHEMA IF NOT EXISTS ondine"), ["format"])
        except BaseException:
            self._connection.close()
            raise

    def read(self, work: Callable[[], T]) -> T:
        """The result of `work`, which selects; run again if the connection breaks."""
        return self._insist(work)

    def write(self, work: Callable[[], T], locks: Iterable[str] = ()) -> T:
        """The result of `work`, whose statements take effect together and once, or not at all."""
        self._leaves_marks = self._leaves_marks or self._insist(self.read_format) > 0
        self._writes += 1
        numbers = sorted(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True) for name in locks)
        results: list[T] = []
        return self._insist(lambda: self._transact(work, numbers, results))

    def write_at_once(self, work: Callable[[], T], locks: Iterable[str] = ()) -> None:
        """Never: a server is always waited for."""

    def _transact(self, work: Callable[[], T], locks: list[int], results: list[T]) -> T:
        """One attempt; `results` are those of earlier attempts whose end was not seen."""
        connection = self._connection
        try:
            with connection.pipeline():
                connection.execute("BEGIN")
                if self._leaves_marks:
                    mark = connection.execute(_MARK, (self._writer, orjson.dumps((self._writes, self._opened_at))))
                    if results and not mark.fetchone():
                        connection.execute("ROLLBACK")
                        return results[-1]
                if locks:
                    connection.execute(_LOCK, (locks,))
                results.append(work())
                connection.execute("COMMIT")
        except BaseException:
            # One that does not even take this is of no use any more.
            with suppress(self._driver.Error), ExitStack() as stack:
                stack.callback(connection.close)
                connection.execute("ROLLBACK")
                stack.pop_all()
            raise
        return results[-1]

    def _insist(self, work: Callable[[], T]) -> T:
        """Do `work` until the connection holds and nobody else is in the way."""
        until: float | None = None
        while True:
            try:
                return work()
            except self._driver.Error as error:
                until = until or time.monotonic() + self._patience_s
                is_lost = self._connection.closed or is_about_connection(error)
                if not (is_lost or error.sqlstate in _IN_THE_WAY) or time.monotonic() > until:
                    raise explain(error, self.place) from error
                if is_lost:
                    self._connection.close()
                    # It let us in before, so whatever it says now may pass.
                    self._connection = self._insist_on_connection(until, lambda _: True)

    def _insist_on_connection(self, until: float, may_pass: Callable[[psycopg.Error], bool]) -> psycopg.Connection[Row]:
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

        again = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, self._driver.Error) and may_pass(error)),
            # By chance, since a server that comes back is awaited by many.
            wait=wait_random_exponential(_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
            stop=stop_after_delay(max(0.0, until - time.monotonic())),
            reraise=True,
        )
        try:
            return again(self._connect)
        except self._driver.Error as error:
            raise explain(error, self.place) from error

    def _connect(self) -> psycopg.Connection[Row]:
        connection: psycopg.Connection[Row] = self._driver.connect(**self._settings, autocommit=True)
        try:
            # Of one width whatever their value, or each mixture of widths would be a statement of its own.
            connection.adapters.register_dumper(int, self._driver.types.numeric.Int8Dumper)
            patience_ms = str(max(1, round(self._patience_s * 1000)))
            connection.execute(_LIMITS, (patience_ms, patience_ms))
            if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
                raise StoreError(f"The database {self.place!r} is encoded as {encoding!r}; name one encoded as UTF8.")
        except BaseException:
            connection.close()
            raise
        return connection

    def select(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows of a query."""
        return self._connection.execute(_own(sql), parameters, binary=True).fetchall()

    def select_in(self, sql: str, values: Sequence[Any]) -> list[Row]:
        """The rows of a query whose only parameter is the list after `IN`."""
        return self.select(sql, (list(values),)) if values else []

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Run a statement that returns no rows."""
        self._connection.execute(_own(sql), parameters)

    def run_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement that returns no rows for each of `rows`."""
        if rows:
            self._connection.cursor().executemany(_own(sql), rows)

    def run_in(self, sql: str, values: Sequence[Any]) -> None:
        """Run a statement that returns no rows and whose only parameter is the list after `IN`."""
        if values:
            self.run(sql, (list(values),))

    def stream(self, sql: str) -> Iterator[Row]:
        """The rows of a query too large for memory."""
        try:
            with self._connection.transaction(), self._connection.cursor("export") as cursor:
                yield from cursor.execute(_own(sql), binary=True)
        except self._driver.Error as error:
            raise explain(error, self.place) from error

    def read_format(self) -> int:
        """The version of the tables, 0 if there are none."""
        if self.select("SELECT to_regclass('ondine.numbers') IS NULL") == [(True,)]:
            return 0
        found = self.select("SELECT numbers FROM ondine.numbers WHERE name = 'format'")
        return int(orjson.loads(found[0][0])[0]) if found else 0

    def write_format(self, version: int) -> None:
        """Note the version of the tables."""
        self.run(_FORMAT, (orjson.dumps((version,)),))

    def holds_something_else(self) -> bool:
        """Whether the schema has tables, and not those of a store."""
        names = {name for name, _ in self.select(_TABLES)}
        return bool(names) and not names >= {"answers", "numbers"}

    def measure(self) -> int:
        """Bytes of the tables and their indexes."""
        return sum(size for _, size in self.select(_TABLES))

    def compact(self) -> None:
        """Nothing to do: Postgres reuses the space of deleted rows by itself."""

    def close(self) -> None:
        """Take the mark away and let go of the connection."""
        with suppress(self._driver.Error):
            if self._leaves_marks:
                self.run("DELETE FROM ondine.numbers WHERE name = ?", (self._writer,))
        self._connection.close()


@cache
def _own(sql: str) -> str:
    if sql.lstrip().startswith("CREATE TABLE"):
        return re.sub("|".join(_TYPES), lambda found: _TYPES[found[0]], sql)
    return sql.replace(" IN ?", " = ANY(%s)").replace("?", "%s")
