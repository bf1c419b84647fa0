"""Contract of every batch API: a job is submitted, each request is answered once, and the bill equals the ledger."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from ondine_core.errors import ConfigError, FatalError, JobLostError, RefusedError, TransientError
from ondine_core.providers.job_api import JobApi, JobReply, NewJob
from ondine_core.providers.jobs import connect_jobs
from ondine_core.providers.pricing import find_entry
from ondine_core.providers.tiers import JOB_PROVIDERS, find_tier_prices
from ondine_core.types.values import Call, Message, ModelSpec, Reply
from tests.support.job_server import Faults, JobServer, control, servers
from tests.support.meter import Cache, Meter, rates_of
from tests.support.raw_server import Connection, RawServer, completion, http_reply
from tests.support.server_process import free_port, run_server

ROOT = Path(__file__).parents[2]
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
    """Submits jobs and reads them, each step with a connection of its own, as runs do."""

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
        system = Message("system", "Be brief. " * 20)
        calls = [Call((system, Message("user", prompt.format(n))), cache_prefix=True) for n in range(rows)]
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
    """Record nothing before a job is created."""


def answered(replies: list[JobReply]) -> dict[str, str]:
    return {reply.custom_id: reply.outcome.text for reply in replies if isinstance(reply.outcome, Reply)}


def ids(*numbers: int) -> set[str]:
    return {f"{MARKER}-{number}" for number in numbers}


# -- successful jobs -----------------------------------------------------------------------------------------------


def test_each_request_gets_its_own_answer(client: Client) -> None:
    """With the billed usage, in the form of live replies; each prompt is billed once."""
    job_id = client.submit()
    status = client.status(job_id)
    assert status.has_ended
    assert status.done == 4 or client.server.name == "together_ai"
    replies = client.results(job_id)
    assert answered(replies) == {f"{MARKER}-{n}": f'{{"answer":"row {n}"}}' for n in range(4)}
    outcome = [reply.outcome for reply in replies if isinstance(reply.outcome, Reply)]
    assert all(reply.tier is None and reply.usage.is_complete and reply.request_id for reply in outcome)
    ledger = client.server.ledger
    assert sum(reply.usage.input_tokens for reply in outcome) == ledger.input_tokens > 0
    assert sum(reply.usage.output_tokens for reply in outcome) == ledger.output_tokens > 0
    assert ledger.billed == Counter(f"Repeat: row {n}" for n in range(4))


def test_requests_of_a_job_equal_live_requests(server: JobServer, client: Client) -> None:
    """Each is one line of JSON, whatever the text of its row."""

    async def act(api: JobApi) -> bytes:
        return api.write(Call((Message("user", 'Repeat: one\ntwo \u2028 "three"'),)), f"{MARKER}-0")

    line = client.using(act)
    assert b"\n" not in line
    data = orjson.loads(line)
    assert f"{MARKER}-0" in data.values()
    body = next(value for value in data.values() if isinstance(value, dict))
    assert server.prompt_of(body) == 'Repeat: one\ntwo \u2028 "three"'


def test_job_is_recorded_between_the_free_and_the_paid_requests(client: Client) -> None:
    """So a crash in between leaves either no job or a recorded one."""
    seen: list[int] = []

    async def note() -> None:
        seen.append(len(client.server.ledger.created))
        uploaded.extend(client.server.ledger.requests)

    async def act(api: JobApi) -> str:
        return await api.submit(client.new_job(api), note)

    uploaded: list[str] = []
    client.using(act)
    assert seen == [0]
    assert len(client.server.ledger.created) == 1
    assert client.server.ledger.requests[len(uploaded) :] == [f"POST {create_path(client.server)}"]


def create_path(server: JobServer) -> str:
    return next(request.partition(" ")[2] for request in reversed(server.ledger.requests) if "POST" in request)


def test_state_of_a_running_job(client: Client) -> None:
    """It has not ended, and shows its progress where the provider does."""
    client.server.faults.takes_s = HALF_A_DAY_S
    job_id = client.submit()
    assert not client.status(job_id).has_ended
    client.server.advance(HALF_A_DAY_S / 2 + 60)
    status = client.status(job_id)
    assert not status.has_ended
    client.server.advance(HALF_A_DAY_S)
    status = client.status(job_id)
    assert status.has_ended
    assert not status.problems
    assert status.bills_silence
    assert len(answered(client.results(job_id))) == 4


@pytest.mark.parametrize("model", ["openai/gpt-5-mini", "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-flash"])
def test_cost_of_replies_equals_the_bill(model: str, tmp_path: Path) -> None:
    """To the last digit, at the tier's prices, with reads and writes of the prompt cache."""
    name = model.partition("/")[0]
    meter = Meter({"batch": rates_of(find_entry(model) or {}, "batches")}, Cache(is_marked=True, min_tokens=16))
    with servers()[name](meter=meter) as server:
        client = Client(server, tmp_path)
        replies = client.results(client.submit(rows=5))
        price = find_tier_prices(ModelSpec(model))["batch"]
        costs = [price.cost(reply.outcome.usage) for reply in replies if isinstance(reply.outcome, Reply)]
        assert len(costs) == 5
        assert sum(costs) == server.ledger.usd > 0
        assert bool(meter.read_tokens) == (name == "anthropic")


