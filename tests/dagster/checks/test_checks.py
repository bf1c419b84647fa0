"""Checks on enriched assets, through real materializations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.errors import ConfigError
from ondine_core.providers.scripted import ScriptedModel
from ondine_dagster import (
    CostPerRowCheck,
    DriftCheck,
    ErrorRateCheck,
    GoldenCheck,
    LLMResource,
    NullRateCheck,
    llm_asset,
)
from ondine_dagster.checks.drift import distance, distance_by_chance
from tests.support import instances
from tests.support.provider import Provider
from tests.support.review_assets import PROMPT, Mood, answer, checks_of, metadata_of, moods_of, run, values

DAYS = dg.DailyPartitionsDefinition("2026-01-01")
LABELLED = [{"review": "good", "mood": "good"}]


def test_an_enum_of_lists_has_no_distribution() -> None:
    """Its values cannot be counted; a step with such a column failed when all rows were paid."""

    @llm_asset(prompt=PROMPT, output={"pair": {"enum": [["a", "b"], ["c", "d"]]}, "kind": {"const": {"a": 1}}})
    def pairs() -> pd.DataFrame:
        return pd.DataFrame({"review": ["good", "bad"]})

    result = instances.materialize(
        [pairs], resources={"llm": ScriptedModel({"": {"pair": ["c", "d"], "kind": {"a": 1}}})}
    )
    assert list(result.output_for_node("pairs")["pair"]) == ['["c", "d"]', '["c", "d"]']


def test_check_of_a_partitioned_asset_that_is_run_without_a_partition() -> None:
    """The UI launches the check alone, in a run without partitions; the error says what to run instead."""

    @llm_asset(
        prompt=PROMPT, output=Mood, checks=[ErrorRateCheck(max_rate=0.5)], partitions_def=DAYS, partition_by="day"
    )
    def moods() -> pd.DataFrame:
        return pd.DataFrame({"day": ["2026-01-01"], "review": ["good"]})

    job = dg.define_asset_job("only_checks", dg.AssetSelection.checks_for_assets(moods))
    defs = dg.Definitions(assets=[moods], jobs=[job], resources={"llm": ScriptedModel(answer)})
    with pytest.raises(dg.Failure, match=r"needs a run of partitions.*materialize a partition"):
        defs.resolve_job_def("only_checks").execute_in_process()


# -- when the definitions load -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "complaint"),
    [
        (ErrorRateCheck(max_rate=1.5), "max_rate=1.5 .* between 0 and 1"),
        ({"type": "error_rate", "max_rate": "0.5"}, "max_rate='0.5'"),
        ({"type": "error_rate", "max_rate": True}, "max_rate=True"),
        ({"type": "error_rate"}, "lacks an argument.*'max_rate'"),
        ({"type": "error_rate", "most": 0.1}, "has no 'most'.*'max_rate'"),
        ({"type": "errors"}, "type='errors'.*'error_rate'"),
        ({"type": ["error_rate"]}, r"type=\['error_rate'\]"),
        ({"max_rate": 0.1}, "type=None"),
        ("error_rate", "checks has a str"),
        ({"type": "error_rate", "max_rate": 0.1, "blocking": "yes"}, "blocking='yes'"),
        (ErrorRateCheck(max_rate=0.1, name="too many"), "name 'too many'"),
        (NullRateCheck(max_rate=0.1, columns="topics"), "about 'topics'.*'topic'"),
        (NullRateCheck(max_rate=0.1, columns=[]), "names no columns"),
        (NullRateCheck(max_rate=0.1, columns=5), "columns=5 of a check must be names"),
        ({"type": "error_rate", "max_rate": 0.1, "name": 5}, "name=5 of a check must be a text"),
        (CostPerRowCheck(max_usd=0), "max_usd=0 "),
        (DriftCheck(column="summary", max_distance=0.1), "'summary' has no closed set"),
        (DriftCheck(column="moods", max_distance=0.1), "about 'moods'"),
        (DriftCheck(column="mood", max_distance=-1), "max_distance=-1"),
        (GoldenCheck(rows=LABELLED, min_score=90), "min_score=90"),
        (GoldenCheck(rows=LABELLED, min_score=0.9, metric="recall"), "metric='recall'"),
        (GoldenCheck(rows=LABELLED, min_score=0.9, columns="topic"), "lack the labels 'topic'"),
        (GoldenCheck(rows=[], min_score=0.9), "empty"),
        (GoldenCheck(rows=[{"review": "good"}], min_score=0.9), "no labels"),
        (GoldenCheck(rows=[{"mood": "good"}], min_score=0.9), "lack 'review'"),
        (GoldenCheck(rows=3, min_score=0.9), "int is not a table"),
        (GoldenCheck(rows=[{"review": "x", "summary": "y"}], min_score=0.9, metric="f1"), "'summary' has no closed"),
        (GoldenCheck(rows=[{"review": "x", "mood": "Good"}], min_score=0.9), "1 labels of 'mood'.*\"good\""),
    ],
)
def test_invalid_check_is_an_error_when_definitions_load(check: Any, complaint: str) -> None:
    """With what is valid, before any call."""
    with pytest.raises(ConfigError, match=complaint):
        moods_of("good", checks=[check])


def test_checks_of_one_name_are_refused() -> None:
    """One would hide the other; `name` makes them differ."""
    twice = [NullRateCheck(max_rate=0.1), NullRateCheck(max_rate=0.5)]
    with pytest.raises(ConfigError, match="Two checks are called 'null_rate'"):
        moods_of("good", checks=twice)
    asset = moods_of("good", checks=[twice[0], NullRateCheck(max_rate=0.5, name="half", blocking=True)])
    specs = {spec.name: spec for spec in asset.check_specs}
    assert {name: spec.blocking for name, spec in specs.items()} == {"null_rate": False, "half": True}


def test_mapping_is_a_check_by_its_type() -> None:
    """As YAML writes it."""
    pairs = [
        (ErrorRateCheck(max_rate=0.1), {"type": "error_rate", "max_rate": 0.1}),
        (NullRateCheck(max_rate=0.1, columns=["topic"]), {"type": "null_rate", "max_rate": 0.1, "columns": ["topic"]}),
        (CostPerRowCheck(max_usd=0.1), {"type": "cost_per_row", "max_usd": 0.1}),
        (DriftCheck(column="mood", max_distance=0), {"type": "drift", "column": "mood", "max_distance": 0}),
        (
            GoldenCheck(rows="shop/labelled", min_score=1, columns="mood", blocking=True),
            {"type": "golden", "rows": "shop/labelled", "min_score": 1, "columns": "mood", "blocking": True},
        ),
    ]
    values, mappings = (moods_of("good", checks=checks) for checks in zip(*pairs, strict=True))
    assert list(values.check_specs) == list(mappings.check_specs)
    names = [spec.name for spec in values.check_specs]
    assert names == ["error_rate", "null_rate_topic", "cost_per_row", "drift_mood", "golden_mood"]
    assert values.keys_by_input_name == mappings.keys_by_input_name
    assert dg.AssetKey(["shop", "labelled"]) in values.dependency_keys


def test_check_specs_are_refused_with_the_alternative() -> None:
    """The function returns rows and cannot answer a check."""
    with pytest.raises(ConfigError, match=r"checks=\[...\]"):
        moods_of("good", check_specs=[dg.AssetCheckSpec("mine", asset="moods")])


# -- error rate, nulls, cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "passed"), [(0.25, True), (0.24, False)])
def test_error_rate(most: float, passed: bool) -> None:
    """The share of all rows that failed; it passes up to and including the threshold."""
    result = run(moods_of("good", "bad", "good price", "junk", checks=[ErrorRateCheck(max_rate=most)]))
    check = checks_of(result)["error_rate"]
    assert (check.passed, check.severity) == (passed, dg.AssetCheckSeverity.WARN)
    assert check.description == "1 of 4 rows failed."
    assert values(check.metadata) == {"ondine/error_rate": 0.25, "ondine/rows_failed": 1}
    assert result.success


@pytest.mark.parametrize("on_row_error", ["null", "drop"])
@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_null_rate_is_of_the_answered_rows(on_row_error: str, kind: str) -> None:
    """A failed row does not count as a null answer, with any `on_row_error` and any frame."""
    import polars as pl
    import pyarrow as pa

    texts = {"review": ["good price", "bad", "bad quality long", "junk", "good"]}

    @llm_asset(
        prompt=PROMPT,
        output=Mood,
        on_row_error=on_row_error,
        checks=[NullRateCheck(max_rate=0.5, columns=["topic", "mood"]), NullRateCheck(max_rate=0.5, columns="summary")],
    )
    def moods():  # noqa: ANN202
        return {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}[kind](texts)

    checks = checks_of(run(moods))
    nulls = values(checks["null_rate"].metadata)
    assert nulls["ondine/nulls"] == [{"column": "topic", "null_rate": 0.5}, {"column": "mood", "null_rate": 0.0}]
    assert (checks["null_rate"].passed, nulls["ondine/null_rate"]) == (True, 0.5)
    assert checks["null_rate_summary"].passed is False
    assert checks["null_rate_summary"].description == "0.75 of the answers in 'summary' are null."


def test_null_rate_covers_all_columns_by_default() -> None:
    """The worst of them decides."""
    check = checks_of(run(moods_of("good price", checks=[NullRateCheck(max_rate=0.9)])))["null_rate"]
    assert not check.passed
    assert "'summary'" in str(check.description)


def test_cost_per_row_counts_repairs_and_rows_that_were_asked_only(tmp_path: Path) -> None:
    """A run's spend divided by its asked rows; reused rows do not lower it."""
    tries = iter(["nonsense"])
    with Provider(lambda _: next(tries, None) or {"mood": "good"}) as provider:
        llm = LLMResource(model="openai/gpt-4o-mini", base_url=provider.base_url, store=str(tmp_path / "answers.db"))
        asset = moods_of("a", "b", output={"mood": {"enum": ["good"]}}, checks=[CostPerRowCheck(max_usd=1e-9)])
        check = checks_of(run(asset, llm=llm))["cost_per_row"]
        # $0.15 and $0.60 a million tokens, three calls for two rows
        usd = (provider.ledger.input_tokens * 0.15 + provider.ledger.output_tokens * 0.60) / 1e6
        assert len(provider.ledger.requests) == 3
        assert values(check.metadata)["ondine/cost_per_row_usd"] == pytest.approx(usd / 2)
        assert not check.passed
        again = checks_of(run(asset, llm=llm))["cost_per_row"]
    assert (again.passed, again.description) == (True, "No row was asked.")


