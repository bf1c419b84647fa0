"""Runs at the tier "batch" and their jobs, on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ondine_core.engine.report import Report
from ondine_core.errors import BudgetExhaustedError, FatalError, JobsUnderWayError, RefusedError, TransientError
from ondine_core.providers.job_api import JobLimits, JobProblem
from ondine_core.providers.tiers import find_tier_prices
from ondine_core.store import job_tables
from ondine_core.store.queries import read_spending
from ondine_core.store.reservations import list_reservations
from ondine_core.telemetry.call_sampler import OrdinaryCall
from ondine_core.types.clock import Clock
from ondine_core.types.values import ModelSpec, Usage
from tests.support.job_runs import JobWorld, words
from tests.support.pictures import ChangingPath, picture
from tests.support.request_content import name_of
from tests.support.simulated_jobs import BATCH_PRICE, reply_to
from tests.support.virtual_clock import run_virtually

HOUR_S = 3600.0
BOUND = BATCH_PRICE.at_most(200, 16)
"""More than any request of these tests can cost."""


def in_world(path: Path, act: Callable[[JobWorld], Awaitable[Any]], **settings: Any) -> Any:
    async def main(clock: Clock) -> Any:
        return await act(JobWorld(clock, path / "answers.db", **settings))

    return run_virtually(main)


async def spent(world: JobWorld) -> Any:
    return (await world.read(lambda database: read_spending(database, "asset")))["asset",]


def test_run_ends_while_its_job_is_under_way_and_a_later_run_reads_it(tmp_path: Path) -> None:
    """The error says what is under way; the later run submits nothing and has all answers and their cost."""

    async def act(world: JobWorld) -> None:
        first = await world.run(words(5), batch_wait_s=600.0)
        assert isinstance(first, JobsUnderWayError)
        (job,) = first.jobs
        assert (job.job_id, job.status, job.requests, first.rows_left) == ("job-0", "in_progress", 5, 5)
        assert job.at_most_usd is not None
        assert Decimal(0) < job.at_most_usd < 5 * BOUND
        again = await world.run(words(5), batch_wait_s=0.0)
        assert isinstance(again, JobsUnderWayError)
        await world.clock.sleep(HOUR_S)
        report = await world.run(words(5))
        assert isinstance(report, Report)
        assert report.column("said") == words(5)
        assert report.spend.usd == world.provider.usd > 0
        assert len(world.provider.jobs) == 1

    in_world(tmp_path, act)


def test_run_that_waits_reads_its_own_jobs(tmp_path: Path) -> None:
    """With several jobs, since one cannot hold all rows; nothing is left open."""

    async def act(world: JobWorld) -> None:
        world.provider.limits = JobLimits(4, 10**6)
        report = await world.run(words(10), batch_wait_s=2 * HOUR_S)
        assert isinstance(report, Report)
        assert report.column("said") == words(10)
        assert [len(job.texts) for job in world.provider.jobs.values()] == [4, 4]  # and two rows by live calls
        assert await world.read(job_tables.read_jobs) == []
        assert await world.read(job_tables.read_waits) == []

    in_world(tmp_path, act)


def test_images_are_sent_in_jobs(tmp_path: Path) -> None:
    """Each answer belongs to its own image; an image that changes before it is written fails alone, unbilled."""

    async def act(world: JobWorld) -> None:
        rows: list[Any] = [picture(number) for number in range(6)]
        rows.insert(2, ChangingPath(tmp_path / "p.png", bytes(len(picture(98)))))
        report = await world.run(rows, batch_wait_s=2 * HOUR_S)
        assert isinstance(report, Report)
        names = [None if isinstance(row, ChangingPath) else name_of(row) for row in rows]
        assert report.column("said") == names
        assert "has changed" in str(report.outcomes[2])
        assert report.spend.usd == world.provider.usd > 0
        assert [len(job.texts) for job in world.provider.jobs.values()] == [6]

    in_world(tmp_path, act, question="Say {word:image}")


def test_job_files_stay_below_the_providers_size_limit(tmp_path: Path) -> None:
    """Requests beyond the limit go into the next job."""

    async def act(world: JobWorld) -> None:
        world.provider.limits = JobLimits(1000, 300)
        report = await world.run(words(12), batch_wait_s=2 * HOUR_S)
        assert isinstance(report, Report)
        assert report.column("said") == words(12)
        assert [len(job.texts) for job in world.provider.jobs.values()] == [6, 6]

    in_world(tmp_path, act)


def test_one_changed_row_is_one_live_call(tmp_path: Path) -> None:
    """Known answers are reused, and a row below `batch_min_rows` is asked by a live call."""

    async def act(world: JobWorld) -> None:
        await world.finish(words(30))
        assert len(world.provider.jobs) == 1
        report = await world.run([*words(29), "changed"])
        assert isinstance(report, Report)
        assert report.column("said") == [*words(29), "changed"]
        assert report.spend.calls == 1
        assert len(world.provider.jobs) == 1

    in_world(tmp_path, act)


def test_rows_changed_while_a_job_is_under_way_go_into_a_new_job(tmp_path: Path) -> None:
    """The first job is neither cancelled nor submitted again, and its answers for removed rows are kept."""

    async def act(world: JobWorld) -> None:
        await world.run(words(20))
        changed = [*words(10), *(f"new{number}" for number in range(10))]
        report = await world.finish(changed)
        assert report.column("said") == changed
        assert [len(job.texts) for job in world.provider.jobs.values()] == [20, 10]
        assert max(world.provider.billed.values()) == 1
        old = await world.run(words(20))
        assert isinstance(old, Report)
        assert old.spend.calls == 0

    in_world(tmp_path, act)


def test_concurrent_runs_submit_each_row_once(tmp_path: Path) -> None:
    """Rows that both runs have are in one job, and both runs end with their answers."""

    async def act(world: JobWorld) -> None:
        parts = {start: words(20)[start : start + 12] for start in (0, 8)}
        runs = [world.run(part, asset=f"a{start}", batch_wait_s=9 * HOUR_S) for start, part in parts.items()]
        reports = await asyncio.gather(*runs)
        for part, report in zip(parts.values(), reports, strict=True):
            assert isinstance(report, Report)
            assert report.column("said") == part
        assert max(world.provider.billed.values()) == 1
        assert len(world.provider.billed) == 20

    in_world(tmp_path, act)


def test_job_that_two_runs_read_at_once_is_counted_once(tmp_path: Path) -> None:
    """Both have all answers, and the costs that they report, to observers too, add up to the bill."""

    async def act(world: JobWorld) -> None:
        assert isinstance(await world.run(words(8)), JobsUnderWayError)
        await world.clock.sleep(2 * HOUR_S)
        world.store_takes_s = 0.01
        reports = await asyncio.gather(*[world.run(words(8), asset=f"a{number}") for number in range(3)])
        for report in reports:
            assert isinstance(report, Report)
            assert report.column("said") == words(8)
        assert sum(report.spend.usd for report in reports) == world.provider.usd > 0
        assert sum(report.spend.calls for report in reports) == 8
        calls = [event.call for event in world.events if isinstance(event, OrdinaryCall)]
        assert sum(call.usd or 0 for call in calls) == world.provider.usd

    in_world(tmp_path, act)


def test_run_at_another_tier_waits_for_rows_in_a_job(tmp_path: Path) -> None:
    """It asks the other rows by live calls, and pays none twice."""

    async def act(world: JobWorld) -> None:
        await world.run(words(5))
        waiting = await world.run(words(8), tier="standard")
        assert isinstance(waiting, JobsUnderWayError)
        assert waiting.rows_left == 5
        assert len(world.provider.billed) == 3
        await world.clock.sleep(HOUR_S)
        report = await world.run(words(8), tier="standard")
        assert isinstance(report, Report)
        assert report.column("said") == words(8)
        assert max(world.provider.billed.values()) == 1

    in_world(tmp_path, act)


def test_cap_holds_while_jobs_are_under_way(tmp_path: Path) -> None:
    """Worst-case costs are reserved until requests are settled; refunds pay for the next, smaller jobs."""

    async def act(world: JobWorld) -> None:
        report = await world.run(words(40), batch_wait_s=99 * HOUR_S)
        assert isinstance(report, Report)
        assert report.column("said") == words(40)
        assert len(world.provider.jobs) > 1
        assert report.spend.usd is not None
        assert report.spend.usd <= Decimal("0.0008")

    in_world(tmp_path, act, max_cost_usd=Decimal("0.0008"))


def test_materialization_whose_first_waiting_run_was_a_repeated_one_has_the_cap_of_the_first(tmp_path: Path) -> None:
    """The run that the daemon repeated failed before it submitted jobs; what it spent stays spent."""

    async def act(world: JobWorld) -> None:
        world.budget_run = "run-0"
        assert isinstance(await world.run(words(5)), JobsUnderWayError)
        world.budget_run = None
        await world.run(words(5))
        (wait,) = await world.read(job_tables.read_waits)
        assert (wait.origin.run, wait.last_run) == ("run-0", "run-2")

    in_world(tmp_path, act)


def test_exhausted_cap_ends_the_run_and_keeps_its_answers(tmp_path: Path) -> None:
    """Also over several runs of one materialization: a new run continues with the amount already spent."""

    async def act(world: JobWorld) -> None:
        async def resume() -> None:
            for _ in range(60):
                assert isinstance(await world.run(words(40), batch_wait_s=600.0), JobsUnderWayError)
                await world.clock.sleep(HOUR_S)

        with pytest.raises(BudgetExhaustedError, match="max_cost_usd"):
            await resume()
        assert Decimal(0) < world.provider.usd <= Decimal("0.0003")

    in_world(tmp_path, act, max_cost_usd=Decimal("0.0003"))


def test_shared_cap_holds_for_the_jobs_of_several_runs(tmp_path: Path) -> None:
    """Together the runs never exceed it, and no run blocks another for ever."""

    async def act(world: JobWorld) -> None:
        runs = [
            world.run([f"{asset}{number}" for number in range(20)], asset=asset, batch_wait_s=99 * HOUR_S)
            for asset in ("a", "b", "c")
        ]
        reports = await asyncio.gather(*runs)
        assert all(isinstance(report, Report) and None not in report.column("said") for report in reports)
        assert world.provider.usd <= Decimal("0.0012")
        assert len(world.provider.billed) == 60

    in_world(tmp_path, act, team_usd=Decimal("0.0012"))


def test_answer_by_cancels_the_job_and_asks_the_rest_by_live_calls(tmp_path: Path) -> None:
    """What the job has answered by then is read; nothing is paid twice."""

    async def act(world: JobWorld) -> None:
        world.provider.takes_s = 10 * HOUR_S
        report = await world.run(words(20), batch_wait_s=600.0, answer_by=world.clock.now() + 300)
        assert isinstance(report, Report)
        assert report.column("said") == words(20)
        assert max(world.provider.billed.values()) == 1
        assert world.clock.now() < HOUR_S

    in_world(tmp_path, act)


def test_later_run_keeps_answer_by_of_its_job(tmp_path: Path) -> None:
    """A run without `answer_by` of its own uses that of the job."""

    async def act(world: JobWorld) -> None:
        world.provider.takes_s = 30 * HOUR_S
        await world.run(words(20), answer_by=world.clock.now() + 5 * HOUR_S)
        await world.clock.sleep(6 * HOUR_S)
        report = await world.run(words(20), batch_wait_s=600.0)
        assert isinstance(report, Report)
        assert report.column("said") == words(20)
        assert max(world.provider.billed.values()) == 1

    in_world(tmp_path, act)


def test_job_refused_for_quota_is_resubmitted_smaller(tmp_path: Path) -> None:
    """A job that is refused for the account's quota is submitted again in smaller jobs; no row is lost."""

    async def act(world: JobWorld) -> None:
        world.provider.refuse_create = [TransientError("Too much.", kind="limited", retry_after_s=700.0)]
        report = await world.run(words(16), batch_wait_s=20 * HOUR_S)
        assert isinstance(report, Report)
        assert report.column("said") == words(16)
        assert len(world.provider.jobs) > 1
        assert max(world.provider.billed.values()) == 1

    in_world(tmp_path, act)


