"""The command `jobs`, which lists, shows, cancels, adopts and forgets batch jobs of providers.

Usually runs do all of this. Only runs read results, since a reply cannot be interpreted without its prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from ondine_core.commands.terminal import (
    AddCommand,
    add_command,
    printable,
    show_asset,
    show_instant,
    show_usd,
    warn,
    write_lines,
    write_table,
)
from ondine_core.engine.jobs.polling import ask_status
from ondine_core.errors import ConfigError, ProviderError, TransientError
from ondine_core.providers.job_api import JobApi, JobStatus
from ondine_core.providers.jobs import connect_jobs
from ondine_core.store import job_tables, open_store
from ondine_core.store.database import Database
from ondine_core.store.reservations import budget_name
from ondine_core.types.job_record import OPEN_STATES, JobRecord, JobState, JobWait
from ondine_core.types.ledger import UsageTotals
from ondine_core.types.values import ModelSpec

T = TypeVar("T")
_WITHOUT_ID: Final[tuple[JobState, ...]] = ("preparing", "creating")
_MAX_MARKERS = 5
"""Maximum number of markers in one message."""
_HEADER = ("job", "provider's id", "asset", "model", "state", "provider says", "requests", "done", "USD held", "since")


def add_commands(add: AddCommand) -> None:
    """Add the command of this module, with its actions."""
    jobs = add("jobs", _list, "batch jobs of providers: list, show, cancel, adopt or forget them")
    _add_all(jobs, default=False)
    add_action = partial(add_command, jobs.add_subparsers(metavar="ACTION"))
    _add_all(add_action("list", _list, "jobs that are under way (default)"), default=argparse.SUPPRESS)
    show = add_action("show", _show, "the stored record of a job")
    _add_marker(show)
    show.add_argument("--refresh", action="store_true", help="ask the provider for its progress first")
    _add_access(show)
    cancel = add_action("cancel", _cancel, "ask the provider to cancel jobs; the next run reads what was answered")
    _add_marker(cancel, nargs="+")
    _add_access(cancel)
    adopt = add_action("adopt", _adopt, "set the provider's id of a job whose creation was not confirmed")
    _add_marker(adopt)
    adopt.add_argument("job_id", metavar="JOB_ID", help="as the provider lists it")
    _add_access(adopt)
    forget = add_action("forget", _forget, "give up a job: its requests stay charged, its prompts are asked again")
    _add_marker(forget)
    forget.add_argument(
        "--yes", action="store_true", help="do it; without this option the command only prints what it would do"
    )


def _add_all(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument("--all", action="store_true", default=default, help="also those that are closed")


def _add_marker(parser: argparse.ArgumentParser, **options: Any) -> None:
    parser.add_argument(
        "marker", metavar="MARKER", help="the marker as `jobs` lists it, or its first characters", **options
    )


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-url", metavar="URL", help="the address to which the job was submitted, if not the provider's usual one"
    )
    parser.add_argument(
        "--api-key-variable",
        metavar="NAME",
        help="the environment variable with the key; by default the provider's usual one, and with --base-url none",
    )


# -- list and show -------------------------------------------------------------------------------------------------


def _list(database: Database, options: argparse.Namespace) -> None:
    records, in_flight = database.read(
        lambda: (job_tables.read_jobs(database, is_open=not options.all), job_tables.read_in_flight(database))
    )
    if not records:
        sys.stdout.write("No batch job is stored.\n" if options.all else "No batch job is under way.\n")
        return
    rows = [_job_row(record, in_flight[record.job]) for record in records]
    write_table([_HEADER, *rows], texts=range(6))


def _job_row(record: JobRecord, in_flight: UsageTotals) -> tuple[str | int, ...]:
    return (
        record.marker,
        printable(record.job_id or "?"),
        show_asset(record.origin) or "(none)",
        record.model,
        record.state,
        printable(record.status or "?"),
        _requests(record, in_flight),
        record.done,
        show_usd(in_flight.usd, in_flight.calls),
        show_instant(record.created_at),
    )


def _requests(record: JobRecord, in_flight: UsageTotals) -> int:
    """Number of requests of a job; the record of a job that is being prepared does not have it yet."""
    return record.requests or in_flight.calls


def _show(database: Database, options: argparse.Namespace) -> None:
    record = _find(database, options.marker, is_open=options.refresh)
    if options.refresh:
        _refresh(record, options)
    ((record,), in_flight, lost, waits) = database.read(
        lambda: (
            job_tables.read_jobs(database, jobs=[record.job], is_open=False),
            job_tables.read_in_flight(database)[record.job],
            job_tables.count_lost(database, record.job),
            job_tables.read_waits(database),
        )
    )
    waiting = [wait for wait in waits if record.job in wait.jobs]
    lines = [*_identity_lines(record), *_progress_lines(record, in_flight, lost), *map(_wait_line, waiting)]
    write_lines(lines)


def _refresh(record: JobRecord, options: argparse.Namespace) -> None:
    if record.job_id is None:
        raise ConfigError(_no_id_yet(record))

    async def ask(api: JobApi) -> None:
        with open_store(options.store) as store:
            await ask_status(api, store, record, time.time())

    _ask(record, options, ask)


def _identity_lines(record: JobRecord) -> list[tuple[str, str]]:
    return [
        ("job", record.marker),
        ("provider's id", record.job_id or "not known"),
        ("model", record.model),
        ("account", record.account),
        ("asset", show_asset(record.origin) or "(none)"),
        ("run", record.origin.run or "?"),
        ("budgets", ", ".join(map(budget_name, record.cells)) or "none"),
        ("begun", show_instant(record.created_at)),
        ("answers by", "whenever" if record.answer_by is None else show_instant(record.answer_by)),
    ]


def _progress_lines(record: JobRecord, in_flight: UsageTotals, lost: int) -> list[tuple[str, str]]:
    requests = _requests(record, in_flight)
    lines = [
        ("state", f"{record.state}, since {show_instant(record.changed_at)}"),
        ("provider says", record.status or "nothing yet"),
        ("requests", f"{requests:,}, of which the provider has done {record.done:,}"),
        ("settled", f"{max(0, requests - in_flight.calls - lost):,}"),
    ]
    if record.state in OPEN_STATES:
        lines.append(("not settled", f"{in_flight.calls:,}, held at {show_usd(in_flight.usd, 1)} USD"))
    if lost:
        lines.append(("unknown outcome", f"{lost:,}, charged with the most that they can have cost"))
    return lines


def _wait_line(wait: JobWait) -> tuple[str, str]:
    runs = f"first run {wait.origin.run or '?'}, last run {wait.last_run or '?'}"
    return ("waiting", f"{show_asset(wait.origin) or '(none)'}, since {show_instant(wait.since)}, {runs}")


# -- cancel, adopt and forget --------------------------------------------------------------------------------------


def _cancel(database: Database, options: argparse.Namespace) -> None:
    records = list(dict.fromkeys(_find(database, marker) for marker in options.marker))
    for record in records:
        if record.job_id is None:
            raise ConfigError(_no_id_yet(record))
    for record in records:
        _cancel_one(record, options)


def _cancel_one(record: JobRecord, options: argparse.Namespace) -> None:
    job_id = record.job_id or ""
    if record.state == "ended":
        sys.stdout.write(f"{record.marker} has ended already; the next run of its asset reads the results.\n")
        return
    _ask(record, options, lambda api: api.cancel(job_id))
    sys.stdout.write(
        f"{record.marker} is to be cancelled: the provider ends it within minutes, and the next run of its asset reads "
        "what was answered.\n"
    )


def _adopt(database: Database, options: argparse.Namespace) -> None:
    record = _find(database, options.marker)
    job_id = options.job_id
    if record.state not in _WITHOUT_ID:
        raise ConfigError(
            f"The batch job {record.marker} is {record.state} and has the provider's id {record.job_id!r}; an id is "
            f"given to jobs in the states {' and '.join(_WITHOUT_ID)} only."
        )
    others, in_flight = database.read(
        lambda: (job_tables.read_jobs(database, is_open=False), job_tables.read_in_flight(database))
    )
    taken = next((other.marker for other in others if other.job_id == job_id), None)
    if taken is not None:
        raise ConfigError(f"{job_id!r} is the provider's id of the batch job {taken}; name another one.")
    held = in_flight[record.job]
    requests = _requests(record, held)
    status = _ask(record, options, partial(_check_job, record=record, job_id=job_id, requests=requests))

    adopted = {
        "state": "submitted",
        "job_id": job_id,
        "requests": requests,
        "at_most_usd": record.at_most_usd if record.requests else held.usd,
        "status": status.state,
        "done": status.done,
    }
    if not database.write(partial(job_tables.move, database, record.job, _WITHOUT_ID, time.time(), **adopted)):
        raise ConfigError(_changed_meanwhile(record))
    sys.stdout.write(
        f"{record.marker} is {job_id!r} of the provider now; the next run of its asset reads its results.\n"
    )


async def _check_job(api: JobApi, record: JobRecord, job_id: str, requests: int) -> JobStatus:
    """Check, if possible, that `job_id` is the job of `record`; returns its status.

    Raises:
        ConfigError: It is another job.
        ProviderError: The provider cannot be asked.
    """
    status = await api.get_status(job_id)
    if status.total and status.total != requests:
        raise ConfigError(
            f"{job_id!r} is not the batch job {record.marker}: it has {status.total:,} requests, and not {requests:,}."
        )
    try:
        found = await api.find(record.marker, record.created_at, requests)
    except TransientError as error:
        if status.has_ended:
            raise
        warn(f"whether {job_id!r} is the batch job {record.marker} is not known yet, it is assumed: {error}")
        return status
    if found != job_id:
        instead = f"that is {found!r}" if found else "the provider lists no job that was submitted under this marker"
        raise ConfigError(f"{job_id!r} is not the batch job {record.marker}: {instead}.")
    return status


def _forget(database: Database, options: argparse.Namespace) -> None:
    record = _find(database, options.marker)
    is_sent = record.state != "preparing"
    if not options.yes:
        in_flight = database.read(lambda: job_tables.read_in_flight(database))[record.job]
        cost = f"stay charged at {show_usd(in_flight.usd, 1)} USD" if is_sent else "were not sent and cost nothing"
        advice = f" Cancel it first if it still runs: `jobs cancel {record.marker}`." if record.job_id else ""
        raise ConfigError(
            f"The batch job {record.marker} is {record.state}. If it is forgotten, its {in_flight.calls:,} requests "
            f"without an outcome {cost}, and their prompts are asked again.{advice} To forget it, add --yes."
        )
    if not is_sent:
        discard = partial(job_tables.discard, database, record.job, ("preparing",))
        if not database.write(discard, record.cells):
            raise ConfigError(_changed_meanwhile(record))
        sys.stdout.write(f"{record.marker} is forgotten; it had not been sent, and its reservation is released.\n")
        return
    unsettled = database.write(partial(job_tables.close, database, record.job, "lost", time.time()), record.cells)
    if unsettled is None:
        raise ConfigError(_changed_meanwhile(record))
    sys.stdout.write(
        f"{record.marker} is forgotten: {unsettled:,} requests count with the most that they can have cost, and their "
        "prompts are asked again.\n"
    )


def _no_id_yet(record: JobRecord) -> str:
    return (
        f"The batch job {record.marker} is {record.state}, and the provider's id of it is not known. The next run of "
        f"its asset finds out whether it was created; if the provider lists it, `jobs adopt {record.marker} JOB_ID`."
    )


def _changed_meanwhile(record: JobRecord) -> str:
    return f"The batch job {record.marker} was changed by a run meanwhile; see `jobs show {record.marker}`."


# -- finding and asking --------------------------------------------------------------------------------------------


def _find(database: Database, prefix: str, *, is_open: bool = True) -> JobRecord:
    """Find the job whose marker begins with `prefix`.

    Raises:
        ConfigError: There is none, or several, or it is closed although `is_open` is set.
    """
    records = database.read(lambda: job_tables.read_jobs(database, is_open=False))
    matching = [record for record in records if record.marker.startswith(prefix.lower())]
    if not prefix or not matching:
        raise ConfigError(f"No batch job {prefix!r} is stored; `jobs --all` lists all.")
    if len(matching) > 1:
        raise ConfigError(f"{prefix!r} may be any of {_list_markers(matching)}; write more of the marker.")
    (record,) = matching
    if is_open and record.state not in OPEN_STATES:
        raise ConfigError(f"The batch job {record.marker} is closed ({record.state}), so nothing is left to do.")
    return record


def _list_markers(records: Sequence[JobRecord]) -> str:
    more = f" and {len(records) - _MAX_MARKERS:,} more" if len(records) > _MAX_MARKERS else ""
    return ", ".join(record.marker for record in records[:_MAX_MARKERS]) + more


def _ask(record: JobRecord, options: argparse.Namespace, act: Callable[[JobApi], Awaitable[T]]) -> T:
    """Return the result of `act`, called with the provider's batch API for the model of a job."""
    spec = ModelSpec(record.model, _read_key(options.api_key_variable), options.base_url, tier="batch")

    async def main() -> T:
        try:
            api = connect_jobs(spec)
        except ConfigError as error:
            raise ConfigError(
                f"{error} This command takes the address from --base-url, the key from --api-key-variable NAME, and "
                "all else from the provider's environment variables."
            ) from None
        try:
            return await act(api)
        except ProviderError as error:
            if api.account == record.account:
                raise
            raise ConfigError(
                f"{error} The batch job {record.marker} was submitted with another key or to another address; name "
                "them by --api-key-variable and --base-url."
            ) from error
        finally:
            await api.aclose()

    return asyncio.run(main())


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"--api-key-variable: the environment variable {variable!r} is not set.")
    return key
