"""Gemini's batch API, by the reference at https://ai.google.dev/api/batch-api.

Live calls go to Gemini's address for OpenAI's dialect, which has no jobs. So requests are translated to Gemini's own
API, and replies to chat completions, which are then read like live ones.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import orjson

from ondine_core.errors import ConfigError, TransientError
from ondine_core.providers.http_client import Endpoint, constant
from ondine_core.providers.job_api import JobLimits, JobProblem, JobReply, JobStatus, NewJob
from ondine_core.providers.jobs.job_adapter import (
    LATE_S,
    JobAdapter,
    Jobs,
    fingerprint,
    id_of,
    problem_of,
    reading,
    size_of,
)
from ondine_core.providers.jobs.job_http import JobHttp, JobRequest
from ondine_core.providers.media_parts import gemini_parts
from ondine_core.providers.openai_http import chat_reply
from ondine_core.providers.openai_servers import find_access
from ondine_core.providers.reply_body import max_reply_bytes
from ondine_core.providers.settings import check_header, request_fields
from ondine_core.types.values import Call, Json, ModelSpec, Reply

_LIMITS: Final = JobLimits(100_000, 2 * 10**9)
_ENDED = frozenset({"SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"})
_CANCELLED, _EXHAUSTED = 1, 8
_STATUSES: Mapping[int, int] = {3: 400, 4: 504, 5: 404, 7: 403, _EXHAUSTED: 429, 9: 400, 13: 500, 14: 503, 16: 401}
"""The HTTP status for each code of a gRPC error."""
_FIELDS: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
    "stop": "stopSequences",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
"""Fields of OpenAI's dialect and their names here."""
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24_576}
"""Tokens of thinking by effort, as Gemini translates them for models up to 2.5; later models take the words."""


class GeminiJobs(JobAdapter):
    """The batch API for one model of Gemini."""

    limits = _LIMITS

    def __init__(self, spec: ModelSpec, name: str) -> None:
        access = find_access(spec, name)
        key = access.api_key or ""
        match = re.fullmatch(r"(.*?)(/v\d\w*)?(?:/openai)?/*", access.base_url)
        root, version = match.groups() if match else (access.base_url, None)
        self._config, self._form = _fixed_config(spec, name), access.form
        self._name, self._version = name, version or "/v1beta"
        check_header("api_key", key)
        endpoint = Endpoint(root, spec.max_call_s, constant({"x-goog-api-key": key} if key else {}), access.headers)
        http = JobHttp(endpoint, max_reply_bytes(spec.max_output_tokens))
        super().__init__(http, fingerprint(key, root), spec.max_call_s + LATE_S)

    def write(self, call: Call, custom_id: str) -> bytes:
        """`call` as a line of the file."""
        call, schema, json_mode = self._form.write(call)
        config = dict(self._config)
        if schema is not None or json_mode:
            config["responseMimeType"] = "application/json"
        if schema is not None:
            config["responseJsonSchema"] = orjson.Fragment(schema)
        request: dict[str, Json] = {
            "contents": [
                {
                    "role": "model" if message.role == "assistant" else "user",
                    "parts": gemini_parts(message.content, call.media),
                }
                for message in call.messages
                if message.role != "system"
            ],
            "generationConfig": config,
        }
        system = [{"text": message.content} for message in call.messages if message.role == "system"]
        if system:
            request["systemInstruction"] = {"parts": system}
        return orjson.dumps({"key": custom_id, "request": request})

    async def submit(self, job: NewJob, about_to_create: Callable[[], Awaitable[None]]) -> str:
        """Upload the file and create a job of it; see `JobApi`."""
        name = f"ondine-{job.marker}"
        file = await self._upload(job, name)
        body = {"batch": {"display_name": name, "input_config": {"file_name": file}}}
        await about_to_create()
        path = f"{self._version}/models/{quote(self._name, safe='')}:batchGenerateContent"
        return id_of(await self._http.post(path, body, creates=True), creates=True, field="name")

    async def _upload(self, job: NewJob, name: str) -> str:
        """Upload the file of a job and return its name at Gemini."""
        size = await size_of(job.file)
        response = await self._http.send(
            JobRequest(
                "POST",
                f"/upload{self._version}/files",
                lambda _: orjson.dumps({"file": {"display_name": name}}),
                headers={
                    "Content-Type": "application/json",
                    "X-Goog-Upload-Protocol": "resumable",
                    "X-Goog-Upload-Command": "start",
                    "X-Goog-Upload-Header-Content-Length": str(size),
                    "X-Goog-Upload-Header-Content-Type": "application/jsonl",
                },
            )
        )
        address = response.headers.get("X-Goog-Upload-URL", "")
        if "://" not in address:
            raise TransientError("Gemini named no address for the upload of a file.")
        upload = await self._http.ask(
            JobRequest(
                "POST",
                address,
                lambda opened: opened.enter_context(job.file.open("rb")),
                headers={"X-Goog-Upload-Offset": "0", "X-Goog-Upload-Command": "upload, finalize"},
                timeout_s=self._http.transfer_timeout_s(size),
            )
        )
        with reading():
            return id_of(upload["file"], field="name")

    async def find(self, marker: str, since: float, requests: int) -> str | None:
        """Look for the name that the job would have; see `JobApi`."""
        del since, requests  # the name is enough

        def read(page: Any) -> tuple[Jobs, Mapping[str, str] | None]:
            token = page.get("nextPageToken")
            return page.get("operations") or (), {"pageToken": token} if token else None

        async for job in self._listed(f"{self._version}/batches", {"pageSize": "100"}, read):
            with reading():
                if (job.get("metadata") or {}).get("displayName") == f"ondine-{marker}":
                    return id_of(job, field="name")
        return None

    def _path(self, job_id: str) -> str:
        return f"{self._version}/{quote(job_id, safe='/')}"

    def _cancel_path(self, job_id: str) -> str:
        return f"{self._path(job_id)}:cancel"

    def _status(self, job: Mapping[str, Any]) -> JobStatus:
        about = job.get("metadata") or {}
        state, stats = str(about.get("state")), about.get("batchStats") or {}
        word = state.removeprefix("BATCH_STATE_").removeprefix("JOB_STATE_")  # both prefixes occur
        done = int(stats.get("successfulRequestCount") or 0)
        is_unbilled = word == "EXPIRED" or (word == "FAILED" and not done)
        return JobStatus(
            word in _ENDED,
            state,
            done,
            int(stats["requestCount"]) if "requestCount" in stats else None,
            _problems(job) if word == "FAILED" else (),
            bills_silence=not is_unbilled,
        )

    async def _result_paths(self, job_id: str) -> Sequence[str]:
        """The path of the file of results; none for a job that expired."""
        job = await self._get(job_id)
        with reading():
            output = job.get("response") or (job.get("metadata") or {}).get("output") or {}
            file = str(output.get("responsesFile") or "")
        return [f"/download{self._version}/{quote(file, safe='/')}:download?alt=media"] if file else []

    def _read_row(self, row: Mapping[str, Any]) -> JobReply:
        custom_id, error = str(row["key"]), row.get("error")
        if not error:
            return JobReply(custom_id, self._read_reply(200, row["response"], _native_reply))
        if error.get("code") == _CANCELLED:
            return JobReply(custom_id, None)
        status = _STATUSES.get(error.get("code"), 500)
        return JobReply(custom_id, self._read_reply(status, {"error": error}, _native_reply))