def test_cost_per_row_without_a_price_fails_with_the_fix() -> None:
    """An unknown cost does not pass."""
    with Provider(answer) as provider:
        llm = LLMResource(model="openai_compatible/unheard-of", base_url=provider.base_url)
        check = checks_of(run(moods_of("good", checks=[CostPerRowCheck(max_usd=1)]), llm=llm))["cost_per_row"]
    assert not check.passed
    assert "input_cost_per_1k_tokens" in str(check.description)


# -- drift -----------------------------------------------------------------------------------------------------------

COUNTS = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 50), min_size=1)


@given(COUNTS, COUNTS)
def test_distance_is_the_total_variation_distance(one: dict[str, int], other: dict[str, int]) -> None:
    """Half the sum of differences equals the definition, the largest difference over all sets of values."""
    total, rest = sum(one.values()), sum(other.values())
    events = [[value for bit, value in enumerate("abcde") if mask >> bit & 1] for mask in range(32)]
    largest = max(
        abs(sum(one.get(v, 0) for v in event) / total - sum(other.get(v, 0) for v in event) / rest) for event in events
    )
    assert distance(one, other) == pytest.approx(largest)
    assert distance(one, other) == pytest.approx(distance(other, one))
    assert distance(one, one) == 0


def test_expected_distance_matches_random_samples() -> None:
    """Two samples of one distribution are that far apart on average."""
    import random

    rng = random.Random(7)
    shares, sizes = {"a": 0.6, "b": 0.3, "c": 0.1}, (200, 300)
    found, expected = [], []
    for _ in range(400):
        one, other = (
            {v: drawn.count(v) for v in shares if v in drawn}
            for drawn in (rng.choices(list(shares), list(shares.values()), k=size) for size in sizes)
        )
        found.append(distance(one, other))
        expected.append(distance_by_chance(one, other))
    assert sum(expected) / len(expected) == pytest.approx(sum(found) / len(found), rel=0.1)


