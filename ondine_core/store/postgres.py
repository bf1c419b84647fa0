"""A store in the schema `ondine` of a Postgres database, for processes on any number of machines.

A transaction is sent in one message, without waiting for the results of its statements, so it takes one round trip. If
a value is needed beforehand (the numbers of a rate or a budget, whether a call is recorded), the last known one is
assumed, and a statement of the transaction checks it. If it is wrong, the transaction is run again and reads the value.

A broken connection is opened again, and the transaction is repeated. It may have been committed before the connection
broke; this is known by the mark of each writer, a row with the number of its last transaction. The statement that sets
the mark fails if that number, or a later one, is there already, if the tables are not those that this process began
with, or if they have a newer format. So every transaction takes effect once, and in order.

Nothing is kept in the session between two transactions, because a pooler may give the session to another client: no
prepared statements, no session locks, and only settings of the transaction. The password stays inside the driver.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from ondine_core.errors import StoreError
from ondine_core.store.database import FIND_NUMBERS, REPLACE_NUMBERS, Database, Row
from ondine_core.store.dialects import to_postgres
from ondine_core.store.driver import explain, is_about_connection, load_driver, may_become_available, parse
from ondine_core.store.schema import NEWEST, check_version

if TYPE_CHECKING:
    import psycopg

T = TypeVar("T")

_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.05, 2.0
_SHORTEST_ANSWER_LIMIT_S = 2.0
_ROWS_A_STATEMENT = 256
_CONFLICTS = ("40001", "40P01")
"""Codes of a transaction that was aborted because of another one, and is run again."""
_MARK_REFUSED, _ASSUMPTION_FAILED = "22012", "2201F"
"""Division by zero and root of a negative number: the codes with which the checks `_MARK` and `_UNCHANGED` fail."""
_READ_ONLY = "25006"

_LIMITS = "SELECT set_config('lock_timeout', $1, TRUE), set_config('idle_in_transaction_session_timeout', $1, TRUE)"
_LOCK = "SELECT pg_advisory_xact_lock(k) FROM unnest($1::bigint[]) AS k"
_MARK = """
    WITH marked AS (
        INSERT INTO ondine.numbers AS old (name, numbers) SELECT $1, $2
        WHERE EXISTS (
            SELECT FROM ondine.numbers AS f WHERE name = 'format' AND tableoid = $3
            AND (convert_from(f.numbers, 'UTF8')::json ->> 0)::float <= $6)
        ON CONFLICT (name) DO UPDATE SET numbers = excluded.numbers
        WHERE (convert_from(old.numbers, 'UTF8')::json ->> 0)::float BETWEEN $4 AND $5 RETURNING 1
    ) SELECT 1 / count(*) FROM marked"""
_FIND_TABLE = "SELECT tableoid FROM ondine.numbers WHERE name = 'format'"
_UNCHANGED = """
    SELECT sqrt(-count(*)) FROM unnest($1::text[], $2::bytea[]) AS known (name, numbers)
    LEFT JOIN ondine.numbers AS found USING (name) WHERE found.numbers IS DISTINCT FROM known.numbers"""
_LOOK = "SELECT to_regnamespace('ondine') IS NULL, to_regclass('ondine.numbers')::oid"
_TABLES = """
    SELECT relname, pg_total_relation_size(oid) FROM pg_class
    WHERE relkind = 'r' AND relnamespace = to_regnamespace('ondine')"""


class PostgresDatabase(Database):
    """A `Database` on a Postgres server.

    Args:
        url: `postgresql://user:password@host:5432/database`, or a connection string `host=... password=...`.
        wait_timeout_s: Seconds to wait for a server that is gone, or for the lock of another process. If the server
            does not answer a statement in four times as long, the connection is taken to be broken.
    """

    def __init__(self, url: str, *, wait_timeout_s: float) -> None:
        self._driver = load_driver()
        self._settings, self.location = parse(url)
        self._wait_timeout_s = wait_timeout_s
        self._writer = f"writer:{secrets.token_hex(8)}"
        self._writes = 0  # number of the latest transaction that writes
        self._confirmed = 0  # number of the latest one that the server confirmed
        self._table: int | None = None  # object id of the table of numbers; another one if the store was emptied
        self._known: dict[str, bytes | None] = {}  # numbers as this process last read or wrote them
        self._assumes = True  # whether `has` and `read_numbers` may assume results
        self._is_alone = True  # whether no other process changes the numbers
        self._busy_since: float | None = None
        self._closed = threading.Event()
        self._connection = self._connect_with_retries(time.monotonic() + wait_timeout_s, may_become_available)
        threading.Thread(target=self._cut_stalled, name="ondine-postgres", daemon=True).start()
        try:
            [(self._lacks_schema, self._table)] = self._retry(self._look)
        except BaseException:
            self._closed.set()
            self._connection.close()
            raise

    def _look(self) -> list[Row]:
        """Look for schema and tables, in a transaction of two messages, which a pooler in statement mode refuses."""
        self._connection.execute("BEGIN")
        with self._connection.pipeline():
            rows = self.select(_LOOK)
            self._connection.execute("COMMIT")
        return rows

    def read(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, which only selects; it is called again if the connection breaks."""
        return self._retry(work)

    def write(self, work: Callable[[], T], locks: Iterable[str] = ()) -> T:
        """Return the result of `work`, whose statements take effect together and once, or not at all."""
        if self._table is None:
            [(_, self._table)] = self._retry(lambda: self.select(_LOOK))
        self._writes += 1
        numbers = sorted(map(_lock_number, locks))
        results: list[T] = []
        result = self._retry(lambda: self._transact(work, numbers, results))
        self._confirmed = self._writes
        self._assumes = True
        return result

    def write_at_once(self, work: Callable[[], T], locks: Iterable[str] = ()) -> None:
        """Do nothing: a write to a server always has to wait."""

    def _transact(self, work: Callable[[], T], locks: list[int], results: list[T]) -> T:
        """Try the transaction once; `results` are those of earlier attempts whose commit was not confirmed."""
        connection = self._connection
        timeout_ms = str(max(1, round(self._wait_timeout_s * 1000)))
        try:
            with connection.pipeline():
                connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                connection.execute(_LIMITS, (timeout_ms,))
                if self._table is not None:
                    # By the time, `prune` recognises the marks of writers that were killed.
                    mark = orjson.dumps((self._writes, time.time(), len(results)))
                    before = (self._confirmed, self._writes - 1)
                    connection.execute(_MARK, (self._writer, mark, self._table, *before, NEWEST))
                if locks:
                    connection.execute(_LOCK, (locks,))
                results.append(work())
                connection.execute("COMMIT")
        except BaseException as error:
            self._known.clear()
            # If even this fails, the connection is closed.
            with suppress(self._driver.Error), ExitStack() as stack:
                stack.callback(connection.close)
                connection.execute("ROLLBACK")
                stack.pop_all()
            if getattr(error, "sqlstate", None) == _MARK_REFUSED:
                return results[self._find_attempt()]
            raise
        return results[-1]

    def _find_attempt(self) -> int:
        """Find the index of the attempt at the present transaction that was committed.

        Raises:
            StoreError: There is none: the store was emptied, replaced, migrated, or has lost transactions.
        """
        tables = self.select(_FIND_TABLE)
        check_version(self.read_format() or 0, self.location)
        marks = [orjson.loads(mark) for _, mark in self.select_in(FIND_NUMBERS, [self._writer])]
        if tables != [(self._table,)]:
            raise StoreError(
                f"The answer store {self.location!r} was emptied or replaced while this process used it: what it held "
                "before is gone, and nothing was asked since. Run again to begin with what is there now; every prompt "
                "without an answer in it is paid for again. Restore a copy first if you have one."
            )
        if marks and marks[0][0] == self._writes:
            return int(marks[0][2])
        raise StoreError(
            f"The answer store {self.location!r} has lost transactions that its server had confirmed, as when a "
            "replica that was behind takes over: answers of the last moments may be missing. Run again; what is "
            "missing is asked, and paid for, again."
        )

    def _retry(self, work: Callable[[], T]) -> T:
        """Call `work` again while the connection breaks or other transactions abort it, within `wait_timeout_s`."""
        until: float | None = None
        while True:
            try:
                self._busy_since = time.monotonic()
                return work()
            except self._driver.Error as error:
                if error.sqlstate == _ASSUMPTION_FAILED:
                    self._assumes = False
                    continue
                until = until or time.monotonic() + self._wait_timeout_s
                # A server that accepted writes before is read-only while another one takes over.
                is_failover = error.sqlstate == _READ_ONLY and self._confirmed > 0
                is_lost = is_failover or is_about_connection(error, closed=self._connection.closed)
                if not (is_lost or error.sqlstate in _CONFLICTS) or time.monotonic() > until:
                    raise explain(error, self.location) from error
                if is_lost:
                    self._connection.close()
                    if error.sqlstate == _READ_ONLY:
                        time.sleep(min(_MAX_PAUSE_S, self._wait_timeout_s / 10))
                    # The server accepted this connection before, so any error may be temporary.
                    self._connection = self._connect_with_retries(until, lambda _: True)
            finally:
                self._busy_since = None

    def _cut_stalled(self) -> None:
        """On a thread: shut down a connection that does not respond, so that it is opened again."""
        limit_s = max(4 * self._wait_timeout_s, _SHORTEST_ANSWER_LIMIT_S)
        while not self._closed.wait(limit_s / 4):
            since = self._busy_since
            if since is not None and time.monotonic() - since > limit_s:
                with suppress(OSError, self._driver.Error):
                    descriptor = os.dup(self._connection.fileno())
                    with socket.socket(fileno=descriptor) as end:
                        end.shutdown(socket.SHUT_RDWR)

    def _connect_with_retries(self, until: float, may_pass: Callable[[psycopg.Error], bool]) -> psycopg.Connection[Row]:
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, self._driver.Error) and may_pass(error)),
            # Random, so that not all clients of a server that comes back connect at once.
            wait=wait_random_exponential(_FIRST_PAUSE_S, max=_MAX_PAUSE_S),
            stop=stop_after_delay(max(0.0, until - time.monotonic())),
            reraise=True,
        )
        try:
            return retrying(self._connect)
        except self._driver.Error as error:
            raise explain(error, self.location) from error

    def _connect(self) -> psycopg.Connection[Row]:
        connection: psycopg.Connection[Row]
        connection = self._driver.connect(**self._settings, autocommit=True, prepare_threshold=None)
        try:
            # Parameters are written $1, $2, ... as in the protocol, so the driver need not search long statements.
            connection.cursor_factory = self._driver.RawCursor
            # All integers have the same width; otherwise each mixture of widths would be another statement.
            connection.adapters.register_dumper(int, self._driver.types.numeric.Int8Dumper)
            encoding = connection.info.parameter_status("server_encoding") or "UTF8"
            if encoding != "UTF8":
                raise StoreError(
                    f"The database {self.location!r} is encoded as {encoding!r}; name one encoded as UTF8."
                )
            # Otherwise the driver doubles each backslash in a list, and no key is found.
            if connection.info.parameter_status("standard_conforming_strings") == "off":
                raise StoreError(
                    f"The database {self.location!r} has standard_conforming_strings off; set it to on for this user "
                    "(ALTER ROLE ... SET standard_conforming_strings = on), which does not change it for others."
                )
        except BaseException:
            connection.close()
            raise
        return connection

    def select(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows of a query."""
        return self._connection.execute(to_postgres(sql), parameters, binary=True).fetchall()

    def select_in(self, sql: str, values: Sequence[Any]) -> list[Row]:
        """The rows of a query whose only parameter is the list after `IN`; the order is undefined."""
        return self.select(sql, (list(values),)) if values else []

    def has(self, sql: str, values: Sequence[Any], count: int) -> bool:
        """Whether a query as in `select_in` finds exactly `count` rows; assumed at first."""
        if self._assumes:
            check = f"SELECT sqrt(-abs(count(*) - $2)) FROM ({to_postgres(sql)}) AS found"  # noqa: S608
            self._connection.execute(check, (list(values), count))
            return True
        return super().has(sql, values, count)

    def hold(self, name: str) -> None:
        """Acquire the lock `name` until the end of the transaction."""
        self._connection.execute(_LOCK, ([_lock_number(name)],))

    def keep_out_writers(self, table: str) -> None:
        """Wait until no other transaction writes to a table, and block new ones until this transaction ends."""
        self._connection.execute(f"LOCK TABLE ondine.{table} IN SHARE MODE")

    def read_numbers(self, names: Sequence[str]) -> Mapping[str, bytes | None]:
        """The numbers of `names`; while no other process changes them, the last known ones are assumed."""
        known = {name: self._known.get(name) for name in names}
        if self._assumes and self._is_alone and self._known.keys() >= known.keys():
            self._connection.execute(_UNCHANGED, (list(known), list(known.values())))
            return known
        numbers = dict.fromkeys(names) | dict(self.select_in(FIND_NUMBERS, names))
        self._is_alone = numbers == known
        self._known |= numbers
        return numbers

    def write_numbers(self, numbers: Mapping[str, bytes]) -> None:
        """Replace the numbers of names."""
        super().write_numbers(numbers)
        self._known |= numbers

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Run a statement that returns no rows."""
        self._connection.execute(to_postgres(sql), parameters)

    def run_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement that returns no rows for each of `rows`."""
        # One statement for many rows: each statement releases the interpreter lock, and regains it late if others run.
        size = _ROWS_A_STATEMENT if " VALUES (" in sql else 1
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            self._connection.execute(to_postgres(sql, rows=len(chunk)), list(chain.from_iterable(chunk)))

    def run_in(self, sql: str, values: Sequence[Any]) -> None:
        """Run a statement that returns no rows and whose only parameter is the list after `IN`."""
        if values:
            self.run(sql, (list(values),))

    def create_schema(self) -> None:
        """Create the schema, unless it existed at the start: a user may own one without the right to create one."""
        if self._lacks_schema:
            self.run("CREATE SCHEMA IF NOT EXISTS ondine")

    def read_format(self) -> int | None:
        """The format of the tables, 0 if there are none, `None` if they are not those of a store."""
        names = {name for name, _ in self.select(_TABLES)}
        if not names >= {"answers", "numbers"}:
            return None if names else 0
        rows = self.select_in(FIND_NUMBERS, ["format"])
        return int(orjson.loads(rows[0][1])[0]) if rows else 0

    def write_format(self, version: int) -> None:
        """Record the format of the tables."""
        self.run(REPLACE_NUMBERS, ("format", orjson.dumps((version,))))

    def measure(self) -> int:
        """Size of the tables and their indexes, in bytes."""
        return sum(size for _, size in self.select(_TABLES))

    def close(self) -> None:
        """Remove the mark and close the connection."""
        self._closed.set()
        with suppress(self._driver.Error):
            if self._confirmed:
                self.run("DELETE FROM ondine.numbers WHERE name = ?", (self._writer,))
        self._connection.close()


def _lock_number(name: str) -> int:
    """The number of the advisory lock `name`."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)
