"""Batch APIs of OpenAI's shape on the loopback: OpenAI, Azure, Groq, Mistral and Together, by their API references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

import orjson
from aiohttp import web

from tests.support.job_server import Job, JobServer, Row
from tests.support.meter import prompt_text


@dataclass
class File:
    """A file of requests or of results."""

    id: str
    key: str
    name: str
    rows: list[Row] = field(default_factory=list)
    problem: tuple[int, str] | None = None


class OpenAIJobServer(JobServer):
    """OpenAI's own API, of which the others are variants."""

    root: ClassVar[str] = "/v1"
    jobs_path: ClassVar[str] = "/batches"
    files_path: ClassVar[str] = "/files"
    purpose: ClassVar[str] = "batch"
    endpoint: ClassVar[str] = "/v1/chat/completions"
    is_named: ClassVar[bool] = True
    has_model: ClassVar[bool] = True
    expired: ClassVar[str] = "batch_expired"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.files: dict[str, File] = {}

    def routes(self) -> list[web.RouteDef]:
        files, jobs = f"{self.root}/files", f"{self.root}{self.jobs_path}"
        return [
            web.post(f"{self.root}{self.files_path}", self._upload),
            web.get(f"{files}/{{id}}", self._file),
            web.get(f"{files}/{{id}}/content", self._content),
            web.post(jobs, self._create),
            web.get(jobs, self._list),
            web.get(f"{jobs}/{{id}}", self._status),
            web.post(f"{jobs}/{{id}}/cancel", self._cancel),
        ]

    # -- files ---------------------------------------------------------------------------------------------------------

    async def _upload(self, request: web.Request) -> web.Response:
        key = self.account(request)
        if key is None:
            return self.refuse(401, "invalid_api_key", "Incorrect API key provided.")
        fields: dict[str, str] = {}
        file = File(f"file-{len(self.files) + 1}", key, "")
        async for part in await request.multipart():
            if part.name == "file":
                file.name = part.filename or ""
                file.problem = await self._read_rows(part, file.rows)
            else:
                fields[part.name or ""] = await part.text()
        if fields.get("purpose") != self.purpose:
            return self.refuse(400, "invalid_request_error", "Invalid purpose.")
        if self.files_path != "/files" and fields.get("file_name") != file.name:
            return self.refuse(400, "invalid_request_error", "file_name is required.")
        self.files[file.id] = file
        return web.json_response({"id": file.id, "filename": file.name, "object": "file", "purpose": self.purpose})

    async def _read_rows(self, part: Any, rows: list[Row]) -> tuple[int, str] | None:
        rest = b""
        lines: list[bytes] = []
        while chunk := await part.read_chunk(2**18):
            *ended, rest = (rest + chunk).split(b"\n")
            lines += ended
        ids: set[str] = set()
        for number, line in enumerate([*lines, rest] if rest else lines, 1):
            if problem := self._add_row(line, rows, ids):
                return number, problem
        return None

    def _add_row(self, line: bytes, rows: list[Row], ids: set[str]) -> str | None:
        data = orjson.loads(line)
        if data["custom_id"] in ids:
            return "The custom_id of a line must be unique."
        ids.add(data["custom_id"])
        fields = {"custom_id", "body", *(("method", "url") if self.is_named else ())}
        if data.keys() != fields or ("model" in data["body"]) != self.has_model:
            return f"The fields of a line are {sorted(fields)}."
        if self.is_named and (data["method"], data["url"]) != ("POST", self.endpoint):
            return "The URL of a line must match the endpoint of the batch."
        rows.append(Row(data["custom_id"], data["body"]))
        return None

    async def _file(self, request: web.Request) -> web.Response:
        file = self.files.get(request.match_info["id"])
        if file is None or file.key != self.account(request):
            return self.refuse(404, "not_found", "No such File object.")
        is_pending = self.faults.pending_files > 0
        self.faults.pending_files -= is_pending
        status = "pending" if is_pending else "processed"
        return web.json_response({"id": file.id, "filename": file.name, "status": status})

    async def _content(self, request: web.Request) -> web.StreamResponse:
        kind, _, job_id = request.match_info["id"].partition("-")
        job = self.find_job(request, job_id)
        if job is None or self.have_results_expired(job):
            return self.refuse(404, "not_found", "No such File object.")
        return await self.send_lines(request, self._lines(job, is_output=kind == "output"))

    def _lines(self, job: Job, *, is_output: bool) -> Iterator[bytes]:
        for number, row in enumerate(job.rows):
            if row.state and (row.state == "answered") == is_output and not self.is_silent(row):
                yield orjson.dumps(self._result(row, number))

    def _result(self, row: Row, number: int) -> Mapping[str, Any]:
        about = {"id": f"batch_req_{number}", "custom_id": row.custom_id}
        if row.state in ("expired", "cancelled"):
            code = self.expired if row.state == "expired" else "batch_cancelled"
            return {**about, "response": None, "error": {"code": code, "message": "It was not executed."}}
        failure = self.failure_of(row)
        if row.state == "failed":
            assert failure
            error = {"message": failure[2], "type": "invalid_request_error", "code": failure[1]}
            response = {"status_code": failure[0], "request_id": f"req-{number}", "body": {"error": error}}
            return {**about, "response": response, "error": None}
        message = {"role": "assistant", "content": row.text}
        completion = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "model": row.body.get("model", "m"),
            "choices": [{"index": 0, "message": message, "finish_reason": failure[1] if failure else "stop"}],
            "usage": row.usage,
            "service_tier": "default",
        }
        response = {"status_code": 200, "request_id": f"req-{number}", "body": completion}
        return {**about, "response": response, "error": None}

    # -- jobs ----------------------------------------------------------------------------------------------------------

    async def _create(self, request: web.Request) -> web.Response:
        body, key = await request.json(), self.account(request)
        if key is None:
            return self.refuse(401, "invalid_api_key", "Incorrect API key provided.")
        if refusal := self.refusal_of_create():
            return refusal
        file = self.files.get(self.input_of(body))
        if file is None or file.key != key or body["endpoint"] != self.endpoint:
            return self.refuse(400, "invalid_request_error", "No such file, or its lines have another endpoint.")
        job = self.create(key, file.rows, body.get("metadata"), file.id)
        if file.problem and not job.final_state:
            job.final_state, job.ended_at = "failed", self.now()
            job.problems = [{"code": "invalid_request", "message": file.problem[1], "line": file.problem[0]}]
        self.cut_connection_if_scheduled(request)
        return self.created(job)

    def input_of(self, body: Mapping[str, Any]) -> str:
        """The input file of a new job."""
        assert body["completion_window"] == "24h"
        return body["input_file_id"]

    def created(self, job: Job) -> web.Response:
        """The response to a request that has created a job."""
        return web.json_response(self.shown(job))

    async def _status(self, request: web.Request) -> web.Response:
        if self.account(request) is None:
            return self.refuse(401, "invalid_api_key", "Incorrect API key provided.")
        if self.faults.status_errors:
            return self.refuse(self.faults.status_errors.pop(0), "server_error", "Sorry.")
        job = self.find_job(request, request.match_info["id"])
        return self.refuse(404, "not_found", "No batch found.") if job is None else web.json_response(self.shown(job))

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self.find_job(request, request.match_info["id"])
        if job is None or not self.can_cancel(job):
            return self.refuse(409 if job else 404, "conflict", "Cannot cancel it.")
        self.cancel(job)
        return web.json_response(self.shown(job))

    async def _list(self, request: web.Request) -> web.Response:
        key = self.account(request)
        if key is None:
            return self.refuse(401, "invalid_api_key", "Incorrect API key provided.")
        return web.json_response(self.page([job for job in reversed(self.jobs.values()) if job.key == key], request))

    def page(self, jobs: list[Job], request: web.Request) -> Any:
        """A page of the list, the newest first."""
        ids = [job.id for job in jobs]
        first = ids.index(request.query["after"]) + 1 if "after" in request.query else 0
        size = min(int(request.query.get("limit", 20)), self.faults.page_size)
        data = [self.shown(job) for job in jobs[first : first + size]]
        return {"object": "list", "data": data, "has_more": first + size < len(jobs)}

    def shown(self, job: Job) -> dict[str, Any]:
        """A job as the API shows it."""
        self.settle(job)
        counts = Counts.of(job, self.done_of(job))
        return {
            "id": job.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "input_file_id": job.input_file,
            "status": job.final_state or ("cancelling" if job.cancelled_at else "in_progress"),
            "created_at": int(job.created_at),
            "output_file_id": f"output-{job.id}" if job.final_state and counts.answered else None,
            "error_file_id": f"errors-{job.id}" if job.final_state and counts.others else None,
            "request_counts": {"total": len(job.rows), "completed": counts.answered, "failed": counts.others},
            "metadata": job.marker,
            "errors": {"object": "list", "data": job.problems} if job.problems else None,
        }

    def refuse(self, status: int, code: str, message: str) -> web.Response:
        """An error as the API writes it."""
        error = {"message": message, "type": code, "param": None, "code": code}
        return web.json_response({"error": error}, status=status)

    def prompt_of(self, body: Mapping[str, Any]) -> str:
        return next(message["content"] for message in reversed(body["messages"]) if message["role"] == "user")

    def read(self, body: Mapping[str, Any]) -> tuple[str, int | None]:
        return prompt_text(body), None


