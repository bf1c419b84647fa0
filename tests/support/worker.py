"""Processes that each run a table of numbered rows, and start within milliseconds because they are forked.

`python -m tests.support.worker` imports all modules, then reads commands, one line of JSON each, and replies to each
with a line: a `Job` is started in a forked process, whose id is the reply; `{"wait": id}` is answered when that process
has ended, with its result. `Workers` sends the commands. No thread or event loop is started before the fork, so each
process has its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

from ondine_core import BudgetLimit, ModelSpec, OndineError, Options, Origin, Policy, Price, Rates, enrich_sync
from ondine_core.prompts.task import Task, compile_task
from ondine_core.providers import connect
from ondine_core.providers.context_window import get_context_limit
from ondine_core.providers.jobs import connect_jobs
from ondine_core.providers.tiers import find_tier_prices
from ondine_core.store import Store
from ondine_core.types.clock import Clock
from ondine_core.types.values import Tier

REPOSITORY = Path(__file__).parents[2]
PROMPT, OUTPUT = "Repeat: {text}", {"answer": "string"}
PRICE = Price(Decimal("0.000001"), Decimal("0.000002"), Decimal("0.000001"))


@dataclass(frozen=True)
class Job:
    """The settings of a run.

    Args:
        base_url: The provider's address.
        store: The shared store of answers and numbers.
        run: The run's name in the ledger.
        first: Number of the first row.
        rows: Number of rows.
        concurrency: Maximum number of calls in flight.
        batch_size: Maximum number of rows a call.
        max_output_tokens: Maximum length of a reply, which bounds a call's cost and its number of rows.
        budget_usd: The shared budget; all jobs with a budget share one.
        requests_per_minute: The shared rate.
        burst: The burst of that rate.
        timeout_s: Time-out of a call in seconds.
        model_name: Provider and model.
        api_key: Key of the provider.
        tier: The price class.
        asset: The asset's name in the ledger.
        batch_wait_s: How long the run waits for batch jobs.
        skew_s: Offset of the process's clock.
        kill_at: The number of the store's request before which the process is killed.
    """

    base_url: str
    store: str
    run: str = "run"
    first: int = 0
    rows: int = 0
    concurrency: int = 8
    batch_size: int = 1
    max_output_tokens: int = 20
    budget_usd: str | None = None
    requests_per_minute: float | None = None
    burst: float = 1
    timeout_s: float = 60.0
    model_name: str = "openai_compatible/m"
    api_key: str | None = None
    tier: Tier = "standard"
    asset: str = ""
    batch_wait_s: float = 0.0
    skew_s: float = 0.0
    kill_at: int | None = None

    @property
    def texts(self) -> list[str]:
        """The texts of the rows; the answer to each is the text itself."""
        return [f"row {number}" for number in range(self.first, self.first + self.rows)]

    @property
    def model(self) -> ModelSpec:
        """The model and its settings."""
        return ModelSpec(
            self.model_name,
            self.api_key,
            self.base_url,
            self.timeout_s,
            max_output_tokens=self.max_output_tokens,
            tier=self.tier,
        )

    @property
    def task(self) -> Task:
        """The task."""
        return compile_task(PROMPT, OUTPUT, self.model)

    def run_here(self) -> dict[str, Any]:
        """Run in this process; returns the answers or the error for JSON."""
        policy = Policy(max_concurrency=self.concurrency, batch_size=self.batch_size)
        options = Options(
            store=self.store if self.kill_at is None else _KilledStore(self.store, self.kill_at),
            policy=replace(policy, batch_wait_s=self.batch_wait_s, batch_min_rows=1),
            clock=Clock(now=lambda: time.time() + self.skew_s),
            rates=Rates(requests_per_minute=self.requests_per_minute, burst=self.burst),
            price=PRICE,
            caps=(BudgetLimit(Decimal(self.budget_usd), "team", "ever"),) if self.budget_usd else (),
            origin=Origin(self.run, self.asset),
        )
        try:
            report = enrich_sync({"text": self.texts}, prompt=PROMPT, output=OUTPUT, model=self.model, options=options)
        except OndineError as error:
            return {"answers": None, "error": f"{type(error).__name__}: {error}"}
        return {"answers": report.column("answer"), "error": None}


class _KilledStore(Store):
    """A store whose process is killed before one of its requests."""

    def __init__(self, place: str, kill_at: int) -> None:
        super().__init__(place)
        self._left = kill_at

    def _request(self, work: Any) -> Any:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1
        return super()._request(work)


class Workers:
    """Processes for jobs, as a context manager; those that still run at the end are killed."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.support.worker"]
        pipe = subprocess.PIPE
        self._parent = subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._parent.communicate()

    def start(self, job: Job) -> int:
        """Start a job; returns the id of its process."""
        return int(self._send(asdict(job)))

    def kill(self, process: int, after_s: float = 0.0) -> None:
        """Kill a process with SIGKILL after `after_s`, and wait until it has ended."""
        time.sleep(after_s)
        os.kill(process, signal.SIGKILL)
        assert self.wait(process) is None, "The process ended before it was killed."

    def wait(self, process: int) -> dict[str, Any] | None:
        """The result of a process's job, `None` if it was killed."""
        result: dict[str, Any] | None = self._send({"wait": process})
        return result

    def _send(self, command: Mapping[str, Any]) -> Any:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(command) + "\n")
        self._parent.stdin.flush()
        return json.loads(self._parent.stdout.readline())


# -- the process that forks ----------------------------------------------------------------------------------------


def main() -> None:
    """Execute the commands on standard input."""
    # Load in advance the modules and files that would otherwise be loaded at first use.
    connect(ModelSpec("openai_compatible/m", base_url="http://127.0.0.1:1/v1"))
    get_context_limit("openai_compatible/m")
    for name in ("openai/gpt-4o-mini", "anthropic/claude-sonnet-4-5"):
        connect_jobs(ModelSpec(name, "key", "http://127.0.0.1:1/v1"))
        find_tier_prices(ModelSpec(name))
    results: dict[int, int] = {}
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            reply: Any = reap(command["wait"], results.pop(command["wait"]))
        else:
            reply, read_end = fork_job(Job(**command))
            results[reply] = read_end
        print(json.dumps(reply), flush=True)  # noqa: T201  (it is the reply)
    for process in results:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def fork_job(job: Job) -> tuple[int, int]:
    """Fork a process for a job; returns its id, and the pipe end for its result."""
    read_end, write_end = os.pipe()
    if process := os.fork():
        os.close(write_end)
        return process, read_end
    status = 1
    try:
        with os.fdopen(write_end, "w") as out:
            json.dump(job.run_here(), out)
        status = 0
    except BaseException:  # noqa: BLE001  (no caller of the forked stack may handle it)
        traceback.print_exc()
    finally:
        os._exit(status)  # without the parent's exit handlers


def reap(process: int, read_end: int) -> dict[str, Any] | None:
    """Wait for the end of a process; returns its result, `None` if it was killed."""
    with os.fdopen(read_end) as result:
        text = result.read()
    _, status = os.waitpid(process, 0)
    return None if os.WIFSIGNALED(status) else json.loads(text)


if __name__ == "__main__":
    main()
