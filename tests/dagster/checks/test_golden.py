"""Golden checks: labelled rows asked like the asset's own, through real materializations."""

from __future__ import annotations

import _thread
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from ondine_core.providers.scripted import ScriptedModel
from ondine_dagster import GoldenCheck, LLMResource, llm_asset
from tests.support import instances
from tests.support.deployment import environment
from tests.support.provider import Provider
from tests.support.review_assets import PROMPT, Mood, answer, checks_of, metadata_of, moods_of, run, values

# The outputs of `answer` for them: good, bad, bad, good, and none.
REVIEWS = ["good price", "bad", "bad too", "so good", "junk"]
LABELS = ["good", "bad", "good", "good", "bad"]


def golden(**arguments: Any) -> GoldenCheck:
    rows = arguments.pop("rows", {"review": REVIEWS, "mood": LABELS})
    return GoldenCheck(**{"rows": rows, "min_score": 0.6, **arguments})


def check_of(check: GoldenCheck, *texts: str, **options: Any) -> dg.AssetCheckEvaluation:
    (found,) = checks_of(run(moods_of(*(texts or ("good",)), checks=[check], **options))).values()
    return found


# -- the score -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "passed"), [(0.6, True), (0.61, False)])
def test_accuracy_counts_rows_without_an_answer_as_wrong(least: float, passed: bool) -> None:
    """Three of five labels match, and a score equal to the threshold passes."""
    check = check_of(golden(min_score=least))
    assert check.passed is passed
    assert check.description == f"The accuracy of 'mood' is 0.600, at least {least} is required."
    found = values(check.metadata)
    assert (found["ondine/score"], found["ondine/rows_total"], found["ondine/rows_failed"]) == (0.6, 5, 1)


def test_f1_is_the_mean_over_labels() -> None:
    """Good: two answered, three expected, two matching. Bad: two answered, two expected, one matching."""
    check = check_of(golden(metric="f1"))
    good, bad = 2 * 2 / (3 + 2), 2 * 1 / (2 + 2)
    assert values(check.metadata)["ondine/score"] == pytest.approx((good + bad) / 2, abs=1e-6)


def test_metadata_has_scores_by_label_and_confusions() -> None:
    """For each label its matches, and for each mismatch the answer given."""
    found = values(check_of(golden()).metadata)
    assert found["ondine/scores"] == [{"column": "mood", "rows": 5, "accuracy": 0.6, "f1": 0.65}]
    names = ("column", "label", "expected", "answered", "precision", "recall", "f1")
    assert [tuple(label[name] for name in names) for label in found["ondine/labels"]] == [
        ("mood", "good", 3, 2, 1.0, 0.6667, 0.8),
        ("mood", "bad", 2, 2, 0.5, 0.5, 0.5),
    ]
    assert found["ondine/confusion"].splitlines() == [
        "| mood: label, answer → | good | bad | (no answer) |",
        "| --- | --- | --- | --- |",
        "| good | 2 | 1 |  |",
        "| bad |  | 1 | 1 |",
    ]


def test_every_column_has_to_reach_the_score() -> None:
    """The worst column decides; by default every column with labels counts."""
    rows = {"review": ["good price", "bad"], "mood": ["good", "bad"], "topic": ["quality", None]}
    check = check_of(golden(rows=rows, min_score=0.9))
    assert not check.passed
    assert "of 'topic' is 0.500" in str(check.description)
    assert [one["column"] for one in values(check.metadata)["ondine/scores"]] == ["mood", "topic"]
    assert check_of(golden(rows=rows, min_score=0.9, columns="mood")).passed


def test_missing_label_is_null_only_in_a_nullable_column() -> None:
    """In any other column the row is unlabelled and does not count."""
    rows = {"review": ["good", "bad price"], "mood": ["good", None], "topic": [None, None]}
    found = {one["column"]: one for one in values(check_of(golden(rows=rows)).metadata)["ondine/scores"]}
    assert (found["mood"]["rows"], found["mood"]["accuracy"]) == (1, 1.0)
    assert (found["topic"]["rows"], found["topic"]["accuracy"]) == (2, 0.5)


def test_free_text_is_compared_without_being_shown() -> None:
    """Accuracy is computed; texts of rows and answers are in no metadata."""
    rows = {"review": ["a long secret", "short"], "summary": ["a long secret", "other"]}
    found = values(check_of(golden(rows=rows, min_score=0.5)).metadata)
    assert found["ondine/scores"] == [{"column": "summary", "rows": 2, "accuracy": 0.5, "f1": None}]
    assert "secret" not in str(found)


