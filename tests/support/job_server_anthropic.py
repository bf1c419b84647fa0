"""Anthropic's message batches on the loopback, written from its API reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from tests.support.anthropic_provider import blocks_of
from tests.support.job_server import Job, JobServer, Row

_TYPES = {400: "invalid_request_error", 429: "rate_limit_error", 500: "api_error"}
_STATES = {"answered": "succeeded", "failed": "errored", "cancelled": "canceled", "expired": "expired"}


class AnthropicJobServer(JobServer):
    """The request that creates a batch contains all requests of it; batches have no client-defined name."""

    name = "anthropic"

    def routes(self) -> list[web.RouteDef]:
        root = "/v1/messages/batches"
        return [
            web.post(root, self._create),
            web.get(root, self._list),
            web.get(f"{root}/{{id}}", self._status),
            web.get(f"{root}/{{id}}/results", self._results),
            web.post(f"{root}/{{id}}/cancel", self._cancel),
        ]

    def account(self, request: web.Request) -> str | None:
        return super().account(request) if "anthropic-version" in request.headers else None

    async def _create(self, request: web.Request) -> web.Response:
        key = self.account(request)
        if key is None:
            return _refuse(401, "authentication_error", "invalid x-api-key")
        body = orjson.loads(await request.read())
        if refusal := self.refusal_of_create():
            return refusal
        rows = [Row(one["custom_id"], one["params"]) for one in body["requests"]]
        if len({row.custom_id for row in rows}) < len(rows):
            return _refuse(400, "invalid_request_error", "custom_id must be unique.")
        job = self.create(key, rows, None)
        self.cut_connection_if_scheduled(request)
        return web.json_response(self.shown(job))

    async def _list(self, request: web.Request) -> web.Response:
        key = self.account(request)
        if key is None:
            return _refuse(401, "authentication_error", "invalid x-api-key")
        jobs = [job for job in reversed(self.jobs.values()) if job.key == key]
        ids = [job.id for job in jobs]
        first = ids.index(request.query["after_id"]) + 1 if "after_id" in request.query else 0
        size = min(int(request.query.get("limit", 20)), self.faults.page_size)
        data = [self.shown(job) for job in jobs[first : first + size]]
        last_id = data[-1]["id"] if data else None
        return web.json_response({"data": data, "has_more": first + size < len(jobs), "last_id": last_id})

    async def _status(self, request: web.Request) -> web.Response:
        if self.account(request) is None:
            return _refuse(401, "authentication_error", "invalid x-api-key")
        if self.faults.status_errors:
            return _refuse(self.faults.status_errors.pop(0), "api_error", "Internal server error")
        job = self.find_job(request, request.match_info["id"])
        return _not_found() if job is None else web.json_response(self.shown(job))

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self.find_job(request, request.match_info["id"])
        if job is None:
            return _not_found()
        if not self.can_cancel(job):
            return _refuse(400, "invalid_request_error", "The batch has ended.")
        self.cancel(job)
        return web.json_response(self.shown(job))

    async def _results(self, request: web.Request) -> web.StreamResponse:
        job = self.find_job(request, request.match_info["id"])
        if job is None or not job.final_state or self.have_results_expired(job):
            return _not_found()
        return await self.send_lines(request, self._lines(job))

    def _lines(self, job: Job) -> Iterator[bytes]:
        for number, row in enumerate(job.rows):
            if not self.is_silent(row):
                result = {"type": _STATES[row.state], **self._result(row, number)}
                yield orjson.dumps({"custom_id": row.custom_id, "result": result})

    def _result(self, row: Row, number: int) -> Mapping[str, Any]:
        failure = self.failure_of(row)
        if row.state == "failed":
            assert failure
            error = {"type": _TYPES[failure[0]], "message": failure[2]}
            return {"error": {"type": "error", "error": error, "request_id": f"req-{number}"}}
        if row.state != "answered":
            return {}
        details = row.usage["prompt_tokens_details"]
        read, written = details["cached_tokens"], details.get("cache_write_tokens", 0)
        usage = {
            "input_tokens": row.usage["prompt_tokens"] - read - written,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
            "output_tokens": row.usage["completion_tokens"],
            "service_tier": "batch",
        }
        tools = row.body.get("tools")
        block: dict[str, Any] = {"type": "text", "text": row.text}
        if tools:
            block = {"type": "tool_use", "id": "tool-1", "name": tools[0]["name"], "input": orjson.loads(row.text)}
        message = {
            "id": f"msg-{number}",
            "type": "message",
            "role": "assistant",
            "model": row.body["model"],
            "content": [block],
            "stop_reason": failure[1] if failure else "end_turn",
            "usage": usage,
        }
        return {"message": message}

    def shown(self, job: Job) -> dict[str, Any]:
        """A batch as the API shows it."""
        self.settle(job)
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        for row in job.rows:
            counts[_STATES[row.state] if job.final_state else "processing"] += 1
        return {
            "id": job.id,
            "type": "message_batch",
            "processing_status": "ended" if job.final_state else "canceling" if job.cancelled_at else "in_progress",
            "request_counts": counts,
            "created_at": datetime.fromtimestamp(job.created_at, UTC).isoformat().replace("+00:00", "Z"),
            "results_url": f"{self.base_url}/messages/batches/{job.id}/results" if job.final_state else None,
        }

    def new_id(self) -> str:
        return f"msgbatch_{len(self.jobs) + 1}"

    def prompt_of(self, body: Mapping[str, Any]) -> str:
        content = body["messages"][-1]["content"]
        return content if isinstance(content, str) else "".join(block["text"] for block in content)

    def read(self, body: Mapping[str, Any]) -> tuple[str, int | None]:
        text = orjson.dumps([body.get("tools"), body.get("output_config")]).decode()
        marked = None
        for block in blocks_of(body):
            text += block["text"]
            marked = len(text) if "cache_control" in block else marked
        return text, marked


def _refuse(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"type": "error", "error": {"type": kind, "message": message}}, status=status)


def _not_found() -> web.Response:
    return _refuse(404, "not_found_error", "No such batch.")


SERVERS: Mapping[str, type[JobServer]] = {"anthropic": AnthropicJobServer}