@dataclass(frozen=True)
class Counts:
    """The number of rows with a reply, and of rows that ended without one."""

    answered: int
    others: int

    @classmethod
    def of(cls, job: Job, done: int) -> Counts:
        """The counts of a job."""
        return cls(done, sum(row.state in ("failed", "expired", "cancelled") for row in job.rows))


class AzureJobServer(OpenAIJobServer):
    """Azure's variant: another path, a key in a header of its own, an api version, and 201 for a new job."""

    root = "/openai"
    endpoint = "/chat/completions"

    @property
    def base_url(self) -> str:
        return self.origin

    def account(self, request: web.Request) -> str | None:
        return super().account(request) if request.query.get("api-version") else None

    def created(self, job: Job) -> web.Response:
        return web.json_response(self.shown(job), status=201)

    def shown(self, job: Job) -> dict[str, Any]:
        common = super().shown(job)
        return {**common, "error_file_id": f"errors-{job.id}" if job.final_state else None}  # it may be empty


class GroqJobServer(OpenAIJobServer):
    """Groq's variant: a list by cursor."""

    def page(self, jobs: list[Job], request: web.Request) -> Any:
        first, size = int(request.query.get("cursor", 0)), self.faults.page_size
        paging = {"next_cursor": str(first + size)} if first + size < len(jobs) else None
        return {"object": "list", "data": [self.shown(job) for job in jobs[first : first + size]], "paging": paging}