def test_drift_compares_with_the_materialization_before() -> None:
    """The first has no baseline; the second's distance is the difference of its shares, nulls included."""
    drift = [DriftCheck(column=column, max_distance=0.2) for column in ("mood", "topic", "angry")]
    with instances.ephemeral() as instance:
        first = run(moods_of("good", "good price", "bad", "bad angry", "junk", checks=drift), instance=instance)
        assert metadata_of(first, "moods")["ondine/distribution"] == {
            "mood": [["good", 2], ["bad", 2]],
            "topic": [[None, 3], ["price", 1]],
            "angry": [[False, 3], [True, 1]],
        }
        assert {check.description for check in checks_of(first).values()} == {
            "There is no earlier materialization to compare with."
        }
        second = checks_of(run(moods_of("good", "good quality", "good x", "bad", checks=drift), instance=instance))
    assert {name: check.passed for name, check in second.items()} == {
        "drift_mood": False,
        "drift_topic": False,
        "drift_angry": False,
    }
    mood, topic = values(second["drift_mood"].metadata), values(second["drift_topic"].metadata)
    assert (mood["ondine/distance"], mood["ondine/rows_before"], mood["ondine/rows_now"]) == (0.25, 4, 4)
    assert mood["ondine/shares"][0] == {"value": "good", "before": 0.5, "now": 0.75}
    assert 0 < mood["ondine/distance_by_chance"] < 1
    assert {share["value"] for share in topic["ondine/shares"]} == {"null", "price", "quality"}
    assert first.run_id[:8] in str(second["drift_mood"].description)


