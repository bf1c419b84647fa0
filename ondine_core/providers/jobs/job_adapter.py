"""The common part of the adapters of batch APIs.

Results are read and classified like live replies. Errors of a row are classified by status and codes alone: the request
is not in memory, so quotations of its text cannot be masked.
"""

from __future__ import annotations

import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from ondine_core.errors import ProviderError, RefusedError, TransientError
from ondine_core.providers.http_errors import Response, no_answer_error, response_error
from ondine_core.providers.job_api import JobProblem, JobReply, JobStatus
from ondine_core.providers.jobs.job_http import NO_CALL, TOO_MUCH_QUEUED, JobHttp, ResultLine
from ondine_core.providers.masking import mask
from ondine_core.providers.reply_body import check_parsable, decode
from ondine_core.types.values import Reply

CLOCK_SLACK_S = 300.0
"""The maximum difference between a provider's clock and ours, in seconds."""
LATE_S = 240.0
"""The time in seconds for which a provider may still process a request that was given up here."""
_MAX_PAGES = 200
_OK = 200
_ID = re.compile(rb'"(?:custom_id|key)"\s*:\s*"([\w-]{1,64})"')
_QUOTATION = re.compile(r"(?<=['\"`])[^'\"`]{40,}(?=['\"`])")
_UNEXPECTED_FORM = (LookupError, TypeError, AttributeError, ValueError)
Jobs: TypeAlias = Sequence[Mapping[str, Any]]


class JobAdapter(ABC):
    """One model behind one batch API; the adapters create and find jobs. See `JobApi`."""

    word = "batch"
    """The provider's word for a job."""

    def __init__(self, http: JobHttp, account: str, create_timeout_s: float) -> None:
        self._http, self.account, self.create_timeout_s = http, account, create_timeout_s

    def __repr__(self) -> str:
        return f"{type(self).__name__.strip('_')}({self._http.to.host!r})"

    async def get_status(self, job_id: str) -> JobStatus:
        """The state of a job; see `JobApi`."""
        job = await self._get(job_id)
        with reading():
            return self._status(job)

    async def read_results(self, job_id: str) -> AsyncGenerator[JobReply]:
        """Stream the results of a job; see `JobApi`."""
        for path in await self._result_paths(job_id):
            async for line in self._http.lines(path, f"results of the {self.word} {job_id!r}"):
                yield self._read_line(line)

    async def cancel(self, job_id: str) -> None:
        """Ask the provider to run no further request of a job; see `JobApi`."""
        if (await self.get_status(job_id)).has_ended:
            return
        try:
            await self._http.post(self._cancel_path(job_id), missing=f"{self.word} {job_id!r}")
        except (RefusedError, TransientError):
            if not (await self.get_status(job_id)).has_ended:
                raise

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # -- defined by each adapter ---------------------------------------------------------------------------------------

    @abstractmethod
    def _path(self, job_id: str) -> str:
        """The path of a job."""

    def _cancel_path(self, job_id: str) -> str:
        return f"{self._path(job_id)}/cancel"

    @abstractmethod
    def _status(self, job: Mapping[str, Any]) -> JobStatus:
        """The state in the provider's description of a job."""

    @abstractmethod
    async def _result_paths(self, job_id: str) -> Sequence[str]:
        """The paths of the files with the results of a job."""

    @abstractmethod
    def _read_row(self, row: Mapping[str, Any]) -> JobReply:
        """The result in a decoded line."""

    # -- used by the adapters ------------------------------------------------------------------------------------------

    async def _get(self, job_id: str) -> Mapping[str, Any]:
        job: Mapping[str, Any] = await self._http.get(self._path(job_id), missing=f"{self.word} {job_id!r}")
        return job

    async def _listed(
        self, path: str, params: Mapping[str, str], read: Callable[[Any], tuple[Jobs, Mapping[str, str] | None]]
    ) -> AsyncIterator[Mapping[str, Any]]:
        """The jobs of a paged list; `read` returns those of a page, and the parameters of the next page or `None`."""
        for _ in range(_MAX_PAGES):
            page = await self._http.get(path, params)
            with reading():
                jobs, next_params = read(page)
            for job in jobs:
                yield job
            if next_params is None:
                return
            params = {**params, **next_params}
        raise TransientError(f"{self._http.to.host!r} lists too many batch jobs to find one among them.")

    def _read_line(self, line: ResultLine) -> JobReply:
        """The result in a line; an unreadable line is a lost reply, which may be billed."""
        try:
            if line.is_whole:
                check_parsable(line.content)
                return self._read_row(decode(line.content, line.content_type))
        except (*_UNEXPECTED_FORM, RecursionError, TransientError):
            pass
        custom_id = _ID.search(line.content)
        what = "cannot be read" if line.is_whole else "is larger than any answer to this call can be"
        lost = TransientError(f"A line of the results of a batch job {what}.", cost_unknown=True)
        return JobReply(custom_id[1].decode() if custom_id else "", lost)

    def _read_reply(self, status: int, body: Any, read: Callable[[Mapping[str, Any]], Reply]) -> Reply | ProviderError:
        """The reply in the body of a row's response, or why there is none; `read` reads the body of a live reply."""
        if status != _OK:
            return response_error(_response(status, body), None, (), self._http.to)
        try:
            return replace(read(body), tier=None)  # it is billed at the batch tier, whichever it names
        except RefusedError as error:
            error.tier = None
            return error
        except ProviderError as error:
            return error
        except (*_UNEXPECTED_FORM, RecursionError):
            return no_answer_error(_response(status, body), None, (), self._http.to)


def _response(status: int, body: Any) -> Response:
    return Response(status, {}, body.encode() if isinstance(body, str) else orjson.dumps(body), time.time())


@contextmanager
def reading() -> Iterator[None]:
    """Raise `TransientError` if reading a response in this context fails because of its form."""
    try:
        yield
    except _UNEXPECTED_FORM as error:
        kind = type(error).__name__
        raise TransientError(
            f"The provider's reply about a batch job has another form than expected ({kind})."
        ) from None


def epoch_s(timestamp: Any) -> float:
    """Seconds since the epoch of a timestamp of a provider; infinity if it cannot be read."""
    if isinstance(timestamp, int | float):
        return float(timestamp)
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except (TypeError, ValueError):
        return inf


def id_of(created: Any, *, creates: bool = False, field: str = "id") -> str:
    """The provider's id of a job or file in a response.

    Raises:
        TransientError: It has none; with `creates` it is not known then whether a job was created.
    """
    object_id = created.get(field) if isinstance(created, dict) else None
    if not isinstance(object_id, str) or not object_id:
        raise TransientError("The provider's reply names no id of what it created.", cost_unknown=creates)
    return object_id


async def size_of(file: Path) -> int:
    """The size of a file in bytes."""
    return (await asyncio.to_thread(file.stat)).st_size


def fingerprint(secret: str, address: str) -> str:
    """An identity of an account, of 12 hexadecimal digits, that discloses neither key nor address."""
    return blake2b(f"{secret}\0{address}".encode(), digest_size=6, person=b"ondine account").hexdigest()


def problem_of(message: str, code: str = "", line: Any = None) -> JobProblem:
    """Why a provider does not run a job, without long quotations, which may be text of rows."""
    text = _QUOTATION.sub("\u2026", mask(message, NO_CALL, ()))
    is_full = TOO_MUCH_QUEUED.search(f"{code} {message}") is not None
    return JobProblem(f"{text} ({code})" if code else text, line if isinstance(line, int) else None, is_full)
