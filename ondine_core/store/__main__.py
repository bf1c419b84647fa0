"""`python -m ondine_core.store`: look into an answer store, copy it, prune it, export it.

It reads and writes what a run would, nothing more, so it may be used while runs go on.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import NoReturn, TextIO, get_args

import orjson

from ondine_core.books import Line
from ondine_core.errors import ConfigError, OndineError
from ondine_core.store.books import read_audit
from ondine_core.store.database import Database, Row
from ondine_core.store.places import connect
from ondine_core.store.queries import (
    ANSWER_COLUMNS,
    Column,
    Spending,
    prune,
    read_size,
    read_spending,
    stream,
)
from ondine_core.store.records import DamagedRowError, to_answer
from ondine_core.store.reservations import list_reservations, settle_reservations
from ondine_core.store.sqlite import SqliteDatabase
from ondine_core.store.sqlite_files import make_new_file

__all__ = ["main"]

_AGES_S = {"h": 3600, "d": 86400, "w": 7 * 86400}


def main(arguments: Sequence[str]) -> int:
    """Carry out a command; returns the exit code."""
    options = _parse(arguments)
    try:
        database = connect(options.store, create=False)
        try:
            options.command(database, options)
            sys.stdout.flush()
        finally:
            database.close()
    except BrokenPipeError:
        # Whoever read along has seen enough, as `head` does; nothing may be written to it any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OndineError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # A URL in the wrong place is quoted, and may hold a password.
        message = re.sub(r"(?<=:)[^\s:]*(?=@)|(?<=://)\S*(?=@)", "***", message)
        super().error(re.sub(r"(?i)(passw\w*|pwd)(\s*[=:]\s*)('[^']*'|[^\s&;,]+)", r"\1\2***", message))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m ondine_core.store",
        description="Look into an answer store, copy it, prune it, export it.",
        epilog="Other users of a machine can read the arguments of a command: give a URL with a password in the "
        "environment variable ONDINE_STORE, or in a file.",
        fromfile_prefix_chars="@",
    )
    parser.add_argument(
        "store",
        metavar="STORE",
        help="a file of answers, a postgresql:// URL without a password, or @FILE, a text file with one of these; "
        "if left out, what ONDINE_STORE says",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[Database, argparse.Namespace], None], what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what.capitalize() + ".")
        added.set_defaults(command=command)
        return added

    add("size", _size, "how much is stored")
    spend = add("spend", _spend, "calls, tokens and USD, added up")
    spend.add_argument("--by", choices=get_args(Column), default="asset", help="told apart by (default: asset)")
    add("audit", _audit, "the books of one run").add_argument("run", metavar="RUN", help="as `spend --by run` lists it")
    old = add("prune", _prune, "remove what is old")
    old.add_argument("--older-than", type=_age_s, required=True, metavar="AGE", help="as in 90d, 12h or 8w")
    old.add_argument("--dry-run", action="store_true", help="only say how much there is to remove")
    add("reservations", _reservations, "what is held of budgets for calls in flight, and by whom")
    gone = add("settle", _settle, "charge as spent what processes hold of budgets that have ended")
    gone.add_argument(
        "--older-than",
        type=_age_s,
        metavar="AGE",
        help="also what processes of other machines, containers and versions hold that made no call for so long",
    )
    copy = add("backup", _backup, "copy a store in a file while runs use it")
    copy.add_argument("target", type=Path, metavar="TARGET", help="a new file")
    export = add("export", _export, "write all answers out")
    export.add_argument("--format", choices=("jsonl", "csv"), default="jsonl", help="default: jsonl")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="instead of standard output")

    arguments = list(arguments)
    if arguments and arguments[0] in commands.choices:
        if not (place := os.environ.get("ONDINE_STORE")):
            parser.error(f"name the STORE before {arguments[0]!r}, or set ONDINE_STORE")
        arguments = [place, *arguments]
    return parser.parse_args(arguments)


def _age_s(text: str) -> float:
    found = re.fullmatch(r"(\d+)([hdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; write 90d, 12h or 8w")
    return float(found[1]) * _AGES_S[found[2]]


def _size(database: Database, _: argparse.Namespace) -> None:
    size = read_size(database)
    rows = [
        ("answers", f"{size.answers:,}"),
        ("failures", f"{size.failures:,}"),
        ("calls of unknown outcome", f"{size.unknown:,}"),
        ("on disk", f"{size.bytes / 1e6:,.2f} MB"),
    ]
    if isinstance(size.oldest, float) and isinstance(size.newest, float):  # a damaged row may hold anything
        rows += [("oldest answer", _instant(size.oldest)), ("newest answer", _instant(size.newest))]
    _write_table(rows)


def _spend(database: Database, options: argparse.Namespace) -> None:
    spent = read_spending(database, options.by)
    rows = [_spending_row(name or "(none)", spending) for (name,), spending in spent.items()]
    header = (options.by, "calls", "input tokens", "from cache", "output tokens", "USD", "unknown", "paid twice")
    _write_table([header, *rows])
    total = sum((spending.usd for spending in spent.values()), Decimal(0))
    unpriced = sum(spending.unpriced for spending in spent.values())
    unknown = sum(spending.unknown for spending in spent.values())
    most = sum((spending.at_most_usd for spending in spent.values()), Decimal(0))
    at_most = sum(spending.at_most_calls for spending in spent.values())
    sys.stdout.write(f"\nIn all {'at most ' if at_most else ''}${total:,.6f}.")
    if at_most:
        sys.stdout.write(f" {at_most:,} calls are in it with the most that they can have cost.")
    if unpriced:
        sys.stdout.write(f" {unpriced:,} calls have no price and are not in it.")
    if unknown:
        sys.stdout.write(f" {unknown:,} calls are under way or were lost; they may cost ${most:,.6f} more.")
    sys.stdout.write("\n")


def _spending_row(name: str, spending: Spending) -> tuple[str, ...]:
    usage = spending.usage
    return (
        name,
        f"{spending.calls:,}",
        f"{usage.input_tokens:,}",
        f"{usage.cached_input_tokens:,}",
        f"{usage.output_tokens:,}",
        _usd(None if 0 < spending.calls == spending.unpriced else spending.usd, spending.at_most_calls),
        f"{spending.unknown:,}",
        f"{spending.paid_twice:,}",
    )


def _audit(database: Database, options: argparse.Namespace) -> None:
    audit = database.read(lambda: read_audit(database, options.run))
    if not audit.sent:
        raise ConfigError(f"No call of a run {options.run!r} is in the books; `spend --by run` lists the runs.")
    header = ("calls", "number", "input tokens", "from cache", "to cache", "output tokens", "reasoning", "USD")
    _write_table(
        [
            header,
            _line_row("answered", audit.answered),
            _line_row("refused", audit.refused),
            _line_row("unknown (at most)", audit.unknown),
        ]
    )
    sys.stdout.write(f"\n{audit.sent:,} calls left; {audit.paid_twice:,} prompts may have been paid for twice.\n")


def _line_row(name: str, line: Line) -> tuple[str, ...]:
    usage = line.usage
    prompt = (usage.input_tokens, usage.cached_input_tokens, usage.cache_write_tokens)
    tokens = (*prompt, usage.output_tokens, usage.reasoning_tokens)
    return (name, f"{line.calls:,}", *(f"{number:,}" for number in tokens), _usd(line.usd, line.at_most_calls))


def _usd(usd: Decimal | None, at_most_calls: int) -> str:
    return "?" if usd is None else f"{'<= ' if at_most_calls else ''}{usd:,.6f}"


def _prune(database: Database, options: argparse.Namespace) -> None:
    before = time.time() - options.older_than
    pruned = prune(database, before, dry_run=options.dry_run)
    if not options.dry_run:
        database.compact()
    sys.stdout.write(f"{'To remove' if options.dry_run else 'Removed'}, from before {_instant(before)}:\n")
    _write_table(
        [
            ("answers", f"{pruned.answers:,}"),
            ("failures", f"{pruned.failures:,}"),
            ("lines of the ledger", f"{pruned.ledger:,}"),
        ]
    )


def _reservations(database: Database, _: argparse.Namespace) -> None:
    held = list_reservations(database)
    rows = [
        (one.budget, f"{one.usd:,.6f}", "?" if one.changed_at is None else _instant(one.changed_at), one.holder)
        for one in held
    ]
    _write_table([("budget", "USD", "last call", "held by"), *rows])


def _settle(database: Database, options: argparse.Namespace) -> None:
    before = None if options.older_than is None else time.time() - options.older_than
    usd = settle_reservations(database, before)
    sys.stdout.write(f"${usd:,.6f} that was held counts as spent now: calls of unknown outcome may have been billed.\n")


def _backup(database: Database, options: argparse.Namespace) -> None:
    target: Path = options.target
    if not isinstance(database, SqliteDatabase):
        raise ConfigError("A store in Postgres is copied by Postgres, for instance with `pg_dump --schema=ondine`.")
    if os.path.lexists(target):
        raise ConfigError(f"{str(target)!r} exists already; name a new file.")
    with _put_in_place(target) as part:
        database.copy_to(part)
    sys.stdout.write(
        f"{target.stat().st_size / 1e6:,.2f} MB are copied to {str(target)!r}, which needs no -wal file.\n"
    )


@contextmanager
def _put_in_place(target: Path) -> Iterator[Path]:
    """A new file, for its owner only, that takes the place of `target` when it is whole."""
    part = make_new_file(target, ".part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _export(database: Database, options: argparse.Namespace) -> None:
    write = _write_csv if options.format == "csv" else _write_jsonl
    if options.output is None:
        write(database, sys.stdout)
        return
    with _put_in_place(options.output) as part, part.open("w", encoding="utf-8", newline="") as file:
        write(database, file)


def _whole_rows(database: Database) -> Iterator[Row]:
    """All answers but damaged ones, which are named on standard error."""
    for row in stream(database):
        try:
            to_answer(row)
        except DamagedRowError as error:
            sys.stderr.write(f"warning: a damaged answer is left out: {error}\n")
        else:
            yield row


def _write_jsonl(database: Database, out: TextIO) -> None:
    for key, values, *rest, answered_at in _whole_rows(database):
        row = [key.hex(), orjson.Fragment(values), *rest, _iso(answered_at)]
        out.write(orjson.dumps(dict(zip(ANSWER_COLUMNS, row, strict=True))).decode() + "\n")


def _write_csv(database: Database, out: TextIO) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(ANSWER_COLUMNS)
    for key, values, *rest, answered_at in _whole_rows(database):
        writer.writerow([key.hex(), values.decode(), *rest, _iso(answered_at)])


def _write_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _instant(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