def test_confusion_table_of_many_labels_is_bounded() -> None:
    """Rare labels are grouped; every row is counted."""
    failed_rows_result = [chr(ord("a") + number) for number in range(26)]
    rows = {"review": failed_rows_result, "letter": failed_rows_result}
    asset_options = {"output": {"letter": {"enum": failed_rows_result}}}
    llm = ScriptedModel(lambda prompt: {"letter": prompt[-1]})
    result = run(moods_of("a", checks=[golden(rows=rows)], **asset_options), llm=llm)
    table = values(checks_of(result)["golden"].metadata)["ondine/confusion"].splitlines()
    assert len(table) == 2 + 12
    assert table[-1].startswith("| 15 others |")
    assert sum(int(cell) for line in table[2:] for cell in line.split("|")[2:] if cell.strip()) == 26


@pytest.mark.parametrize(
    "kind",
    [pd.DataFrame, pl.DataFrame, pa.table, dict, lambda columns: pd.DataFrame(columns).to_dict("records")],
)
def test_labelled_rows_may_be_any_table(kind: Callable[[dict[str, list[str]]], Any]) -> None:
    """Frames of every kind, columns, or a list of rows as in YAML."""
    assert check_of(golden(rows=kind({"review": REVIEWS, "mood": LABELS}))).passed


# -- how rows are asked ----------------------------------------------------------------------------------------------


def answer_batch(prompt: str) -> Any:
    rows = json.loads(prompt)
    return {"answers": [{"id": row["id"], **answer(f"Review: {row['x']}")} for row in rows]}


def test_labelled_rows_are_batched_billed_and_stored_like_others(tmp_path: Path) -> None:
    """Their second run makes no call."""
    rows = {"review": REVIEWS[:4], "mood": LABELS[:4]}
    asset = moods_of("good one", "good two", batch_size=20, checks=[golden(rows=rows)])
    with Provider(answer_batch) as provider:
        llm = LLMResource(model="openai/gpt-4o-mini", base_url=provider.base_url, store=str(tmp_path / "answers.db"))
        first = checks_of(run(asset, llm=llm))["golden"]
        assert [len(json.loads(asked.prompt)) for asked in provider.ledger.requests] == [2, 4]
        second = checks_of(run(asset, llm=llm))["golden"]
        assert len(provider.ledger.requests) == 2
    first_figures, second_figures = values(first.metadata), values(second.metadata)
    assert first_figures["ondine/cost_usd"] > 0 == second_figures["ondine/cost_usd"]
    assert (first_figures["ondine/rows_reused"], second_figures["ondine/rows_reused"]) == (0, 4)
    assert first_figures["ondine/score"] == second_figures["ondine/score"] == 0.75


def test_partitions_share_the_answers() -> None:
    """Each partition has its result, and the sample is paid once; labelled rows need no partitions."""

    @dg.asset
    def labelled() -> pd.DataFrame:
        return pd.DataFrame({"review": REVIEWS[:4], "mood": LABELS[:4]})

    @llm_asset(
        prompt=PROMPT,
        output=Mood,
        partitions_def=dg.StaticPartitionsDefinition(["de", "fr"]),
        checks=[golden(rows="labelled")],
    )
    def moods(context):  # noqa: ANN001, ANN202
        return pd.DataFrame({"review": [f"good {context.partition_key}"]})

    llm = ScriptedModel(answer)
    with instances.ephemeral() as instance:
        run(labelled, instance=instance)
        for partition in ("de", "fr"):
            result = run(moods, labelled, llm=llm, partition_key=partition, instance=instance, selection=[moods])
            assert checks_of(result)["golden"].passed
    assert len(llm.calls) == 2 + 4


@pytest.mark.slow
def test_partitions_in_processes_of_their_own_pay_for_the_sample_once(tmp_path: Path) -> None:
    """Concurrent processes wait for the one that asks it, and reuse its answers."""
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        run(moods_of("good"), instance=instance)  # Dagster's databases cannot be created by several processes at once
    with Provider(lambda prompt: {"answer": prompt.rpartition("Text: ")[2]}, latency_s=0.2) as provider:
        given = environment(tmp_path, {"TEST_BASE_URL": provider.base_url})
        command = [sys.executable, "-m", "tests.support.golden_project"]
        root = Path(__file__).parents[3]
        runs = [subprocess.Popen([*command, name], cwd=root, env=given) for name in "abc"]
        assert [run.wait(timeout=300) for run in runs] == [0] * 3
        asked = provider.ledger.calls_by_prompt
    assert len(asked) == 3 + 30
    assert set(asked.values()) == {1}


def test_labelled_rows_from_upstream_are_only_an_input() -> None:
    """They are neither enriched nor in the column lineage."""

    @dg.asset(key=["people", "labelled"])
    def labelled() -> pd.DataFrame:
        return pd.DataFrame({"review": REVIEWS, "mood": LABELS})

    @dg.asset
    def reviews() -> pd.DataFrame:
        return pd.DataFrame({"review": ["good"]})

    @llm_asset(prompt=PROMPT, output=Mood, checks=[golden(rows=labelled), golden(rows="people/labelled", name="two")])
    def moods(reviews: pd.DataFrame) -> pd.DataFrame:
        return reviews

    result = run(reviews, labelled, moods)
    assert len(result.output_for_node("moods")) == 1
    assert {name: check.passed for name, check in checks_of(result).items()} == {"golden": True, "two": True}
    assert moods.dependency_keys == {dg.AssetKey("reviews"), dg.AssetKey(["people", "labelled"])}
    lineage = metadata_of(result, "moods")["dagster/column_lineage"].deps_by_column
    assert lineage["mood"] == [dg.TableColumnDep(dg.AssetKey("reviews"), "review")]


