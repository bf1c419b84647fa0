"""A step of the batch tier, run by run: what it leaves open, what the sensor requests, and what is paid."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from decimal import Decimal
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from sqlalchemy import text

from ondine_core.errors import ConfigError
from ondine_dagster import ErrorRateCheck, GoldenCheck, LLMResource, batch_sensor, llm_asset
from ondine_dagster.resource import default_store
from tests.support import instances
from tests.support.meter import Meter, Rates
from tests.support.nightly_provider import NightlyProvider

MODEL = "openai/gpt-4o-mini"
ROWS = 30
ASKS: dict[str, Any] = {"prompt": "Say it again.\nText: {text}", "output": {"answer": "string"}, "tier": "batch"}
HOUR_S = 3600.0


@pytest.fixture
def provider() -> Iterator[NightlyProvider]:
    """Its jobs take an hour of its own clock."""
    with NightlyProvider() as running:
        running.faults.takes_s = HOUR_S
        yield running


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with instances.ephemeral() as one:
        yield one


def table(first: str = "", rows: int = ROWS) -> pd.DataFrame:
    return pd.DataFrame({"text": [f"row {first}{number}" for number in range(rows)]})


def asked(rows: int = ROWS, **arguments: Any) -> dg.AssetsDefinition:
    """An asset of these rows."""

    @llm_asset(**ASKS, **{"name": "answers"} | arguments)
    def of_table() -> pd.DataFrame:
        return table(rows=rows)

    return of_table


answers = asked()


def model(provider: NightlyProvider, **fields: Any) -> LLMResource:
    given = {"batch_wait_s": 0, "api_key": "key", "max_output_tokens": 20} | fields
    return LLMResource(model=given.pop("model", MODEL), base_url=provider.base_url, **given)


def run(
    instance: dg.DagsterInstance, provider: NightlyProvider, *assets: Any, llm: Any = None, **options: Any
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        list(assets) or [answers], resources={"llm": llm or model(provider)}, instance=instance, **options
    )


def let_time_pass(instance: dg.DagsterInstance, seconds: float) -> None:
    """Move the recorded times of jobs, waits and runs back, as if all had happened so much earlier."""
    with closing(sqlite3.connect(default_store(instance))) as store, store:
        store.execute(
            "UPDATE jobs SET created_at = created_at - :s, changed_at = changed_at - :s, answer_by = answer_by - :s",
            {"s": seconds},
        )
        store.execute("UPDATE job_waits SET since = since - :s", {"s": seconds})
    with instance.run_storage.connect() as runs:
        runs.execute(text("UPDATE runs SET start_time = start_time - :s, end_time = end_time - :s"), {"s": seconds})


def observed(result: dg.ExecuteInProcessResult) -> Mapping[str, Any]:
    observations = [
        event.asset_observation_data.asset_observation.metadata for event in result.get_asset_observation_events()
    ]
    found = next(metadata for metadata in observations if "ondine/job/count" in metadata)
    return {key: one if isinstance(one, dg.TableMetadataValue) else one.value for key, one in found.items()}


def tick(
    sensor: dg.SensorDefinition, instance: dg.DagsterInstance, defs: dg.Definitions
) -> list[dg.RunRequest] | str | None:
    """The requests of a sensor's tick, or why it requests nothing."""
    resources = {key: defs.resources[key] for key in sensor.required_resource_keys} if defs.resources else {}
    with dg.build_sensor_context(instance=instance, definitions=defs, resources=resources) as context:
        found = sensor.evaluate_tick(context)
    return list(found.run_requests) if found.run_requests else found.skip_message


def definitions(provider: NightlyProvider, *assets: Any, sensor: Any = None, **fields: Any) -> dg.Definitions:
    return dg.Definitions(
        assets=list(assets) or [answers],
        sensors=[sensor] if sensor else [],
        resources={"llm": model(provider, **fields)},
    )


