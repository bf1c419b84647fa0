"""The commands for batch jobs, with jobs of real runs at loopback providers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ondine_core import ModelSpec, Options, Policy, Report, enrich_sync
from ondine_core.errors import JobsUnderWayError
from ondine_core.limits.budget_limit import BudgetLimit
from ondine_core.providers.pricing import Price
from ondine_core.store import job_tables
from ondine_core.store.__main__ import main
from ondine_core.store.connect import connect
from ondine_core.store.database import Database
from ondine_core.types.job_record import JobRecord
from ondine_core.types.ledger import Origin
from tests.support.asking import PROMPT, texts
from tests.support.job_server import Faults, JobServer
from tests.support.job_server_anthropic import AnthropicJobServer
from tests.support.job_server_openai import OpenAIJobServer
from tests.support.ledger import KINDS, fresh_place, read_budget

HOUR_S = 3600.0
PRICE = Price(Decimal("1e-6"), Decimal("2e-6"), Decimal("1e-6"))
KEYS = ("key-1", "key-2")


@dataclass
class JobSetup:
    """A store, a provider, runs that ask rows by batch jobs, and the command line."""

    place: str
    server: JobServer
    capture: pytest.CaptureFixture[str]
    model: str = "openai/m"
    runs: list[str] = field(default_factory=list)

    def ask(self, rows: int = 4, *, asset: str = "labels", first: int = 0) -> Report | None:
        """The report of a run; nothing if jobs are under way."""
        self.runs.append(f"run-{len(self.runs) + 1}")
        spec = ModelSpec(self.model, "key-1", self.server.base_url, max_output_tokens=16, tier="batch")
        options = Options(
            store=self.place,
            policy=Policy(batch_wait_s=0.0, batch_min_rows=2),
            price=PRICE,
            caps=(BudgetLimit(Decimal(1), "team", "ever"),),
            origin=Origin(self.runs[-1], asset, "2026-01-01"),
        )
        table = {"text": texts(first + rows)["text"][first:]}
        try:
            return enrich_sync(table, prompt=PROMPT, output={"answer": "string"}, model=spec, options=options)
        except JobsUnderWayError:
            return None

    def run(self, *arguments: str, code: int = 0) -> str:
        """The output of a command: standard error if it fails."""
        assert main([self.place, *arguments]) == code
        printed = self.capture.readouterr()
        return printed.err if code else printed.out

    def jobs(self, *arguments: str, code: int = 0) -> str:
        """The output of `jobs` with the credentials of these tests' provider."""
        access = ["--base-url", self.server.base_url, "--api-key-variable", "JOB_KEY"]
        return self.run("jobs", *arguments, *access, code=code)

    def inside(self, work: Callable[[Database], Any]) -> Any:
        """The result of `work` in a transaction."""
        database = connect(self.place, create=False)
        try:
            return database.write(partial(work, database), ["budget:ever::team"])
        finally:
            database.close()

    def records(self) -> list[JobRecord]:
        """All jobs, the oldest first."""
        found: list[JobRecord] = self.inside(lambda database: job_tables.read_jobs(database, is_open=False))
        return found

    def change(self, record: JobRecord, **fields: Any) -> None:
        """Write a job in a state as after a crash or a long time."""
        kept = {"changed_at": record.changed_at, **fields}
        self.inside(lambda database: job_tables.move(database, record.job, [record.state], **kept))


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return fresh_place(request.param, tmp_path)