def test_refused_job_ends_the_run_and_releases_everything(tmp_path: Path) -> None:
    """Its rows are free for other runs, and its reservation is refunded."""

    async def act(world: JobWorld) -> None:
        world.provider.refuse_create = [FatalError("The key was not accepted.")]
        with pytest.raises(FatalError, match="key"):
            await world.run(words(16))
        assert await world.read(partial(job_tables.read_jobs, is_open=False)) == []
        report = await world.finish(words(16))
        assert report.column("said") == words(16)

    in_world(tmp_path, act)


def test_expired_results_are_charged_at_worst_case_and_asked_again(tmp_path: Path) -> None:
    """A warning and the audit say so: an unknown bill never counts as zero."""

    async def act(world: JobWorld) -> None:
        await world.run(words(6))
        await world.clock.sleep(HOUR_S)
        world.provider.lost = True
        under_way = await world.run(words(6), batch_wait_s=600.0)
        assert isinstance(under_way, JobsUnderWayError)
        world.provider.lost = False
        await world.clock.sleep(HOUR_S)
        report = await world.run(words(6), batch_wait_s=600.0)
        assert isinstance(report, Report)
        assert report.column("said") == words(6)
        assert any("count with the most" in warning for warning in world.warnings)
        seen = await spent(world)
        assert (seen.unknown, seen.paid_twice) == (6, 6)
        assert seen.usd + seen.at_most_usd >= world.provider.usd

    in_world(tmp_path, act)