def test_run_ends_while_its_job_is_under_way_and_a_later_run_reads_it(
    instance: dg.DagsterInstance, provider: NightlyProvider
) -> None:
    """One observation says what is under way, without a materialization; no row is asked or paid twice."""
    first = run(instance, provider)
    assert first.success
    assert not first.asset_materializations_for_node("answers")
    metadata = observed(first)
    assert metadata["ondine/job/count"] == 1
    assert metadata["ondine/job/requests"] == metadata["ondine/job/rows_left"] == ROWS
    assert metadata["ondine/job/requests_done"] == 0
    assert isinstance(metadata["ondine/job/held_usd"], float)
    assert metadata["ondine/job/state"] == "1 in_progress"
    (record,) = metadata["ondine/job/jobs"].records
    assert record.data["provider_id"] == provider.ledger.created[0]
    log = "\n".join(entry.user_message for entry in instance.all_logs(first.run_id))
    assert "1 batch job of 'openai/gpt-4o-mini' under way" in log
    assert "did not yield" not in log

    again = run(instance, provider)
    assert not again.asset_materializations_for_node("answers")
    provider.end_all()
    last = run(instance, provider)
    (event,) = last.asset_materializations_for_node("answers")
    assert event.metadata["ondine/rows_succeeded"].value == ROWS
    assert last.output_for_node("answers")["answer"].tolist() == table()["text"].tolist()
    assert provider.ledger.created == provider.ledger.created[:1]
    assert set(provider.ledger.billed.values()) == {1}
    assert not provider.live


def test_rows_below_batch_min_rows_are_asked_by_live_calls(
    instance: dg.DagsterInstance, provider: NightlyProvider
) -> None:
    """`batch_min_rows` is a field of the resource."""
    result = run(instance, provider, llm=model(provider, batch_min_rows=ROWS + 1))
    assert result.asset_materializations_for_node("answers")
    assert not provider.ledger.created
    assert sum(provider.live.values()) == ROWS


def test_assets_downstream_wait_for_the_answers(instance: dg.DagsterInstance, provider: NightlyProvider) -> None:
    """A step with a job under way has no output: downstream assets are skipped, and made by the later run."""

    @llm_asset(**ASKS, name="labels", failed_rows=True, checks=[ErrorRateCheck(max_rate=0.5)])
    def labels() -> pd.DataFrame:
        return table()

    @dg.asset
    def report(labels: pd.DataFrame) -> int:
        return len(labels)

    first = run(instance, provider, labels, report)
    assert first.success
    assert not first.get_asset_materialization_events()
    assert not first.get_asset_check_evaluations()
    assert "did not yield" not in "\n".join(entry.user_message for entry in instance.all_logs(first.run_id))
    provider.end_all()
    last = run(instance, provider, labels, report)
    made = {event.asset_key.path[-1] for event in last.get_asset_materialization_events()}
    assert made == {"labels", "labels_failed", "report"}
    assert [check.passed for check in last.get_asset_check_evaluations()] == [True]


def test_trial_does_not_change_the_wait_of_the_materialization(
    instance: dg.DagsterInstance, provider: NightlyProvider
) -> None:
    """The sensor still continues the real run."""
    sensor = batch_sensor()
    defs = definitions(provider, sensor=sensor)
    first = run(instance, provider)
    config = {"ops": {"answers": {"config": {"max_rows": 5}}}}
    trial = run(instance, provider, run_config=config)
    assert observed(trial)["ondine/job/rows_left"] == 5
    provider.end_all()
    run(instance, provider, run_config=config)
    (request,) = as_requests(tick(sensor, instance, defs))
    assert request.run_key.startswith(first.run_id)


def test_full_refresh_over_jobs_asks_each_row_once(instance: dg.DagsterInstance, provider: NightlyProvider) -> None:
    """It is that of the first run: answers of its own jobs are not asked again."""
    refresh = {"ops": {"answers": {"config": {"full_refresh": True}}}}
    run(instance, provider)
    provider.end_all()
    assert run(instance, provider).asset_materializations_for_node("answers")
    run(instance, provider, run_config=refresh)
    provider.end_all()
    last = run(instance, provider, run_config=refresh)
    assert last.asset_materializations_for_node("answers")
    assert len(provider.ledger.created) == 2
    assert set(provider.ledger.billed.values()) == {2}
    assert not provider.live


def test_labelled_rows_are_asked_by_live_calls(instance: dg.DagsterInstance, provider: NightlyProvider) -> None:
    """The run that makes the table answers its check, however many rows have labels."""
    labels = [{"text": f"labelled {number}", "answer": f"labelled {number}"} for number in range(ROWS)]
    asset = asked(checks=[GoldenCheck(rows=labels, min_score=0.9)])
    run(instance, provider, asset)
    provider.end_all()
    last = run(instance, provider, asset)
    assert [check.passed for check in last.get_asset_check_evaluations()] == [True]
    assert len(provider.ledger.created) == 1
    assert sum(provider.live.values()) == ROWS


