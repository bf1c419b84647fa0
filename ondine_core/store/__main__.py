"""`python -m ondine_core.store`: look into an answer store, copy it, prune it, export it.

It reads and writes what a run would, nothing more, so it may be used while runs go on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import NoReturn, TextIO, get_args

import orjson

from ondine_core.engine.definition import keys_of_row, keys_of_text, read_definition
from ondine_core.errors import ConfigError, OndineError
from ondine_core.store.connect import connect, find_dagster_store
from ondine_core.store.database import Database, Row
from ondine_core.store.ledger_rows import read_answers, read_audit
from ondine_core.store.origins import Origins, read_definitions, read_origins, read_reply
from ondine_core.store.queries import (
    ANSWER_COLUMNS,
    Column,
    Spending,
    prune,
    read_failed_prompts,
    read_failure_counts,
    read_size,
    read_spending,
    stream,
)
from ondine_core.store.records import DamagedRowError, to_answer
from ondine_core.store.reservations import list_reservations, settle_reservations
from ondine_core.store.sqlite import SqliteDatabase
from ondine_core.store.sqlite_files import make_new_file
from ondine_core.types.ledger import UsageTotals
from ondine_core.types.values import Key

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
        "if left out, what ONDINE_STORE says, or the default store of the Dagster instance in DAGSTER_HOME",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[Database, argparse.Namespace], None], what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what.capitalize() + ".")
        added.set_defaults(command=command)
        return added

    def filter_by(command: argparse.ArgumentParser, dated: str) -> None:
        command.add_argument("--since", type=_since, default=0.0, metavar="WHEN", help=f"{dated}; 2026-01-31, 7d, 12h")
        command.add_argument("--asset", metavar="ASSET", help="only what was asked for this asset, as in a/b")

    add("size", _size, "how much is stored")
    spend = add("spend", _spend, "calls, tokens and USD, added up")
    filter_by(spend, "only calls from this day (UTC) on")
    spend.add_argument("--by", choices=get_args(Column), default="asset", help="told apart by (default: asset)")
    add("audit", _audit, "the ledger of one run").add_argument(
        "run", metavar="RUN", help="as `spend --by run` lists it"
    )
    failures = add("failures", _failures, "prompts that have no answer, with key and reason, the newest first")
    filter_by(failures, "only what was asked since")
    failures.add_argument("--limit", type=_count, default=50, metavar="N", help="at most N (default: 50)")
    why = add("why", _why, "what is known of a row, a text or a key: answer or failure, run, cost, and the kept reply")
    why.add_argument("--asset", metavar="ASSET", help="which asset asked; otherwise all are tried")
    asked = why.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--row", type=_row, metavar="JSON", help='the columns that the prompt reads: \'{"review": "..."}\''
    )
    asked.add_argument("--text", metavar="TEXT", help="the prompt as it was sent, or the value of its only column")
    asked.add_argument("--key", type=_key, metavar="KEY", help="as `failures` lists it")
    old = add("prune", _prune, "remove what is old, or what was asked for an asset")
    old.add_argument("--older-than", type=_age_s, metavar="AGE", help="as in 90d, 12h or 8w")
    old.add_argument("--asset", metavar="ASSET", help="only what was asked for this asset, whatever its age if no AGE")
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
    filter_by(export, "only answers that came since")
    export.add_argument("--format", choices=("jsonl", "csv"), default="jsonl", help="default: jsonl")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="instead of standard output")

    arguments = list(arguments)
    if arguments and arguments[0] in commands.choices:
        try:
            place = default_store(os.environ)
        except ConfigError as error:
            parser.error(f"name the STORE before {arguments[0]!r}, or set ONDINE_STORE; {error}")
        arguments = [place, *arguments]
    options = parser.parse_args(arguments)
    if options.command is _prune and options.older_than is None and options.asset is None:
        old.error("say what to remove: --older-than AGE, --asset ASSET, or both")
    return options


def default_store(environment: Mapping[str, str]) -> str:
    """The store that is meant where none is named.

    Raises:
        ConfigError: The environment does not say.
    """
    place = environment.get("ONDINE_STORE")
    if place:
        return place
    home = environment.get("DAGSTER_HOME")
    if home:
        return find_dagster_store(home, environment)
    raise ConfigError("DAGSTER_HOME is not set either.")


def _row(text: str) -> Mapping[str, object]:
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise argparse.ArgumentTypeError("a row is a JSON object of column to value")
    return row


def _key(text: str) -> Key:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no key; `failures` and `export` list keys") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def _since(text: str) -> float:
    if re.fullmatch(r"\d+[hdw]", text):
        return time.time() - _age_s(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date or age; write 2026-01-31, 7d or 12h") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


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
    spent = read_spending(database, options.by, since=options.since, asset=options.asset)
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
        raise ConfigError(f"No call of a run {options.run!r} is in the ledger; `spend --by run` lists the runs.")
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


def _line_row(name: str, line: UsageTotals) -> tuple[str, ...]:
    usage = line.usage
    prompt = (usage.input_tokens, usage.cached_input_tokens, usage.cache_write_tokens)
    tokens = (*prompt, usage.output_tokens, usage.reasoning_tokens)
    return (name, f"{line.calls:,}", *(f"{number:,}" for number in tokens), _usd(line.usd, line.at_most_calls))


def _usd(usd: Decimal | None, at_most_calls: int) -> str:
    return "?" if usd is None else f"{'<= ' if at_most_calls else ''}{usd:,.6f}"


def _failures(database: Database, options: argparse.Namespace) -> None:
    chosen = {"since": options.since, "asset": options.asset}
    counts = read_failure_counts(database, **chosen)
    sys.stdout.write(f"{sum(counts.values()):,} prompts have no answer")
    sys.stdout.write(
        f": {', '.join(f'{count:,} {reason}' for reason, count in counts.items())}.\n" if counts else ".\n"
    )
    failed = read_failed_prompts(database, **chosen, limit=options.limit)
    if not failed:
        return
    header = ("key", "asked last", "asset", "run", "model", "asked", "USD", "reply", "why")
    rows = [
        (
            one.key.hex(),
            _instant(one.failed_at),
            "/".join(filter(None, (one.asset, one.partition))) or "?",
            one.run or "?",
            one.failure.model or "?",
            f"{one.failure.attempts:,}",
            "?" if one.failure.cost_usd is None else f"{one.failure.cost_usd:,.6f}",
            "kept" if one.has_reply else "",
            str(one.failure),
        )
        for one in failed
    ]
    sys.stdout.write("\n")
    _write_table([header, *rows], texts=(0, 1, 2, 3, 4, 8))
    left = sum(counts.values()) - len(failed)
    if left > 0:
        sys.stdout.write(f"\n{left:,} more; --limit N shows N of them.\n")


def _why(database: Database, options: argparse.Namespace) -> None:
    keys = [options.key] if options.key else database.read(lambda: _find_keys(database, options))
    answers, failures, answered_for, failed_for = database.read(
        lambda: (
            read_answers(database, keys, _warn),
            {one.key: one for one in read_failed_prompts(database, keys=keys, limit=len(keys))},
            read_origins(database, "answers", keys),
            read_origins(database, "failures", keys),
        )
    )
    told = 0
    for key in keys:
        lines = []
        answer = answers.get(key)
        if answer is not None:
            asked = f"{_times(answer.attempts)}; the answer came in a call with {answer.batch_size:,} prompts"
            lines = [("answer", json.dumps(answer.values, ensure_ascii=False)), ("model", answer.model)]
            lines += [("when", _instant(answer.answered_at)), *_origin_lines(answered_for[key]), ("asked", asked)]
            lines += [("cost", _cost(answer.cost_usd)), ("request", answer.request_id or "?")]
        elif (failed := failures.get(key)) is not None:
            failure, kept = failed.failure, database.read(partial(read_reply, database, key))
            lines = [("failure", str(failure)), ("model", failure.model or "?"), ("when", _instant(failed.failed_at))]
            lines += [*_origin_lines(failed_for[key]), ("asked", _times(failure.attempts))]
            lines += [("cost", _cost(failure.cost_usd))]
            lines += [("reply", "not kept; keep_replies=True keeps it" if kept is None else _indented(kept[0]))]
        if lines:
            sys.stdout.write("\n" if told else "")
            told += 1
            _write_table([("key", key.hex()), *((name, _printable(text)) for name, text in lines)], texts=(0, 1))
    if not told:
        tried = ", ".join(key.hex() for key in keys)
        raise ConfigError(
            f"The store has neither an answer nor a failure for it (tried {tried}): it was not asked, or with another "
            "prompt, model or parameters, or it was removed."
        )


def _warn(message: str) -> None:
    sys.stderr.write(f"warning: {message}\n")


def _find_keys(database: Database, options: argparse.Namespace) -> list[Key]:
    definitions = read_definitions(database, options.asset)
    if not definitions:
        of_asset = f" for {options.asset!r}" if options.asset else ""
        raise ConfigError(f"No run is known that asked{of_asset}; `spend --by asset` lists the assets.")
    keys: dict[Key, None] = {}
    problem: ConfigError | None = None
    for definition in map(read_definition, definitions):
        try:
            row = options.row
            found = keys_of_text(definition, options.text) if row is None else keys_of_row(definition, row)
        except ConfigError as error:
            problem = problem or error
        else:
            keys |= dict.fromkeys(found)
    if problem is not None and not keys:
        raise problem
    return list(keys)


def _origin_lines(origin: Origins) -> list[tuple[str, str]]:
    """The lines that say for whom a prompt was asked."""
    if not origin.run:
        return [("run", "not known: it was asked by an earlier version")]
    return [("run", origin.run), ("asset", "/".join(filter(None, (origin.asset, origin.partition))) or "(none)")]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _cost(usd: Decimal | None) -> str:
    return "not known" if usd is None else f"${usd:,.8f}"


def _indented(text: str) -> str:
    return text.strip().replace("\n", "\n         ")


def _printable(text: str) -> str:
    """`text` without what a terminal would take for a command."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)


