"""The example project, as a new user runs it."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from example_project.definitions import defs
from example_project.defs.assets import PROMPT, Sentiment, days, reviews
from example_project.defs.photos import PHOTOS, photo_labels, photos, product_photos
from example_project.draw_photos import PICTURES, draw

from ondine_core.providers.tokenizer import counter
from ondine_dagster import LLMAssetConfig, LLMResource, llm_asset
from tests.support import instances
from tests.support.deployment import environment
from tests.support.nightly_provider import NightlyProvider
from tests.support.provider import Provider
from tests.support.request_content import name_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TABLE = pd.read_csv(ROOT / "example_project/src/example_project/data/reviews.csv", keep_default_na=False)


def test_example_data_has_gaps_duplicates_and_labels() -> None:
    """A few hundred reviews over all days, some empty, some duplicate, and labelled."""
    assert set(TABLE["date"]) == set(days.get_partition_keys())
    assert len(TABLE) > 300
    assert TABLE["review_id"].is_unique
    written = TABLE[TABLE["review"].str.strip() != ""]
    assert set(written["label"]) == {"positive", "negative", "neutral"}
    assert (TABLE["review"].str.strip() == "").any()
    assert written["review"].duplicated().any()


@pytest.mark.parametrize("arguments", [["-w", "workspace.yaml"], ["-m", "example_project.definitions"]])
def test_dagster_loads_the_workspace(arguments: list[str], tmp_path: Path) -> None:
    """The files that `dagster dev` reads are valid."""
    validate(["dagster", "definitions", "validate", *arguments], ROOT, tmp_path)


def test_dg_loads_the_project(tmp_path: Path) -> None:
    """The files that `dg dev` reads are valid, and `dg` knows our package."""
    validate(["dg", "check", "defs"], ROOT / "example_project", tmp_path)


def validate(command: list[str], folder: Path, home: Path) -> None:
    program = Path(sys.executable).with_name(command[0])
    given = environment(home, {})
    done = subprocess.run([program, *command[1:]], cwd=folder, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_day(instance: dg.DagsterInstance, day: str) -> dg.ExecuteInProcessResult:
    job = defs().resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance, partition_key=day)


def figures_by_asset(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    events = [event.step_materialization_data.materialization for event in result.get_asset_materialization_events()]
    return {event.asset_key.path[-1]: {name: one.value for name, one in event.metadata.items()} for event in events}


def demonstrate(day: str, home: Path, **variables: str) -> str:
    """The output of the README's command, or of its module in an environment that this command did not make."""
    made_by_it = Path(sys.prefix, "ondine-installed").exists()
    command = [ROOT / "example_project"] if made_by_it else ["-m", "example_project"]
    given = environment(home, {"ONDINE_VENV": sys.prefix, **variables})
    done = subprocess.run(
        [sys.executable, *command, day], cwd=ROOT, env=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_embedded_model_beats_the_majority_and_a_re_run_asks_nothing(tmp_path: Path) -> None:
    """A real model classifies a day of reviews clearly better than the majority label; the second run is free."""
    printed = demonstrate("2026-01-07", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        first = latest_figures(instance)
        again = run_day(instance, "2026-01-07")
        second = latest_figures(instance)
    report, asked = first["sentiment_report"], first["review_sentiment"]["ondine/requests"]
    assert f"0 with stored answers, {asked} calls" in printed
    assert f"labels on {report['agreement']:.0%} of them" in printed
    assert report["agreement"] > report["majority_share"] + 0.15
    assert asked > 40
    assert second["review_sentiment"]["ondine/requests"] == second["review_department"]["ondine/requests"] == 0
    assert second["sentiment_report"]["agreement"] == report["agreement"]
    assert Path(report["file"]).stat().st_size > 1000
    table = again.output_for_node("review_department")
    assert first["review_department"]["ondine/requests"] == table["product"].nunique() < len(table)
    sold_in = dict(zip(table["product"], table["department"], strict=True))
    plain = {"headphones": "electronics", "novel": "books and games", "coffee beans": "food", "frying pan": "kitchen"}
    assert {product: sold_in[product] for product in plain if product in sold_in}.items() <= plain.items()


def latest_figures(instance: dg.DagsterInstance) -> dict[str, dict[str, Any]]:
    """The metadata of the latest materialization of each asset of a day's demonstration."""
    names = ("review_sentiment", "review_department", "sentiment_report")
    events = {name: instance.get_latest_materialization_event(dg.AssetKey(name)) for name in names}
    return {
        name: {label: one.value for label, one in event.asset_materialization.metadata.items()}
        for name, event in events.items()
        if event is not None and event.asset_materialization is not None
    }


@pytest.mark.filterwarnings(
    "ignore:Function `JobDefinition.run_request_for_partition`"
)  # Dagster calls this one itself,
@pytest.mark.filterwarnings("ignore:Parameter `include_sources`")  # and this one
def test_day_is_scheduled_and_departments_follow_automatically() -> None:
    """The schedule asks the past day; the automation condition waits for its reviews."""
    definitions, six = defs(), dt.datetime(2026, 1, 10, 6, tzinfo=dt.UTC)
    schedule = definitions.resolve_schedule_def("classify_reviews_schedule")
    with instances.ephemeral() as instance:
        tick = schedule.evaluate_tick(dg.build_schedule_context(instance, scheduled_execution_time=six))
        before = dg.evaluate_automation_conditions(definitions, instance, evaluation_time=six)
        seven = {"defs": definitions, "instance": instance, "evaluation_time": six + dt.timedelta(minutes=61)}
        waiting = dg.evaluate_automation_conditions(**seven, cursor=before.cursor)
        dg.materialize([reviews], instance=instance, partition_key="2026-01-09")
        due = dg.evaluate_automation_conditions(**seven, cursor=waiting.cursor)
    assert [request.partition_key for request in tick.run_requests or ()] == ["2026-01-09"]
    assert (before.total_requested, waiting.total_requested) == (0, 0)
    assert due.get_requested_partitions(dg.AssetKey("review_department")) == {"2026-01-09"}
    assert due.total_requested == 1


def test_enrichment_steps_share_a_pool() -> None:
    """So one limit in the UI applies to all of them."""
    jobs = defs().resolve_implicit_global_asset_job_def()
    assert {node.name for node in jobs.nodes if node.definition.pools} == {"review_sentiment", "review_department"}


def test_one_variable_switches_the_model(tmp_path: Path) -> None:
    """With ONDINE_MODEL and ONDINE_BASE_URL the example asks another model; duplicates are asked once."""
    answers = {True: {"department": "home"}, False: {"sentiment": "neutral"}}
    with Provider(lambda prompt: answers["Product:" in prompt]) as provider:
        variables = {"ONDINE_MODEL": "openai/gpt-4o-mini", "ONDINE_BASE_URL": provider.base_url}
        printed = demonstrate("2026-01-06", tmp_path, **variables)
        calls = Counter(asked.prompt for asked in provider.ledger.requests)
    day = TABLE[TABLE["date"] == "2026-01-06"]
    texts = day[day["review"].str.strip() != ""]["review"]
    assert calls.total() == len(calls) == texts.nunique() + day["product"].nunique()
    summary = f"{len(texts)} reviews, 0 with stored answers, {texts.nunique()} calls to openai/gpt-4o-mini, $0.0"
    assert summary in printed
    assert "Most complaints: none." in printed
    assert all("label" not in asked.prompt for asked in provider.ledger.requests)


def test_another_variable_asks_by_batch_jobs(tmp_path: Path) -> None:
    """With ONDINE_TIER=batch a day's reviews are one job and its products another; the sensor exists."""
    answers = {True: {"department": "home"}, False: {"sentiment": "neutral"}}
    with NightlyProvider(lambda prompt: answers["Product:" in prompt]) as provider:
        variables = {
            "ONDINE_MODEL": "openai/gpt-4o-mini",
            "ONDINE_TIER": "batch",
            "ONDINE_BASE_URL": provider.base_url,
            "OPENAI_API_KEY": "key",
        }
        demonstrate("2026-01-06", tmp_path, **variables)
    day = TABLE[TABLE["date"] == "2026-01-06"]
    texts = day[day["review"].str.strip() != ""]["review"]
    assert len(provider.ledger.created) == 2
    assert provider.ledger.billed.total() == texts.nunique() + day["product"].nunique()
    assert not provider.live
    sensor = defs().resolve_sensor_def("read_batch_jobs")
    with (
        instances.ephemeral() as instance,
        dg.build_sensor_context(
            instance=instance, definitions=defs(), resources={"llm": LLMResource(model="openai/gpt-4o-mini")}
        ) as context,
    ):
        assert sensor.evaluate_tick(context).skip_message == "No asset waits for batch jobs."


@pytest.mark.parametrize("batch_size", [1, 20])
def test_a_dry_run_comes_within_15_percent_of_the_bill_that_follows(batch_size: int) -> None:
    """For a day of the example's reviews, answered by their labels and billed as by OpenAI."""
    labels = dict(zip(TABLE["review"], TABLE["label"], strict=True))

    def answer(prompt: str) -> Any:
        if not prompt.startswith("["):
            return json.dumps({"sentiment": labels[prompt.partition("Review: ")[2]]})
        rows = [{"id": row["id"], "sentiment": labels[row["x"]]} for row in json.loads(prompt)]
        return json.dumps({"answers": rows})

    @llm_asset(prompt=PROMPT, output=Sentiment, batch_size=batch_size)
    def review_sentiment() -> pd.DataFrame:
        return TABLE[(TABLE["date"] == "2026-01-06") & (TABLE["review"].str.strip() != "")]

    with (
        Provider(answer, count=counter("openai/gpt-4o-mini")) as provider,
        instances.ephemeral() as instance,
    ):
        llm = LLMResource(model="openai/gpt-4o-mini", api_key="k", base_url=provider.base_url)
        dry = dg.RunConfig(ops={"review_sentiment": LLMAssetConfig(dry_run=True)})
        given: dict[str, Any] = {"instance": instance, "resources": {"llm": llm}}
        before = instances.materialize([review_sentiment], **given, run_config=dry)
        (observation,) = (event.asset_observation_data for event in before.get_asset_observation_events())
        asked, billed = len(provider.ledger.requests), instances.materialize([review_sentiment], **given)
    expected = {name: one.value for name, one in observation.asset_observation.metadata.items()}
    usd = figures_by_asset(billed)["review_sentiment"]["ondine/cost_usd"]
    assert asked == 0
    assert expected["ondine/estimated_cost_usd"] == pytest.approx(usd, rel=0.15)
    assert expected["ondine/estimated_cost_usd_least"] <= usd <= expected["ondine/estimated_cost_usd_most"]


def test_photo_assets_exist_with_a_vision_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default model has no vision; with another model each picture gets its own answer."""
    monkeypatch.delenv("ONDINE_MODEL", raising=False)
    assert not photos().assets
    monkeypatch.setenv("ONDINE_MODEL", "openai/gpt-5-mini")
    assert len(photos().assets or ()) == 2
    named = {name_of(file.read_bytes()): file.stem.split("-") for file in PHOTOS.glob("*.png")}

    def look(prompt: str) -> dict[str, str]:
        colour, product = named[prompt.rpartition("\n")[2]]
        return {"product": product, "colour": colour}

    with Provider(look) as provider:
        llm = LLMResource(model="openai_compatible/eyes", base_url=provider.base_url)
        result = instances.materialize([product_photos, photo_labels], resources={"llm": llm})
    table = result.output_for_node("photo_labels")
    assert list(table["colour"] + "-" + table["product"] + ".png") == list(table["photo"])
    assert len(table) == 6


def test_the_photos_are_those_that_the_script_draws() -> None:
    """Each has less than 2 kB."""
    assert {file.stem for file in PHOTOS.glob("*.png")} == set(PICTURES)
    for name, picture in PICTURES.items():
        content = (PHOTOS / f"{name}.png").read_bytes()
        assert content == draw(*picture)
        assert len(content) < 2_000
