"""Gemini's batch API on the loopback, from its API reference: resumable uploads, operations, files of responses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from tests.support.job_server import Job, JobServer, Row

_CODES = {400: 3, 429: 8, 500: 13}
_REQUEST = {"contents", "generationConfig", "systemInstruction"}
_CONFIG = {"temperature", "maxOutputTokens", "responseMimeType", "responseJsonSchema", "topP", "seed", "thinkingConfig"}


class GeminiJobServer(JobServer):
    """A batch that expires has no results and is not billed."""

    name = "gemini"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.files: dict[str, tuple[str, list[Row]]] = {}
        self._uploads: list[str] = []

    @property
    def base_url(self) -> str:
        return f"{self.origin}/v1beta/openai"

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/upload/v1beta/files", self._begin),
            web.post("/resume/{number}", self._upload),
            web.post("/v1beta/models/{model}:batchGenerateContent", self._create),
            web.get("/v1beta/batches", self._list),
            web.get("/v1beta/batches/{id}", self._status),
            web.post("/v1beta/batches/{id}:cancel", self._cancel),
            web.get("/download/v1beta/files/{id}:download", self._results),
        ]

    async def _begin(self, request: web.Request) -> web.Response:
        key = self.account(request)
        if key is None:
            return _refuse(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")
        assert request.headers["X-Goog-Upload-Protocol"] == "resumable"
        assert request.headers["X-Goog-Upload-Command"] == "start"
        self._uploads.append(key)
        address = f"http://{request.host}/resume/{len(self._uploads) - 1}"
        return web.json_response({}, headers={"X-Goog-Upload-URL": address})

    async def _upload(self, request: web.Request) -> web.Response:
        assert request.headers["X-Goog-Upload-Command"] == "upload, finalize"
        assert "x-goog-api-key" not in request.headers
        rows = []
        for line in (await request.read()).splitlines():
            data = orjson.loads(line)
            assert data["request"].keys() <= _REQUEST
            assert data["request"]["generationConfig"].keys() <= _CONFIG
            rows.append(Row(data["key"], data["request"]))
        name = f"files/in-{len(self.files)}"
        self.files[name] = self._uploads[int(request.match_info["number"])], rows
        return web.json_response({"file": {"name": name, "uri": f"https://example.com/{name}"}})

    async def _create(self, request: web.Request) -> web.Response:
        key = self.account(request)
        if key is None:
            return _refuse(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")
        if refusal := self.refusal_of_create():
            return refusal
        body = (await request.json())["batch"]
        owner, rows = self.files[body["input_config"]["file_name"]]
        assert owner == key
        job = self.create(key, rows, body["display_name"])
        self.cut_connection_if_scheduled(request)
        return web.json_response(self.shown(job))

    async def _list(self, request: web.Request) -> web.Response:
        key = self.account(request)
        if key is None:
            return _refuse(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")
        jobs = [job for job in self.jobs.values() if job.key == key]
        first = int(request.query.get("pageToken", 0))
        size = min(int(request.query["pageSize"]), self.faults.page_size)
        page: dict[str, Any] = {"operations": [self.shown(job) for job in jobs[first : first + size]]}
        if first + size < len(jobs):
            page["nextPageToken"] = str(first + size)
        return web.json_response(page)

    async def _status(self, request: web.Request) -> web.Response:
        if self.account(request) is None:
            return _refuse(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")
        if self.faults.status_errors:
            return _refuse(self.faults.status_errors.pop(0), "INTERNAL", "Internal error.")
        job = self.find_job(request, request.match_info["id"])
        return _not_found() if job is None else web.json_response(self.shown(job))

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self.find_job(request, request.match_info["id"])
        if job is None:
            return _not_found()
        if not self.can_cancel(job):
            return _refuse(400, "FAILED_PRECONDITION", "The batch has ended.")
        self.cancel(job)
        return web.json_response({})

    async def _results(self, request: web.Request) -> web.StreamResponse:
        job = self.find_job(request, request.match_info["id"].removeprefix("out-"))
        if job is None or self.have_results_expired(job) or request.query.get("alt") != "media":
            return _not_found()
        return await self.send_lines(request, self._lines(job))

    def _lines(self, job: Job) -> Iterator[bytes]:
        for number, row in enumerate(job.rows):
            if not self.is_silent(row):
                yield orjson.dumps({"key": row.custom_id, **self._result(row, number)})

    def _result(self, row: Row, number: int) -> Mapping[str, Any]:
        failure = self.failure_of(row)
        if row.state == "failed":
            assert failure
            return {"error": {"code": _CODES[failure[0]], "message": failure[2]}}
        if row.state != "answered":
            return {"error": {"code": 1, "message": "The operation was cancelled."}}
        counts = {
            "promptTokenCount": row.usage["prompt_tokens"],
            "candidatesTokenCount": row.usage["completion_tokens"],
            "totalTokenCount": row.usage["prompt_tokens"] + row.usage["completion_tokens"],
        }
        candidate = {
            "content": {"parts": [{"text": row.text}], "role": "model"},
            "finishReason": failure[1] if failure else "STOP",
            "index": 0,
        }
        about = {"modelVersion": "gemini", "responseId": f"r-{number}"}
        return {"response": {"candidates": [candidate], "usageMetadata": counts, **about}}

    def end(self, job: Job, final_state: str, answered: int) -> None:
        super().end(job, final_state, 0 if final_state == "expired" else answered)

    def shown(self, job: Job) -> dict[str, Any]:
        """An operation as the API shows it."""
        self.settle(job)
        failed = sum(row.state == "failed" for row in job.rows)
        state = {"completed": "SUCCEEDED", "": "RUNNING"}.get(job.final_state, job.final_state.upper())
        about = {
            "displayName": job.marker,
            "state": f"BATCH_STATE_{state}",
            "createTime": datetime.fromtimestamp(job.created_at, UTC).isoformat().replace("+00:00", "Z"),
            "batchStats": {
                "requestCount": str(len(job.rows)),
                "successfulRequestCount": str(self.done_of(job)),
                "failedRequestCount": str(failed),
            },
        }
        shown: dict[str, Any] = {"name": f"batches/{job.id}", "metadata": about}
        if job.final_state in ("completed", "cancelled"):
            shown |= {"done": True, "response": {"responsesFile": f"files/out-{job.id}"}}
        if job.problems:
            shown["error"] = {"code": 8 if self.faults.is_full else 3, "message": job.problems[0]["message"]}
        return shown

    def alien(self, line: bytes) -> bytes:
        return orjson.dumps({**orjson.loads(line), "key": "fedcba9876543210-0"})

    def prompt_of(self, body: Mapping[str, Any]) -> str:
        return "".join(part["text"] for part in body["contents"][-1]["parts"])

    def read(self, body: Mapping[str, Any]) -> tuple[str, int | None]:
        return orjson.dumps(body).decode(), None


def _refuse(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": status, "message": message, "status": kind}}, status=status)


def _not_found() -> web.Response:
    return _refuse(403, "PERMISSION_DENIED", "You do not have permission to access it or it may not exist.")


SERVERS: Mapping[str, type[JobServer]] = {"gemini": GeminiJobServer}
