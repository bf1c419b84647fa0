"""What the store asks of a database: transactions that happen or do not, and the few shapes of a statement it runs.

Statements are written as in `dialects`. Every error of the database leaves as a `StoreError` that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from ondine_core.store.dialects import upsert

T = TypeVar("T")
Row: TypeAlias = tuple[Any, ...]
Durability: TypeAlias = Literal["process", "power"]
"""What a store in a file survives without loss: a kill of the process, or a power cut too."""

FIND_NUMBERS = "SELECT name, numbers FROM ondine.numbers WHERE name IN ?"
REPLACE_NUMBERS = upsert("numbers", ["name"], ["name", "numbers"])


class Database(Protocol):
    """A connection, used by one thread at a time."""

    location: str
    """Where it is, for messages; never with a password."""

    def read(self, work: Callable[[], T]) -> T:
        """The result of `work`, which selects; run again if the connection breaks."""

    def write(self, work: Callable[[], T], locks: Iterable[str] = ()) -> T:
        """The result of `work`, whose statements take effect together, durably and once, or not at all.

        It is called again if the connection breaks before they are kept, or an assumption was wrong. No two
        transactions of any processes hold one of the `locks` at once.
        """

    def write_at_once(self, work: Callable[[], T], locks: Iterable[str] = ()) -> T | None:
        """`write` if that takes no time; `None`, and nothing has happened, if anything would have to be waited for."""

    def select(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows of a query."""

    def select_in(self, sql: str, values: Sequence[Any]) -> list[Row]:
        """The rows of a query whose only parameter is the list after `IN`, of any length, in no order."""

    def has(self, sql: str, values: Sequence[Any], count: int) -> bool:
        """Whether a query as in `select_in` finds exactly `count` rows; called within `write`.

        A database may assume so without waiting; if that was wrong, it runs the `work` of `write` again.
        """
        return len(self.select_in(sql, values)) == count

    def hold(self, name: str) -> None:
        """Wait, within `write`, until no other transaction holds `name`, and hold it to the end of this one.

        What is read after that includes all that an earlier holder wrote.
        """

    def keep_out_writers(self, table: str) -> None:
        """Wait until no other transaction writes to a table, and let none do so before this one ends."""

    def read_numbers(self, names: Sequence[str]) -> Mapping[str, bytes | None]:
        """The numbers of `names`, within `write`; they may be assumed like the count."""

    def write_numbers(self, numbers: Mapping[str, bytes]) -> None:
        """Replace the numbers of some names."""
        self.run_many(REPLACE_NUMBERS, sorted(numbers.items()))

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Run a statement that returns no rows."""

    def run_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement that returns no rows for each of `rows`."""

    def run_in(self, sql: str, values: Sequence[Any]) -> None:
        """Run a statement that returns no rows and whose only parameter is the list after `IN`."""

    def create_schema(self) -> None:
        """Make, within `write`, what the tables are to be in if there is none."""

    def read_format(self) -> int | None:
        """The version of the tables, 0 if there are none, `None` if they are not those of a store."""

    def write_format(self, version: int) -> None:
        """Note the version of the tables."""

    def measure(self) -> int:
        """Bytes the store takes on disk."""

    def compact(self) -> None:
        """Give the space of deleted rows back."""

    def close(self) -> None:
        """Close the connection."""
