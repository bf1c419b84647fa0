"""A batch API in memory, on a virtual clock, and a store whose process can be killed between any two steps.

The `finally` clauses of a killed process must have no effect, so its store and API raise `Killed` from then on.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from ondine_core.errors import ConfigError, JobLostError, ProviderError, TransientError
from ondine_core.providers.job_api import JobLimits, JobProblem, JobReply, JobStatus, NewJob
from ondine_core.providers.media_parts import openai_content
from ondine_core.providers.pricing import Price
from ondine_core.store import Store
from ondine_core.types.values import Call, Reply, Usage
from tests.support.request_content import text_of

__all__ = ["BATCH_PRICE", "JobProvider", "KillPoint", "KillableStore", "Killed"]

BATCH_PRICE = Price(Decimal("1e-6"), Decimal("2e-6"), Decimal("1e-6"))


class Killed(BaseException):
    """The process was killed."""


@dataclass
class KillPoint:
    """The step at which a process is killed, before or after the effect of the step.

    Args:
        steps: The number of steps before the kill; `None` never kills.
        taken: The number of steps taken.
    """

    steps: int | None = None
    taken: int = 0

    def step(self) -> None:
        """Count a step, or raise `Killed`."""
        if self.steps is not None and self.taken >= self.steps:
            raise Killed
        self.taken += 1


class KillableStore(Store):
    """A store that executes requests synchronously, as a virtual clock requires, until its process is killed."""

    def __init__(self, place: Path, kill_point: KillPoint, takes_s: float = 0.0) -> None:
        super().__init__(place)
        self._kill_point, self._takes_s = kill_point, takes_s

    def _request(self, work: Any) -> asyncio.Future[Any]:
        self._kill_point.step()
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        outcome = self._read(work) if callable(work) else (self._write([work], self._database.write) or [None])[0]
        self._kill_point.step()
        settle = future.set_exception if isinstance(outcome, BaseException) else future.set_result
        if self._takes_s:
            loop.call_later(self._takes_s, settle, outcome)
        else:
            settle(outcome)
        return future


@dataclass
class _Job:
    id: str
    marker: str
    account: str
    texts: dict[str, str]
    created_at: float
    problems: tuple[JobProblem, ...] = ()
    cancelled_at: float | None = None
    ran: dict[str, Reply | ProviderError | None] | None = None


@dataclass
class JobProvider:
    """The provider: its jobs, its bill, and its faults.

    Args:
        now: Returns the time.
        answer: Returns the reply to the text of a request.
        takes_s: Seconds that a job takes.
        window_s: Seconds after which a job expires; rows answered by then are billed.
        limits: The limits of one job.
        cut_create: The number of next requests that create a job and get no response.
        refuse_create: The errors of the next requests that create a job.
        problems: The problems for which the next jobs are not run, one list for each job.
        noise: Whether each result is followed by a copy, a result of another job, and an unreadable line.
        lost: Whether results are lost.
        has_api: Whether it can be connected to.
        fails_after_s: Seconds after which a request for the state of a job fails; `None` if it is answered.
    """

    now: Callable[[], float]
    answer: Callable[[str], Reply | ProviderError | None]
    takes_s: float = 3600.0
    window_s: float = 86_400.0
    limits: JobLimits = JobLimits(1000, 10**9)
    cut_create: int = 0
    refuse_create: list[ProviderError] = field(default_factory=list)
    problems: list[tuple[JobProblem, ...]] = field(default_factory=list)
    noise: bool = False
    lost: bool = False
    has_api: bool = True
    fails_after_s: float | None = None
    jobs: dict[str, _Job] = field(default_factory=dict)
    billed: Counter[str] = field(default_factory=Counter)
    usd: Decimal = Decimal(0)

    def api(self, kill_point: KillPoint | None = None, account: str = "a") -> _Api:
        """A connection of a process to the API."""
        if not self.has_api:
            raise ConfigError("There is no batch API.")
        return _Api(self, kill_point or KillPoint(), account)

    def settle(self, job: _Job) -> None:
        """Bring the state of a job up to date."""
        if job.ran is not None:
            return
        age_s = self.now() - job.created_at
        limit_s = min(self.window_s, self.takes_s)
        if job.cancelled_at is None and age_s < limit_s:
            return
        ended_after_s = limit_s if job.cancelled_at is None else min(limit_s, job.cancelled_at - job.created_at)
        done = round(len(job.texts) * min(1.0, ended_after_s / self.takes_s)) if self.takes_s else len(job.texts)
        job.ran = {}
        for number, (custom_id, text) in enumerate(job.texts.items()):
            outcome = self.answer(text) if number < done else None
            job.ran[custom_id] = outcome
            if isinstance(outcome, Reply):
                self.billed[text] += 1
                self.usd += BATCH_PRICE.cost(outcome.usage)


@dataclass
class _Api:
    provider: JobProvider
    kill_point: KillPoint
    account: str
    create_timeout_s: float = 60.0

    @property
    def limits(self) -> JobLimits:
        return self.provider.limits

    def write(self, call: Call, custom_id: str) -> bytes:
        content = openai_content(call.messages[-1].content, call.media)
        return json.dumps({"id": custom_id, "text": text_of(content)}).encode()

    async def submit(self, job: NewJob, about_to_create: Callable[[], Awaitable[None]]) -> str:
        self.kill_point.step()
        lines = [json.loads(line) for line in job.file.read_text().splitlines()]
        assert len(lines) == job.requests
        await about_to_create()
        self.kill_point.step()
        if self.provider.refuse_create:
            raise self.provider.refuse_create.pop(0)
        made = _Job(
            f"job-{len(self.provider.jobs)}",
            job.marker,
            self.account,
            {line["id"]: line["text"] for line in lines},
            self.provider.now(),
        )
        self.provider.jobs[made.id] = made
        if self.provider.problems:
            made.problems, made.ran = self.provider.problems.pop(0), {}
        self.kill_point.step()
        if self.provider.cut_create:
            self.provider.cut_create -= 1
            raise TransientError("The connection broke.", cost_unknown=True)
        return made.id

    async def find(self, marker: str, since: float, requests: int) -> str | None:
        self.kill_point.step()
        found = [job for job in self.provider.jobs.values() if job.marker == marker and job.account == self.account]
        assert all(len(job.texts) == requests and job.created_at >= since for job in found)
        return found[0].id if found else None

    async def get_status(self, job_id: str) -> JobStatus:
        self.kill_point.step()
        if self.provider.fails_after_s is not None:
            await asyncio.sleep(self.provider.fails_after_s)
            raise TransientError("There was no reply.")
        job = self._find(job_id)
        self.provider.settle(job)
        ran = job.ran or {}
        done = sum(isinstance(outcome, Reply) for outcome in ran.values())
        ended = "failed" if job.problems else "completed"
        state = "in_progress" if job.ran is None else ended
        return JobStatus(
            job.ran is not None, state, done, total=len(job.texts), problems=job.problems, bills_silence=False
        )

    async def read_results(self, job_id: str) -> AsyncIterator[JobReply]:
        self.kill_point.step()
        if self.provider.lost:
            raise JobLostError("The results are gone.")
        for custom_id, outcome in (self._find(job_id).ran or {}).items():
            yield JobReply(custom_id, outcome)
            if self.provider.noise:
                yield JobReply(custom_id, Reply("another"))
                yield JobReply(f"{'0' * 16}-{custom_id}", Reply("alien"))
                yield JobReply("", TransientError("A line cannot be read.", cost_unknown=True))

    async def cancel(self, job_id: str) -> None:
        self.kill_point.step()
        job = self._find(job_id)
        self.provider.settle(job)
        if job.ran is None and job.cancelled_at is None:
            job.cancelled_at = self.provider.now()

    async def aclose(self) -> None:
        """Nothing to close."""

    def _find(self, job_id: str) -> _Job:
        job = self.provider.jobs.get(job_id)
        if job is None or job.account != self.account:
            raise JobLostError(f"There is no batch job {job_id!r}.")
        return job


def reply_to(text: str) -> Reply:
    """The provider's answer: the last word of the prompt, with its usage."""
    question = text.partition("\n")[0]
    return Reply(question.rsplit(maxsplit=1)[-1], Usage(len(text) // 4 + 5, output_tokens=3))
