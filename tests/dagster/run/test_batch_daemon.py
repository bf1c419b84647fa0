"""The batch tier in a real deployment: a nightly run that the sensor continues, and terminated runs."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg
import pytest

from tests.support.deployment import Deployment, until
from tests.support.nightly_project import ROWS, defs, every_night
from tests.support.nightly_provider import NightlyProvider

pytestmark = pytest.mark.slow

SETTINGS = {"telemetry": {"enabled": False}}
TAKES_S = 3600.0
TIMEOUT_S = 120


@dataclass(frozen=True)
class Place:
    """A deployment and its provider, whose jobs take an hour of its own clock."""

    deployment: Deployment
    provider: NightlyProvider

    def wait_for_job(self, number: int) -> str:
        """The id of a job, once it is created."""
        ledger = self.provider.ledger
        until(lambda: len(ledger.created) >= number or None, TIMEOUT_S, f"job {number}")
        return ledger.created[number - 1]

    def billed(self, name: str) -> list[int]:
        """How often each row of a table was billed by jobs."""
        return [count for prompt, count in self.provider.ledger.billed.items() if f"Text: {name} " in prompt]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("nightly")
    with NightlyProvider() as provider:
        provider.faults.takes_s = TAKES_S
        variables = {"TEST_BASE_URL": provider.base_url}
        with Deployment(home, "tests.support.nightly_project", SETTINGS, variables) as deployment:
            yield Place(deployment, provider)


def test_nightly_run_is_continued_by_the_sensor(place: Place) -> None:
    """The schedule's run ends within seconds; the sensor's makes the table and its report when the job has ended."""
    deployment = place.deployment
    (requested,) = (
        every_night.evaluate_tick(dg.build_schedule_context(repository_def=defs.get_repository_def())).run_requests
        or ()
    )
    day = str(requested.partition_key)
    first = deployment.launch_job("nightly", day)
    job = place.wait_for_job(1)
    assert deployment.finished(first, TIMEOUT_S).status == dg.DagsterRunStatus.SUCCESS
    assert [event.asset_key.path[-1] for name in NIGHTLY for event in deployment.materialized(name)] == ["tickets"]
    metadata = deployment.observed("ticket_answers", [first])[first]
    assert metadata["ondine/job/count"] == 1
    assert metadata["ondine/job/rows_left"] == ROWS

    place.provider.end_all()
    second = until(lambda: next(iter(deployment.runs({"dagster/sensor_name": "batch_sensor"})), None), TIMEOUT_S, "run")
    assert deployment.finished(second.run_id, TIMEOUT_S).status == dg.DagsterRunStatus.SUCCESS
    made = [(event.asset_key.path[-1]) for name in NIGHTLY for event in deployment.materialized(name)]
    assert made == list(NIGHTLY)
    assert {event.partition for name in NIGHTLY for event in deployment.materialized(name)} == {day}
    report = pickle.loads((deployment.home / "storage" / "ticket_report" / day).read_bytes())
    assert report == ROWS
    assert place.provider.ledger.created == [job]
    assert place.billed(day) == [1] * ROWS
    assert not place.provider.live


NIGHTLY = ("tickets", "ticket_answers", "ticket_report")


def test_terminate_leaves_the_job_and_a_later_run_reads_it(place: Place) -> None:
    """The process ends by a real signal; the job continues, is not submitted again, and is read and paid once."""
    deployment = place.deployment
    number = len(place.provider.ledger.created) + 1
    run = deployment.launch("terminated")
    job = place.wait_for_job(number)
    deployment.terminate(run)
    assert deployment.finished(run, TIMEOUT_S).status == dg.DagsterRunStatus.CANCELED
    assert job not in place.provider.jobs_cancelled
    place.provider.end_all()
    again = deployment.launch("terminated")
    assert deployment.finished(again, TIMEOUT_S).status == dg.DagsterRunStatus.SUCCESS
    assert len(deployment.materialized("terminated")) == 1
    assert place.billed("terminated") == [1] * ROWS
    assert len(place.provider.ledger.created) == number


def test_terminate_cancels_the_job_with_cancel_on_terminate(place: Place) -> None:
    """The provider is asked to cancel, and the sensor does not continue a run that a person terminated."""
    deployment = place.deployment
    number = len(place.provider.ledger.created) + 1
    run = deployment.launch("cancelled")
    job = place.wait_for_job(number)
    deployment.terminate(run)
    assert deployment.finished(run, TIMEOUT_S).status == dg.DagsterRunStatus.CANCELED
    until(lambda: job in place.provider.jobs_cancelled or None, TIMEOUT_S, "cancelled job")
    assert len(place.provider.ledger.created) == number