# -- rows without an answer ----------------------------------------------------------------------------------------


def test_an_expired_job_keeps_the_rows_that_were_answered(client: Client) -> None:
    """They are billed and read; the rest costs nothing, whether or not the provider names it."""
    client.server.faults.takes_s = 2 * DAY_S + 60
    client.server.faults.window_s = DAY_S + 60
    job_id = client.submit()
    client.server.advance(2 * DAY_S)
    status = client.status(job_id)
    assert status.has_ended
    replies = client.results(job_id)
    kept = {} if client.server.name == "gemini" else answered(replies)
    assert set(kept) == set(client.server.ledger.billed_ids)
    named = {reply.custom_id for reply in replies}
    assert all(reply.outcome is None for reply in replies if reply.custom_id not in kept)
    assert named == ids(0, 1, 2, 3) or not status.bills_silence


def test_cancelled_job_keeps_the_rows_that_were_answered(client: Client) -> None:
    """Cancelling an ended job changes nothing."""
    client.server.faults.takes_s = HALF_A_DAY_S
    job_id = client.submit()
    client.server.advance(HALF_A_DAY_S / 2 + 60)
    client.using(lambda api: api.cancel(job_id))
    assert client.status(job_id).has_ended
    replies = client.results(job_id)
    assert set(answered(replies)) == set(client.server.ledger.billed_ids) == ids(0, 1)
    assert all(reply.outcome is None for reply in replies if reply.custom_id in ids(2, 3))
    client.using(lambda api: api.cancel(job_id))


def test_a_cancellation_that_comes_too_late_is_no_error(client: Client) -> None:
    """The job ends between the status request and the cancellation."""
    client.server.faults.takes_s = HALF_A_DAY_S
    client.server.faults.ends_before_cancel = True
    job_id = client.submit()
    client.using(lambda api: api.cancel(job_id))
    assert len(answered(client.results(job_id))) == 4


def test_errors_of_rows_are_those_of_live_calls(client: Client) -> None:
    """Errors of a row, transient ones and those of the set-up, without provider text that may quote a row."""
    client.server.faults.failing = {
        "row 0": [400, "content_policy_violation", "Your prompt 'a secret of the row' was flagged by moderation."],
        "row 1": [429, "rate_limit_exceeded", "Slow down."],
        "row 2": [500, "server_error", "Sorry."],
    }
    job_id = client.submit()
    outcome = {reply.custom_id: reply.outcome for reply in client.results(job_id)}
    assert isinstance(outcome[f"{MARKER}-0"], RefusedError)
    assert "secret" not in str(outcome[f"{MARKER}-0"])
    for number, kind in ((1, "limited"), (2, "broken")):
        error = outcome[f"{MARKER}-{number}"]
        assert isinstance(error, TransientError)
        assert not error.cost_unknown
        assert error.kind == kind
    assert isinstance(outcome[f"{MARKER}-3"], Reply)
    assert client.server.ledger.billed_ids.keys() == ids(3)


def test_a_refusal_by_the_model_is_billed(client: Client) -> None:
    """With its usage."""
    client.server.faults.failing = {"row 0": [200, REFUSALS.get(client.server.name, "content_filter"), ""]}
    job_id = client.submit()
    outcome = {reply.custom_id: reply.outcome for reply in client.results(job_id)}[f"{MARKER}-0"]
    assert isinstance(outcome, RefusedError)
    assert outcome.usage is not None
    assert outcome.usage.input_tokens > 0
    assert outcome.tier is None
    assert client.server.ledger.billed_ids.keys() == ids(0, 1, 2, 3)