def test_materialization_ends_when_its_cap_is_spent(instance: dg.DagsterInstance, provider: NightlyProvider) -> None:
    """All its runs share one cap; once it is spent and no job is open, the next run is a new materialization."""
    rates = Rates(Decimal("1e-7"), Decimal(0), Decimal(0), Decimal("1e-6"))
    provider.use(Meter({"batch": rates}))
    price = {"input_cost_per_1k_tokens": 0.0001, "output_cost_per_1k_tokens": 0.001}
    llm = model(provider, batch_min_rows=1, **price)
    held = observed(run(instance, provider, asked(name="other"), llm=llm))["ondine/job/held_usd"]
    provider.end_all()
    run(instance, provider, asked(name="other"), llm=llm)
    spent_before = provider.ledger.usd
    full_refresh = {"ops": {"answers": {"config": {"full_refresh": True}}}}
    capped = asked(max_cost_usd=held / 5)
    results = []
    while not results or results[-1].success:
        results.append(run(instance, provider, capped, llm=llm, run_config=full_refresh, raise_on_error=False))
        provider.end_all()
    assert len(results) > 1
    assert float(provider.ledger.usd - spent_before) <= held / 5
    assert tick(batch_sensor(), instance, definitions(provider)) == "No asset waits for batch jobs."
    again = run(instance, provider, capped, llm=llm, run_config=full_refresh)
    assert observed(again)["ondine/job/requests"] == observed(results[0])["ondine/job/requests"]


# -- answer_by -----------------------------------------------------------------------------------------------------


def test_answer_by_cancels_the_job_and_asks_the_rest_by_live_calls(
    instance: dg.DagsterInstance, provider: NightlyProvider
) -> None:
    """What the job has answered by then is kept and paid once."""
    asset = asked(answer_by=HOUR_S)
    first = run(instance, provider, asset)
    assert not first.asset_materializations_for_node("answers")
    provider.advance(HOUR_S / 2)
    let_time_pass(instance, HOUR_S)
    last = run(instance, provider, asset)
    (event,) = last.asset_materializations_for_node("answers")
    assert event.metadata["ondine/rows_succeeded"].value == ROWS
    assert provider.jobs_cancelled == provider.ledger.created
    by_job, at_once = sum(provider.ledger.billed.values()), sum(provider.live.values())
    assert by_job + at_once == ROWS
    assert 0 < by_job < ROWS
    assert not provider.ledger.billed.keys() & provider.live.keys()


def test_answer_by_is_that_of_the_first_run(instance: dg.DagsterInstance, provider: NightlyProvider) -> None:
    """A run that continues after that time does not read it as tomorrow's, and submits no job."""
    run(instance, provider, asked(answer_by=HOUR_S))
    provider.end_all()
    let_time_pass(instance, HOUR_S)
    last = run(instance, provider, asked(2 * ROWS, answer_by=HOUR_S))
    assert last.asset_materializations_for_node("answers")
    assert len(provider.ledger.created) == 1
    assert sum(provider.live.values()) == ROWS


def test_launchpad_can_end_a_wait(instance: dg.DagsterInstance, provider: NightlyProvider) -> None:
    """`answer_by: '0'` cancels the job and asks the rest by live calls."""
    run(instance, provider)
    last = run(instance, provider, run_config={"ops": {"answers": {"config": {"answer_by": "0"}}}})
    assert last.asset_materializations_for_node("answers")
    assert provider.jobs_cancelled == provider.ledger.created
    assert sum(provider.live.values()) + sum(provider.ledger.billed.values()) == ROWS


# -- the sensor ----------------------------------------------------------------------------------------------------


def as_requests(found: Any) -> list[dg.RunRequest]:
    assert isinstance(found, list), found
    return found