def test_drift_skips_materializations_without_figures() -> None:
    """A materialization reported from elsewhere is not a baseline."""
    asset = moods_of("good", "bad", checks=[DriftCheck(column="mood", max_distance=0)])
    with instances.ephemeral() as instance:
        run(asset, instance=instance)
        instance.report_runless_asset_event(dg.AssetMaterialization("moods"))
        check = checks_of(run(asset, instance=instance))["drift_mood"]
    assert check.passed
    assert values(check.metadata)["ondine/distance"] == 0.0


def daily(partitions: dg.PartitionsDefinition[Any], texts: dict[str, list[str]]) -> dg.AssetsDefinition:
    @llm_asset(
        prompt=PROMPT,
        output=Mood,
        partitions_def=partitions,
        checks=[DriftCheck(column="mood", max_distance=0.1)],
    )
    def moods(context):  # noqa: ANN001, ANN202
        return pd.DataFrame({"review": texts[str(context.partition_key)]})

    return moods


def drift_of(asset: dg.AssetsDefinition, partition: str, instance: dg.DagsterInstance) -> str:
    check = checks_of(run(asset, partition_key=partition, instance=instance))["drift_mood"]
    return f"{check.passed} {check.description}"


def test_drift_of_a_day_is_from_the_latest_day_before() -> None:
    """Neither the day itself nor a later one, in whatever order days are filled."""
    texts = {"2026-01-02": ["good", "bad"], "2026-01-05": ["good"], "2026-01-09": ["bad"]}
    with instances.ephemeral() as instance:
        asset = daily(DAYS, texts)
        assert "no earlier" in drift_of(asset, "2026-01-09", instance)
        assert "no earlier" in drift_of(asset, "2026-01-02", instance)
        assert "False The distance from 2026-01-02 is 0.5" in drift_of(asset, "2026-01-05", instance)
        assert "False The distance from 2026-01-05 is 1" in drift_of(asset, "2026-01-09", instance)
        assert "from 2026-01-02" in drift_of(asset, "2026-01-05", instance)


def test_drift_of_a_static_partition_is_from_itself() -> None:
    """One tenant's distribution is not a baseline for another's."""
    texts = {"de": ["good"], "fr": ["bad"]}
    with instances.ephemeral() as instance:
        asset = daily(dg.StaticPartitionsDefinition(["de", "fr"]), texts)
        assert "no earlier" in drift_of(asset, "de", instance)
        assert "no earlier" in drift_of(asset, "fr", instance)
        texts["de"] = ["bad"]
        assert "False The distance from de is 1" in drift_of(asset, "de", instance)