def test_job_of_another_account_is_not_given_up(tmp_path: Path) -> None:
    """The run says whose job it is; with the right key it is read."""

    async def act(world: JobWorld) -> None:
        await world.run(words(6))
        with pytest.raises(FatalError, match="another key"):
            await world.run(words(6), account="b", batch_wait_s=HOUR_S / 2)
        report = await world.finish(words(6))
        assert report.column("said") == words(6)
        assert max(world.provider.billed.values()) == 1

    in_world(tmp_path, act)


def test_rows_of_jobs_that_keep_expiring_fail(tmp_path: Path) -> None:
    """After three jobs that ended without running a row it fails as unreachable; the next run asks it again."""

    async def act(world: JobWorld) -> None:
        world.provider.takes_s, world.provider.window_s = 10**9, 24 * HOUR_S
        report = await world.run(words(6), batch_wait_s=100 * HOUR_S)
        assert isinstance(report, Report)
        assert [str(error) for error in report.errors()] == 6 * [
            "unreachable: 3 batch jobs ended without an answer; set answer_by, or another tier"
        ]
        assert world.provider.usd == 0

    in_world(tmp_path, act)


def test_interrupted_run_cancels_its_job_only_on_request(tmp_path: Path) -> None:
    """Terminated while it waits, a run leaves its job running unless `cancel_on_terminate` is set."""

    async def act(world: JobWorld) -> None:
        for cancels in (False, True):
            rows = [f"{cancels}{number}" for number in range(5)]
            running = asyncio.ensure_future(
                world.run(rows, batch_wait_s=9 * HOUR_S, cancel_on_terminate=cancels, asset=f"a{cancels}")
            )
            await world.clock.sleep(60.0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            job = list(world.provider.jobs.values())[-1]
            assert (job.cancelled_at is not None) is cancels

    in_world(tmp_path, act)


def test_full_refresh_asks_everything_again_by_job(tmp_path: Path) -> None:
    """Older answers are neither reused nor in the way."""

    async def act(world: JobWorld) -> None:
        await world.finish(words(6))
        await world.clock.sleep(1.0)
        since = world.clock.now()
        report = await world.finish(words(6), reuse_since=since)
        assert report.column("said") == words(6)
        assert set(world.provider.billed.values()) == {2}

    in_world(tmp_path, act)


def test_refused_request_fails_its_row_only(tmp_path: Path) -> None:
    """The other rows have answers."""

    async def act(world: JobWorld) -> None:
        world.provider.answer = lambda text: RefusedError("No.", usage=Usage(3)) if "w3" in text else reply_to(text)
        report = await world.finish(words(6))
        assert report.column("said") == [None if word == "w3" else word for word in words(6)]
        assert report.errors()[3] == "refused: No."

    in_world(tmp_path, act)


def test_exhausted_credit_ends_the_run_and_fails_no_row(tmp_path: Path) -> None:
    """Thousands of requests that failed for lack of credit were not billed, and are asked again by a later run."""

    async def act(world: JobWorld) -> None:
        world.provider.answer = lambda _: FatalError("The account has no credit.", fault="account")
        with pytest.raises(FatalError, match="credit"):
            await world.finish(words(6))
        world.provider.answer = reply_to
        report = await world.finish(words(6))
        assert report.column("said") == words(6)

    in_world(tmp_path, act)


def test_line_that_fails_validation_fails_its_row_and_the_rest_is_resubmitted(tmp_path: Path) -> None:
    """Repeated for each line that the provider finds invalid."""

    async def act(world: JobWorld) -> None:
        world.provider.problems = [(JobProblem("Too long.", line=2),), (JobProblem("Too long.", line=3),)]
        report = await world.finish(words(8))
        assert [word for word, answer in zip(words(8), report.column("said"), strict=True) if answer is None] == [
            "w1",
            "w3",
        ]
        assert set(report.errors()) == {None, "refused: The provider refused the request: Too long."}
        assert len(world.provider.billed) == 6

    in_world(tmp_path, act)


def test_job_refused_for_its_setup_ends_the_run(tmp_path: Path) -> None:
    """With the provider's reason; no row has failed."""

    async def act(world: JobWorld) -> None:
        world.provider.problems = [(JobProblem("The model has no batches."),)]
        with pytest.raises(FatalError, match="has no batches"):
            await world.run(words(8))
        report = await world.finish(words(8))
        assert report.column("said") == words(8)

    in_world(tmp_path, act)


def test_job_that_fails_for_quota_is_resubmitted_smaller(tmp_path: Path) -> None:
    """Its rows are not given up, however often that happens."""

    async def act(world: JobWorld) -> None:
        world.provider.problems = 5 * [(JobProblem("Enqueued token limit.", is_quota=True),)]
        report = await world.run(words(16), batch_wait_s=50 * HOUR_S)
        assert isinstance(report, Report)
        assert report.column("said") == words(16)
        sizes = [len(job.texts) for job in world.provider.jobs.values()]
        assert sizes[:2] == [16, 8]
        assert max(world.provider.billed.values()) == 1

    in_world(tmp_path, act)


def test_duplicate_and_foreign_results_are_ignored(tmp_path: Path) -> None:
    """The first result of a request counts; results of other jobs are named in a warning."""

    async def act(world: JobWorld) -> None:
        world.provider.noise = True
        report = await world.finish(words(8))
        assert report.column("said") == words(8)
        assert any("of other jobs, left out" in warning for warning in world.warnings)
        assert (await spent(world)).usd == world.provider.usd

    in_world(tmp_path, act)


def test_run_after_a_failed_materialization_is_a_new_one(tmp_path: Path) -> None:
    """Once the failed one has read its jobs, the next run has a cap and a deadline of its own."""

    async def act(world: JobWorld) -> None:
        await world.run(words(6))
        await world.clock.sleep(HOUR_S)
        world.provider.answer = lambda _: FatalError("The account has no credit.", fault="account")
        with pytest.raises(FatalError, match="credit"):
            await world.run(words(6))
        world.provider.answer = reply_to
        await world.run(words(6))
        (wait,) = await world.read(job_tables.read_waits)
        assert (wait.origin.run, wait.since) == ("run-3", world.clock.now())

    in_world(tmp_path, act)


def test_job_whose_rows_have_older_answers_is_not_waited_for(tmp_path: Path) -> None:
    """A run that takes those answers asks the other rows, and the next one reads the job."""

    async def act(world: JobWorld) -> None:
        await world.run(words(5), tier="standard")
        await world.clock.sleep(1.0)
        assert isinstance(await world.run(words(5), reuse_since=world.clock.now()), JobsUnderWayError)
        report = await world.run(words(6), tier="standard")
        assert isinstance(report, Report)
        assert report.progress.rows_done == 6
        await world.clock.sleep(2 * HOUR_S)
        assert isinstance(await world.run(words(6), tier="standard"), Report)
        assert await world.read(job_tables.read_jobs) == []
        assert (await spent(world)).usd == world.provider.usd

    in_world(tmp_path, act)


@pytest.mark.parametrize(
    ("part", "changed"), [("question", "Please say {word}"), ("system", "Be brief."), ("output", "spoken")]
)
def test_job_whose_prompt_has_changed_is_read_by_the_next_run_after_its_end(
    tmp_path: Path, part: str, changed: str
) -> None:
    """Its cost is in the ledger, its reservation is released, and its answers are kept if the columns are the same."""

    async def act(world: JobWorld) -> None:
        assert isinstance(await world.run(words(5)), JobsUnderWayError)
        original = getattr(world, part)
        setattr(world, part, changed)
        assert isinstance(await world.run(words(5), tier="standard"), Report)  # the job has not ended
        await world.clock.sleep(2 * HOUR_S)
        report = await world.run(words(5), tier="standard")
        assert isinstance(report, Report)
        assert report.spend.calls == 5
        assert report.column(world.output) == words(5)
        assert await world.read(job_tables.read_jobs) == []
        assert await world.read(list_reservations) == []
        seen = await spent(world)
        assert (seen.unknown, seen.usd) == (0, world.provider.usd)
        setattr(world, part, original)
        again = await world.run(words(5), tier="standard")
        assert isinstance(again, Report)
        assert again.spend.calls == (5 if part == "output" else 0)

    in_world(tmp_path, act, team_usd=Decimal(1))


def test_job_whose_model_has_changed_is_read_at_the_prices_of_that_model(tmp_path: Path) -> None:
    """With the key that submitted it; its answers are found again by a run that asks that model."""
    first, second = "openai/gpt-4o-mini", "openai/gpt-4.1"

    async def act(world: JobWorld) -> None:
        world.model = first
        assert isinstance(await world.run(words(5)), JobsUnderWayError)
        await world.clock.sleep(2 * HOUR_S)
        world.model = second
        other = await world.run(words(5), tier="standard", account="b")
        assert isinstance(other, Report)
        assert (other.spend.calls, len(await world.read(job_tables.read_jobs))) == (5, 1)
        live_usd = world.provider.usd
        report = await world.run(words(6), tier="standard")
        assert isinstance(report, Report)
        assert report.spend.calls == 6
        assert report.column("said") == words(6)
        usage = sum((reply_to(f"Say {word}").usage for word in words(5)), Usage())
        job_usd = find_tier_prices(ModelSpec(first))["batch"].cost(usage)
        assert report.spend.usd == job_usd + BATCH_PRICE.cost(reply_to("Say w5").usage)
        assert await world.read(job_tables.read_jobs) == []
        assert await world.read(list_reservations) == []
        seen = await spent(world)
        assert (seen.unknown, seen.usd) == (0, live_usd + report.spend.usd)
        assert world.warnings == []
        world.model = first
        again = await world.run(words(5), tier="standard")
        assert isinstance(again, Report)
        assert (again.spend.calls, {answer.model for answer in again.outcomes}) == (0, {first})

    in_world(tmp_path, act, team_usd=Decimal(1))


def test_program_without_an_asset_leaves_the_jobs_of_others_alone(tmp_path: Path) -> None:
    """Their answers would be lost if it has another output, and paid again."""

    async def act(world: JobWorld) -> None:
        assert isinstance(await world.run(words(5), asset=""), JobsUnderWayError)
        await world.clock.sleep(2 * HOUR_S)
        world.output = "spoken"
        assert isinstance(await world.run(words(5), asset="", tier="standard"), Report)
        world.output = "said"
        report = await world.run(words(5), asset="")
        assert isinstance(report, Report)
        assert set(world.provider.billed.values()) == {2}

    in_world(tmp_path, act)


def test_run_does_not_depend_on_jobs_of_which_it_needs_nothing(tmp_path: Path) -> None:
    """It neither fails if the batch API cannot be connected to, nor waits long if that does not answer."""

    async def act(world: JobWorld) -> None:
        for number in range(5):
            world.question = f"{number}: say {{word}}"
            assert isinstance(await world.run(words(5)), JobsUnderWayError)
        world.question = "Say {word}"
        world.provider.has_api = False
        assert isinstance(await world.run(words(5), tier="standard"), Report)
        world.provider.has_api, world.provider.fails_after_s = True, 50.0
        began = world.clock.now()
        assert isinstance(await world.run(words(5), tier="standard"), Report)
        assert world.clock.now() - began < 120

    in_world(tmp_path, act)