def test_the_sensor_requests_one_run_when_all_jobs_have_ended(
    instance: dg.DagsterInstance, provider: NightlyProvider
) -> None:
    """Until then it reports what is under way; the request repeats config and tags, and is made once."""
    sensor = batch_sensor()
    defs = definitions(provider, sensor=sensor)
    assert tick(sensor, instance, defs) == "No asset waits for batch jobs."
    config = {"ops": {"answers": {"config": {"max_cost_usd": 5}}}}
    first = run(instance, provider, run_config=config, tags={"team": "a", "dagster/priority": "3"})
    provider.advance(HOUR_S / 2)
    requests = tick(sensor, instance, defs)
    assert requests == "answers: 1 batch job under way (in_progress), 15 of 30 requests are done."
    provider.end_all()
    (request,) = as_requests(tick(sensor, instance, defs))
    assert request.run_config["ops"] == config["ops"]
    assert request.tags == {"team": "a", "dagster/priority": "3", "dagster/sensor_name": "batch_sensor"}
    assert request.asset_selection == [dg.AssetKey("answers")]
    assert request.partition_key is None
    (again,) = as_requests(tick(sensor, instance, defs))
    assert again.run_key == request.run_key
    last = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, run_config=again.run_config, tags={**again.tags, "dagster/run_key": str(again.run_key)}
    )
    assert last.asset_materializations_for_node("answers")
    assert tick(sensor, instance, defs) == "No asset waits for batch jobs."
    assert first.run_id in str(request.run_key)


def test_a_run_that_was_requested_and_failed_is_not_requested_again(
    instance: dg.DagsterInstance, provider: NightlyProvider
) -> None:
    """The sensor names it, for a person to look at."""
    sensor = batch_sensor()
    defs = definitions(provider, sensor=sensor)
    run(instance, provider)
    provider.end_all()
    (request,) = as_requests(tick(sensor, instance, defs))
    failed = run(instance, provider, llm=object(), tags={"dagster/run_key": str(request.run_key)}, raise_on_error=False)
    assert not failed.success
    reason = tick(sensor, instance, defs)
    assert f"the run {failed.run_id} was requested" in str(reason)
    assert "launch it again" in str(reason)


def test_run_without_quota_for_a_job_is_repeated_later(instance: dg.DagsterInstance, provider: NightlyProvider) -> None:
    """The step ends as if it waited for a job, and after some ticks of the sensor a run tries again."""
    sensor = batch_sensor(minimum_interval_seconds=60)
    defs = definitions(provider, sensor=sensor)
    provider.faults.is_full = True
    metadata = observed(run(instance, provider))
    assert metadata["ondine/job/count"] == 0
    assert metadata["ondine/job/state"] == "no room"
    assert metadata["ondine/job/rows_left"] == ROWS
    assert tick(sensor, instance, defs) == (
        "answers: the account has no room for another batch job; a run tries again soon."
    )
    let_time_pass(instance, 5 * 60)
    (request,) = as_requests(tick(sensor, instance, defs))
    provider.faults.is_full = False
    provider.faults.takes_s = 0.0
    last = run(instance, provider, llm=model(provider, batch_wait_s=60), tags=request.tags)
    assert last.asset_materializations_for_node("answers")


def test_partitions_are_requested_one_by_one(instance: dg.DagsterInstance, provider: NightlyProvider) -> None:
    """Each when its own jobs have ended, with its key."""
    parts = dg.StaticPartitionsDefinition(["a", "b"])

    @llm_asset(**ASKS, partitions_def=parts)
    def answers(context: dg.AssetExecutionContext) -> pd.DataFrame:
        return table(context.partition_key)

    sensor = batch_sensor(answers)
    defs = definitions(provider, answers, sensor=sensor)
    run(instance, provider, answers, partition_key="a")
    provider.advance(HOUR_S / 2)
    run(instance, provider, answers, partition_key="b")
    provider.advance(HOUR_S / 2)
    (request,) = as_requests(tick(sensor, instance, defs))
    assert request.partition_key == "a"
    last = run(instance, provider, answers, partition_key="a", tags=request.tags)
    assert last.asset_materializations_for_node("answers")
    assert str(tick(sensor, instance, defs)).startswith("answers [b]: 1 batch job under way")


def test_removed_partition_does_not_block_others(instance: dg.DagsterInstance, provider: NightlyProvider) -> None:
    """Its run cannot be launched; the tick names it."""
    before = dg.StaticPartitionsDefinition(["a", "b"])
    asset, other = asked(partitions_def=before), asked(2 * ROWS, partitions_def=before)
    run(instance, provider, asset, partition_key="a")
    run(instance, provider, other, partition_key="b")
    provider.end_all()
    sensor = batch_sensor()
    defs = definitions(provider, asked(partitions_def=dg.StaticPartitionsDefinition(["b"])), sensor=sensor)
    (request,) = as_requests(tick(sensor, instance, defs))
    assert request.partition_key == "b"
    run(instance, provider, other, partition_key="b")
    assert tick(sensor, instance, defs) == "answers [a]: its jobs have ended, but there is no partition 'a' any more."


