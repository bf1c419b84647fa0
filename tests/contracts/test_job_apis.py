"""Every batch API through one suite: a job goes in, each request comes back once, and the books agree with what is said."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ondine_core.providers.job_api import JobApi, JobReply, NewJob
from ondine_core.providers.jobs import connect_jobs
from ondine_core.types.values import Call, Message, ModelSpec, Reply
from tests.support.job_server import JobServer, servers

MARKER = "0123456789abcdef"
MODELS = {"azure": "azure/small", "anthropic": "anthropic/claude-sonnet-4-5", "gemini": "gemini/gemini-2.5-flash"}
SCHEMA = (
    b'{"type":"object","properties":{"answer":{"type":"string"}},"required":["answer"],"additionalProperties":false}'
)
HALF_A_DAY_S = 43_200.0
DAY_S = 86_400.0


def spec_for(server: JobServer, key: str = "key-1", **fields: Any) -> ModelSpec:
    model = MODELS.get(server.name, f"{server.name}/m")
    return ModelSpec(model, key, server.base_url, max_output_tokens=64, tier="batch", **fields)


@pytest.fixture(params=sorted(servers()))
def server(request: pytest.FixtureRequest) -> Iterator[JobServer]:
    with servers()[request.param](keys=("key-1", "key-2")) as running:
        yield running


@dataclass
class Client:
    """Hands in jobs and reads them, each step with a connection of its own, as runs do."""

    server: JobServer
    folder: Path
    key: str = "key-1"

    def using(self, act: Callable[[JobApi], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            api = connect_jobs(spec_for(self.server, self.key))
            try:
                return await act(api)
            finally:
                await api.aclose()

        return asyncio.run(main())

    def new_job(self, api: JobApi, rows: int = 4, marker: str = MARKER, prompt: str = "Repeat: row {}") -> NewJob:
        file = self.folder / f"{marker}.jsonl"
        calls = [Call((Message("system", "Be brief."), Message("user", prompt.format(n)))) for n in range(rows)]
        lines = [api.write(replace(call, json_schema=SCHEMA), f"{marker}-{n}") for n, call in enumerate(calls)]
        file.write_bytes(b"".join(line + b"\n" for line in lines))
        return NewJob(marker, file, rows)

    def submit(self, rows: int = 4, marker: str = MARKER) -> str:
        async def act(api: JobApi) -> str:
            return await api.submit(self.new_job(api, rows, marker), nothing)

        job_id: str = self.using(act)
        return job_id

    def status(self, job_id: str) -> Any:
        return self.using(lambda api: api.get_status(job_id))

    def results(self, job_id: str) -> list[JobReply]:
        async def act(api: JobApi) -> list[JobReply]:
            return [reply async for reply in api.read_results(job_id)]

        found: list[JobReply] = self.using(act)
        return found

    def find(self, marker: str = MARKER, since: float | None = None, requests: int = 4) -> str | None:
        since = self.server.now() if since is None else since
        found: str | None = self.using(lambda api: api.find(marker, since, requests))
        return found


@pytest.fixture
def client(server: JobServer, tmp_path: Path) -> Client:
    return Client(server, tmp_path)


async def nothing() -> None:
    """Note nothing before a job is created."""


def answered(replies: list[JobReply]) -> dict[str, str]:
    return {reply.custom_id: reply.came.text for reply in replies if isinstance(reply.came, Reply)}


def ids(*numbers: int) -> set[str]:
    return {f"{MARKER}-{number}" for number in numbers}


# -- a job that goes well ------------------------------------------------------------------------------------------


def test_each_request_comes_back_with_its_own_answer(client: Client) -> None:
    """With the usage that was billed, in the form of live replies, and each prompt is billed once."""
    job_id = client.submit()
    status = client.status(job_id)
    assert status.has_ended
    assert (status.done, status.failed) == (4, 0) or client.server.name == "together_ai"
    replies = client.results(job_id)
    assert answered(replies) == {f"{MARKER}-{n}": f'{{"answer":"row {n}"}}' for n in range(4)}
    came = [reply.came for reply in replies if isinstance(reply.came, Reply)]
    assert all(reply.tier is None and reply.usage.is_complete and reply.request_id for reply in came)
    books = client.server.books
    assert sum(reply.usage.input_tokens for reply in came) == books.input_tokens > 0
    assert sum(reply.usage.output_tokens for reply in came) == books.output_tokens > 0
    assert books.billed == Counter(f"Repeat: row {n}" for n in range(4))