def test_a_golden_check_can_be_run_without_its_asset() -> None:
    """Other labels can be tried without a materialization and, with known answers, without a call."""

    def labelled(name: str, label: str) -> dg.AssetsDefinition:
        @dg.asset(name=name)
        def rows() -> pd.DataFrame:
            return pd.DataFrame({"review": ["good"], "mood": [label]})

        return rows

    upstream = [labelled("right", "good"), labelled("wrong", "bad")]
    moods = moods_of("good", checks=[golden(rows="right", name="one"), golden(rows="wrong", name="two")])
    llm = ScriptedModel(answer)
    with instances.ephemeral() as instance:
        run(*upstream, moods, llm=llm, instance=instance)
        calls = len(llm.calls)
        only = dg.AssetSelection.checks(dg.AssetCheckKey(moods.key, "two"))
        result = run(*upstream, moods, llm=llm, instance=instance, selection=only)
    assert {name: check.passed for name, check in checks_of(result).items()} == {"two": False}
    assert result.get_asset_materialization_events() == []
    assert len(llm.calls) == calls == 1


def test_interrupt_during_the_golden_check_reports_the_spend() -> None:
    """The asset has no table then, but its answers and figures are kept."""

    def script(prompt: str) -> Any:
        if "labelled" in prompt:
            _thread.interrupt_main()
        return answer(prompt)

    rows = [{"review": "a labelled one", "mood": "good"}]
    llm = ScriptedModel(script, latency_s=0.2)
    moods = moods_of("good", "bad", checks=[golden(rows=rows)])
    with instances.ephemeral() as instance:
        assert not run(moods, llm=llm, instance=instance).success
        wanted = dg.AssetRecordsFilter(asset_key=moods.key)
        record = instance.fetch_observations(wanted, limit=1).records[0]
        assert record.asset_observation is not None
        assert values(record.asset_observation.metadata)["ondine/progress/requests"] == 2
        assert not instance.fetch_materializations(wanted, limit=5).records
        assert len(llm.calls) == 3


# -- when rows cannot be asked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ({"review": ["x"], "mood": ["Good"]}, "1 labels of 'mood' can be no answer"),
        ({"review": ["x"]}, "no labels"),
        ({"mood": ["good"]}, "lack 'review'"),
        ({"review": [], "mood": []}, "no labelled rows"),
        ({"review": ["x"], "mood": [None]}, "No row has a label in 'mood'"),
    ],
)
def test_invalid_labelled_rows_fail_the_check_alone(rows: Any, complaint: str) -> None:
    """The error is reported; the asset's own rows are answered and stored."""

    @dg.asset
    def labelled() -> pd.DataFrame:
        return pd.DataFrame(rows)

    result = run(labelled, moods_of("good", checks=[golden(rows="labelled")]))
    check = checks_of(result)["golden"]
    assert result.success
    assert not check.passed
    assert complaint in str(check.description)


def test_exhausted_budget_fails_the_check_and_keeps_the_table(tmp_path: Path) -> None:
    """The sample shares the materialization's cap; a higher one lets the check finish."""
    rows = {"review": [f"good {number}" for number in range(300)], "mood": ["good"] * 300}

    def asset(cap: float) -> dg.AssetsDefinition:
        return moods_of("good", max_cost_usd=cap, checks=[golden(rows=rows)])

    with Provider(answer) as provider:
        llm = LLMResource(
            model="openai/gpt-4o-mini",
            base_url=provider.base_url,
            max_output_tokens=100,
            store=str(tmp_path / "answers.db"),
        )
        result = run(asset(0.0005), llm=llm)
        ledger = provider.ledger
        assert (ledger.input_tokens * 0.15 + ledger.output_tokens * 0.60) / 1e6 <= 0.0005
        assert result.success
        check = checks_of(result)["golden"]
        assert not check.passed
        assert "max_cost_usd=0.0005 is used up" in str(check.description)
        assert result.output_for_node("moods")["mood"].tolist() == ["good"]
        assert checks_of(run(asset(1), llm=llm))["golden"].passed
        assert len(ledger.requests) == 301


@pytest.mark.parametrize("blocking", [True, False])
def test_blocking_golden_check_stops_downstream_assets(blocking: bool) -> None:
    """The asset has its table, the dashboard is not made."""

    @dg.asset
    def dashboard(moods: pd.DataFrame) -> int:
        return len(moods)

    result = run(moods_of("good", checks=[golden(min_score=0.9, blocking=blocking)]), dashboard)
    filled = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
    assert filled == ({"moods"} if blocking else {"moods", "dashboard"})
    assert result.success is not blocking