def test_asset_without_partitions_is_continued_after_a_run_of_a_partition(
    instance: dg.DagsterInstance, provider: NightlyProvider
) -> None:
    """A job may have both kinds of assets; whether both wait, or only that without partitions."""
    parts = dg.StaticPartitionsDefinition(["a", "b"])
    parted = asked(2 * ROWS, name="parted", partitions_def=parts)
    sensor = batch_sensor()
    defs = definitions(provider, answers, parted, sensor=sensor)
    both = {"instance": instance, "partition_key": "a", "tags": {"team": "a"}}
    defs.resolve_implicit_global_asset_job_def().execute_in_process(**both)
    provider.end_all()
    (request,) = as_requests(tick(sensor, instance, defs))
    assert request.partition_key == "a"
    assert set(request.asset_selection or ()) == {answers.key, parted.key}
    run(instance, provider, parted, partition_key="a")
    (request,) = as_requests(tick(sensor, instance, defs))
    assert request.partition_key is None
    assert request.asset_selection == [answers.key]
    assert run(instance, provider, tags=request.tags).asset_materializations_for_node("answers")


@pytest.mark.filterwarnings("ignore:Parameter `backfill_policy`")
def test_a_run_of_several_partitions_is_repeated_as_one(
    instance: dg.DagsterInstance, provider: NightlyProvider
) -> None:
    """A single-run backfill stays one: its range is in the tags."""
    parts = dg.StaticPartitionsDefinition(["a", "b", "c"])

    @llm_asset(**ASKS, partitions_def=parts, backfill_policy=dg.BackfillPolicy.single_run())
    def answers(context: dg.AssetExecutionContext) -> Mapping[str, pd.DataFrame]:
        return {key: table(key, rows=10) for key in context.partition_keys}

    sensor = batch_sensor(["answers"])
    defs = definitions(provider, answers, sensor=sensor)
    span = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "c"}
    job = defs.resolve_implicit_global_asset_job_def()
    given: dict[str, Any] = {"instance": instance, "resources": {"io_manager": NoTables()}}
    job.execute_in_process(**given, tags={**span, "dagster/backfill": "one"})
    provider.end_all()
    (request,) = as_requests(tick(sensor, instance, defs))
    assert request.partition_key is None
    assert span.items() <= request.tags.items()
    last = job.execute_in_process(**given, tags=dict(request.tags))
    assert {event.partition for event in last.get_asset_materialization_events()} == {"a", "b", "c"}