class MistralJobServer(OpenAIJobServer):
    """Mistral's variant: other paths and fields, the model beside the file, and pages by number."""

    jobs_path = "/batch/jobs"
    is_named = False
    has_model = False
    states: ClassVar[Mapping[str, str]] = {"completed": "SUCCESS", "expired": "TIMEOUT_EXCEEDED", "": "RUNNING"}

    def input_of(self, body: Mapping[str, Any]) -> str:
        assert body["model"]
        (file,) = body["input_files"]
        return file

    def page(self, jobs: list[Job], request: web.Request) -> Any:
        size = int(request.query["page_size"])
        first = int(request.query["page"]) * size
        return {"data": [self.shown(job) for job in jobs[first : first + size]], "total": len(jobs)}

    def shown(self, job: Job) -> dict[str, Any]:
        common = super().shown(job)
        counts = common["request_counts"]
        return {
            "id": job.id,
            "object": "batch",
            "input_files": [job.input_file],
            "metadata": job.marker,
            "status": self.states.get(job.final_state, job.final_state.upper()),
            "created_at": common["created_at"],
            "output_file": common["output_file_id"],
            "error_file": common["error_file_id"],
            "errors": [{"message": problem["message"], "count": 1} for problem in job.problems],
            "total_requests": counts["total"],
            "succeeded_requests": counts["completed"],
            "failed_requests": counts["failed"],
        }


class TogetherJobServer(OpenAIJobServer):
    """Together's variant: another path for files, with names, no metadata, and a list that is an array."""

    files_path = "/files/upload"
    purpose = "batch-api"
    is_named = False

    def created(self, job: Job) -> web.Response:
        return web.json_response({"job": self.shown(job)}, status=201)

    def page(self, jobs: list[Job], request: web.Request) -> Any:
        del request
        return [self.shown(job) for job in jobs]

    def shown(self, job: Job) -> dict[str, Any]:
        common = super().shown(job)
        created_at = datetime.fromtimestamp(job.created_at, UTC).isoformat().replace("+00:00", "Z")
        kept = {name: common[name] for name in ("id", "input_file_id", "output_file_id", "error_file_id")}
        return {
            **{name: value for name, value in kept.items() if value},
            "status": {"in_progress": "IN_PROGRESS"}.get(common["status"], common["status"].upper()),
            "created_at": created_at,
            "error": job.problems[0]["message"] if job.problems else None,
        }


SERVERS: Mapping[str, type[JobServer]] = {
    "openai": OpenAIJobServer,
    "azure": AzureJobServer,
    "groq": GroqJobServer,
    "mistral": MistralJobServer,
    "together_ai": TogetherJobServer,
}
for _name, _server in SERVERS.items():
    _server.name = _name
