"""Translates SQL for SQLite and for Postgres.

Every statement is written once: a table is named `ondine.answers`, a parameter is `?`, `IN ?` takes a list of any
length, and columns have SQLite's types. `to_sqlite` and `to_postgres` translate it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import count

_POSTGRES_TYPES = {"BLOB": "BYTEA", "INTEGER": "BIGINT", "REAL": "DOUBLE PRECISION"}
_VALUES = re.compile(r" VALUES (\([?, ]+\))")


def list_columns(columns: Iterable[str]) -> str:
    """A list of columns, quoted, since one has the name of a keyword."""
    return ", ".join(f'"{column}"' for column in columns)


def insert(table: str, columns: Sequence[str], on_conflict: str = "") -> str:
    """A statement that inserts rows of these columns."""
    values = ", ".join("?" * len(columns))
    return f"INSERT INTO ondine.{table} AS old ({list_columns(columns)}) VALUES ({values}) {on_conflict}"  # noqa: S608


def replace_existing(key: Sequence[str], columns: Sequence[str]) -> str:
    """The end of an `INSERT` that replaces the `columns` of an existing row with the same primary key."""
    new = ", ".join(f'"{column}" = excluded."{column}"' for column in columns if column not in key)
    return f"ON CONFLICT ({list_columns(key)}) DO UPDATE SET {new}"


def upsert(table: str, key: Sequence[str], columns: Sequence[str]) -> str:
    """A statement that inserts rows of these columns, or replaces those with the same primary key."""
    return insert(table, columns, replace_existing(key, columns))


@lru_cache(512)
def to_sqlite(sql: str, *, values: int = 0, rows: int = 1) -> str:
    """Translate a statement for SQLite, for a number of values after `IN` and of rows after `VALUES`."""
    sql = sql.replace("ondine.", "").replace(" IN ?", f" IN ({','.join('?' * values)})")
    return _repeat_values(sql, rows)


@lru_cache(512)
def to_postgres(sql: str, *, rows: int = 1) -> str:
    """Translate a statement for Postgres, for a number of rows after `VALUES`."""
    if sql.lstrip().startswith(("CREATE TABLE", "ALTER TABLE")):
        return re.sub("|".join(_POSTGRES_TYPES), lambda match: _POSTGRES_TYPES[match[0]], sql)
    numbers = count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", _repeat_values(sql, rows).replace(" IN ?", " = ANY(?)"))


def _repeat_values(sql: str, rows: int) -> str:
    return _VALUES.sub(lambda match: f" VALUES {','.join([match[1]] * rows)}", sql)
