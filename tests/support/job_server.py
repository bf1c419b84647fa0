"""Batch APIs of providers on the loopback: jobs with an adjustable clock, scripted faults and an exact ledger.

This module has the parts that the dialects in `job_server_<dialect>` share. A server runs on a thread of a test, or as
a process of its own (`python -m tests.support.job_server openai <port> [<model>]`, at the prices of the model) that
continues when its client is killed; `control` then moves its clock, sets its faults and reads its ledger. Rows are
answered at a constant rate, so a cancelled or expired job has answered a share of its rows.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from decimal import Decimal
from importlib import import_module
from typing import Any, ClassVar, Self

import orjson
from aiohttp import web

from ondine_core.providers.pricing import find_entry
from tests.support.asking import echo_each
from tests.support.meter import Meter, Rates, rates_of

_START_TIMEOUT_S = 60.0
_FREE = Rates(Decimal(0), Decimal(0), Decimal(0), Decimal(0))
DEEP = b"[" * 100_000 + b"]" * 100_000


@dataclass
class Faults:
    """Faults of jobs; a test may change them at any time, and `control` sets them by name.

    Args:
        takes_s: Seconds that a job takes.
        window_s: Seconds after which a job expires.
        results_life_s: Seconds after its end for which a job's results are kept.
        failing: By a part of a prompt: status, code and message of its error; status 200 names a finish reason instead.
        silent: Parts of prompts that are billed and missing from all files of results.
        mangled: Changes of results: `shuffle` orders lines at random, `duplicate` repeats one, `alien` adds one of
            another job, `garbage` cuts one, `deep` and `huge` add a field that is nested deeply or long.
        refuse_create: Status, body and headers for the next requests that create a job, which create none.
        cut_create: The number of next requests that create a job and get no response.
        invalid_line: The line at which validation of the next jobs fails.
        is_full: Whether jobs fail for the account's quota.
        page_size: Maximum number of jobs in a page of the list.
        status_errors: Statuses of the next requests about a job.
        max_requests: Maximum number of requests of a job; a job with more fails.
        pending_files: How often a file is reported as pending before it can be used, at Azure.
        ends_before_cancel: Whether a job ends right before its cancellation.
        cut_results: The number of next downloads that break in the middle.
    """

    takes_s: float = 0.0
    window_s: float = 86_400.0
    results_life_s: float = 29 * 86_400.0
    failing: dict[str, Any] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    mangled: list[str] = field(default_factory=list)
    refuse_create: list[Any] = field(default_factory=list)
    cut_create: int = 0
    invalid_line: int | None = None
    is_full: bool = False
    page_size: int = 100
    status_errors: list[int] = field(default_factory=list)
    cut_results: int = 0
    ends_before_cancel: bool = False
    max_requests: int = 50_000
    pending_files: int = 0


@dataclass
class Row:
    """A request of a job: its id, its body, and its result."""

    custom_id: str
    body: Mapping[str, Any]
    state: str = ""
    """`answered`, `failed`, `expired` or `cancelled`; empty while the job runs."""
    text: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Job:
    """A job; `final_state` is `completed`, `expired`, `cancelled` or `failed`, and empty while it runs."""

    id: str
    key: str
    rows: list[Row]
    created_at: float
    marker: Any
    input_file: str = ""
    final_state: str = ""
    ended_at: float = 0.0
    cancelled_at: float | None = None
    problems: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass
class JobLedger:
    """What the server received and billed.

    Attributes:
        billed: How often each prompt was billed.
        billed_ids: How often each custom id was billed.
        created: Ids of the jobs.
        requests: Methods and paths, in order.
        usd: The bill.
    """

    billed: Counter[str] = field(default_factory=Counter)
    billed_ids: Counter[str] = field(default_factory=Counter)
    created: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    usd: Decimal = Decimal(0)
    input_tokens: int = 0
    output_tokens: int = 0


class JobServer:
    """A batch API, as a context manager.

    Args:
        answer: Last user message to answer, a text or a JSON value.
        keys: The valid keys; with none every key is an account.
        meter: Counts and bills; it knows the tier `batch`.
        faults: The faults of jobs.
    """

    name: ClassVar[str] = ""

    def __init__(
        self,
        answer: Callable[[str], Any] = echo_each,
        *,
        keys: Sequence[str] = (),
        meter: Meter | None = None,
        faults: Faults | None = None,
    ) -> None:
        self._answer, self._keys = answer, tuple(keys)
        self._meter = meter or Meter({"batch": _FREE})
        self.faults, self.ledger = faults or Faults(), JobLedger()
        self.jobs: dict[str, Job] = {}
        self._skew_s = 0.0
        self._lock = threading.RLock()
        self.address = ""

    # -- server --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        started: Future[int] = Future()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="job-server")
        self._thread.start()
        self.address = f"http://127.0.0.1:{started.result(_START_TIMEOUT_S)}"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return self.address

    @property
    def base_url(self) -> str:
        """The base address for a model."""
        return f"{self.address}/v1"

    async def _serve(self, started: Future[int]) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        try:
            runner = await self.listen(0)
            started.set_result(runner.addresses[0][1])
        except BaseException as failed:
            started.set_exception(failed)
            raise
        await self._ended.wait()
        await runner.cleanup()

    async def listen(self, port: int) -> web.AppRunner:
        """Start to serve at a port; 0 chooses a free one."""
        app = web.Application(client_max_size=2**30, middlewares=[self._record])
        app.router.add_routes(
            [*self.routes(), web.get("/control/ready", self._ready), web.post("/control/{what}", self._control)]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return runner

    def routes(self) -> list[web.RouteDef]:
        """The routes of the dialect."""
        raise NotImplementedError

    @web.middleware
    async def _record(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if not request.path.startswith("/control"):
            self.ledger.requests.append(f"{request.method} {request.path}")
        response: web.StreamResponse = await handler(request)
        return response

    # -- clock and control ---------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds since the epoch, by the server's clock."""
        return time.time() + self._skew_s

    def advance(self, seconds: float) -> None:
        """Move the clock, and bring the state of all jobs up to date."""
        with self._lock:
            self._skew_s += seconds
            for job in self.jobs.values():
                self.settle(job)

    async def _ready(self, _: web.Request) -> web.Response:
        return web.json_response({})

    async def _control(self, request: web.Request) -> web.Response:
        body = await request.json()
        match request.match_info["what"]:
            case "advance":
                self.advance(body["seconds"])
            case "faults":
                for name, value in body.items():
                    setattr(self.faults, name, value)
            case "ledger":
                ledger = {**vars(self.ledger), "usd": str(self.ledger.usd)}
                return web.json_response(ledger)
        return web.json_response({})

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def account(self, request: web.Request) -> str | None:
        """The account of a request; `None` if its key is not accepted."""
        shown = next((request.headers[name] for name in self.key_headers if name in request.headers), "")
        key = shown.removeprefix("Bearer ")
        return key if key in self._keys or not self._keys else None

    key_headers: ClassVar[tuple[str, ...]] = ("Authorization", "api-key", "x-api-key", "x-goog-api-key")

    def create(self, key: str, rows: list[Row], marker: Any, input_file: str = "") -> Job:
        """Create a job."""
        with self._lock:
            job = Job(self.new_id(), key, rows, self.now(), marker, input_file)
            self.jobs[job.id] = job
            self.ledger.created.append(job.id)
            faults = self.faults
            if faults.invalid_line is not None:
                self.end(job, "failed", 0)
                job.problems = [{"code": "invalid_request", "message": "Bad.", "line": faults.invalid_line}]
            elif len(rows) > faults.max_requests:
                self.end(job, "failed", 0)
                job.problems = [{"code": "too_many_requests", "message": "It has too many lines.", "line": None}]
            elif faults.is_full:
                self.end(job, "failed", 0)
                message = "Enqueued token limit reached for the model in the organization. Limit: 90,000."
                job.problems = [{"code": "token_limit_exceeded", "message": message, "line": None}]
            return job

    def new_id(self) -> str:
        """The id of the next job."""
        return f"batch_{len(self.jobs) + 1}"

    def settle(self, job: Job) -> None:
        """Bring the state of a job up to date."""
        with self._lock:
            if job.final_state:
                return
            age_s, faults = self.now() - job.created_at, self.faults
            rate = len(job.rows) / faults.takes_s if faults.takes_s else len(job.rows) * 1e12
            if job.cancelled_at is not None:
                ran_s = job.cancelled_at - job.created_at
                self.end(job, "cancelled", int(rate * ran_s))
            elif age_s >= faults.takes_s and faults.takes_s <= faults.window_s:
                self.end(job, "completed", len(job.rows))
            elif age_s >= faults.window_s:
                self.end(job, "expired", int(rate * faults.window_s))

    def done_of(self, job: Job) -> int:
        """The number of rows that are answered so far."""
        if job.final_state:
            return sum(row.state == "answered" for row in job.rows)
        share = (self.now() - job.created_at) / self.faults.takes_s if self.faults.takes_s else 0.0
        return int(share * len(job.rows))

    def can_cancel(self, job: Job) -> bool:
        """Whether a job still runs when a request to cancel it arrives."""
        if self.faults.ends_before_cancel and not job.final_state:
            self.end(job, "completed", len(job.rows))
        return not job.final_state

    def cancel(self, job: Job) -> None:
        """Stop a job."""
        job.cancelled_at = self.now()

    def end(self, job: Job, final_state: str, answered: int) -> None:
        """End a job with `answered` rows answered."""
        job.final_state, job.ended_at = final_state, self.now()
        if final_state == "failed":
            return
        for row in job.rows[:answered]:
            self._run(row)
        for row in job.rows[answered:]:
            row.state = "cancelled" if final_state == "cancelled" else "expired"

    def _run(self, row: Row) -> None:
        prompt = self.prompt_of(row.body)
        failure = self.failure_of(row)
        if failure and failure[0] != web.HTTPOk.status_code:
            row.state = "failed"
            return
        answer = self._answer(prompt)
        row.state = "answered"
        row.text = answer if isinstance(answer, str) else orjson.dumps(answer).decode()
        text, marked = self.read(row.body)
        before = self._meter.usd
        row.usage, _ = self._meter.bill(text, row.text, "batch", marked)
        self._meter.keep(text, marked)
        self.ledger.usd += self._meter.usd - before
        self.ledger.billed[prompt] += 1
        self.ledger.billed_ids[row.custom_id] += 1
        self.ledger.input_tokens += row.usage["prompt_tokens"]
        self.ledger.output_tokens += row.usage["completion_tokens"]

    def failure_of(self, row: Row) -> tuple[int, str, str] | None:
        """Status, code and message of the error of a row."""
        prompt = self.prompt_of(row.body)
        found = next((error for part, error in self.faults.failing.items() if part in prompt), None)
        return tuple(found) if found else None

    def is_silent(self, row: Row) -> bool:
        """Whether a row is missing from the results."""
        return any(part in self.prompt_of(row.body) for part in self.faults.silent)

    def prompt_of(self, body: Mapping[str, Any]) -> str:
        """The last user message."""
        raise NotImplementedError

    def read(self, body: Mapping[str, Any]) -> tuple[str, int | None]:
        """The part of a request that is the prompt, and how many of its characters are marked for the cache."""
        raise NotImplementedError

    # -- HTTP ----------------------------------------------------------------------------------------------------------

    def find_job(self, request: web.Request, job_id: str) -> Job | None:
        """The job with this id, up to date, if it belongs to the account of the request."""
        job = self.jobs.get(job_id)
        if job is None or job.key != self.account(request):
            return None
        self.settle(job)
        return job

    def have_results_expired(self, job: Job) -> bool:
        """Whether the results of a job have expired."""
        return self.now() > job.ended_at + self.faults.results_life_s

    def refusal_of_create(self) -> web.Response | None:
        """The response to a request that creates no job."""
        if not self.faults.refuse_create:
            return None
        status, body, headers = self.faults.refuse_create.pop(0)
        return web.json_response(body, status=status, headers=headers)

    def cut_connection_if_scheduled(self, request: web.Request) -> None:
        """Break the connection of a request that has created a job, if `cut_create` requires it."""
        if self.faults.cut_create:
            self.faults.cut_create -= 1
            assert request.transport
            request.transport.abort()

    async def send_lines(self, request: web.Request, lines: Iterator[bytes]) -> web.StreamResponse:
        """Send a file of results."""
        response = web.StreamResponse()
        await response.prepare(request)
        buffer = bytearray()
        for line in self._mangled(lines):
            buffer += line + b"\n"
            if len(buffer) > 2**16:
                await response.write(bytes(buffer))
                buffer.clear()
        if self.faults.cut_results:
            self.faults.cut_results -= 1
            await response.write(bytes(buffer[: len(buffer) // 2]))
            assert request.transport
            request.transport.abort()
            return response
        await response.write(bytes(buffer))
        return response

    def _mangled(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        kinds = self.faults.mangled
        if not kinds:
            return lines
        found = list(lines)
        if found and "duplicate" in kinds:
            found.append(found[0])
        if found and "alien" in kinds:
            found.append(self.alien(found[0]))
        if found and "garbage" in kinds:
            found[-1] = found[-1][: len(found[-1]) // 2]
        if found and "deep" in kinds:
            found[0] = found[0][:-1] + b',"deep":' + DEEP + b"}"
        if found and "huge" in kinds:
            found[0] = found[0][:-1] + b',"padding":"' + b"x" * 2**23 + b'"}'
        if "shuffle" in kinds:
            random.Random(0).shuffle(found)
        return iter(found)

    def alien(self, line: bytes) -> bytes:
        """The line with an id of another job."""
        data = orjson.loads(line)
        data["custom_id"] = "fedcba9876543210-0"
        return orjson.dumps(data)


def control(origin: str, what: str, **body: Any) -> Any:
    """Move the clock (`advance`, seconds), set faults (`faults`) or read the `ledger` of a server process."""
    request = urllib.request.Request(f"{origin}/control/{what}", orjson.dumps(body))  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        return orjson.loads(response.read())


def servers() -> Mapping[str, type[JobServer]]:
    """The servers by the provider that they simulate."""
    modules = [import_module(f"tests.support.job_server_{name}") for name in ("openai", "anthropic", "gemini")]
    return {name: server for module in modules for name, server in module.SERVERS.items()}


async def _run_process(server: JobServer, port: int) -> None:
    await server.listen(port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    provider, port, *model = sys.argv[1:]
    priced = Meter({"batch": rates_of(find_entry(model[0]) or {}, "batches")}) if model else None
    asyncio.run(_run_process(servers()[provider](meter=priced), int(port)))