# -- requests and replies ------------------------------------------------------------------------------------------


def _fixed_config(spec: ModelSpec, name: str) -> dict[str, Json]:
    """The generation config of every request."""
    config: dict[str, Json] = {} if spec.temperature is None else {"temperature": spec.temperature}
    if spec.max_output_tokens is not None:
        config["maxOutputTokens"] = spec.max_output_tokens
    for field, value in request_fields(spec).items():
        if field == "reasoning_effort":
            has_budget = re.search(r"gemini-(?:1|2)\b", name) is not None
            budget = {"thinkingBudget": _BUDGETS.get(value, -1)}
            config["thinkingConfig"] = budget if has_budget else {"thinkingLevel": value}
        elif field in _FIELDS:
            config[_FIELDS[field]] = [value] if field == "stop" and isinstance(value, str) else value
        else:
            raise ConfigError(
                f"params: {field!r} has no equivalent in Gemini's batch API; leave it out at tier='batch'."
            )
    return config


def _native_reply(data: Mapping[str, Any]) -> Reply:
    """The reply in a response of Gemini's own API, which is translated to a chat completion."""
    blocked = (data.get("promptFeedback") or {}).get("blockReason")
    candidate = {} if blocked else data["candidates"][0]
    parts = (candidate.get("content") or {}).get("parts") or ()
    texts = [part for part in parts if "text" in part]
    message = {
        "content": "".join(part["text"] for part in texts if not part.get("thought")),
        "reasoning_content": "".join(part["text"] for part in texts if part.get("thought")),
        "refusal": blocked,
    }
    used = data.get("usageMetadata") or {}
    usage: dict[str, Json] = {}
    if "promptTokenCount" in used:  # the API leaves zeros out
        thoughts = used.get("thoughtsTokenCount", 0)
        usage = {
            "prompt_tokens": used["promptTokenCount"] + used.get("toolUsePromptTokenCount", 0),
            "completion_tokens": used.get("candidatesTokenCount", 0) + thoughts,
            "prompt_tokens_details": {"cached_tokens": used.get("cachedContentTokenCount", 0)},
            "completion_tokens_details": {"reasoning_tokens": thoughts},
        }
        if "totalTokenCount" in used:
            usage["total_tokens"] = used["totalTokenCount"]
    return chat_reply(
        {
            "id": data.get("responseId"),
            "model": data.get("modelVersion"),
            "choices": [{"message": message, "finish_reason": candidate.get("finishReason")}],
            "usage": usage,
        }
    )


def _problems(job: Mapping[str, Any]) -> tuple[JobProblem, ...]:
    error = job.get("error") or {}
    problem = problem_of(str(error.get("message") or "The provider gives no reason."))
    is_quota = problem.is_quota or error.get("code") == _EXHAUSTED
    return (JobProblem(problem.message, None, is_quota),)
