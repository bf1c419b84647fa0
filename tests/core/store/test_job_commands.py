"""Batch jobs on the command line of the store: jobs of real runs, at providers on the loopback."""

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
from tests.support.books import KINDS, fresh_place, read_budget
from tests.support.job_server import Faults, JobServer
from tests.support.job_server_anthropic import AnthropicJobServer
from tests.support.job_server_openai import OpenAIJobServer

HOUR_S = 3600.0
PRICE = Price(Decimal("1e-6"), Decimal("2e-6"), Decimal("1e-6"))
KEYS = ("key-1", "key-2")


@dataclass
class Shop:
    """A store and a provider, runs that ask for rows by batch jobs, and the command line."""

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
        """What a command prints, on standard error if it fails."""
        assert main([self.place, *arguments]) == code
        printed = self.capture.readouterr()
        return printed.err if code else printed.out

    def jobs(self, *arguments: str, code: int = 0) -> str:
        """What `jobs` prints with the access to the provider that all these tests use."""
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
        """Write a job as it may be after a crash, or after a long time."""
        kept = {"changed_at": record.changed_at, **fields}
        self.inside(lambda database: job_tables.move(database, record.job, [record.state], **kept))


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return fresh_place(request.param, tmp_path)


@pytest.fixture
def shop(place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    """A job takes an hour."""
    monkeypatch.setenv("JOB_KEY", KEYS[0])
    with OpenAIJobServer(keys=KEYS, faults=Faults(takes_s=HOUR_S)) as server:
        yield Shop(place, server, capsys)


def facts(text: str) -> dict[str, str]:
    """The lines of `jobs show`."""
    lines = [line.split("  ", 1) for line in text.splitlines()]
    return {name: value.strip() for name, value in lines}


# -- looking -------------------------------------------------------------------------------------------------------


def test_jobs_under_way_are_listed(shop: Shop) -> None:
    """With marker, id, asset, model, state, requests, and what they may cost; closed ones only if that is asked for."""
    assert shop.ask() is None
    (record,) = shop.records()
    header, line = shop.run("jobs").splitlines()
    assert header.split()[:3] == ["job", "provider's", "id"]
    state = ["submitted", "in_progress", "4", "0", "<=", f"{record.at_most_usd:.6f}"]
    assert line.split()[:-3] == [record.marker, "batch_1", "labels/2026-01-01", "openai/m", *state]
    assert shop.run("jobs", "list") == shop.run("jobs")
    shop.server.advance(HOUR_S)
    assert shop.ask() is not None
    assert shop.run("jobs") == "No batch job is under way.\n"
    (_, closed) = shop.run("jobs", "--all").splitlines()
    assert closed.split()[4] == "read"
    assert "<=" not in closed
    assert shop.run("jobs", "list", "--all") == shop.run("jobs", "--all")


def test_a_store_without_jobs_says_so(shop: Shop) -> None:
    """Nothing is listed, and an unknown marker is an error that says where to look."""
    with closing(connect(shop.place)):
        assert shop.run("jobs") == "No batch job is under way.\n"
        assert shop.run("jobs", "--all") == "No batch job is stored.\n"
        assert "No batch job 'ab' is stored; `jobs --all` lists all." in shop.run("jobs", "show", "ab", code=2)


def test_all_that_is_known_of_a_job_is_shown(shop: Shop) -> None:
    """Also which materializations wait for it; with `--refresh` after asking the provider."""
    shop.ask()
    (record,) = shop.records()
    shop.server.advance(HOUR_S / 2)
    shown = facts(shop.run("jobs", "show", record.marker[:6]))
    assert (shown["job"], shown["provider's id"], shown["asset"]) == (record.marker, "batch_1", "labels/2026-01-01")
    assert (shown["run"], shown["budgets"], shown["settled"]) == ("run-1", "team ever", "0")
    assert shown["requests"] == "4, of which the provider has done 0"
    assert shown["not settled"] == f"4, held at <= {record.at_most_usd:.6f} USD"
    assert shown["waiting"].startswith("labels/2026-01-01, since ")
    refreshed = facts(shop.jobs("show", record.marker[:6], "--refresh"))
    assert refreshed["requests"] == "4, of which the provider has done 2"
    assert refreshed["provider says"] == "in_progress"
    shop.server.advance(HOUR_S)
    assert facts(shop.jobs("show", record.marker, "--refresh"))["state"].startswith("ended, since ")
    shop.ask()
    closed = facts(shop.run("jobs", "show", record.marker))
    assert (closed["state"][:5], closed["settled"], "not settled" in closed) == ("read,", "4", False)
    assert "is closed (read), so nothing is left" in shop.jobs("show", record.marker, "--refresh", code=2)


def test_an_abbreviation_must_be_of_one_job(shop: Shop) -> None:
    """Otherwise the error names those that it may be."""
    shop.ask()
    shop.ask(first=4)
    one, other = (record.marker for record in shop.records())
    shop.inside(lambda database: database.run("UPDATE ondine.jobs SET job = ? WHERE job = ?", twin(one, other)))
    said = shop.run("jobs", "show", one[:8], code=2)
    assert f"{one[:8]!r} may be any of " in said
    assert one in said
    assert facts(shop.run("jobs", "show", one.upper()))["job"] == one


def twin(one: str, other: str) -> list[bytes]:
    """A marker that begins like `one`, and that of `other`, which is to get it."""
    last = (int(one[-1], 16) + 1) % 16
    return [bytes.fromhex(f"{one[:-1]}{last:x}"), bytes.fromhex(other)]


# -- cancelling ----------------------------------------------------------------------------------------------------


def test_jobs_are_cancelled_and_the_next_run_reads_what_was_answered(shop: Shop) -> None:
    """The provider is asked once for each; what was answered by then is paid for once."""
    shop.ask()
    shop.ask(first=4)
    markers = [record.marker for record in shop.records()]
    shop.server.advance(HOUR_S / 2)
    said = shop.jobs("cancel", markers[0], markers[1][:5], markers[0])
    assert [line.split()[0] for line in said.splitlines()] == markers
    assert [request for request in shop.server.books.requests if request.endswith("/cancel")] == [
        f"POST /v1/batches/batch_{number}/cancel" for number in (1, 2)
    ]
    shop.server.advance(600.0)
    shop.ask(rows=8)
    assert [record.state for record in shop.records()][:2] == ["read", "read"]
    assert max(shop.server.books.billed.values()) == 1
    assert sum(shop.server.books.billed.values()) == 4


def test_a_job_that_has_ended_is_left_to_the_next_run(shop: Shop) -> None:
    """Nothing is asked of the provider, and it is no error."""
    shop.ask()
    (record,) = shop.records()
    shop.change(record, state="ended")
    assert "has ended already; the next run" in shop.run("jobs", "cancel", record.marker)


def test_what_cannot_be_cancelled_is_explained(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another account's job, a key that is not set, a job without an id; no error shows a key."""
    shop.ask()
    (record,) = shop.records()
    monkeypatch.setenv("JOB_KEY", KEYS[1])
    said = shop.jobs("cancel", record.marker, code=2)
    assert "was handed in with another key or at another address; name them by --api-key-variable" in said
    assert KEYS[1] not in said
    monkeypatch.setenv("JOB_KEY", " ")
    assert "the environment variable 'JOB_KEY' is not set" in shop.jobs("cancel", record.marker, code=2)
    monkeypatch.setenv("JOB_KEY", KEYS[0])
    shop.change(record, state="creating", job_id=None)
    assert f"`jobs adopt {record.marker} JOB_ID`" in shop.jobs("cancel", record.marker, code=2)


# -- adopting ------------------------------------------------------------------------------------------------------


def test_an_orphan_is_adopted_and_read_by_the_next_run(shop: Shop) -> None:
    """A job whose creation was not seen gets its id; nothing of it is asked again."""
    shop.ask()
    (record,) = shop.records()
    shop.change(record, state="creating", job_id=None)
    assert f"{record.marker} is 'batch_1' of the provider now" in shop.jobs("adopt", record.marker, "batch_1")
    assert (shop.records()[0].state, shop.records()[0].job_id) == ("submitted", "batch_1")
    shop.server.advance(HOUR_S)
    assert shop.ask() is not None
    assert list(shop.server.books.billed.values()) == [1] * 4


def test_another_job_is_not_adopted(shop: Shop) -> None:
    """One that does not exist, has another marker or number of requests, or is known already; nothing changes."""
    shop.ask(rows=4)
    shop.ask(rows=4, first=4)
    shop.ask(rows=3, first=8)
    orphan, other, _ = shop.records()
    assert f"is submitted and has the provider's id {orphan.job_id!r}" in shop.jobs("adopt", orphan.marker, "x", code=2)
    shop.change(orphan, state="creating", job_id=None)
    assert "finds no batch job 'batch_9'" in shop.jobs("adopt", orphan.marker, "batch_9", code=2)
    said = shop.jobs("adopt", orphan.marker, "batch_2", code=2)
    assert f"'batch_2' is the provider's id of the batch job {other.marker}" in said
    shop.inside(lambda database: database.run("DELETE FROM ondine.jobs WHERE job_id IN ('batch_2', 'batch_3')"))
    assert "it has 3 requests, and not 4" in shop.jobs("adopt", orphan.marker, "batch_3", code=2)
    assert "is not the batch job" in shop.jobs("adopt", orphan.marker, "batch_2", code=2)
    assert shop.records()[0].state == "creating"


def test_anthropic_tells_whose_a_batch_is_when_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until then a batch of the same size is adopted with a warning, and one of another size is not."""
    monkeypatch.setenv("JOB_KEY", KEYS[0])
    with AnthropicJobServer(keys=KEYS, faults=Faults(takes_s=HOUR_S)) as server:
        shop = Shop(str(tmp_path / "answers.db"), server, capsys, "anthropic/claude-sonnet-4-5")
        for rows, first in ((4, 0), (4, 4), (3, 8)):
            shop.ask(rows, first=first)
        one, other, small = ((record.marker, str(record.job_id)) for record in shop.records())
        for record in shop.records():
            shop.change(record, state="creating", job_id=None)
        assert "it has 3 requests, and not 4" in shop.jobs("adopt", one[0], small[1], code=2)
        access = ["--base-url", server.base_url, "--api-key-variable", "JOB_KEY"]
        assert main([shop.place, "jobs", "adopt", *other, *access]) == 0
        assert "cannot be told yet, it is taken to be so" in capsys.readouterr().err
        shop.change(shop.records()[1], state="creating", job_id=None)
        server.advance(HOUR_S)
        assert f"is not the batch job {one[0]}: that is {one[1]!r}." in shop.jobs("adopt", one[0], other[1], code=2)
        for job in (one, other, small):
            assert "of the provider now" in shop.jobs("adopt", *job)
        assert shop.ask(rows=11) is not None
        assert list(server.books.billed.values()) == [1] * 11


# -- forgetting ----------------------------------------------------------------------------------------------------


def test_a_job_that_is_forgotten_stays_charged_and_its_rows_are_asked_again(shop: Shop) -> None:
    """Only with `--yes`; the requests count with the most that they can have cost, in the budget and in the books."""
    shop.ask()
    (record,) = shop.records()
    assert record.at_most_usd
    said = shop.run("jobs", "forget", record.marker, code=2)
    assert f"its 4 requests without an outcome stay charged at <= {record.at_most_usd:.6f} USD" in said
    assert f"`jobs cancel {record.marker}`. To forget it, add --yes." in said
    assert shop.records()[0].state == "submitted"
    assert "4 requests count with the most" in shop.run("jobs", "forget", record.marker, "--yes")
    assert read_budget(shop.place, "team") == (record.at_most_usd, record.at_most_usd)
    assert facts(shop.run("jobs", "show", record.marker))["unknown outcome"].startswith("4, charged")
    assert "unknown (at most)" in shop.run("audit", "run-1")
    assert "is closed (lost)" in shop.run("jobs", "forget", record.marker, "--yes", code=2)
    assert shop.ask() is None
    assert len(shop.server.jobs) == 2


def test_a_job_that_was_not_sent_costs_nothing_when_it_is_forgotten(shop: Shop) -> None:
    """What it held is given back, and nothing is left of it."""
    shop.ask()
    (record,) = shop.records()
    shop.change(record, state="preparing", job_id=None, requests=0)
    assert "were not sent and cost nothing" in shop.run("jobs", "forget", record.marker, code=2)
    assert "is given back" in shop.run("jobs", "forget", record.marker, "--yes")
    assert read_budget(shop.place, "team") == (Decimal(0), Decimal(0))
    assert shop.records() == []
    assert "unknown" in shop.run("size")


# -- the other commands --------------------------------------------------------------------------------------------


def test_requests_of_jobs_are_under_way_and_not_lost(shop: Shop) -> None:
    """`size`, `spend` and `audit` have a figure for them of its own, until they are answered."""
    shop.ask()
    (record,) = shop.records()
    most = f"{record.at_most_usd:.6f}"
    size = dict(line.rsplit("  ", 1) for line in shop.run("size").splitlines())
    counts = {name.strip(): figure.strip() for name, figure in size.items()}
    assert counts["calls of unknown outcome"] == "0"
    assert (counts["batch jobs under way"], counts["requests of these"]) == ("1", "4")
    for by in ("asset", "day"):
        spent = shop.run("spend", "--by", by)
        assert spent.splitlines()[0].endswith("in batch jobs")
        assert spent.splitlines()[1].split()[-3:] == ["0", "0", "4"]
        assert f"4 requests of batch jobs are under way; they may cost ${most} more." in spent
        assert "were lost" not in spent
    audit = shop.run("audit", "run-1")
    assert (
        f"in batch jobs (at most)       4             0           0         0              0          0  {most}"
        in audit
    )
    assert "4 calls left" in audit
    shop.server.advance(HOUR_S)
    shop.ask()
    assert "batch jobs" not in shop.run("size") + shop.run("spend") + shop.run("audit", "run-2")
    assert "answered" in shop.run("audit", "run-2")


def test_what_a_job_holds_is_its_own_until_it_is_closed(shop: Shop) -> None:
    """`reservations` names the job, and `settle` leaves it alone, however long ago it was handed in."""
    shop.ask()
    (record,) = shop.records()
    (_, line) = shop.run("reservations").splitlines()
    assert line.split()[:3] == ["team", "ever", f"{record.at_most_usd:.6f}"]
    assert line.endswith(f"batch job {record.marker}")
    time.sleep(0.01)
    assert shop.run("settle", "--older-than", "0h").startswith("$0.000000")
    assert read_budget(shop.place, "team") == (record.at_most_usd, Decimal(0))


def test_prune_keeps_what_belongs_to_a_job_under_way(shop: Shop) -> None:
    """However old it is: nobody asks its prompts meanwhile, its answers know their run, and its wait stays."""
    shop.ask()
    (record,) = shop.records()
    time.sleep(0.01)
    assert "batch jobs" not in shop.run("prune", "--older-than", "0h")
    assert "waiting" in facts(shop.run("jobs", "show", record.marker))
    assert shop.ask(asset="topics") is None
    assert len(shop.server.jobs) == 1
    shop.server.advance(HOUR_S)
    assert shop.ask() is not None
    assert "asset    labels/2026-01-01" in shop.run("why", "--text", "row 1")


def test_prune_removes_closed_jobs_and_waits_for_nothing(shop: Shop) -> None:
    """By age, and of an asset; a dry run only counts; without an age both stay, like the ledger."""
    shop.ask()
    shop.ask(first=4, asset="topics")
    labels, topics = shop.records()
    for record in (labels, topics):
        shop.run("jobs", "forget", record.marker, "--yes")
    time.sleep(0.01)
    assert "batch jobs" not in shop.run("prune", "--asset", "labels")
    assert "batch jobs" not in shop.run("prune", "--older-than", "1h")
    pruned = shop.run("prune", "--older-than", "0h", "--asset", "labels", "--dry-run")
    assert pruned == shop.run("prune", "--older-than", "0h", "--asset", "labels", "--dry-run")
    assert [line.split()[-1] for line in pruned.splitlines()[-2:]] == ["1", "1"]
    shop.run("prune", "--older-than", "0h", "--asset", "labels")
    assert shop.records() == [replace(topics, state="lost", changed_at=shop.records()[0].changed_at)]
    shop.run("prune", "--older-than", "0h")
    assert shop.records() == []
    assert shop.inside(job_tables.read_waits) == []
