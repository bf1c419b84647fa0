"""Batch APIs like OpenAI's: a file is uploaded, a job is created from it, and files of results are downloaded.

Azure, Groq, Mistral and Together differ in names, which are data here (`Dialect`), by their API references.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import orjson

from ondine_core.errors import TransientError
from ondine_core.providers.azure import find_deployment
from ondine_core.providers.http_client import Endpoint, bearer
from ondine_core.providers.job_api import JobApi, JobLimits, JobProblem, JobReply, JobStatus, NewJob
from ondine_core.providers.jobs.job_adapter import (
    CLOCK_SLACK_S,
    LATE_S,
    JobAdapter,
    Jobs,
    epoch_s,
    fingerprint,
    id_of,
    problem_of,
    reading,
    size_of,
)
from ondine_core.providers.jobs.job_http import JobHttp, JobRequest
from ondine_core.providers.openai_http import ChatWriter, chat_advice, chat_reply
from ondine_core.providers.openai_servers import find_access
from ondine_core.providers.reply_body import max_reply_bytes
from ondine_core.types.values import Call, ModelSpec

MARKER: Final = "ondine_job"
"""The metadata field that names a job."""
_PAGE_SIZE = 100
_FILE_CHECKS, _FILE_CHECK_S = 60, 2.0


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a provider's batch API differs from OpenAI's.

    Args:
        limits: The most that one job may hold.
        jobs: Path of the jobs.
        files: Path to which files are posted.
        purpose: The purpose of an uploaded file.
        endpoint: The path to which the provider posts the requests of a job.
        names_endpoint: Whether each line of the file names it, too.
        has_metadata: Whether a job has metadata; otherwise the name of its file is its marker.
        job_fields: Further fields of a new job.
        processes_files: Whether a file can be used only after it was processed.
        unbilled: States after which a request without a result was not billed.
    """

    limits: JobLimits = JobLimits(50_000, 200 * 10**6)
    jobs: str = "/batches"
    files: str = "/files"
    purpose: str = "batch"
    endpoint: str = "/v1/chat/completions"
    names_endpoint: bool = True
    has_metadata: bool = True
    processes_files: bool = False
    job_fields: Mapping[str, Any] = field(default_factory=lambda: {"completion_window": "24h"})
    unbilled: frozenset[str] = frozenset({"failed", "expired", "cancelled"})

    @property
    def is_mistral(self) -> bool:
        """Whether a job has a list of files and one model, as at Mistral."""
        return self.jobs != "/batches"


_DIALECTS: Mapping[str, Dialect] = {
    "openai": Dialect(),
    "azure": Dialect(endpoint="/chat/completions", processes_files=True),
    "groq": Dialect(),
    "mistral": Dialect(
        JobLimits(1_000_000, 500 * 10**6),
        jobs="/batch/jobs",
        names_endpoint=False,
        job_fields={"timeout_hours": 24},
        unbilled=frozenset({"cancelled"}),
    ),
    "together_ai": Dialect(
        JobLimits(50_000, 100 * 10**6),
        files="/files/upload",
        purpose="batch-api",
        names_endpoint=False,
        has_metadata=False,
        unbilled=frozenset({"expired", "cancelled"}),
    ),
}
_ENDED = frozenset({"completed", "success", "failed", "expired", "timeout_exceeded", "cancelled"})
_NOT_RUN = frozenset({"batch_expired", "batch_cancelled", "batch_canceled"})
_AT_FAULT = frozenset({"server_error", "internal_error", "internal_server_error", "timeout", "service_unavailable"})


def connect_openai_jobs(spec: ModelSpec, name: str) -> JobApi:
    """Connect the batch API for the model `name` of OpenAI, Groq, Mistral or Together."""
    access = find_access(spec, name)
    root, key = access.base_url, access.api_key
    dialect = _DIALECTS[spec.dialect]
    if dialect.is_mistral:
        dialect = replace(dialect, job_fields={**dialect.job_fields, "model": name})
    write = partial(ChatWriter(spec, {} if dialect.is_mistral else {"model": name}, root).write, form=access.form)
    endpoint = Endpoint(root, spec.max_call_s, bearer(key), access.headers, chat_advice(root, key))
    http = JobHttp(endpoint, max_reply_bytes(spec.max_output_tokens))
    return _OpenAIJobs(dialect, write, http, fingerprint(key or "", root))


