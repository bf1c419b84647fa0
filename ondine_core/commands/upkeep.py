"""Removes old rows, and lists and settles reservations: `prune`, `reservations`, `settle`."""

from __future__ import annotations

import argparse
import sys
import time

from ondine_core.commands.terminal import AddCommand, show_instant, to_age_s, to_text, write_table
from ondine_core.store.database import Database
from ondine_core.store.queries import prune
from ondine_core.store.reservations import list_reservations, settle_reservations


def add_commands(add: AddCommand) -> None:
    """Add the commands of this module."""
    old = add("prune", _prune, "remove what is old, or what was asked for an asset")
    old.add_argument("--older-than", type=to_age_s, metavar="AGE", help="as in 90d, 12h or 8w")
    old.add_argument(
        "--asset", type=to_text, metavar="ASSET", help="only what was asked for this asset, whatever its age if no AGE"
    )
    old.add_argument("--dry-run", action="store_true", help="only say how much there is to remove")
    old.set_defaults(fail=old.error)
    add("reservations", _reservations, "budgets' reservations for calls in flight, and the processes that hold them")
    gone = add("settle", _settle, "charge reservations of processes that have ended as spent")
    gone.add_argument(
        "--older-than",
        type=to_age_s,
        metavar="AGE",
        help="also those of processes on other machines and in other containers that made no call for AGE",
    )


def _prune(database: Database, options: argparse.Namespace) -> None:
    if options.older_than is None and options.asset is None:
        options.fail("say what to remove: --older-than AGE, --asset ASSET, or both")
    before = None if options.older_than is None else time.time() - options.older_than
    pruned = prune(database, before, asset=options.asset, dry_run=options.dry_run)
    if not options.dry_run:
        database.compact()
    about = f" of {options.asset!r}" if options.asset else ""
    dated = f", from before {show_instant(before)}" if before is not None else ""
    sys.stdout.write(f"{'To remove' if options.dry_run else 'Removed'}{about}{dated}:\n")
    names = {"answers": "answers", "failures": "failures", "replies": "replies", "ledger": "lines of the ledger"}
    if pruned["jobs"] or pruned["job_waits"]:
        names |= {"jobs": "batch jobs", "job_waits": "waits for batch jobs"}
    write_table([(name, pruned[table]) for table, name in names.items()])


def _reservations(database: Database, _: argparse.Namespace) -> None:
    rows = [
        (reservation.budget, f"{reservation.usd:,.6f}", show_instant(reservation.changed_at), reservation.holder)
        for reservation in list_reservations(database)
    ]
    write_table([("budget", "USD", "last call", "held by"), *rows])


def _settle(database: Database, options: argparse.Namespace) -> None:
    before = None if options.older_than is None else time.time() - options.older_than
    usd = settle_reservations(database, before)
    sys.stdout.write(f"${usd:,.6f} that was held counts as spent now: calls of unknown outcome may have been billed.\n")
