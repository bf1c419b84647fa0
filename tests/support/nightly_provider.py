"""OpenAI on the loopback for batch jobs and live calls, with a ledger of jobs and counts of live prompts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson
from aiohttp import web

from tests.support.job_server_openai import OpenAIJobServer
from tests.support.meter import Meter


class NightlyProvider(OpenAIJobServer):
    """A batch API that also answers chat completions; `ledger` has only jobs, `live` counts prompts of live calls."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.live: Counter[str] = Counter()
        self._refused: set[str] = set()

    def routes(self) -> list[web.RouteDef]:
        return [*super().routes(), web.post("/v1/chat/completions", self._complete)]

    async def _complete(self, request: web.Request) -> web.Response:
        if self.account(request) is None:
            return web.json_response(
                {"error": {"message": "Incorrect API key.", "code": "invalid_api_key"}}, status=401
            )
        body = orjson.loads(await request.read())
        prompt = self.prompt_of(body)
        self.live[prompt] += 1
        answer = self._answer(prompt)
        text = answer if isinstance(answer, str) else orjson.dumps(answer).decode()
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        return web.json_response({"id": "chatcmpl-1", "model": body["model"], "choices": [choice], "usage": usage})

    def account(self, request: web.Request) -> str | None:
        key = super().account(request)
        return None if key in self._refused else key

    def use(self, meter: Meter) -> None:
        """Bill by another meter."""
        self._meter = meter

    def refuse_key(self, key: str) -> None:
        """Refuse a key from now on."""
        self._refused.add(key)

    def end_all(self) -> None:
        """End every job now."""
        self.advance(self.faults.takes_s)

    @property
    def jobs_cancelled(self) -> list[str]:
        """Ids of the jobs that were cancelled by request."""
        return [job.id for job in self.jobs.values() if job.cancelled_at is not None]
