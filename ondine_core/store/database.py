"""The interface of the databases: atomic transactions, and the few forms of statements that the store runs.

Statements are written as in `dialects`. Every error of a database is raised as a `StoreError` that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from ondine_core.store.dialects import upsert

T = TypeVar("T")
Row: TypeAlias = tuple[Any, ...]
Durability: TypeAlias = Literal["process", "power"]
"""What a store in a file survives without loss: a kill of the process, or also a power cut."""

FIND_NUMBERS = "SELECT name, numbers FROM ondine.numbers WHERE name IN ?"
REPLACE_NUMBERS = upsert("numbers", ["name"], ["name", "numbers"])


class Database(Protocol):
    """A connection, used by one thread at a time."""

    location: str
    """Path or URL for messages, without a password."""

    def read(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, which only selects; it is called again if the connection breaks."""

    def write(self, work: Callable[[], T], locks: Iterable[str] = ()) -> T:
        """Return the result of `work`, whose statements take effect together, durably and once, or not at all.

        `work` is called again if the connection breaks before the commit, or if an assumption (see `has`) was wrong.
        Transactions of all processes that name the same lock run one after the other.
        """

    def write_at_once(self, work: Callable[[], T], locks: Iterable[str] = ()) -> T | None:
        """`write` if that needs no waiting; otherwise do nothing and return `None`."""

    def select(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows of a query."""

    def select_in(self, sql: str, values: Sequence[Any]) -> list[Row]:
        """The rows of a query whose only parameter is the list after `IN`, of any length; the order is undefined."""

    def has(self, sql: str, values: Sequence[Any], count: int) -> bool:
        """Whether a query as in `select_in` finds exactly `count` rows; called within `write`.

        A database may assume that it does, without waiting; if this was wrong, it calls the `work` of `write` again.
        """
        return len(self.select_in(sql, values)) == count

    def hold(self, name: str) -> None:
        """Acquire, within `write`, the lock `name` until the end of the transaction.

        What is read after that includes all that earlier holders of the lock wrote.
        """

    def keep_out_writers(self, table: str) -> None:
        """Wait until no other transaction writes to a table, and block new ones until this transaction ends."""

    def read_numbers(self, names: Sequence[str]) -> Mapping[str, bytes | None]:
        """The numbers of `names`, `None` for unknown ones, within `write`; they may be assumed, as in `has`."""

    def write_numbers(self, numbers: Mapping[str, bytes]) -> None:
        """Replace the numbers of names."""
        self.run_many(REPLACE_NUMBERS, sorted(numbers.items()))

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Run a statement that returns no rows."""

    def run_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement that returns no rows for each of `rows`."""

    def run_in(self, sql: str, values: Sequence[Any]) -> None:
        """Run a statement that returns no rows and whose only parameter is the list after `IN`."""

    def create_schema(self) -> None:
        """Create the schema of the tables, within `write`, if there is none and the database knows schemas."""
        return

    def read_format(self) -> int | None:
        """The format of the tables, 0 if there are none, `None` if they are not those of a store."""

    def write_format(self, version: int) -> None:
        """Record the format of the tables."""

    def measure(self) -> int:
        """Size of the store on disk, in bytes."""

    def compact(self) -> None:
        """Return the space of deleted rows to the file system, unless the database reuses it by itself."""
        return

    def close(self) -> None:
        """Close the connection."""
