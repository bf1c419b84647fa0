"""What a store keeps of a batch job: the nouns that store, engine and sensor exchange."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, TypeAlias

from ondine_core.types.ledger import Origin

JobState: TypeAlias = Literal["preparing", "creating", "submitted", "ended", "read", "lost"]
"""What has happened of a job: nothing was sent but files; the request that creates it may have left; the provider's id
is known; nothing of it runs any more; its results are stored; the provider has no results of it."""

OPEN_STATES: tuple[JobState, ...] = ("preparing", "creating", "submitted", "ended")
"""States in which the requests of a job are in flight."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A batch job as the store has it.

    Args:
        job: Its identity, 8 bytes; the identities of its calls begin with them.
        task: What is asked, see `CallStarted.task`.
        origin: The run, asset and partition that it was begun for.
        model: The model that is asked.
        account: Identifies the account at the provider without disclosing the key.
        owner: The process that began it, see `Process`.
        created_at: When it was begun, in seconds since the epoch.
        answer_by: When it is to be cancelled if it has not ended, in seconds since the epoch; `None` for never.
        cells: The budgets that are charged, by the names of their numbers.
        state: What has happened of it.
        changed_at: When that last changed.
        job_id: The provider's name of it.
        requests: How many it has.
        at_most_usd: The most that all of them can cost, `None` when that is not known.
        status: The provider's word for what it does.
        done: How many requests are known to be done.
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
        """What it does, in the provider's word, or in ours as long as there is none."""
        return self.status or self.state

    @property
    def marker(self) -> str:
        """The name that is sent to the provider with the job, 16 hexadecimal digits."""
        return self.job.hex()


@dataclass(frozen=True, slots=True)
class JobWait:
    """A materialization that waits for jobs.

    Args:
        origin: Asset and partition, and the first run of the materialization, from whose budgets the others draw.
        last_run: The run that waited last, whose configuration is to be repeated.
        jobs: The identities of the jobs.
        since: When the first run that waited began, in seconds since the epoch.
    """

    origin: Origin
    last_run: str
    jobs: tuple[bytes, ...]
    since: float