def _prune(database: Database, options: argparse.Namespace) -> None:
    before = time.time() - (options.older_than or 0.0)
    is_dated = options.older_than is not None
    # The ledger explains what a budget was spent on, so its entries are pruned by age only.
    pruned = prune(database, before, asset=options.asset, ledger=is_dated, dry_run=options.dry_run)
    if not options.dry_run:
        database.compact()
    about = f" of {options.asset!r}" if options.asset else ""
    dated = f", from before {_instant(before)}" if is_dated else ""
    sys.stdout.write(f"{'To remove' if options.dry_run else 'Removed'}{about}{dated}:\n")
    _write_table(
        [
            ("answers", f"{pruned.answers:,}"),
            ("failures", f"{pruned.failures:,}"),
            ("replies", f"{pruned.replies:,}"),
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
    # A reader that leaves early must not leave a query behind when the store is closed.
    with closing(_whole_rows(stream(database, since=options.since, asset=options.asset))) as rows:
        if options.output is None:
            write(rows, sys.stdout)
            return
        with _put_in_place(options.output) as part, part.open("w", encoding="utf-8", newline="") as file:
            write(rows, file)


def _whole_rows(rows: Iterable[Row]) -> Generator[Row]:
    """All rows but damaged ones, which are named on standard error."""
    for row in rows:
        try:
            to_answer(row)
        except DamagedRowError as error:
            sys.stderr.write(f"warning: a damaged answer is left out: {error}\n")
        else:
            yield row


def _write_jsonl(rows: Iterable[Row], out: TextIO) -> None:
    for key, values, *rest, answered_at in rows:
        row = [key.hex(), orjson.Fragment(values), *rest, _iso(answered_at)]
        out.write(orjson.dumps(dict(zip(ANSWER_COLUMNS, row, strict=True))).decode() + "\n")


def _write_csv(rows: Iterable[Row], out: TextIO) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(ANSWER_COLUMNS)
    for key, values, *rest, answered_at in rows:
        writer.writerow([key.hex(), values.decode(), *rest, _iso(answered_at)])


def _write_table(rows: Sequence[Sequence[str]], *, texts: Collection[int] = (0,)) -> None:
    """Write columns side by side, those numbered in `texts` to the left and figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if number in texts else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _instant(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