class _OpenAIJobs(JobAdapter):
    """One model behind one batch API."""

    word = "batch job"

    def __init__(self, dialect: Dialect, write_body: Callable[[Call], bytes], http: JobHttp, account: str) -> None:
        super().__init__(http, account, http.to.timeout_s + LATE_S)
        self.limits = dialect.limits
        self._dialect, self._write_body = dialect, write_body

    def write(self, call: Call, custom_id: str) -> bytes:
        endpoint = {"method": "POST", "url": self._dialect.endpoint} if self._dialect.names_endpoint else {}
        return orjson.dumps({"custom_id": custom_id, **endpoint, "body": orjson.Fragment(self._write_body(call))})

    async def submit(self, job: NewJob, about_to_create: Callable[[], Awaitable[None]]) -> str:
        """Upload the file and create a job of it; see `JobApi`."""
        dialect = self._dialect
        file = await self._upload(job)
        if dialect.processes_files:
            await self._wait_for(file)
        body = {"endpoint": dialect.endpoint, **dialect.job_fields}
        if dialect.is_mistral:
            body["input_files"] = [file]
        else:
            body["input_file_id"] = file
        if dialect.has_metadata:
            body["metadata"] = {MARKER: job.marker}
        await about_to_create()
        created = await self._http.post(dialect.jobs, body, creates=True)
        is_wrapped = isinstance(created, dict) and "job" in created
        return id_of(created["job"] if is_wrapped else created, creates=True)

    async def _upload(self, job: NewJob) -> str:
        """Post the file as a form, read from disk piece by piece, and return its id."""
        dialect, name, size = self._dialect, _file_name(job.marker), await size_of(job.file)
        fields = {"purpose": dialect.purpose, **({} if dialect.has_metadata else {"file_name": name})}

        def form(opened: ExitStack) -> aiohttp.FormData:
            form_data = aiohttp.FormData(fields)
            content = opened.enter_context(job.file.open("rb"))
            form_data.add_field("file", content, filename=name, content_type="application/jsonl")
            return form_data

        timeout_s = self._http.transfer_timeout_s(size)
        return id_of(await self._http.ask(JobRequest("POST", dialect.files, form, timeout_s=timeout_s)))

    async def _wait_for(self, file: str) -> None:
        """Wait until the provider has processed a file, for two minutes at most."""
        for _ in range(_FILE_CHECKS):
            description = await self._http.get(_file_path(file))
            with reading():
                if description.get("status") not in ("pending", "running"):
                    return
            await asyncio.sleep(_FILE_CHECK_S)
        raise TransientError(f"{self._http.to.host!r} has not processed the file of a batch job yet.")

    async def find(self, marker: str, since: float, requests: int) -> str | None:
        del requests  # the marker is enough
        async for job in self._list(since - CLOCK_SLACK_S):
            if await self._is_marked(job, marker):
                return id_of(job)
        return None

    async def _is_marked(self, job: Mapping[str, Any], marker: str) -> bool:
        if self._dialect.has_metadata:
            with reading():
                return bool((job.get("metadata") or {}).get(MARKER) == marker)
        file = await self._http.get(_file_path(str(job.get("input_file_id"))))
        return isinstance(file, dict) and file.get("filename") == _file_name(marker)

    def _list(self, since: float) -> AsyncIterator[Mapping[str, Any]]:
        """The jobs that were created since then, the newest pages first."""
        is_mistral, page_numbers = self._dialect.is_mistral, count(1)

        def read(page: Any) -> tuple[Jobs, Mapping[str, str] | None]:
            fields: Mapping[str, Any] = {"data": page} if isinstance(page, list) else page
            jobs, has_more = fields.get("data") or [], fields.get("has_more")
            recent = [job for job in jobs if epoch_s(job.get("created_at")) >= since]
            cursor = (fields.get("paging") or {}).get("next_cursor")  # of Groq
            if not recent:
                return recent, None
            if cursor:
                return recent, {"cursor": str(cursor)}
            if is_mistral and (has_more or len(jobs) == _PAGE_SIZE):
                return recent, {"page": str(next(page_numbers))}
            if has_more and not is_mistral:
                return recent, {"after": str(jobs[-1]["id"])}
            return recent, None

        size = str(_PAGE_SIZE)
        first = {"page_size": size, "page": "0"} if is_mistral else {"limit": size}
        return self._listed(self._dialect.jobs, first, read)

    def _path(self, job_id: str) -> str:
        return f"{self._dialect.jobs}/{quote(job_id, safe='')}"

    def _status(self, job: Mapping[str, Any]) -> JobStatus:
        state = str(job.get("status"))
        word = state.lower()
        counts = job.get("request_counts") or {}
        done = int(counts.get("completed") or job.get("succeeded_requests") or 0)
        has_output = self._files(job)[0] is not None
        is_unbilled = word in self._dialect.unbilled or (word == "failed" and not done and not has_output)
        return JobStatus(
            word in _ENDED,
            state,
            done,
            counts.get("total") or job.get("total_requests"),
            tuple(_problems(job)) if word == "failed" else (),
            bills_silence=not is_unbilled,
        )

    async def _result_paths(self, job_id: str) -> Sequence[str]:
        """The paths of the replies and of the errors."""
        job = await self._get(job_id)
        with reading():
            return [f"{_file_path(file)}/content" for file in self._files(job) if file]

    def _files(self, job: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """The ids of the files of replies and of errors, each `None` if there is none."""
        suffix = "" if self._dialect.is_mistral else "_id"
        output, errors = (job.get(f"{kind}_file{suffix}") for kind in ("output", "error"))
        return output, errors

    def _read_row(self, row: Mapping[str, Any]) -> JobReply:
        custom_id, response, error = str(row["custom_id"]), row.get("response"), row.get("error") or {}
        if not isinstance(error, dict):
            error = {"message": str(error)}
        code = str(error.get("code") or "")
        if code in _NOT_RUN:
            return JobReply(custom_id, None)
        if response:
            status, body = int(response.get("status_code") or 200), response["body"]
        else:
            status, body = 500 if code in _AT_FAULT else 400, {"error": error}
        return JobReply(custom_id, self._read_reply(status, body, chat_reply))


class AzureJobs(_OpenAIJobs):
    """The batch API for one global-batch deployment of Azure OpenAI, in the preferred region only.

    A job runs where its file is, so it cannot move to another region. Settings are those of `connect_azure`. The
    account is identified by endpoint and key, or by the endpoint alone if there is no key, since tokens change.
    """

    def __init__(self, spec: ModelSpec, name: str) -> None:
        deployment = find_deployment(spec, name)
        self._access, root = deployment.access, next(iter(deployment.roots.values()))
        write = partial(ChatWriter(spec, {"model": name}, root).write, form=deployment.form)
        url = f"{root}/v1" if deployment.is_versionless else root
        endpoint = Endpoint(url, spec.max_call_s, self._access.headers, deployment.headers, self._access.advice)
        http = JobHttp(endpoint, max_reply_bytes(spec.max_output_tokens), query={"api-version": deployment.version})
        super().__init__(_DIALECTS["azure"], write, http, fingerprint(self._access.api_key or "", root))

    async def aclose(self) -> None:
        """Close the connections and the access."""
        await super().aclose()
        await self._access.aclose()


def _file_path(file_id: str) -> str:
    return f"/files/{quote(file_id, safe='')}"


def _file_name(marker: str) -> str:
    return f"ondine-{marker}.jsonl"


def _problems(job: Mapping[str, Any]) -> list[JobProblem]:
    errors = job.get("errors") or job.get("error") or []
    if isinstance(errors, dict):
        errors = errors.get("data") or [errors]
    if isinstance(errors, str):
        errors = [{"message": errors}]
    problems = [
        problem_of(str(error.get("message") or "no reason given"), str(error.get("code") or ""), error.get("line"))
        for error in errors
        if isinstance(error, dict)
    ]
    return problems or [problem_of("The provider gives no reason.")]