@pytest.fixture
def job_setup(place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[JobSetup]:
    """A job takes an hour."""
    monkeypatch.setenv("JOB_KEY", KEYS[0])
    with OpenAIJobServer(keys=KEYS, faults=Faults(takes_s=HOUR_S)) as server:
        yield JobSetup(place, server, capsys)


def facts(text: str) -> dict[str, str]:
    """The lines of `jobs show`."""
    lines = [line.split("  ", 1) for line in text.splitlines()]
    return {name: value.strip() for name, value in lines}


# -- list and show -------------------------------------------------------------------------------------------------


def test_jobs_under_way_are_listed(job_setup: JobSetup) -> None:
    """With marker, id, asset, model, state, requests and worst-case cost; closed jobs only on request."""
    assert job_setup.ask() is None
    (record,) = job_setup.records()
    header, line = job_setup.run("jobs").splitlines()
    assert header.split()[:3] == ["job", "provider's", "id"]
    state = ["submitted", "in_progress", "4", "0", "<=", f"{record.at_most_usd:.6f}"]
    assert line.split()[:-3] == [record.marker, "batch_1", "labels/2026-01-01", "openai/m", *state]
    assert job_setup.run("jobs", "list") == job_setup.run("jobs")
    job_setup.server.advance(HOUR_S)
    assert job_setup.ask() is not None
    assert job_setup.run("jobs") == "No batch job is under way.\n"
    (_, closed) = job_setup.run("jobs", "--all").splitlines()
    assert closed.split()[4] == "read"
    assert "<=" not in closed
    assert job_setup.run("jobs", "list", "--all") == job_setup.run("jobs", "--all")


def test_a_store_without_jobs_says_so(job_setup: JobSetup) -> None:
    """The list says so, and an unknown marker is an error that says where to look."""
    with closing(connect(job_setup.place)):
        assert job_setup.run("jobs") == "No batch job is under way.\n"
        assert job_setup.run("jobs", "--all") == "No batch job is stored.\n"
        assert "No batch job 'ab' is stored; `jobs --all` lists all." in job_setup.run("jobs", "show", "ab", code=2)


def test_show_prints_everything_known_of_a_job(job_setup: JobSetup) -> None:
    """Also the materializations that wait for it; with `--refresh` after asking the provider."""
    job_setup.ask()
    (record,) = job_setup.records()
    job_setup.server.advance(HOUR_S / 2)
    shown = facts(job_setup.run("jobs", "show", record.marker[:6]))
    assert (shown["job"], shown["provider's id"], shown["asset"]) == (record.marker, "batch_1", "labels/2026-01-01")
    assert (shown["run"], shown["budgets"], shown["settled"]) == ("run-1", "team ever", "0")
    assert shown["requests"] == "4, of which the provider has done 0"
    assert shown["not settled"] == f"4, held at <= {record.at_most_usd:.6f} USD"
    assert shown["waiting"].startswith("labels/2026-01-01, since ")
    refreshed = facts(job_setup.jobs("show", record.marker[:6], "--refresh"))
    assert refreshed["requests"] == "4, of which the provider has done 2"
    assert refreshed["provider says"] == "in_progress"
    job_setup.server.advance(HOUR_S)
    assert facts(job_setup.jobs("show", record.marker, "--refresh"))["state"].startswith("ended, since ")
    job_setup.ask()
    closed = facts(job_setup.run("jobs", "show", record.marker))
    assert (closed["state"][:5], closed["settled"], "not settled" in closed) == ("read,", "4", False)
    assert "is closed (read), so nothing is left" in job_setup.jobs("show", record.marker, "--refresh", code=2)


def test_ambiguous_marker_is_an_error(job_setup: JobSetup) -> None:
    """It names the jobs that the abbreviation may mean."""
    job_setup.ask()
    job_setup.ask(first=4)
    one, other = (record.marker for record in job_setup.records())
    job_setup.inside(lambda database: database.run("UPDATE ondine.jobs SET job = ? WHERE job = ?", twin(one, other)))
    output = job_setup.run("jobs", "show", one[:8], code=2)
    assert f"{one[:8]!r} may be any of " in output
    assert one in output
    assert facts(job_setup.run("jobs", "show", one.upper()))["job"] == one


def twin(one: str, other: str) -> list[bytes]:
    """A marker that begins like `one`, for `other`."""
    last = (int(one[-1], 16) + 1) % 16
    return [bytes.fromhex(f"{one[:-1]}{last:x}"), bytes.fromhex(other)]


# -- cancelling ----------------------------------------------------------------------------------------------------


def test_jobs_are_cancelled_and_the_next_run_reads_what_was_answered(job_setup: JobSetup) -> None:
    """The provider is asked once for each job; its answers are paid once."""
    job_setup.ask()
    job_setup.ask(first=4)
    markers = [record.marker for record in job_setup.records()]
    job_setup.server.advance(HOUR_S / 2)
    output = job_setup.jobs("cancel", markers[0], markers[1][:5], markers[0])
    assert [line.split()[0] for line in output.splitlines()] == markers
    assert [request for request in job_setup.server.ledger.requests if request.endswith("/cancel")] == [
        f"POST /v1/batches/batch_{number}/cancel" for number in (1, 2)
    ]
    job_setup.server.advance(600.0)
    job_setup.ask(rows=8)
    assert [record.state for record in job_setup.records()][:2] == ["read", "read"]
    assert max(job_setup.server.ledger.billed.values()) == 1
    assert sum(job_setup.server.ledger.billed.values()) == 4


def test_cancel_leaves_an_ended_job_to_the_next_run(job_setup: JobSetup) -> None:
    """The provider is not asked, and it is not an error."""
    job_setup.ask()
    (record,) = job_setup.records()
    job_setup.change(record, state="ended")
    assert "has ended already; the next run" in job_setup.run("jobs", "cancel", record.marker)


def test_cancel_explains_why_it_cannot_cancel(job_setup: JobSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another account's job, a missing key, a job without an id; no error shows a key."""
    job_setup.ask()
    (record,) = job_setup.records()
    monkeypatch.setenv("JOB_KEY", KEYS[1])
    output = job_setup.jobs("cancel", record.marker, code=2)
    assert "was submitted with another key or to another address; name them by --api-key-variable" in output
    assert KEYS[1] not in output
    monkeypatch.setenv("JOB_KEY", "sentinel-wrong")
    output = job_setup.jobs("show", record.marker, "--refresh", code=2)
    assert "replied 401" in output
    assert "was submitted with another key or to another address; name them by --api-key-variable" in output
    assert "sentinel" not in output
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    output = job_setup.run("jobs", "show", record.marker, "--refresh", code=2)
    assert "needs a key" in output
    assert "takes the address from --base-url, the key from --api-key-variable NAME" in output
    monkeypatch.setenv("JOB_KEY", " ")
    assert "the environment variable 'JOB_KEY' is not set" in job_setup.jobs("cancel", record.marker, code=2)
    monkeypatch.setenv("JOB_KEY", KEYS[0])
    job_setup.change(record, state="creating", job_id=None)
    assert f"`jobs adopt {record.marker} JOB_ID`" in job_setup.jobs("cancel", record.marker, code=2)


# -- adopting ------------------------------------------------------------------------------------------------------


def test_an_orphan_is_adopted_and_read_by_the_next_run(job_setup: JobSetup) -> None:
    """A job whose creation was not confirmed gets its id; none of its rows is asked again."""
    job_setup.ask()
    (record,) = job_setup.records()
    job_setup.change(record, state="creating", job_id=None)
    assert f"{record.marker} is 'batch_1' of the provider now" in job_setup.jobs("adopt", record.marker, "batch_1")
    assert (job_setup.records()[0].state, job_setup.records()[0].job_id) == ("submitted", "batch_1")
    job_setup.server.advance(HOUR_S)
    assert job_setup.ask() is not None
    assert list(job_setup.server.ledger.billed.values()) == [1] * 4


def test_another_job_is_not_adopted(job_setup: JobSetup) -> None:
    """A job that does not exist, has another marker or size, or is known already is refused without a change."""
    job_setup.ask(rows=4)
    job_setup.ask(rows=4, first=4)
    job_setup.ask(rows=3, first=8)
    orphan, other, _ = job_setup.records()
    assert f"is submitted and has the provider's id {orphan.job_id!r}" in job_setup.jobs(
        "adopt", orphan.marker, "x", code=2
    )
    job_setup.change(orphan, state="creating", job_id=None)
    assert "finds no batch job 'batch_9'" in job_setup.jobs("adopt", orphan.marker, "batch_9", code=2)
    output = job_setup.jobs("adopt", orphan.marker, "batch_2", code=2)
    assert f"'batch_2' is the provider's id of the batch job {other.marker}" in output
    job_setup.inside(lambda database: database.run("DELETE FROM ondine.jobs WHERE job_id IN ('batch_2', 'batch_3')"))
    assert "it has 3 requests, and not 4" in job_setup.jobs("adopt", orphan.marker, "batch_3", code=2)
    assert "is not the batch job" in job_setup.jobs("adopt", orphan.marker, "batch_2", code=2)
    assert job_setup.records()[0].state == "creating"


def test_adopted_anthropic_batch_is_checked_when_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until then a batch of the same size is adopted with a warning; one of another size is refused."""
    monkeypatch.setenv("JOB_KEY", KEYS[0])
    with AnthropicJobServer(keys=KEYS, faults=Faults(takes_s=HOUR_S)) as server:
        job_setup = JobSetup(str(tmp_path / "answers.db"), server, capsys, "anthropic/claude-sonnet-4-5")
        for rows, first in ((4, 0), (4, 4), (3, 8)):
            job_setup.ask(rows, first=first)
        one, other, small = ((record.marker, str(record.job_id)) for record in job_setup.records())
        for record in job_setup.records():
            job_setup.change(record, state="creating", job_id=None)
        assert "it has 3 requests, and not 4" in job_setup.jobs("adopt", one[0], small[1], code=2)
        access = ["--base-url", server.base_url, "--api-key-variable", "JOB_KEY"]
        assert main([job_setup.place, "jobs", "adopt", *other, *access]) == 0
        assert "is not known yet, it is assumed" in capsys.readouterr().err
        job_setup.change(job_setup.records()[1], state="creating", job_id=None)
        server.advance(HOUR_S)
        assert f"is not the batch job {one[0]}: that is {one[1]!r}." in job_setup.jobs(
            "adopt", one[0], other[1], code=2
        )
        for job in (one, other, small):
            assert "of the provider now" in job_setup.jobs("adopt", *job)
        assert job_setup.ask(rows=11) is not None
        assert list(server.ledger.billed.values()) == [1] * 11


# -- forgetting ----------------------------------------------------------------------------------------------------


def test_a_job_that_is_forgotten_stays_charged_and_its_rows_are_asked_again(job_setup: JobSetup) -> None:
    """Only with `--yes`; budget and ledger charge its requests at their worst case."""
    job_setup.ask()
    (record,) = job_setup.records()
    assert record.at_most_usd
    output = job_setup.run("jobs", "forget", record.marker, code=2)
    assert f"its 4 requests without an outcome stay charged at <= {record.at_most_usd:.6f} USD" in output
    assert f"`jobs cancel {record.marker}`. To forget it, add --yes." in output
    assert job_setup.records()[0].state == "submitted"
    assert "4 requests count with the most" in job_setup.run("jobs", "forget", record.marker, "--yes")
    assert read_budget(job_setup.place, "team") == (record.at_most_usd, record.at_most_usd)
    assert facts(job_setup.run("jobs", "show", record.marker))["unknown outcome"].startswith("4, charged")
    assert "unknown (at most)" in job_setup.run("audit", "run-1")
    assert "is closed (lost)" in job_setup.run("jobs", "forget", record.marker, "--yes", code=2)
    assert job_setup.ask() is None
    assert len(job_setup.server.jobs) == 2


def test_forgotten_job_that_was_never_sent_costs_nothing(job_setup: JobSetup) -> None:
    """Its reservation is refunded, and nothing of it is left."""
    job_setup.ask()
    (record,) = job_setup.records()
    job_setup.change(record, state="preparing", job_id=None, requests=0)
    assert "were not sent and cost nothing" in job_setup.run("jobs", "forget", record.marker, code=2)
    assert "reservation is released" in job_setup.run("jobs", "forget", record.marker, "--yes")
    assert read_budget(job_setup.place, "team") == (Decimal(0), Decimal(0))
    assert job_setup.records() == []
    assert "unknown" in job_setup.run("size")


# -- the other commands --------------------------------------------------------------------------------------------


def test_requests_of_jobs_are_under_way_and_not_lost(job_setup: JobSetup) -> None:
    """`size`, `spend` and `audit` count them separately until they are answered."""
    job_setup.ask()
    (record,) = job_setup.records()
    most = f"{record.at_most_usd:.6f}"
    size = dict(line.rsplit("  ", 1) for line in job_setup.run("size").splitlines())
    counts = {name.strip(): figure.strip() for name, figure in size.items()}
    assert counts["calls of unknown outcome"] == "0"
    assert (counts["batch jobs under way"], counts["requests of these"]) == ("1", "4")
    for by in ("asset", "day"):
        spent = job_setup.run("spend", "--by", by)
        assert spent.splitlines()[0].endswith("in batch jobs")
        assert spent.splitlines()[1].split()[-3:] == ["0", "0", "4"]
        assert f"4 requests of batch jobs are under way; they may cost ${most} more." in spent
        assert "were lost" not in spent
    audit = job_setup.run("audit", "run-1")
    assert (
        f"in batch jobs (at most)       4             0           0         0              0          0  {most}"
        in audit
    )
    assert "4 calls left" in audit
    job_setup.server.advance(HOUR_S)
    job_setup.ask()
    assert "batch jobs" not in job_setup.run("size") + job_setup.run("spend") + job_setup.run("audit", "run-2")
    assert "answered" in job_setup.run("audit", "run-2")


def test_settle_leaves_reservations_of_open_jobs(job_setup: JobSetup) -> None:
    """`reservations` names the job, and `settle` skips it, however old it is."""
    job_setup.ask()
    (record,) = job_setup.records()
    (_, line) = job_setup.run("reservations").splitlines()
    assert line.split()[:3] == ["team", "ever", f"{record.at_most_usd:.6f}"]
    assert line.endswith(f"batch job {record.marker}")
    time.sleep(0.01)
    assert job_setup.run("settle", "--older-than", "0h").startswith("$0.000000")
    assert read_budget(job_setup.place, "team") == (record.at_most_usd, Decimal(0))


def test_prune_keeps_what_belongs_to_a_job_under_way(job_setup: JobSetup) -> None:
    """At any age: its prompts stay claimed, its answers keep their run, and its wait stays."""
    job_setup.ask()
    (record,) = job_setup.records()
    time.sleep(0.01)
    assert "batch jobs" not in job_setup.run("prune", "--older-than", "0h")
    assert "waiting" in facts(job_setup.run("jobs", "show", record.marker))
    assert job_setup.ask(asset="topics") is None
    assert len(job_setup.server.jobs) == 1
    job_setup.server.advance(HOUR_S)
    assert job_setup.ask() is not None
    assert "asset    labels/2026-01-01" in job_setup.run("why", "--text", "row 1")


def test_prune_removes_closed_jobs_and_stale_waits(job_setup: JobSetup) -> None:
    """By age or asset; a dry run only counts; without an age both stay, like the ledger."""
    job_setup.ask()
    job_setup.ask(first=4, asset="topics")
    labels, topics = job_setup.records()
    for record in (labels, topics):
        job_setup.run("jobs", "forget", record.marker, "--yes")
    time.sleep(0.01)
    assert "batch jobs" not in job_setup.run("prune", "--asset", "labels")
    assert "batch jobs" not in job_setup.run("prune", "--older-than", "1h")
    pruned = job_setup.run("prune", "--older-than", "0h", "--asset", "labels", "--dry-run")
    assert pruned == job_setup.run("prune", "--older-than", "0h", "--asset", "labels", "--dry-run")
    assert [line.split()[-1] for line in pruned.splitlines()[-2:]] == ["1", "1"]
    job_setup.run("prune", "--older-than", "0h", "--asset", "labels")
    assert job_setup.records() == [replace(topics, state="lost", changed_at=job_setup.records()[0].changed_at)]
    job_setup.run("prune", "--older-than", "0h")
    assert job_setup.records() == []
    assert job_setup.inside(job_tables.read_waits) == []
