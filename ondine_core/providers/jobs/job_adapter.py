"""The common part of the adapters of batch APIs.

Results are read and classified like live replies. Errors of a row are classified by status and codes alone: the request
is not at hand, so words that may quote its text cannot be masked.
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
"""How long the provider may still process a request that was abandoned here."""
_MAX_PAGES = 200
_OK = 200
_ID = re.compile(rb'"(?:custom_id|key)"\s*:\s*"([\w-]{1,64})"')
_QUOTATION = re.compile(r"(?<=['\"`])[^'\"`]{40,}(?=['\"`])")
_OTHER_FORM = (LookupError, TypeError, AttributeError, ValueError)
Jobs: TypeAlias = Sequence[Mapping[str, Any]]


class JobAdapter(ABC):
    """One model behind one batch API; how a job is created and found is left to the adapters. See `JobApi`."""

    word = "batch"
    """What the provider calls a job."""

    def __init__(self, http: JobHttp, account: str, create_timeout_s: float) -> None:
        self._http, self.account, self.create_timeout_s = http, account, create_timeout_s

    def __repr__(self) -> str:
        return f"{type(self).__name__.strip('_')}({self._http.to.host!r})"

    async def get_status(self, job_id: str) -> JobStatus:
        """What the provider says of a job."""
        job = await self._get(job_id)
        with reading():
            return self._status(job)

    async def read_results(self, job_id: str) -> AsyncGenerator[JobReply]:
        """The results of the requests."""
        for path in await self._result_paths(job_id):
            async for line in self._http.lines(path, f"results of the {self.word} {job_id!r}"):
                yield self._read_line(line)

    async def cancel(self, job_id: str) -> None:
        """Ask that no further request of a job be run; that it ended meanwhile is not an error."""
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

    # -- what differs --------------------------------------------------------------------------------------------------

    @abstractmethod
    def _path(self, job_id: str) -> str:
        """Where a job is."""

    def _cancel_path(self, job_id: str) -> str:
        return f"{self._path(job_id)}/cancel"

    @abstractmethod
    def _status(self, job: Mapping[str, Any]) -> JobStatus:
        """What the provider's description of a job says."""

    @abstractmethod
    async def _result_paths(self, job_id: str) -> Sequence[str]:
        """Where the results of a job are."""

    @abstractmethod
    def _read_row(self, row: Mapping[str, Any]) -> JobReply:
        """What a decoded line of results says."""

    # -- for the adapters ----------------------------------------------------------------------------------------------

    async def _get(self, job_id: str) -> Mapping[str, Any]:
        job: Mapping[str, Any] = await self._http.get(self._path(job_id), missing=f"{self.word} {job_id!r}")
        return job

    async def _listed(
        self, path: str, params: Mapping[str, str], read: Callable[[Any], tuple[Jobs, Mapping[str, str] | None]]
    ) -> AsyncIterator[Mapping[str, Any]]:
        """The jobs of a list; `read` takes them out of each page, and the parameters of the next, if there is one."""
        for _ in range(_MAX_PAGES):
            page = await self._http.get(path, params)
            with reading():
                jobs, following = read(page)
            for job in jobs:
                yield job
            if following is None:
                return
            params = {**params, **following}
        raise TransientError(f"{self._http.to.host!r} lists too many batch jobs to find one among them.")

    def _read_line(self, line: ResultLine) -> JobReply:
        """What a line of results says; one that cannot be read is a reply that was lost, and may be billed."""
        try:
            if line.is_whole:
                check_parsable(line.content)
                return self._read_row(decode(line.content, line.content_type))
        except (*_OTHER_FORM, RecursionError, TransientError):
            pass
        named = _ID.search(line.content)
        what = "cannot be read" if line.is_whole else "is larger than any answer to this call can be"
        lost = TransientError(f"A line of the results of a batch job {what}.", cost_unknown=True)
        return JobReply(named[1].decode() if named else "", lost)

    def _read_reply(self, status: int, body: Any, read: Callable[[Mapping[str, Any]], Reply]) -> Reply | ProviderError:
        """The reply in the body of a row's response, or why there is none; `read` takes it out of a live one."""
        if status != _OK:
            return response_error(_response(status, body), None, (), self._http.to)
        try:
            return replace(read(body), tier=None)  # whatever tier it names, it is billed as part of a job
        except RefusedError as error:
            error.tier = None
            return error
        except ProviderError as error:
            return error
        except (*_OTHER_FORM, RecursionError):
            return no_answer_error(_response(status, body), None, (), self._http.to)


def _response(status: int, body: Any) -> Response:
    return Response(status, {}, body.encode() if isinstance(body, str) else orjson.dumps(body), time.time())


@contextmanager
def reading() -> Iterator[None]:
    """What is read in here has the form that the provider documents, or the request may be made again."""
    try:
        yield
    except _OTHER_FORM as error:
        kind = type(error).__name__
        raise TransientError(
            f"The provider's reply about a batch job has another form than expected ({kind})."
        ) from None


def epoch_s(at: Any) -> float:
    """Seconds since the epoch of a time as a provider writes it; infinity if it cannot be read."""
    if isinstance(at, int | float):
        return float(at)
    try:
        return datetime.fromisoformat(at).timestamp()
    except (TypeError, ValueError):
        return inf


def id_of(made: Any, *, creates: bool = False, field: str = "id") -> str:
    """The provider's id of an object in a response; with `creates` a missing id leaves open whether it was created."""
    found = made.get(field) if isinstance(made, dict) else None
    if not isinstance(found, str) or not found:
        raise TransientError("The provider's reply names no id of what it created.", cost_unknown=creates)
    return found


async def size_of(file: Path) -> int:
    """Bytes of a file."""
    return (await asyncio.to_thread(file.stat)).st_size


def fingerprint(secret: str, address: str) -> str:
    """Identifies an account by 12 hexadecimal digits, from which neither key nor address can be found."""
    return blake2b(f"{secret}\0{address}".encode(), digest_size=6, person=b"ondine account").hexdigest()


def problem_of(message: str, code: str = "", line: Any = None) -> JobProblem:
    """What a provider says of a job that it does not run, without long quotations, which may be text of rows."""
    text = _QUOTATION.sub("\u2026", mask(message, NO_CALL, ()))
    is_full = TOO_MUCH_QUEUED.search(f"{code} {message}") is not None
    return JobProblem(f"{text} ({code})" if code else text, line if isinstance(line, int) else None, is_full)