REFUSALS = {"anthropic": "refusal", "gemini": "SAFETY"}


def test_job_whose_rows_all_fail_is_read(client: Client) -> None:
    """There may be no file of replies at all."""
    client.server.faults.failing = {"row": [400, "invalid_request_error", "No."]}
    job_id = client.submit()
    assert client.status(job_id).has_ended
    replies = client.results(job_id)
    assert {reply.custom_id for reply in replies} == ids(0, 1, 2, 3)
    assert not answered(replies)
    assert not client.server.ledger.billed


def test_row_missing_from_the_results_may_be_billed(client: Client) -> None:
    """Although the job completed."""
    client.server.faults.silent = ["row 2"]
    job_id = client.submit()
    assert client.status(job_id).bills_silence
    assert {reply.custom_id for reply in client.results(job_id)} == ids(0, 1, 3)
    assert client.server.ledger.billed_ids.keys() == ids(0, 1, 2, 3)


# -- malformed results -------------------------------------------------------------------------------------------


def test_duplicate_and_unknown_ids_are_passed_on(client: Client) -> None:
    """In any order."""
    client.server.faults.mangled = ["duplicate", "alien", "shuffle"]
    replies = client.results(client.submit())
    found = Counter(reply.custom_id for reply in replies)
    assert len(replies) == 6
    assert ids(0, 1, 2, 3) < found.keys()
    assert max(found.values()) == 2
    assert any(custom_id.startswith("fedcba") for custom_id in found)


@pytest.mark.parametrize("kind", ["garbage", "deep", "huge"])
def test_unreadable_line_is_a_lost_reply(client: Client, kind: str) -> None:
    """It may be billed; the other lines are read."""
    client.server.faults.mangled = [kind]
    replies = client.results(client.submit())
    assert len(answered(replies)) == 3
    (lost,) = [reply for reply in replies if not isinstance(reply.outcome, Reply)]
    assert isinstance(lost.outcome, TransientError)
    assert lost.outcome.cost_unknown
    assert lost.custom_id in ids(0, 1, 2, 3)


def test_expired_results_are_lost(client: Client) -> None:
    """That is not an outage."""
    job_id = client.submit()
    client.status(job_id)
    client.server.advance(60 * DAY_S)
    with pytest.raises(JobLostError):
        client.results(job_id)


def test_broken_download_is_transient(client: Client) -> None:
    """It costs nothing, and the next one brings all lines."""
    job_id = client.submit()
    client.server.faults.cut_results = 1
    with pytest.raises(TransientError) as failed:
        client.results(job_id)
    assert not failed.value.cost_unknown
    assert len(answered(client.results(job_id))) == 4


# -- creating a job ------------------------------------------------------------------------------------------------


def test_a_job_whose_creation_was_not_answered_is_found_by_its_marker(client: Client) -> None:
    """Until then its cost is unknown; an unused marker is not found."""
    client.server.faults.cut_create = 1
    since = client.server.now()
    with pytest.raises(TransientError) as failed:
        client.submit()
    assert failed.value.cost_unknown
    found = client.find(since=since)
    assert found == client.find(since=since + 250)
    assert (found or "").endswith(client.server.ledger.created[0])
    assert len(answered(client.results(found or ""))) == 4
    assert client.find("f" * 16, since) is None


def test_a_job_is_found_among_many(client: Client) -> None:
    """The list has several pages."""
    client.server.faults.page_size = 3
    since = client.server.now()
    markers = [f"{number:016x}" for number in range(8)]
    created = [client.submit(rows=2, marker=marker) for marker in markers]
    for number in (0, 4, 7):
        assert client.find(markers[number], since, 2) == created[number]
    assert client.find(MARKER, since, 2) is None