def test_drift_of_a_day_and_a_tenant_is_from_the_tenants_day_before() -> None:
    """Of several dimensions the time one moves, and the others stay."""
    both = dg.MultiPartitionsDefinition({"day": DAYS, "tenant": dg.StaticPartitionsDefinition(["de", "fr"])})

    def key(day: str, tenant: str) -> dg.MultiPartitionKey:
        return dg.MultiPartitionKey({"day": day, "tenant": tenant})

    texts = {
        str(key(day, tenant)): [mood]
        for day, tenant, mood in [("2026-01-01", "de", "good"), ("2026-01-02", "fr", "bad")]
    }
    texts[str(key("2026-01-03", "de"))] = ["good"]
    with instances.ephemeral() as instance:
        asset = daily(both, texts)
        assert "no earlier" in drift_of(asset, key("2026-01-01", "de"), instance)
        assert "no earlier" in drift_of(asset, key("2026-01-02", "fr"), instance)
        assert "True The distance from 2026-01-01|de is 0" in drift_of(asset, key("2026-01-03", "de"), instance)


def test_partitions_of_one_run_have_their_own_distributions() -> None:
    """The day after a range is compared with the range's last day, not with all of it."""

    class Memory(dg.IOManager):
        def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
            """Store nothing."""

        def load_input(self, context: dg.InputContext) -> Any:
            """Nothing is loaded."""

    @llm_asset(
        prompt=PROMPT,
        output=Mood,
        partitions_def=DAYS,
        failed_rows=True,
        checks=[DriftCheck(column="mood", max_distance=0.1)],
    )
    def moods(context):  # noqa: ANN001, ANN202
        texts = {"2026-01-01": ["good", "good"], "2026-01-02": ["bad", "junk"], "2026-01-03": ["bad"]}
        return {key: pd.DataFrame({"review": texts[key]}) for key in context.partition_keys}

    resources = {"llm": ScriptedModel(answer), "io_manager": Memory()}
    job = dg.Definitions(assets=[moods], resources=resources).resolve_implicit_global_asset_job_def()
    tags = {"dagster/asset_partition_range_start": "2026-01-01", "dagster/asset_partition_range_end": "2026-01-02"}
    with instances.ephemeral() as instance:
        first = job.execute_in_process(instance=instance, tags=tags)
        made = [event.step_materialization_data.materialization for event in first.get_asset_materialization_events()]
        found = {(one.asset_key.path[-1], one.partition): values(one.metadata) for one in made}
        check = checks_of(job.execute_in_process(instance=instance, partition_key="2026-01-03"))["drift_mood"]
    assert found["moods", "2026-01-01"]["ondine/distribution"]["mood"] == [["good", 2]]
    assert found["moods", "2026-01-02"]["ondine/distribution"]["mood"] == [["bad", 1]]
    failures = {day: figures["ondine/rows_failed"] for (name, day), figures in found.items() if name == "moods_failed"}
    assert failures == {"2026-01-01": 0, "2026-01-02": 1}
    assert check.passed
    assert "from 2026-01-02 is 0" in str(check.description)


# -- blocking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocking", [True, False])
def test_only_a_blocking_check_stops_downstream_assets(blocking: bool) -> None:
    """The asset is materialized in any case, and a retry policy asks nothing again."""

    @dg.asset
    def dashboard(moods: pd.DataFrame) -> int:
        return len(moods)

    check = ErrorRateCheck(max_rate=0.1, blocking=blocking)
    llm = ScriptedModel(answer)
    asset = moods_of("good", "junk", checks=[check], retry_policy=dg.RetryPolicy(max_retries=2))
    result = run(asset, dashboard, llm=llm)
    filled = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
    assert filled == ({"moods"} if blocking else {"moods", "dashboard"})
    assert result.success is not blocking
    severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN
    assert checks_of(result)["error_rate"].severity == severity
    assert len(llm.calls) == 1 + 4  # the bad row is repaired three times, once
