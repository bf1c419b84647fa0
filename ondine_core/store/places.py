"""Which database a place names: a Postgres URL is a schema on a server, anything else is a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from ondine_core.errors import ConfigError
from ondine_core.store.database import Database
from ondine_core.store.postgres import PostgresDatabase
from ondine_core.store.schema import migrate
from ondine_core.store.sqlite import SqliteDatabase

__all__ = ["connect"]


def connect(
    place: str | Path,
    *,
    durability: Literal["process", "power"] = "process",
    patience_s: float = 30.0,
    create: bool = True,
) -> Database:
    """Open the store at `place`, in the newest format.

    Args:
        place: A file, or a URL as in `postgresql://user:password@host:5432/database`.
        durability: Of a file: `"process"` survives kill -9, `"power"` a power cut too. Postgres has its own settings.
        patience_s: How long to wait for the lock of another process, or for a server that is gone.
        create: Whether to make what is not there.

    Raises:
        ConfigError: The URL is of another kind, or the driver for Postgres is not installed.
        StoreError: It cannot be created or opened, is not a store, or was written by a newer version.
    """
    scheme = re.match(r"([\w+.-]+)://", str(place))
    database: Database
    if scheme is None:
        database = SqliteDatabase(place, durability=durability, patience_s=patience_s, create=create)
    elif scheme[1] in ("postgresql", "postgres"):
        database = PostgresDatabase(str(place), patience_s=patience_s, create=create)
    else:
        # Not the rest of it, which may hold a password.
        raise ConfigError(
            f"An answer store cannot be a {scheme[1]!r} URL; give the path of a file, or "
            "postgresql://user:password@host:5432/database."
        )
    try:
        migrate(database, create=create)
    except BaseException:
        database.close()
        raise
    return database
