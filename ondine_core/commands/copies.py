"""Copies of a store: `backup`, `export`."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

import orjson

from ondine_core.commands.terminal import AddCommand, add_filters, set_output, show_iso, warn
from ondine_core.errors import ConfigError
from ondine_core.store.database import Database, Row
from ondine_core.store.queries import EXPORTED_COLUMNS, read_all_answers
from ondine_core.store.records import DamagedRowError, to_answer
from ondine_core.store.sqlite import SqliteDatabase
from ondine_core.store.sqlite_files import make_new_file


def add_commands(add: AddCommand) -> None:
    """Add the commands of this module."""
    copy = add("backup", _backup, "copy a store in a file while runs use it")
    copy.add_argument("target", type=Path, metavar="TARGET", help="a new file")
    export = add("export", _export, "export all answers")
    add_filters(export, "only answers since")
    export.add_argument("--format", choices=("jsonl", "csv"), default="jsonl", help="default: jsonl")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="instead of standard output")


def _backup(database: Database, options: argparse.Namespace) -> None:
    target: Path = options.target
    if not isinstance(database, SqliteDatabase):
        raise ConfigError("A store in Postgres is copied by Postgres, for instance with `pg_dump --schema=ondine`.")
    if os.path.lexists(target):
        raise ConfigError(f"{str(target)!r} exists already; name a new file.")
    with _replace_when_complete(target) as part:
        database.copy_to(part)
    sys.stdout.write(
        f"{target.stat().st_size / 1e6:,.2f} MB are copied to {str(target)!r}, which needs no -wal file.\n"
    )


@contextmanager
def _replace_when_complete(target: Path) -> Iterator[Path]:
    """Yield a new file, for its owner only, that replaces `target` when the body has completed it."""
    if target.is_dir() or not target.parent.is_dir():
        what = "is a folder" if target.is_dir() else "is in a folder that does not exist"
        raise ConfigError(f"{str(target)!r} {what}; name a new file in a folder that exists.")
    part = make_new_file(target, ".part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _export(database: Database, options: argparse.Namespace) -> None:
    write = _write_csv if options.format == "csv" else _write_jsonl
    rows = _skip_damaged(read_all_answers(database, since=options.since, asset=options.asset))
    output: Path | None = options.output
    if output is None:
        set_output(encoding="utf-8")  # for other programs, whatever the encoding of the terminal is
        write(rows, sys.stdout)
        return
    # A device or pipe must not be replaced by a file: its reader would wait for ever.
    is_special = output.exists() and not (output.is_file() or output.is_dir())
    opened = nullcontext(output) if is_special else _replace_when_complete(output)
    with opened as part, part.open("w", encoding="utf-8", newline="") as file:
        write(rows, file)


def _skip_damaged(rows: Iterable[Row]) -> Iterator[Row]:
    """Leave out damaged rows, and list them on standard error."""
    for row in rows:
        try:
            to_answer(row)
        except DamagedRowError as error:
            warn(f"a damaged answer is left out: {error}")
        else:
            yield row


def _write_jsonl(rows: Iterable[Row], out: TextIO) -> None:
    for key, values, *rest, answered_at in rows:
        row = [key.hex(), orjson.Fragment(values), *rest, show_iso(answered_at)]
        out.write(orjson.dumps(dict(zip(EXPORTED_COLUMNS, row, strict=True))).decode() + "\n")


def _write_csv(rows: Iterable[Row], out: TextIO) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(EXPORTED_COLUMNS)
    for key, values, *rest, answered_at in rows:
        writer.writerow([key.hex(), values.decode(), *rest, show_iso(answered_at)])
