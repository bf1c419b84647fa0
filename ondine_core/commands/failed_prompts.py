"""What became of prompts: `failures` lists those without an answer, `why` tells all that is known of one."""

from __future__ import annotations

import argparse
import json
import sys
from decimal import Decimal
from functools import partial

from ondine_core.commands.terminal import (
    AddCommand,
    add_filters,
    printable,
    show_instant,
    to_count,
    to_key,
    to_row,
    warn,
    write_table,
)
from ondine_core.engine.definition import keys_of_row, keys_of_text, read_definition
from ondine_core.errors import ConfigError
from ondine_core.store.database import Database
from ondine_core.store.ledger_rows import read_answers
from ondine_core.store.origins import Origins, read_definitions, read_origins, read_reply
from ondine_core.store.queries import read_failed_prompts, read_failure_counts
from ondine_core.types.values import Key

__all__ = ["add_commands"]


def add_commands(add: AddCommand) -> None:
    """Add the commands of this module."""
    failures = add("failures", _failures, "prompts that have no answer, with key and reason, the newest first")
    add_filters(failures, "only what was asked since")
    failures.add_argument("--limit", type=to_count, default=50, metavar="N", help="at most N (default: 50)")
    why = add("why", _why, "what is known of a row, a text or a key: answer or failure, run, cost, and the kept reply")
    why.add_argument("--asset", metavar="ASSET", help="which asset asked; otherwise all are tried")
    asked = why.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--row", type=to_row, metavar="JSON", help='the columns that the prompt reads: \'{"review": "..."}\''
    )
    asked.add_argument("--text", metavar="TEXT", help="the prompt as it was sent, or the value of its only column")
    asked.add_argument("--key", type=to_key, metavar="KEY", help="as `failures` lists it")


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
            show_instant(one.failed_at),
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
    write_table([header, *rows], texts=(0, 1, 2, 3, 4, 8))
    left = sum(counts.values()) - len(failed)
    if left > 0:
        sys.stdout.write(f"\n{left:,} more; --limit N shows N of them.\n")


def _why(database: Database, options: argparse.Namespace) -> None:
    keys = [options.key] if options.key else database.read(lambda: _find_keys(database, options))
    answers, failures, answered_for, failed_for = database.read(
        lambda: (
            read_answers(database, keys, warn),
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
            lines += [("when", show_instant(answer.answered_at)), *_origin_lines(answered_for[key]), ("asked", asked)]
            lines += [("cost", _cost(answer.cost_usd)), ("request", answer.request_id or "?")]
        elif (failed := failures.get(key)) is not None:
            failure, kept = failed.failure, database.read(partial(read_reply, database, key))
            lines = [
                ("failure", str(failure)),
                ("model", failure.model or "?"),
                ("when", show_instant(failed.failed_at)),
            ]
            lines += [*_origin_lines(failed_for[key]), ("asked", _times(failure.attempts))]
            lines += [("cost", _cost(failure.cost_usd))]
            lines += [("reply", "not kept; keep_replies=True keeps it" if kept is None else _indented(kept[0]))]
        if lines:
            sys.stdout.write("\n" if told else "")
            told += 1
            write_table([("key", key.hex()), *((name, printable(text)) for name, text in lines)], texts=(0, 1))
    if not told:
        tried = ", ".join(key.hex() for key in keys)
        raise ConfigError(
            f"The store has neither an answer nor a failure for it (tried {tried}): it was not asked, or with another "
            "prompt, model or parameters, or it was removed."
        )


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
