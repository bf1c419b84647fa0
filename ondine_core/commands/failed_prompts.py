"""The commands `failures`, which lists prompts without an answer, and `why`, which shows the record of a prompt."""

from __future__ import annotations

import argparse
import json
import sys
from decimal import Decimal
from functools import partial

from ondine_core.commands.terminal import (
    AddCommand,
    add_filters,
    show_asset,
    show_instant,
    to_count,
    to_key,
    to_row,
    to_text,
    warn,
    write_lines,
    write_table,
)
from ondine_core.engine.definition import keys_of_row, keys_of_text, read_definition
from ondine_core.errors import ConfigError
from ondine_core.store.database import Database
from ondine_core.store.ledger_rows import read_answers
from ondine_core.store.origins import read_definitions, read_origins, read_reply
from ondine_core.store.queries import FailedPrompt, read_failed_prompts, read_failure_counts
from ondine_core.types.ledger import Origin
from ondine_core.types.values import Answer, Key


def add_commands(add: AddCommand) -> None:
    """Add the commands of this module."""
    failures = add("failures", _failures, "prompts that have no answer, with key and reason, the newest first")
    add_filters(failures, "only what was asked since")
    failures.add_argument("--limit", type=to_count, default=50, metavar="N", help="at most N (default: 50)")
    why = add("why", _why, "the record of a row, a text or a key: answer or failure, run, cost, and the kept reply")
    why.add_argument(
        "--asset", type=to_text, metavar="ASSET", help="the asset that asked; by default all assets are tried"
    )
    asked = why.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--row", type=to_row, metavar="JSON", help='the columns that the prompt reads: \'{"review": "..."}\''
    )
    asked.add_argument(
        "--text", type=to_text, metavar="TEXT", help="the prompt as it was sent, or the value of its only column"
    )
    asked.add_argument("--key", type=to_key, metavar="KEY", help="as `failures` lists it")


def _failures(database: Database, options: argparse.Namespace) -> None:
    filters = {"since": options.since, "asset": options.asset}
    counts = read_failure_counts(database, **filters)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    sys.stdout.write(f"{sum(counts.values()):,} prompts have no answer{': ' if reasons else ''}{reasons}.\n")
    failed = read_failed_prompts(database, **filters, limit=options.limit)
    if not failed:
        return
    header = ("key", "asked last", "asset", "run", "model", "asked", "USD", "reply", "why")
    rows = [
        (
            prompt.key.hex(),
            show_instant(prompt.failed_at),
            show_asset(prompt.origin) or "?",
            prompt.origin.run or "?",
            prompt.failure.model or "?",
            prompt.failure.attempts,
            "?" if prompt.failure.cost_usd is None else f"{prompt.failure.cost_usd:,.6f}",
            "kept" if prompt.has_reply else "",
            str(prompt.failure),
        )
        for prompt in failed
    ]
    sys.stdout.write("\n")
    write_table([header, *rows], texts=(0, 1, 2, 3, 4, 8))
    left = sum(counts.values()) - len(failed)
    if left > 0:
        sys.stdout.write(f"\n{left:,} more; --limit N shows N of them.\n")


def _why(database: Database, options: argparse.Namespace) -> None:
    keys = [options.key] if options.key else database.read(lambda: _find_keys(database, options))
    answers, failures, origins = database.read(
        lambda: (
            read_answers(database, keys, warn),
            {prompt.key: prompt for prompt in read_failed_prompts(database, keys=keys, limit=len(keys))},
            read_origins(database, keys),
        )
    )
    records = []
    for key in keys:
        if key in answers:
            records.append([("key", key.hex()), *_answer_lines(answers[key], origins[key])])
        elif key in failures:
            reply = database.read(partial(read_reply, database, key))
            records.append([("key", key.hex()), *_failure_lines(failures[key], reply)])
    if not records:
        tried = ", ".join(key.hex() for key in keys)
        raise ConfigError(
            f"The store has neither an answer nor a failure for it (tried {tried}): it was not asked, or with another "
            "prompt, model or parameters, or it was removed."
        )
    for number, lines in enumerate(records):
        sys.stdout.write("\n" if number else "")
        write_lines(lines)


def _answer_lines(answer: Answer, origin: Origin) -> list[tuple[str, str]]:
    return [
        ("answer", json.dumps(answer.values, ensure_ascii=False)),
        ("model", answer.model),
        ("when", show_instant(answer.answered_at)),
        *_origin_lines(origin),
        ("asked", f"{_times(answer.attempts)}; answered in a call with {answer.batch_size:,} prompts"),
        ("cost", _cost(answer.cost_usd)),
        ("request", answer.request_id or "?"),
    ]


def _failure_lines(failed: FailedPrompt, reply: tuple[str, float] | None) -> list[tuple[str, str]]:
    failure = failed.failure
    return [
        ("failure", str(failure)),
        ("model", failure.model or "?"),
        ("when", show_instant(failed.failed_at)),
        *_origin_lines(failed.origin),
        ("asked", _times(failure.attempts)),
        ("cost", _cost(failure.cost_usd)),
        ("reply", "not kept; keep_replies=True keeps it" if reply is None else _indent(reply[0])),
    ]


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
            keys_here = keys_of_text(definition, options.text) if row is None else keys_of_row(definition, row)
        except ConfigError as error:
            problem = problem or error
        else:
            keys |= dict.fromkeys(keys_here)
    if problem is not None and not keys:
        raise problem
    return list(keys)


def _origin_lines(origin: Origin) -> list[tuple[str, str]]:
    if not origin.run:
        return [("run", "not known: it was asked by an earlier version")]
    return [("run", origin.run), ("asset", show_asset(origin) or "(none)")]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _cost(usd: Decimal | None) -> str:
    return "not known" if usd is None else f"${usd:,.8f}"


def _indent(text: str) -> str:
    return text.strip().replace("\n", "\n         ")