class NoTables(dg.IOManager):
    """Stores nothing."""

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Nothing is stored."""

    def load_input(self, _: dg.InputContext) -> Any:
        """No asset is downstream."""
        raise NotImplementedError


def test_requested_run_makes_waiting_and_downstream_assets(
    instance: dg.DagsterInstance, provider: NightlyProvider
) -> None:
    """Not upstream assets, whose rows may have changed, nor assets that the first run did not select."""

    @dg.asset
    def texts() -> pd.DataFrame:
        return table()

    @dg.asset
    def beside(texts: pd.DataFrame) -> int:
        return len(texts)

    @llm_asset(**ASKS, failed_rows=True)
    def answers(texts: pd.DataFrame) -> pd.DataFrame:
        return texts

    @dg.asset
    def report(answers: pd.DataFrame) -> int:
        return len(answers)

    @dg.asset
    def of_failures(answers_failed: pd.DataFrame) -> int:
        return len(answers_failed)

    @dg.asset
    def unplanned(report: int) -> int:
        return report

    assets = [texts, beside, answers, report, of_failures, unplanned]
    nightly = dg.define_asset_job("nightly", dg.AssetSelection.all() - dg.AssetSelection.assets(unplanned))
    sensor = batch_sensor(nightly)
    defs = dg.Definitions(assets, jobs=[nightly], sensors=[sensor], resources={"llm": model(provider)})
    config = {"ops": {"answers": {"config": {"max_cost_usd": 5}}}}
    job = defs.resolve_job_def("nightly")
    job.execute_in_process(instance=instance, run_config=config)
    provider.end_all()
    (request,) = as_requests(tick(sensor, instance, defs))
    made = {key.path[-1] for key in request.asset_selection or ()}
    assert made == {"answers", "answers_failed", "report", "of_failures"}
    last = job.execute_in_process(
        instance=instance, run_config=request.run_config, asset_selection=list(request.asset_selection or ())
    )
    assert {event.asset_key.path[-1] for event in last.get_asset_materialization_events()} == made


@pytest.mark.parametrize(
    ("event", "note"),
    [
        (dg.DagsterEventType.RUN_START, "is running."),
        (dg.DagsterEventType.RUN_CANCELED, "was terminated; launch it again to read what its jobs answer."),
    ],
)
def test_running_or_terminated_run_is_not_continued(
    event: dg.DagsterEventType, note: str, instance: dg.DagsterInstance, provider: NightlyProvider
) -> None:
    """A run that waits for its jobs reads them itself; a terminated one is for a person to continue."""
    sensor = batch_sensor()
    defs = definitions(provider, sensor=sensor)
    first = run(instance, provider)
    provider.end_all()
    record = instance.get_run_by_id(first.run_id)
    assert record
    instance.handle_run_event(first.run_id, dg.DagsterEvent(event.value, record.job_name, message="As it is."))
    assert tick(sensor, instance, defs) == f"answers: the run {first.run_id} {note}"


def test_failing_resource_does_not_block_others(instance: dg.DagsterInstance, provider: NightlyProvider) -> None:
    """Each is polled with its own key; a failure is in the tick, or in the sensor's log if a run is requested."""
    own = asked_as("own", model=model(provider, api_key="third"))
    assets = [asked_as("first", resource_key="llm"), asked_as("second", resource_key="other"), own]
    sensor = batch_sensor(resource_keys=["llm", "other"])
    llms = {"llm": model(provider, api_key="one"), "other": model(provider, api_key="two")}
    for asset in assets:
        dg.materialize([asset], resources={} if asset is own else llms, instance=instance)
    assert [job.key for job in provider.jobs.values()] == ["one", "two", "third"]
    defs = dg.Definitions(assets, resources=llms, sensors=[sensor])
    reason = str(tick(sensor, instance, defs))
    assert [line.partition(":")[0] for line in reason.splitlines()] == ["first", "second", "own"]
    provider.refuse_key("two")
    with pytest.raises(dg.Failure, match="second: "):
        tick(sensor, instance, defs)
    provider.end_all()
    found = as_requests(tick(sensor, instance, defs))
    assert [request.asset_selection for request in found] == [[dg.AssetKey("first")], [dg.AssetKey("own")]]


def test_asset_renamed_after_its_definition_is_continued_with_its_own_model_and_failed_rows(
    instance: dg.DagsterInstance, provider: NightlyProvider
) -> None:
    """As by `key_prefix` of `load_assets_from_modules`: model and failed rows are those of the definition."""
    renamed = {dg.AssetKey(name): dg.AssetKey(["shop", name]) for name in ("own", "own_failed")}
    asset = asked_as("own", model=model(provider, api_key="own"), failed_rows=True).with_attributes(
        asset_key_replacements=renamed
    )
    sensor = batch_sensor(resource_keys=[])
    dg.materialize([asset], instance=instance)
    provider.end_all()
    (request,) = as_requests(tick(sensor, instance, dg.Definitions([asset], sensors=[sensor])))
    assert set(request.asset_selection or ()) == set(renamed.values())


def asked_as(name: str, **arguments: Any) -> dg.AssetsDefinition:
    @llm_asset(**ASKS, name=name, **arguments)
    def rows() -> pd.DataFrame:
        return table(name)

    return rows


def test_the_model_of_the_launchpad_is_polled(instance: dg.DagsterInstance, provider: NightlyProvider) -> None:
    """Jobs of a run with another model than the resource's are polled with that model."""
    sensor = batch_sensor()
    defs = definitions(provider, sensor=sensor)
    run(instance, provider, run_config={"ops": {"answers": {"config": {"model": "openai/gpt-4o"}}}})
    provider.end_all()
    (request,) = as_requests(tick(sensor, instance, defs))
    assert request.run_config["ops"]["answers"]["config"]["model"] == "openai/gpt-4o"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resource_keys": [1]}, "must be the key of a resource"),
        ({"resource_keys": 5}, "must be the key of a resource"),
        ({"minimum_interval_seconds": 0}, "must be a whole number from 1"),
        ({"minimum_interval_seconds": "60"}, "must be a whole number from 1"),
        ({"target": 7}, "must be keys of assets"),
    ],
)
def test_invalid_sensor_arguments_are_errors(arguments: dict[str, Any], message: str) -> None:
    """When the definitions load."""
    with pytest.raises(ConfigError, match=message):
        batch_sensor(**arguments)
