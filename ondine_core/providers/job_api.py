"""A provider's batch job: many requests that are submitted together and answered within hours, at a lower price."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ondine_core.errors import ProviderError
from ondine_core.types.values import Call, Reply


@dataclass(frozen=True, slots=True)
class JobLimits:
    """The most requests that one job may hold, and the most bytes of all of them."""

    requests: int
    bytes: int


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job that is about to be created.

    The `marker` identifies it, by 16 hexadecimal digits; each custom id is the marker, a hyphen and a number. The
    `file` has its requests as `JobApi.write` wrote them, one a line.
    """

    marker: str
    file: Path
    requests: int


@dataclass(frozen=True, slots=True)
class JobProblem:
    """Why a provider does not run a job.

    Args:
        message: The provider's words, without text of rows and without keys.
        line: The line of the file at fault, counted from 1; `None` if it is the whole job.
        is_quota: Whether the account has too many requests under way, so a smaller or later job may be accepted.
    """

    message: str
    line: int | None = None
    is_quota: bool = False


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The state of a job, by its provider.

    Args:
        has_ended: Whether no request of it runs any more, so its results can be read.
        state: The provider's word for the state.
        done: Requests that were answered, as far as is known.
        total: Requests in all, `None` if that is not known.
        problems: Why the job was not run.
        bills_silence: Whether a request without any result may have been billed.
    """

    has_ended: bool
    state: str
    done: int = 0
    total: int | None = None
    problems: tuple[JobProblem, ...] = ()
    bills_silence: bool = True


@dataclass(frozen=True, slots=True)
class JobReply:
    """The result of one request of a job.

    `outcome` is the reply, or why there is none; `None` if it was not run (expired, cancelled) and not billed.
    """

    custom_id: str
    outcome: Reply | ProviderError | None


class JobApi(Protocol):
    """A provider's batch API, for one model. Failures are those of a `ChatModel`; nothing is tried twice.

    Attributes:
        limits: The most that one job may hold.
        account: Identifies the account without disclosing the key.
        create_timeout_s: Seconds after which a request that creates a job has been read or never will be.
    """

    limits: JobLimits
    account: str
    create_timeout_s: float

    def write(self, call: Call, custom_id: str) -> bytes:
        """`call` as one request of a job, as JSON without a line feed."""

    async def submit(self, job: NewJob, about_to_create: Callable[[], Awaitable[None]]) -> str:
        """Create a job and return the provider's id of it.

        `about_to_create` is awaited right before the request that creates it; earlier requests cost nothing.
        """

    async def find(self, marker: str, since: float, requests: int) -> str | None:
        """The provider's id of the job with this marker; `None` if there is none.

        The job has `requests` requests and was created at `since` (in epoch seconds) or later, by a clock that may
        differ by minutes.

        Raises:
            TransientError: It is not known yet, for instance while a job that may be this one still runs.
        """

    async def get_status(self, job_id: str) -> JobStatus:
        """The state of a job.

        Raises:
            JobLostError: The account has no such job.
        """

    def read_results(self, job_id: str) -> AsyncIterator[JobReply]:
        """Stream the results of a job that has ended, in any order; unknown and repeated ids are included.

        Raises:
            JobLostError: There are no results any more.
        """

    async def cancel(self, job_id: str) -> None:
        """Ask the provider to run no further request of a job, which then ends within minutes; no error if it ended."""

    async def aclose(self) -> None:
        """Close the connections."""
