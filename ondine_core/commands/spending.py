"""How much a store holds, and what was spent: `size`, `spend`, `audit`."""

from __future__ import annotations

import argparse
import sys
from decimal import Decimal
from typing import get_args

from ondine_core.commands.terminal import AddCommand, add_filters, show_instant, show_usd, write_table
from ondine_core.errors import ConfigError
from ondine_core.store.database import Database
from ondine_core.store.ledger_rows import read_audit
from ondine_core.store.queries import Column, Size, Spending, read_size, read_spending
from ondine_core.types.ledger import UsageTotals

__all__ = ["add_commands"]


def add_commands(add: AddCommand) -> None:
    """Add the commands of this module."""
    add("size", _size, "how much is stored")
    spend = add("spend", _spend, "calls, tokens and USD, added up")
    add_filters(spend, "only calls from this day (UTC) on")
    spend.add_argument("--by", choices=get_args(Column), default="asset", help="told apart by (default: asset)")
    audit = add("audit", _audit, "the ledger of one run")
    audit.add_argument("run", metavar="RUN", help="as `spend --by run` lists it")


def _size(database: Database, _: argparse.Namespace) -> None:
    size = read_size(database)
    rows = [
        ("answers", f"{size.answers:,}"),
        ("failures", f"{size.failures:,}"),
        ("calls of unknown outcome", f"{size.unknown:,}"),
        *_job_rows(size),
        ("on disk", f"{size.bytes / 1e6:,.2f} MB"),
    ]
    if isinstance(size.oldest, float) and isinstance(size.newest, float):  # a damaged row may hold anything
        rows += [("oldest answer", show_instant(size.oldest)), ("newest answer", show_instant(size.newest))]
    write_table(rows)


def _job_rows(size: Size) -> list[tuple[str, str]]:
    if not size.jobs:
        return []
    return [("batch jobs under way", f"{size.jobs:,}"), ("requests of these", f"{size.job_requests:,}")]


def _spend(database: Database, options: argparse.Namespace) -> None:
    spent = read_spending(database, options.by, since=options.since, asset=options.asset)
    in_jobs = sum(spending.in_jobs for spending in spent.values())
    shows_jobs = in_jobs > 0
    rows = [_spending_row(name or "(none)", spending, shows_jobs) for (name,), spending in spent.items()]
    header: tuple[str, ...] = (
        options.by,
        "calls",
        "input tokens",
        "from cache",
        "output tokens",
        "USD",
        "unknown",
        "paid twice",
    )
    if shows_jobs:
        header = (*header, "in batch jobs")
    write_table([header, *rows])
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
    if in_jobs:
        jobs_most = sum((spending.in_jobs_at_most_usd for spending in spent.values()), Decimal(0))
        sys.stdout.write(f" {in_jobs:,} requests of batch jobs are under way; they may cost ${jobs_most:,.6f} more.")
    sys.stdout.write("\n")


def _spending_row(name: str, spending: Spending, shows_jobs: bool) -> tuple[str, ...]:
    usage = spending.usage
    row = (
        name,
        f"{spending.calls:,}",
        f"{usage.input_tokens:,}",
        f"{usage.cached_input_tokens:,}",
        f"{usage.output_tokens:,}",
        show_usd(None if 0 < spending.calls == spending.unpriced else spending.usd, spending.at_most_calls),
        f"{spending.unknown:,}",
        f"{spending.paid_twice:,}",
    )
    return (*row, f"{spending.in_jobs:,}") if shows_jobs else row


def _audit(database: Database, options: argparse.Namespace) -> None:
    audit = database.read(lambda: read_audit(database, options.run))
    if not audit.sent:
        raise ConfigError(f"No call of a run {options.run!r} is in the ledger; `spend --by run` lists the runs.")
    header = ("calls", "number", "input tokens", "from cache", "to cache", "output tokens", "reasoning", "USD")
    lines = [
        _line_row("answered", audit.answered),
        _line_row("refused", audit.refused),
        _line_row("unknown (at most)", audit.unknown),
    ]
    if audit.in_jobs.calls:
        lines.append(_line_row("in batch jobs (at most)", audit.in_jobs))
    write_table([header, *lines])
    sys.stdout.write(f"\n{audit.sent:,} calls left; {audit.paid_twice:,} prompts may have been paid for twice.\n")


def _line_row(name: str, line: UsageTotals) -> tuple[str, ...]:
    usage = line.usage
    prompt = (usage.input_tokens, usage.cached_input_tokens, usage.cache_write_tokens)
    tokens = (*prompt, usage.output_tokens, usage.reasoning_tokens)
    return (name, f"{line.calls:,}", *(f"{number:,}" for number in tokens), show_usd(line.usd, line.at_most_calls))
