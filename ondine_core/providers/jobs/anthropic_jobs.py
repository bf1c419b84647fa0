"""Anthropic's message batches: all requests go in with the request that creates a job. By its API reference and SDK.

A batch carries no name of ours, but the ids of its requests begin with the marker, and its results tell them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, aclosing, suppress
from typing import Any, BinaryIO, Final
from urllib.parse import quote

import orjson

from ondine_core.errors import JobLostError, TransientError
from ondine_core.providers.anthropic_http import message_reply
from ondine_core.providers.anthropic_request import (
    cache_mark,
    find_anthropic_address,
    find_anthropic_key,
    fixed_fields,
    message_body,
    plain_headers,
    structure_of,
)
from ondine_core.providers.job_api import JobApi, JobLimits, JobReply, JobStatus, NewJob
from ondine_core.providers.jobs.job_http import (
    CLOCK_SLACK_S,
    LATE_S,
    JobHttp,
    Target,
    cancel_unless_ended,
    constant,
    epoch_s,
    fingerprint,
    id_of,
    reading,
    size_of,
)
from ondine_core.providers.jobs.job_rows import read_reply, read_row
from ondine_core.providers.reply_body import max_reply_bytes
from ondine_core.types.values import Call, ModelSpec

__all__ = ["connect_anthropic_jobs"]

_LIMITS: Final = JobLimits(100_000, 256 * 10**6 - 2**16)
_MAX_PAGES = 200
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
"""The status with which a live call meets an error of each type."""
_NOT_RUN = ("canceled", "expired")
_CHUNK = 2**18
_BEGIN, _END = b'{"requests":[', b"]}"


def connect_anthropic_jobs(spec: ModelSpec, name: str) -> JobApi:
    """The message batches of the model `name`; settings are those of `connect_anthropic`.

    Raises:
        ConfigError: The key is missing, or a parameter or setting is not one of this API.
    """
    address, key = find_anthropic_address(spec), find_anthropic_key(spec)
    account = fingerprint("".join(key.values()), address)
    target = Target(f"{address}/batches", constant(key), account, plain_headers(spec), is_quotable=False)
    return _AnthropicJobs(spec, name, target)


class _AnthropicJobs:
    """One model of Anthropic's.

    Args:
        spec: Time-out and settings.
        name: The model.
        target: Where requests go.
    """

    limits = _LIMITS

    def __init__(self, spec: ModelSpec, name: str, target: Target) -> None:
        self._fields = fixed_fields(spec, name)
        self._structure, self._mark = structure_of(spec, self._fields), cache_mark(spec)
        self._http = JobHttp(target, spec.max_call_s, max_reply_bytes(self._fields["max_tokens"]))
        self.account = target.account
        self.create_timeout_s = self._http.transfer_timeout_s(_LIMITS.bytes) + LATE_S

    def __repr__(self) -> str:
        return f"AnthropicJobs({self._fields['model']!r})"

    def write(self, call: Call, custom_id: str) -> bytes:
        """`call` as an element of the list of requests."""
        body = message_body(self._fields, call, self._structure, self._mark)
        return orjson.dumps({"custom_id": custom_id, "params": orjson.Fragment(body)})

    async def submit(self, job: NewJob, about_to_create: Callable[[], Awaitable[None]]) -> str:
        """Create a job of the requests in the file; see `JobApi`."""
        size = await size_of(job.file) - 1  # without the last line feed
        length = str(len(_BEGIN) + size + len(_END))
        await about_to_create()
        with ExitStack() as opened:
            made = await self._http.post(
                "",
                headers={"Content-Type": "application/json", "Content-Length": length},
                data=lambda: _as_list(opened.enter_context(job.file.open("rb")), size),
                total_s=self._http.transfer_timeout_s(size),
                creates=True,
            )
        return id_of(made, creates=True)

    async def find(self, marker: str, since: float, requests: int) -> str | None:
        """Look at the first result of each batch of that size since then; see `JobApi`."""
        undecided = ""
        async for batch in self._list(since - CLOCK_SLACK_S):
            with reading():
                batch_id, is_candidate = str(batch["id"]), sum(batch["request_counts"].values()) == requests
                has_ended = batch["processing_status"] == "ended"
            if is_candidate and not has_ended:
                undecided = batch_id
            elif is_candidate and (await self._first_id(batch_id)).startswith(f"{marker}-"):
                return batch_id
        if undecided:
            raise TransientError(
                f"It cannot be told yet whether the batch {undecided!r}, which still runs, is the one looked for."
            )
        return None

    async def _first_id(self, job_id: str) -> str:
        """The id of the first request in the results of a job; nothing if there are none any more."""
        async with aclosing(self.read_results(job_id)) as results:
            with suppress(JobLostError):
                async for reply in results:
                    return reply.custom_id
        return ""

    async def _list(self, since: float) -> AsyncIterator[Mapping[str, Any]]:
        params = {"limit": "100"}
        for _ in range(_MAX_PAGES):
            page = await self._http.get("", params)
            with reading():
                recent = [batch for batch in page["data"] if epoch_s(batch["created_at"]) >= since]
                last = page["last_id"] if recent and page.get("has_more") else None
            for batch in recent:
                yield batch
            if last is None:
                return
            params["after_id"] = last
        raise TransientError("Anthropic lists too many batches to find one among them.")

    async def get_status(self, job_id: str) -> JobStatus:
        """What the provider says of a job."""
        batch = await self._http.get(_path(job_id), missing=f"batch {job_id!r}")
        with reading():
            counts, state = batch["request_counts"], str(batch["processing_status"])
            failed = sum(counts.get(name) or 0 for name in ("errored", "canceled", "expired"))
            return JobStatus(state == "ended", state, counts.get("succeeded") or 0, failed, sum(counts.values()))

    async def read_results(self, job_id: str) -> AsyncGenerator[JobReply]:
        """What came of the requests."""
        async for line in self._http.lines(f"{_path(job_id)}/results", f"results of the batch {job_id!r}"):
            yield read_row(line, self._read)

    async def cancel(self, job_id: str) -> None:
        """Ask that no further request of a job be run."""
        path = f"{_path(job_id)}/cancel"
        await cancel_unless_ended(self, job_id, lambda: self._http.post(path, missing=f"batch {job_id!r}"))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def _read(self, row: Mapping[str, Any]) -> JobReply:
        custom_id, result = str(row["custom_id"]), row["result"]
        if result["type"] in _NOT_RUN:
            return JobReply(custom_id, None)
        if result["type"] == "succeeded":
            return JobReply(custom_id, read_reply(200, result["message"], message_reply, self._http.to))
        error = result["error"]
        kind = (error.get("error") or error).get("type")
        return JobReply(custom_id, read_reply(_STATUSES.get(kind, 400), error, message_reply, self._http.to))


def _path(job_id: str) -> str:
    return f"/{quote(job_id, safe='')}"


async def _as_list(file: BinaryIO, size: int) -> AsyncIterator[bytes]:
    """The first `size` bytes of a file, each line of which is JSON, as a list, read piece by piece."""
    yield _BEGIN
    while size > 0:
        chunk = await asyncio.to_thread(file.read, min(size, _CHUNK))
        size = size - len(chunk) if chunk else 0
        yield chunk.replace(b"\n", b",")
    yield _END
