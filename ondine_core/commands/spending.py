"""The size of a store, and what was spent: `size`, `spend`, `audit`."""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from ondine_core.commands.terminal import AddCommand, add_filters, show_instant, show_usd, to_text, write_table
from ondine_core.errors import ConfigError
from ondine_core.store.database import Database
from ondine_core.store.ledger_rows import read_audit
from ondine_core.store.queries import Column, Spending, read_size, read_spending
from ondine_core.types.ledger import UsageTotals


def add_commands(add: AddCommand) -> None:
    """Add the commands of this module."""
    add("size", _size, "how much is stored")
    spend = add("spend", _spend, "sums of calls, tokens and USD")
    add_filters(spend, "only calls from this day (UTC) on")
    spend.add_argument(
        "--by", choices=get_args(Column), default="asset", help="the column by which calls are grouped (default: asset)"
    )
    audit = add("audit", _audit, "the ledger of one run")
    audit.add_argument("run", type=to_text, metavar="RUN", help="as `spend --by run` lists it")


def _size(database: Database, _: argparse.Namespace) -> None:
    size = read_size(database)
    rows: list[tuple[str, str | int]] = [
        ("answers", size.answers),
        ("failures", size.failures),
        ("calls of unknown outcome", size.unknown),
    ]
    if size.jobs:
        rows += [("batch jobs under way", size.jobs), ("requests of these", size.job_requests)]
    rows.append(("on disk", f"{size.bytes / 1e6:,.2f} MB"))
    if isinstance(size.oldest, float) and isinstance(size.newest, float):  # a damaged row may hold anything
        rows += [("oldest answer", show_instant(size.oldest)), ("newest answer", show_instant(size.newest))]
    write_table(rows)


def _spend(database: Database, options: argparse.Namespace) -> None:
    spent = read_spending(database, options.by, since=options.since, asset=options.asset)
    total = sum(spent.values(), Spending())
    header = (
        *(options.by, "calls", "input tokens", "from cache", "output tokens", "USD", "unknown", "paid twice"),
        "in batch jobs",
    )
    rows = [header, *(_spending_row(name or "(none)", spending) for (name,), spending in spent.items())]
    write_table(rows if total.in_jobs else [row[:-1] for row in rows])
    sys.stdout.write(f"\nIn all {'at most ' if total.at_most_calls else ''}${total.usd:,.6f}.")
    if total.at_most_calls:
        sys.stdout.write(f" {total.at_most_calls:,} calls are included at their maximum cost.")
    if total.unpriced:
        sys.stdout.write(f" {total.unpriced:,} calls have no price and are not included.")
    if total.unknown:
        at_most = f"${total.at_most_usd:,.6f}"
        sys.stdout.write(f" {total.unknown:,} calls are under way or were lost; they may cost {at_most} more.")
    if total.in_jobs:
        at_most = f"${total.in_jobs_at_most_usd:,.6f}"
        sys.stdout.write(f" {total.in_jobs:,} requests of batch jobs are under way; they may cost {at_most} more.")
    sys.stdout.write("\n")


def _spending_row(name: str, spending: Spending) -> tuple[str | int, ...]:
    usage = spending.usage
    return (
        name,
        spending.calls,
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.output_tokens,
        show_usd(spending.known_usd, spending.at_most_calls),
        spending.unknown,
        spending.paid_twice,
        spending.in_jobs,
    )


def _audit(database: Database, options: argparse.Namespace) -> None:
    audit = database.read(lambda: read_audit(database, options.run))
    if not audit.sent:
        raise ConfigError(f"No call of a run {options.run!r} is in the ledger; `spend --by run` lists the runs.")
    header = ("calls", "number", "input tokens", "from cache", "to cache", "output tokens", "reasoning", "USD")
    rows = [
        _audit_row("answered", audit.answered),
        _audit_row("refused", audit.refused),
        _audit_row("unknown (at most)", audit.unknown),
    ]
    if audit.in_jobs.calls:
        rows.append(_audit_row("in batch jobs (at most)", audit.in_jobs))
    write_table([header, *rows])
    sys.stdout.write(f"\n{audit.sent:,} calls left; {audit.paid_twice:,} prompts may have been paid for twice.\n")


def _audit_row(name: str, totals: UsageTotals) -> tuple[str | int, ...]:
    usage = totals.usage
    return (
        name,
        totals.calls,
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        show_usd(totals.usd, totals.at_most_calls),
    )
