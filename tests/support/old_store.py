"""Answer stores in earlier formats, made by the schema's first migrations."""

from __future__ import annotations

from pathlib import Path

from ondine_core.store.schema import MIGRATIONS
from ondine_core.store.sqlite import SqliteDatabase

__all__ = ["make_old_store"]


def make_old_store(path: Path, version: int) -> None:
    """Make an empty store in a file, of format `version`."""
    database = SqliteDatabase(path, durability="process", wait_timeout_s=5.0, create=True)

    def make() -> None:
        for statements in MIGRATIONS[:version]:
            for statement in statements:
                database.run(statement)
        database.write_format(version)

    database.write(make)
    database.close()