def test_refused_creation_creates_no_job(client: Client) -> None:
    """It is retried after the wait that the provider names."""
    body = {"error": {"message": "Rate limit reached.", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}
    client.server.faults.refuse_create = [[429, body, {"Retry-After": "7"}]]
    with pytest.raises(TransientError) as failed:
        client.submit()
    assert (failed.value.kind, failed.value.retry_after_s, failed.value.cost_unknown) == ("limited", 7, False)
    assert not client.server.ledger.created


def test_refused_job_request_shows_no_row_text(client: Client) -> None:
    """For any request about the job; the error's code is shown."""
    message = {"error": {"type": "invalid_request_error", "message": "requests.0: 'Repeat: row 0' is not valid."}}
    client.server.faults.refuse_create = [[400, message, {}]]
    with pytest.raises((RefusedError, FatalError)) as failed:
        client.submit()
    assert "invalid_request_error" in str(failed.value)
    assert client.server.name != "anthropic" or "row 0" not in str(failed.value)
    assert not client.server.ledger.created


def test_job_quota_is_a_limit(client: Client) -> None:
    """Whether the request is refused with any status or the job fails."""
    message = "Enqueued token limit reached for the model. Limit: 90,000 enqueued tokens."
    client.server.faults.refuse_create = [[400, {"error": {"message": message, "code": "token_limit_exceeded"}}, {}]]
    with pytest.raises(TransientError) as failed:
        client.submit()
    assert failed.value.kind == "limited"
    client.server.faults.is_full = True
    if client.server.name == "anthropic":
        return  # an accepted batch does not fail
    status = client.status(client.submit())
    assert status.has_ended
    assert not status.bills_silence
    (problem,) = status.problems
    assert problem.is_quota


def test_gateway_error_leaves_the_creation_undecided(client: Client) -> None:
    """Like a broken connection."""
    client.server.faults.refuse_create = [[504, {"error": {"message": "upstream timeout"}}, {}]]
    with pytest.raises(TransientError) as failed:
        client.submit()
    assert failed.value.cost_unknown


def test_failed_validation_names_the_line(client: Client) -> None:
    """Nothing of the job is billed."""
    if client.server.name == "anthropic":
        return  # it validates row by row
    client.server.faults.invalid_line = 3
    status = client.status(client.submit())
    assert status.has_ended
    assert not status.bills_silence
    (problem,) = status.problems
    assert not problem.is_quota
    assert problem.message
    assert problem.line in ((None,) if client.server.name in ("mistral", "together_ai", "gemini") else (3,))
    assert not client.results(client.submit())


# -- accounts ------------------------------------------------------------------------------------------------------


def test_job_of_another_account_is_not_found(client: Client) -> None:
    """Neither its state and results nor, by its marker, the job."""
    since = client.server.now()
    job_id = client.submit()
    other = replace(client, key="key-2")
    for act in (lambda: other.status(job_id), lambda: other.results(job_id)):
        with pytest.raises(JobLostError):
            act()
    assert other.find(since=since) is None


def test_a_wrong_key_is_fatal(client: Client) -> None:
    """At every step, and no message has the key."""
    job_id = client.submit()
    other = replace(client, key="sk-wrong-key-99")
    for act in (other.submit, lambda: other.status(job_id), other.find):
        with pytest.raises(FatalError) as failed:
            act()
        assert "wrong-key" not in str(failed.value)


def test_account_id_differs_by_key_and_address(client: Client, server: JobServer) -> None:
    """Wherever the key comes from, and without containing it."""

    async def account(api: JobApi) -> str:
        return api.account

    first, second = client.using(account), replace(client, key="key-2").using(account)
    assert first != second
    assert client.using(account) == first
    assert "key" not in first
    assert len(first) == 12
    elsewhere = replace(spec_for(server), base_url="http://127.0.0.1:9/v1")
    assert connect_jobs(elsewhere).account != first


def test_outage_of_the_job_api_is_transient(client: Client) -> None:
    """A request about a job costs nothing."""
    job_id = client.submit()
    client.server.faults.status_errors = [503, 500]
    for _ in range(2):
        with pytest.raises(TransientError) as failed:
            client.status(job_id)
        assert not failed.value.cost_unknown
    assert client.status(job_id).has_ended


def test_batch_tier_is_offered_for_every_adapter() -> None:
    """The tables of tiers and adapters agree, and there is a test server for each."""
    assert set(JOB_PROVIDERS) == set(servers())
    for provider in JOB_PROVIDERS:
        model = MODELS.get(provider, f"{provider}/m")
        assert connect_jobs(ModelSpec(model, "k", "http://127.0.0.1:9", tier="batch")).limits.requests >= 50_000
    with pytest.raises(ConfigError, match="needs a key"):
        connect_jobs(ModelSpec("groq/m", tier="batch"))


# -- large jobs, and where secrets go ------------------------------------------------------------------------------


@contextmanager
def in_process(name: str, log: Path) -> Iterator[JobServer]:
    """A server in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "tests.support.job_server", name, str(port)]
    origin = f"http://127.0.0.1:{port}"
    with run_server(command, f"{origin}/control/ready", log, {**os.environ, "PYTHONPATH": str(ROOT)}):
        stand_in = servers()[name]()
        stand_in.address = origin
        yield stand_in


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openai", "anthropic", "gemini"])
def test_100_000_requests_take_little_memory(name: str, tmp_path: Path) -> None:
    """Neither the file nor the results are held in memory."""
    rows = 100_000
    with in_process(name, tmp_path / "log") as server:
        client = Client(server, tmp_path)
        file = tmp_path / "large.jsonl"

        async def write(api: JobApi) -> None:
            with file.open("wb") as lines:
                for number in range(rows):
                    call = Call((Message("user", f"Repeat: row {number}"),))
                    lines.write(api.write(call, f"{MARKER}-{number}") + b"\n")

        async def submit(api: JobApi) -> str:
            return await api.submit(NewJob(MARKER, file, rows), nothing)

        async def read(api: JobApi) -> Counter[bool]:
            found = api.read_results(job_id)
            return Counter([isinstance(reply.outcome, Reply) async for reply in found])

        client.using(write)
        control(server.origin, "faults", max_requests=rows)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        job_id = client.using(submit)
        assert client.status(job_id).has_ended
        assert client.using(read) == {True: rows}
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert file.stat().st_size > 14 * 2**20
    assert grown_kib < 12 * 2**10


def test_server_process_keeps_its_jobs_after_a_client_ends(tmp_path: Path) -> None:
    """Its clock, faults and ledger can be reached from outside."""
    with in_process("openai", tmp_path / "log") as server:
        client = Client(server, tmp_path)
        control(server.origin, "faults", takes_s=HALF_A_DAY_S)
        job_id = client.submit()
        assert not client.status(job_id).has_ended
        control(server.origin, "advance", seconds=DAY_S)
        assert client.status(job_id).has_ended
        assert control(server.origin, "ledger")["billed_ids"] == dict.fromkeys(sorted(ids(0, 1, 2, 3)), 1)


def test_results_in_a_file_store_are_fetched_without_the_key() -> None:
    """One redirect to the file is followed, without any secret."""
    heads: list[bytes] = []
    line = b'{"custom_id":"a-0","response":{"status_code":200,"body":' + completion("x") + b"}}\n"

    def script(connection: Connection) -> None:
        while head := connection.read_head():
            heads.append(head)
            if head.startswith(b"GET /v1/batches"):
                connection.send(http_reply(b'{"id":"b","status":"completed","output_file_id":"f"}'))
            elif head.startswith(b"GET /v1/files"):
                connection.send(http_reply(b"", f"Location: {server.base_url}/store", status="302 Found"))
            else:
                connection.send(http_reply(line))

    with RawServer(script) as server:
        spec = ModelSpec("together_ai/m", "sk-very-secret", server.base_url, tier="batch")

        async def read() -> list[JobReply]:
            api = connect_jobs(spec)
            found = [reply async for reply in api.read_results("b")]
            await api.aclose()
            return found

        (reply,) = asyncio.run(read())
    assert isinstance(reply.outcome, Reply)
    assert [b"sk-very-secret" in head for head in heads] == [True, True, False]


def test_further_headers_are_in_the_requests_about_jobs(server: JobServer) -> None:
    """A gateway in front of a batch API wants its key, too."""
    heads: list[bytes] = []

    def script(connection: Connection) -> None:
        while head := connection.read_head():
            heads.append(head.lower())
            connection.send(http_reply(b'{"id":"b","status":"in_progress"}'))

    async def look(spec: ModelSpec) -> None:
        api = connect_jobs(spec)
        with suppress(TransientError):
            await api.get_status("b")
        await api.aclose()

    with RawServer(script) as raw:
        settings = {"extra_headers": {"Helicone-Auth": "Bearer of-the-gateway"}}
        asyncio.run(look(replace(spec_for(server), base_url=raw.base_url, settings=settings)))
    assert heads
    assert all(b"helicone-auth: bearer of-the-gateway" in head for head in heads)


@pytest.mark.parametrize("body", [b"[]", b"{}", b'"text"', b"not JSON", b"[" * 3000 + b"]" * 3000, b'{"status": 5}'])
def test_any_status_response_is_survived(body: bytes, server: JobServer) -> None:
    """It is a transient error, or says nothing about an end."""

    def script(connection: Connection) -> None:
        while connection.read_head():
            connection.send(http_reply(body))

    with RawServer(script) as raw:
        spec = replace(spec_for(server), base_url=raw.base_url)

        async def act(ask: Callable[[JobApi], Awaitable[Any]]) -> Any:
            api = connect_jobs(spec)
            try:
                return await ask(api)
            except TransientError as failed:
                return failed
            finally:
                await api.aclose()

        status = asyncio.run(act(lambda api: api.get_status("b")))
        assert isinstance(status, TransientError) or not status.has_ended
        found = asyncio.run(act(lambda api: api.find(MARKER, 0.0, 4)))
        assert found is None or isinstance(found, TransientError)


# -- provider-specific behaviour ------------------------------------------------------------------------------------


def test_running_anthropic_batch_may_be_the_one_looked_for(tmp_path: Path) -> None:
    """Its requests cannot be seen yet, so it is undecided; a batch of another size is not the one."""
    with servers()["anthropic"](faults=Faults(takes_s=HALF_A_DAY_S)) as server:
        client = Client(server, tmp_path)
        since = server.now()
        job_id = client.submit()
        with pytest.raises(TransientError, match="is not known yet whether"):
            client.find(since=since)
        assert client.find(since=since, requests=5) is None
        server.advance(DAY_S)
        assert client.find(since=since) == job_id
        assert client.find("f" * 16, since) is None


def test_anthropic_caches_the_fixed_part_in_a_batch_too() -> None:
    """The breakpoint is where live calls have it, with the requested lifetime."""
    with servers()["anthropic"]() as server:
        api = connect_jobs(spec_for(server, prompt_cache="1h"))
        call = Call((Message("system", "Be brief."), Message("user", "Repeat: x")), cache_prefix=True)
        params = orjson.loads(api.write(call, f"{MARKER}-0"))["params"]
        assert params["system"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
        asyncio.run(api.aclose())


def test_gemini_parameters_are_translated() -> None:
    """Like those of live calls; an untranslatable one is an error before any job."""
    params = {"top_p": 0.5, "stop": "END", "seed": 7, "reasoning_effort": "low"}
    spec = ModelSpec("gemini/gemini-2.5-flash", "k", temperature=0.0, max_output_tokens=9, params=params, tier="batch")
    call = Call((Message("system", "Be brief."), Message("assistant", "Yes?"), Message("user", "x")), SCHEMA)
    request = orjson.loads(connect_jobs(spec).write(call, "a-0"))["request"]
    config = request["generationConfig"]
    assert config.pop("responseJsonSchema")["properties"]["answer"]["type"] == "string"
    assert config == {
        "temperature": 0.0,
        "maxOutputTokens": 9,
        "topP": 0.5,
        "stopSequences": ["END"],
        "seed": 7,
        "thinkingConfig": {"thinkingBudget": 1024},
        "responseMimeType": "application/json",
    }
    assert [turn["role"] for turn in request["contents"]] == ["model", "user"]
    assert request["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    with pytest.raises(ConfigError, match="'logit_bias' has no equivalent in Gemini's batch API"):
        connect_jobs(replace(spec, params={"logit_bias": {}}))


def test_a_file_at_azure_is_used_once_it_is_processed(tmp_path: Path) -> None:
    """A job is created only after that."""
    with servers()["azure"](faults=Faults(pending_files=1)) as server:
        client = Client(server, tmp_path)
        assert client.status(client.submit()).has_ended


def test_azure_account_with_tokens_is_its_endpoint() -> None:
    """Tokens are renewed and jobs stay those of the resource; each key is an account of its own."""
    spec = ModelSpec("azure/small", None, "https://one.openai.azure.com", tier="batch")
    by_token = [connect_jobs(replace(spec, settings={"ad_token": token})).account for token in ("t1", "t2")]
    assert by_token[0] == by_token[1]
    by_key = {connect_jobs(replace(spec, api_key=key)).account for key in ("k1", "k2")}
    assert len({*by_key, *by_token}) == 3
