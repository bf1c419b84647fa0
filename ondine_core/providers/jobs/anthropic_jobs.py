"""Anthropic's message batches, by its API reference and SDK: one request creates a job with all its requests.

A batch cannot have a name, so it is found by its results: their ids begin with the marker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, BinaryIO, Final
from urllib.parse import quote

import orjson

from ondine_core.errors import JobLostError, TransientError
from ondine_core.providers.anthropic_http import anthropic_endpoint, message_reply
from ondine_core.providers.anthropic_request import (
    cache_mark,
    find_anthropic_key,
    fixed_fields,
    message_body,
    structure_of,
)
from ondine_core.providers.http_errors import ADVICE
from ondine_core.providers.job_api import JobLimits, JobReply, JobStatus, NewJob
from ondine_core.providers.jobs.job_adapter import (
    CLOCK_SLACK_S,
    LATE_S,
    JobAdapter,
    Jobs,
    epoch_s,
    fingerprint,
    id_of,
    reading,
    size_of,
)
from ondine_core.providers.jobs.job_http import JobHttp, JobRequest
from ondine_core.providers.reply_body import max_reply_bytes
from ondine_core.types.values import Call, ModelSpec

_LIMITS: Final = JobLimits(100_000, 256 * 10**6 - 2**16)
_STATUSES: Mapping[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The HTTP status of a live call with an error of each type."""
_NOT_RUN = ("canceled", "expired")
_CHUNK = 2**18
_BEGIN, _END = b'{"requests":[', b"]}"


class AnthropicJobs(JobAdapter):
    """The message batches of one model; settings are those of `connect_anthropic`."""

    limits = _LIMITS

    def __init__(self, spec: ModelSpec, name: str) -> None:
        self._fields = fixed_fields(spec, name)
        self._structure, self._mark = structure_of(spec, self._fields), cache_mark(spec)
        live = anthropic_endpoint(spec)
        endpoint = replace(live, url=f"{live.url}/batches", advice=ADVICE)
        http = JobHttp(endpoint, max_reply_bytes(self._fields["max_tokens"]), is_quotable=False)
        account = fingerprint("".join(find_anthropic_key(spec).values()), live.url)
        super().__init__(http, account, http.transfer_timeout_s(_LIMITS.bytes) + LATE_S)

    def write(self, call: Call, custom_id: str) -> bytes:
        """`call` as one element of the list of requests."""
        body = message_body(self._fields, call, self._structure, self._mark)
        return orjson.dumps({"custom_id": custom_id, "params": orjson.Fragment(body)})

    async def submit(self, job: NewJob, about_to_create: Callable[[], Awaitable[None]]) -> str:
        """Create a job of the requests in the file; see `JobApi`."""
        size = await size_of(job.file) - 1  # without the last line feed
        length = str(len(_BEGIN) + size + len(_END))
        await about_to_create()
        batch = await self._http.ask(
            JobRequest(
                "POST",
                "",
                lambda opened: _as_list(opened.enter_context(job.file.open("rb")), size),
                headers={"Content-Type": "application/json", "Content-Length": length},
                timeout_s=self._http.transfer_timeout_s(size),
                creates=True,
            )
        )
        return id_of(batch, creates=True)

    async def find(self, marker: str, since: float, requests: int) -> str | None:
        """Find the batch by the id of its first result; see `JobApi`."""

        def read(page: Any) -> tuple[Jobs, Mapping[str, str] | None]:
            """The batches of a page that were created since then, and the parameters of the next page."""
            recent = [batch for batch in page["data"] if epoch_s(batch["created_at"]) >= since - CLOCK_SLACK_S]
            return recent, {"after_id": page["last_id"]} if recent and page.get("has_more") else None

        running = ""
        async for batch in self._listed("", {"limit": "100"}, read):
            with reading():
                batch_id, is_candidate = str(batch["id"]), sum(batch["request_counts"].values()) == requests
                has_ended = batch["processing_status"] == "ended"
            if is_candidate and not has_ended:
                running = batch_id
            elif is_candidate and (await self._first_id(batch_id)).startswith(f"{marker}-"):
                return batch_id
        if running:
            raise TransientError(
                f"It is not known yet whether the batch {running!r}, which still runs, is the one searched for."
            )
        return None

    async def _first_id(self, job_id: str) -> str:
        """The id of the first result of a job; `""` if there are no results any more."""
        async with aclosing(self.read_results(job_id)) as results:
            with suppress(JobLostError):
                async for reply in results:
                    return reply.custom_id
        return ""

    def _path(self, job_id: str) -> str:
        return f"/{quote(job_id, safe='')}"

    def _status(self, job: Mapping[str, Any]) -> JobStatus:
        counts, state = job["request_counts"], str(job["processing_status"])
        return JobStatus(state == "ended", state, counts.get("succeeded") or 0, sum(counts.values()))

    async def _result_paths(self, job_id: str) -> Sequence[str]:
        return [f"{self._path(job_id)}/results"]

    def _read_row(self, row: Mapping[str, Any]) -> JobReply:
        custom_id, result = str(row["custom_id"]), row["result"]
        if result["type"] in _NOT_RUN:
            return JobReply(custom_id, None)
        if result["type"] == "succeeded":
            return JobReply(custom_id, self._read_reply(200, result["message"], message_reply))
        error = result["error"]
        kind = (error.get("error") or error).get("type")
        return JobReply(custom_id, self._read_reply(_STATUSES.get(kind, 400), error, message_reply))


async def _as_list(file: BinaryIO, size: int) -> AsyncIterator[bytes]:
    """Stream the first `size` bytes of a file of JSON lines as the body of a request that lists them."""
    yield _BEGIN
    while size > 0:
        chunk = await asyncio.to_thread(file.read, min(size, _CHUNK))
        size = size - len(chunk) if chunk else 0
        yield chunk.replace(b"\n", b",")
    yield _END
