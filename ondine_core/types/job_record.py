"""Records of batch jobs, which store, engine and sensor exchange."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, TypeAlias

from ondine_core.types.ledger import Origin

JobState: TypeAlias = Literal["preparing", "creating", "submitted", "ended", "read", "lost"]
"""`"preparing"`: only files were sent; `"creating"`: the request that creates the job may have been sent;
`"submitted"`: the provider's id of it is known; `"ended"`: the provider has stopped working on it; `"read"`: its
results are stored; `"lost"`: the provider has no results of it."""

OPEN_STATES: tuple[JobState, ...] = ("preparing", "creating", "submitted", "ended")
"""States in which the requests of a job are in flight."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A batch job in the store. Times are in seconds since the epoch.

    Args:
        job: Id of the job, 8 bytes; the ids of its calls begin with them.
        task: Id of what is asked, see `CallStarted.task`.
        origin: The run, asset and partition for which the job was created.
        model: The model that is asked.
        account: Identifies the account at the provider without disclosing the key.
        owner: The process that created the job, see `Process`.
        created_at: When the job was created.
        answer_by: When the job is cancelled if it has not ended; `None` for never.
        cells: Names in the store of the budgets that are charged.
        state: State of the job.
        changed_at: When `state` last changed.
        job_id: The provider's id of the job.
        requests: Number of requests.
        at_most_usd: Maximum cost of all requests, `None` if unknown.
        status: Status of the job in the provider's words.
        done: Number of requests known to be done.
    """

    job: bytes
    task: bytes
    origin: Origin
    model: str
    account: str
    owner: tuple[float, ...]
    created_at: float
    answer_by: float | None = None
    cells: tuple[str, ...] = ()
    state: JobState = "preparing"
    changed_at: float = 0.0
    job_id: str | None = None
    requests: int = 0
    at_most_usd: Decimal | None = Decimal(0)
    status: str = ""
    done: int = 0

    @property
    def shown_status(self) -> str:
        """The provider's status, or `state` while there is none."""
        return self.status or self.state

    @property
    def marker(self) -> str:
        """The name that is sent to the provider with the job, 16 hexadecimal digits."""
        return self.job.hex()


@dataclass(frozen=True, slots=True)
class JobWait:
    """A materialization that waits for jobs.

    Args:
        origin: Asset and partition, and the first run of the materialization, whose budgets all its runs use.
        last_run: The latest run that waited; the next run repeats its configuration.
        jobs: Ids of the jobs.
        since: When the first run that waited began, in seconds since the epoch.
    """

    origin: Origin
    last_run: str
    jobs: tuple[bytes, ...]
    since: float
