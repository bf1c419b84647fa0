"""`llm_asset` and `build_llm_asset`, materialized in process with the scripted model and a loopback provider."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from pydantic import BaseModel, Field

from ondine_core.errors import ConfigError, RefusedError
from ondine_core.prompts.template import Prompt
from ondine_core.providers.scripted import ScriptedModel
from ondine_dagster import GoldenCheck, LLMResource, build_llm_asset, llm_asset
from tests.support import instances
from tests.support.provider import Provider, after, error, matching

if TYPE_CHECKING:
    from decimal import Decimal

DAYS = dg.DailyPartitionsDefinition("2026-01-01")
PROMPT = "Classify this review.\nReview: {review}"
TEXTS = ["I love it", "It broke", "I love it", "It is blue"]


class Sentiment(BaseModel):
    """The output of the tests."""

    sentiment: Literal["positive", "negative", "neutral"]
    topic: str | None = Field(description="what the review is about")


class Suffix(dg.Config):
    """Run config of an asset."""

    suffix: str = ""


class Warehouse(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Another resource of the user's."""

    prefix: str = ""


def answer(prompt: str) -> Any:
    text = prompt.rpartition("Review: ")[2]
    mood = "positive" if "love" in text else "negative" if "broke" in text else "neutral"
    return {"sentiment": mood, "topic": None}


@dg.asset
def reviews() -> pd.DataFrame:
    """The rows of most tests."""
    return pd.DataFrame({"id": range(len(TEXTS)), "review": TEXTS})


@llm_asset(prompt=PROMPT, output=Sentiment, group_name="enrich")
def review_sentiment(reviews: pd.DataFrame) -> pd.DataFrame:
    """Sentiment of every review."""
    return reviews


def materialize(*assets: Any, llm: Any = None, **options: Any) -> dg.ExecuteInProcessResult:
    resources = {"llm": llm or ScriptedModel(answer), **options.pop("resources", {})}
    return instances.materialize(list(assets), resources=resources, **options)


def metadata(result: dg.ExecuteInProcessResult, name: str) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(name)
    return {key: getattr(entry, "value", entry) for key, entry in event.metadata.items()}


def failure_of(result: dg.ExecuteInProcessResult) -> dg.StepFailureData:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data


# -- the table -----------------------------------------------------------------------------------------------------


def test_the_asset_is_the_rows_with_the_output_columns() -> None:
    """Rows, order and other columns stay; each row has its own answer."""
    table = materialize(reviews, review_sentiment).output_for_node("review_sentiment")
    assert list(table.columns) == ["id", "review", "sentiment", "topic", "review_sentiment_error"]
    assert table["review"].tolist() == TEXTS
    assert table["sentiment"].tolist() == ["positive", "negative", "positive", "neutral"]
    assert table["review_sentiment_error"].isna().all()


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, pa.table])
def test_the_frame_keeps_its_kind(kind: Callable[[dict[str, list[str]]], Any]) -> None:
    """A pandas, polars or pyarrow frame stays one."""

    @llm_asset(prompt=PROMPT, output="mood")
    def moods():  # noqa: ANN202
        return kind({"review": ["a", "b"]})

    table = materialize(moods, llm=ScriptedModel(lambda prompt: prompt[-1])).output_for_node("moods")
    assert type(table) is type(kind({}))
    assert list(table["mood"].to_pylist() if kind is pa.table else table["mood"]) == ["a", "b"]


def test_a_lazy_frame_of_polars_is_collected() -> None:
    """Some IO managers load one unless a type asks otherwise, and `build_llm_asset` has no place for a type."""

    @dg.asset
    def texts():  # noqa: ANN202
        return pl.LazyFrame({"review": ["a", "b"]})

    labels = dg.asset(name="labels")(lambda: pl.LazyFrame({"review": ["a"], "mood": ["a"]}))
    golden = GoldenCheck(rows=dg.AssetKey("labels"), min_score=1)
    moods = build_llm_asset(name="moods", upstream=texts.key, prompt=PROMPT, output="mood", checks=[golden])
    result = materialize(texts, labels, moods, llm=ScriptedModel(lambda prompt: prompt[-1]))
    assert result.output_for_node("moods")["mood"].to_list() == ["a", "b"]
    assert all(check.passed for check in result.get_asset_check_evaluations())
    assert metadata(result, "moods")["dagster/column_lineage"].deps_by_column["review"]


def test_a_function_may_take_context_config_and_resources() -> None:
    """As an ordinary asset function, also with postponed annotations."""

    @llm_asset(prompt=PROMPT, output="mood")
    def moods(context: dg.AssetExecutionContext, reviews: pd.DataFrame, config: Suffix, warehouse: Warehouse):  # noqa: ANN202
        context.log.info("hello")
        return reviews.assign(review=warehouse.prefix + reviews["review"] + config.suffix)

    llm = ScriptedModel({"": "fine"})
    materialize(
        reviews,
        moods,
        llm=llm,
        resources={"warehouse": Warehouse(prefix="<")},
        run_config={"ops": {"moods": {"config": {"suffix": ">"}}}},
    )
    assert {call.messages[-1].content.rpartition("Review: ")[2] for call in llm.calls} == {
        f"<{text}>" for text in TEXTS
    }


def test_function_may_take_the_llm_resource_under_any_key() -> None:
    """With a parameter of the resource's name it gets the resource."""

    @llm_asset(prompt=PROMPT, output="mood", resource_key="oracle")
    def moods(reviews: pd.DataFrame, oracle: dg.ResourceParam[object]):  # noqa: ANN202
        assert isinstance(oracle, ScriptedModel)
        return reviews

    assert materialize(reviews, moods, resources={"oracle": ScriptedModel({"": "fine"})}).success


def test_annotations_under_type_checking_work() -> None:
    """Such a parameter is an input like any other."""

    @llm_asset(prompt=PROMPT, output="mood")
    def moods(reviews: Decimal):  # noqa: ANN202
        return reviews

    assert materialize(reviews, moods, llm=ScriptedModel({"": "fine"})).success


def test_required_resource_keys_still_work() -> None:
    """Together with the model's resource."""

    @llm_asset(prompt=PROMPT, output="mood", required_resource_keys={"warehouse"})
    def moods(context, reviews):  # noqa: ANN001, ANN202
        assert context.resources.warehouse.prefix == "x"
        return reviews

    resources = {"warehouse": Warehouse(prefix="x")}
    assert materialize(reviews, moods, llm=ScriptedModel({"": "fine"}), resources=resources).success


def test_build_llm_asset_needs_no_function() -> None:
    """It enriches all rows of its upstream, with the same arguments."""
    twin = build_llm_asset(name="moods", upstream="reviews", prompt=PROMPT, output=Sentiment, key_prefix="shop")
    result = materialize(reviews, twin)
    assert twin.key == dg.AssetKey(["shop", "moods"])
    assert result.output_for_node("shop__moods")["sentiment"].tolist()[1] == "negative"


def test_every_other_asset_argument_passes_through() -> None:
    """Group, owners, tags, kinds, pool, retry policy, description and metadata are passed to Dagster."""

    @llm_asset(
        prompt=PROMPT,
        output="mood",
        key=["a", "moods"],
        group_name="enrich",
        owners=["team:shop"],
        tags={"tier": "1"},
        kinds={"llm", "openai"},
        pool="llm",
        partitions_def=DAYS,
        retry_policy=dg.RetryPolicy(max_retries=2),
        metadata={"mine": 1},
        code_version="7",
    )
    def moods(reviews: pd.DataFrame) -> pd.DataFrame:
        """The mood."""
        return reviews

    (spec,) = moods.specs
    assert (spec.key.path, spec.group_name, spec.owners, spec.kinds) == (
        ["a", "moods"],
        "enrich",
        ["team:shop"],
        {"llm", "openai"},
    )
    assert spec.tags["tier"] == "1"
    assert spec.description == "The mood."
    assert spec.metadata["mine"] == 1
    assert spec.code_version.startswith("7-")
    assert spec.partitions_def == DAYS
    assert moods.op.pool == "llm"
    assert moods.op.retry_policy == dg.RetryPolicy(max_retries=2)


@pytest.mark.filterwarnings("ignore:.*(with_source_code_references|CodeReference):dagster.BetaWarning")
@pytest.mark.parametrize("failed_rows", [False, True])
def test_code_references_of_dagster_name_the_users_function(*, failed_rows: bool) -> None:
    """`with_source_code_references` adds the function's place, of which the repository has a file."""

    def moods(reviews: pd.DataFrame) -> pd.DataFrame:
        return reviews

    asset = llm_asset(prompt=PROMPT, output="mood", failed_rows=failed_rows)(moods)
    (found,) = dg.with_source_code_references([asset])
    assert isinstance(found, dg.AssetsDefinition)
    for metadata in found.metadata_by_key.values():
        places = metadata["dagster/code_references"].code_references
        assert {place.source for place in places} == {f"{__file__}:{moods.__code__.co_firstlineno}"}


def test_calling_the_asset_as_a_function_says_how_to_test_it() -> None:
    """The step needs a run, which such a call does not have."""
    rows = pd.DataFrame({"review": TEXTS})
    with pytest.raises(ConfigError, match=r"write dg.materialize\(\[review_sentiment, \.\.\.\], resources="):
        review_sentiment(dg.build_asset_context(), reviews=rows, llm=ScriptedModel(answer))


def test_unknown_argument_gets_a_suggestion() -> None:
    """Among our arguments and Dagster's."""
    for wrong, meant in [("batchsize", "batch_size"), ("group", "group_name"), ("max_cost", "max_cost_usd")]:
        with pytest.raises(ConfigError, match=f"argument '{wrong}'. Did you mean '{meant}'"):
            build_llm_asset(name="moods", upstream="reviews", prompt=PROMPT, output="mood", **{wrong: 3})


def test_checks_on_the_asset_run_with_it() -> None:
    """A user's `@asset_check` can read the enriched table."""

    @dg.asset_check(asset=review_sentiment)
    def all_answered(review_sentiment: pd.DataFrame) -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=bool(review_sentiment["sentiment"].notna().all()))

    result = materialize(reviews, review_sentiment, all_answered)
    assert [evaluation.passed for evaluation in result.get_asset_check_evaluations()] == [True]


# -- partitions, metadata, versions --------------------------------------------------------------------------------


def test_a_partition_is_enriched_by_itself() -> None:
    """With its own rows and its own row count."""

    @dg.asset(partitions_def=DAYS)
    def daily(context) -> pd.DataFrame:  # noqa: ANN001  (Dagster's own decorator cannot read postponed annotations)
        return pd.DataFrame({"review": [f"{context.partition_key} love"]})

    @llm_asset(prompt=PROMPT, output=Sentiment, partitions_def=DAYS)
    def moods(daily: pd.DataFrame) -> pd.DataFrame:
        return daily

    result = materialize(daily, moods, partition_key="2026-01-03")
    assert result.output_for_node("moods")["review"].tolist() == ["2026-01-03 love"]
    found = metadata(result, "moods")
    assert found["dagster/partition_row_count"] == 1
    assert "dagster/row_count" not in found


def test_metadata_has_counts_tokens_cost_schema_lineage_and_preview() -> None:
    """The keys are fixed, the types plottable, and the values those of the run."""
    llm = ScriptedModel(answer)
    found = metadata(materialize(reviews, review_sentiment, llm=llm), "review_sentiment")
    assert found["ondine/rows_total"] == found["ondine/rows_succeeded"] == 4
    assert found["ondine/requests"] == found["ondine/unique_prompts"] == len(llm.calls) == 3
    assert (found["ondine/rows_failed"], found["ondine/rows_reused"], found["ondine/error_rate"]) == (0, 0, 0.0)
    assert found["ondine/input_tokens"] > 0 < found["ondine/output_tokens"]
    assert isinstance(found["ondine/cost_usd"], float)
    assert found["dagster/row_count"] == 4
    schema = {column.name: column for column in found["dagster/column_schema"].columns}
    assert schema["sentiment"].type == "string"
    assert schema["topic"].description == "what the review is about"
    deps = found["dagster/column_lineage"].deps_by_column
    assert deps["sentiment"] == deps["review"] == [dg.TableColumnDep(dg.AssetKey("reviews"), "review")]
    assert "review_sentiment_error" not in deps
    assert "| positive |  | I love it" in found["ondine/preview"]
    assert list(found)[:3] == ["ondine/summary", "ondine/preview", "ondine/plot"]
    assert re.fullmatch(r"4 rows, 0 failed, \$\d\.\d{4}, \d+\.\d s", found["ondine/summary"])


def test_assets_of_one_run_count_their_own_calls() -> None:
    """The ledger's figures are those of the asset, not of all assets that the run fills."""

    @llm_asset(prompt="Shout: {review}", output={"sentiment": str})
    def loud_reviews(reviews: pd.DataFrame) -> pd.DataFrame:
        return reviews

    llm = ScriptedModel(answer)
    result = materialize(reviews, review_sentiment, loud_reviews, llm=llm)
    for name in ("review_sentiment", "loud_reviews"):
        found = metadata(result, name)
        assert found["ondine/requests_answered"] == found["ondine/requests"] == found["ondine/unique_prompts"]
        assert found["ondine/requests"] < len(llm.calls)


def test_a_model_without_a_known_price_reports_no_cost() -> None:
    """The cost is reported as unknown, never as 0."""
    with Provider(answer) as provider:
        llm = LLMResource(model="openai_compatible/unheard-of", base_url=provider.base_url)
        found = metadata(materialize(reviews, review_sentiment, llm=llm), "review_sentiment")
    assert "ondine/cost_usd" not in found
    assert "ondine/cost_usd_total" not in found
    assert found["ondine/cost_known"] is False


def test_cost_is_what_the_provider_bills() -> None:
    """Tokens are the provider's, the dollars their list price."""
    with Provider(answer) as provider:
        llm = LLMResource(model="openai/gpt-4o-mini", base_url=provider.base_url)
        found = metadata(materialize(reviews, review_sentiment, llm=llm), "review_sentiment")
        ledger = provider.ledger
    assert (found["ondine/input_tokens"], found["ondine/output_tokens"]) == (ledger.input_tokens, ledger.output_tokens)
    # $0.15 and $0.60 a million tokens
    assert found["ondine/cost_usd"] == pytest.approx((ledger.input_tokens * 0.15 + ledger.output_tokens * 0.60) / 1e6)


def test_code_version_follows_prompt_and_output() -> None:
    """It changes if and only if prompt, examples or output change."""

    def version(prompt: str | Prompt = PROMPT, output: Any = Sentiment, **options: Any) -> str | None:
        (spec,) = build_llm_asset(name="x", upstream="reviews", prompt=prompt, output=output, **options).specs
        return spec.code_version

    example = ("Nice", {"sentiment": "positive", "topic": None})
    versions = [
        version(),
        version(PROMPT + " "),
        version(output="mood"),
        version(Prompt(PROMPT, system="Be brief.")),
        version(Prompt(PROMPT, examples=[example])),
        version(code_version="2"),
    ]
    assert len(set(versions)) == len(versions)
    assert version() == version(group_name="elsewhere")


@pytest.mark.parametrize("batch_format", ["json", "csv"])
def test_several_rows_are_sent_in_one_call(batch_format: str) -> None:
    """The table equals that of single-row calls; an interrupted or repeated run resumes row by row."""

    def answer_batch(prompt: str) -> Any:
        if batch_format == "json":
            rows = json.loads(prompt)
            return {"answers": [{"id": row["id"], **answer(f"Review: {row['x']}")} for row in rows]}
        rows = csv.DictReader(io.StringIO(prompt))
        lines = [f"{row['id']},{answer('Review: ' + row['x'])['sentiment']}," for row in rows]
        return "\n".join(["id,sentiment,topic", *reversed(lines)])

    moods = build_llm_asset(
        name="moods", upstream="reviews", prompt=PROMPT, output=Sentiment, batch_size=20, batch_format=batch_format
    )
    with Provider(answer_batch) as provider:
        llm = LLMResource(model="openai/gpt-4o-mini", base_url=provider.base_url)
        result = materialize(reviews, moods, llm=llm)
        calls = len(provider.ledger.requests)
    assert result.output_for_node("moods")["sentiment"].tolist() == ["positive", "negative", "positive", "neutral"]
    assert calls == 1
    found = metadata(result, "moods")
    assert (found["ondine/requests"], found["ondine/unique_prompts"]) == (1, 3)


def test_scripted_model_gets_single_rows() -> None:
    """Whatever the batch size of the asset."""
    moods = build_llm_asset(name="moods", upstream="reviews", prompt=PROMPT, output=Sentiment, batch_size=20)
    llm = ScriptedModel(answer)
    materialize(reviews, moods, llm=llm)
    assert len(llm.calls) == 3


# -- answers are kept ----------------------------------------------------------------------------------------------


def test_only_what_changed_is_asked_again(tmp_path: Path) -> None:
    """Nothing changed: no calls. One text changed: one call. The prompt changed: all."""
    texts = list(TEXTS)

    @llm_asset(prompt=PROMPT, output=Sentiment)
    def moods() -> pd.DataFrame:
        return pd.DataFrame({"review": texts})

    other = build_llm_asset(name="other", upstream="moods", prompt=f"{PROMPT}!", output={"verdict": str})
    with Provider(lambda prompt: answer(prompt) | {"verdict": "fine"}) as provider:
        llm = LLMResource(model="openai/gpt-4o-mini", base_url=provider.base_url, store=str(tmp_path / "answers.db"))

        def calls(*assets: dg.AssetsDefinition) -> int:
            before = len(provider.ledger.requests)
            materialize(*assets, llm=llm)
            return len(provider.ledger.requests) - before

        assert [calls(moods), calls(moods)] == [3, 0]
        texts[1] = "It broke again"
        assert calls(moods) == 1
        assert calls(moods, other) == 3


def test_answers_live_in_the_instances_storage_by_default() -> None:
    """Two runs of one instance share the default store."""
    with instances.ephemeral() as instance:
        first, second = ScriptedModel(answer), ScriptedModel(answer)
        materialize(reviews, review_sentiment, llm=first, instance=instance)
        materialize(reviews, review_sentiment, llm=second, instance=instance)
        assert Path(instance.storage_directory(), "ondine", "answers.db").exists()
    assert (len(first.calls), len(second.calls)) == (3, 0)


# -- money -----------------------------------------------------------------------------------------------------------


def test_exhausted_cap_fails_the_step_without_retry_and_a_higher_one_resumes() -> None:
    """The failure says what is spent; with a higher cap only the remaining rows are asked."""
    rows = pd.DataFrame({"review": [f"love {number}" for number in range(200)]})

    def moods(cap: float) -> dg.AssetsDefinition:
        @llm_asset(prompt=PROMPT, output=Sentiment, max_cost_usd=cap, retry_policy=dg.RetryPolicy(max_retries=2))
        def moods() -> pd.DataFrame:
            return rows

        return moods

    with instances.ephemeral() as instance, Provider(answer) as provider:
        llm = LLMResource(model="openai/gpt-4o-mini", base_url=provider.base_url, max_output_tokens=100)
        result = materialize(moods(0.0005), llm=llm, instance=instance, raise_on_error=False)
        printed = failure_of(result).user_failure_data.description
        paid = len(provider.ledger.requests)
        billed = (provider.ledger.input_tokens * 0.15 + provider.ledger.output_tokens * 0.60) / 1e6
        assert materialize(moods(1), llm=llm, instance=instance).success
        assert len(provider.ledger.requests) == 200
    assert "max_cost_usd=0.0005 is used up" in printed
    assert 0 < paid < 200
    assert 0.0003 < billed <= 0.0005
    assert not any(event.event_type_value == "STEP_UP_FOR_RETRY" for event in result.all_events)


def test_run_that_the_daemon_repeats_has_the_cap_of_the_first() -> None:
    """Otherwise run retries would multiply the cap; a person who repeats a run gives it a cap of its own."""
    rows = pd.DataFrame({"review": [f"love {number}" for number in range(200)]})

    @llm_asset(prompt=PROMPT, output=Sentiment, max_cost_usd=0.0005)
    def moods() -> pd.DataFrame:
        return rows

    def repeat(parent: dg.DagsterRun | None, tags: dict[str, str]) -> dg.DagsterRun:
        lineage = {"parent_run_id": parent.run_id, "root_run_id": parent.root_run_id or parent.run_id} if parent else {}
        run = instance.create_run_for_job(job, tags=tags, **lineage)
        execute_run(InMemoryJob(job), run, instance)
        return run

    with instances.ephemeral() as instance, Provider(answer) as provider:
        llm = LLMResource(model="openai/gpt-4o-mini", base_url=provider.base_url, max_output_tokens=100)
        defs = dg.Definitions(assets=[moods], resources={"llm": llm}, executor=dg.in_process_executor)
        job = defs.resolve_implicit_global_asset_job_def()
        first = repeat(None, {})
        paid = len(provider.ledger.requests)
        second = repeat(first, {"dagster/retry_number": "1"})
        repeat(second, {"dagster/retry_number": "2"})
        assert len(provider.ledger.requests) == paid
        repeat(second, {})
        assert len(provider.ledger.requests) > paid


def test_a_cap_needs_a_price(tmp_path: Path) -> None:
    """Without a price it is refused with the fix; a configured price is accepted."""
    moods = build_llm_asset(name="moods", upstream="reviews", prompt=PROMPT, output=Sentiment, max_cost_usd=1)
    with Provider(answer) as provider:
        settings = {
            "model": "openai_compatible/x",
            "base_url": provider.base_url,
            "store": str(tmp_path / "answers.db"),
        }
        result = materialize(reviews, moods, llm=LLMResource(**settings), raise_on_error=False)
        assert "input_cost_per_1k_tokens" in failure_of(result).user_failure_data.description
        assert provider.ledger.requests == []
        prices = {"input_cost_per_1k_tokens": 0.001, "output_cost_per_1k_tokens": 0.002, "max_output_tokens": 50}
        found = metadata(materialize(reviews, moods, llm=LLMResource(**settings, **prices)), "moods")
        ledger = provider.ledger
    assert found["ondine/cost_usd"] == pytest.approx((ledger.input_tokens + 2 * ledger.output_tokens) / 1e6)


# -- rows and steps that fail --------------------------------------------------------------------------------------


def broken_asset(**options: Any) -> dg.AssetsDefinition:
    @llm_asset(prompt=PROMPT, output=Sentiment, **options)
    def moods(reviews: pd.DataFrame) -> pd.DataFrame:
        return reviews

    return moods


def one_row_fails(prompt: str) -> Any:
    return "nonsense" if "blue" in prompt else answer(prompt)


def test_a_failed_row_is_null_with_a_reason() -> None:
    """One bad row fails alone, and the report says why."""
    result = materialize(reviews, broken_asset(), llm=ScriptedModel(one_row_fails))
    table = result.output_for_node("moods")
    assert table["sentiment"].isna().tolist() == [False, False, False, True]
    assert table["moods_error"].iloc[3].startswith("invalid: ")
    found = metadata(result, "moods")
    assert (found["ondine/rows_failed"], found["ondine/error_rate"]) == (1, 0.25)
    (record,) = (
        found["ondine/failures"].records if hasattr(found["ondine/failures"], "records") else found["ondine/failures"]
    )
    assert record.data["rows"] == 1


def test_step_failed_by_invalid_rows_is_not_retried() -> None:
    """Dagster would pay for the same failures again."""
    llm = ScriptedModel({"": "nonsense"})
    asset = broken_asset(retry_policy=dg.RetryPolicy(max_retries=2))
    result = materialize(reviews, asset, llm=llm, raise_on_error=False)
    assert not result.success
    assert len(llm.calls) == 3 * 4  # three texts, three repairs each


def test_log_has_counts_and_reasons(capfd: pytest.CaptureFixture[str]) -> None:
    """Also of short steps; failed rows are a warning with their reasons."""
    materialize(reviews, broken_asset(), llm=ScriptedModel(one_row_fails))
    log = capfd.readouterr().err
    assert "4 of 4 rows" in log
    assert "WARNING" in log
    assert "1 of 4 rows failed: invalid: the reply is not the JSON asked for" in log


def test_failed_rows_can_be_dropped() -> None:
    """With `on_row_error="drop"` the failed rows and the error column are left out."""
    table = materialize(reviews, broken_asset(on_row_error="drop"), llm=ScriptedModel(one_row_fails)).output_for_node(
        "moods"
    )
    assert table["review"].tolist() == TEXTS[:3]
    assert "moods_error" not in table.columns


@pytest.mark.parametrize(
    ("options", "rule"),
    [({"on_row_error": "raise"}, "on_row_error='raise'"), ({"max_error_rate": 0.2}, "max_error_rate=0.2")],
)
def test_too_many_failed_rows_fail_the_step_and_keep_the_answers(options: dict[str, Any], rule: str) -> None:
    """The failure names the exceeded limit; a re-run asks only the failed row."""
    with instances.ephemeral() as instance:
        result = materialize(
            reviews,
            broken_asset(**options),
            llm=ScriptedModel(one_row_fails),
            instance=instance,
            raise_on_error=False,
        )
        failed = failure_of(result)
        assert f"1 of 4 rows failed ({rule})" in failed.user_failure_data.description
        mended = ScriptedModel(answer)
        assert materialize(reviews, broken_asset(**options), llm=mended, instance=instance).success
    assert len(mended.calls) == 1


def test_a_table_without_a_single_answer_fails_the_step() -> None:
    """A step does not succeed without any answer."""
    result = materialize(reviews, broken_asset(), llm=ScriptedModel({"": "nonsense"}), raise_on_error=False)
    assert "no row got an answer" in failure_of(result).user_failure_data.description


def test_errors_that_need_a_person_are_not_retried(tmp_path: Path) -> None:
    """A wrong key fails the step for good; a store that cannot be opened may be back at the next attempt."""

    def retries(**settings: Any) -> int:
        asset = broken_asset(retry_policy=dg.RetryPolicy(max_retries=1))
        result = materialize(reviews, asset, llm=LLMResource(**settings), raise_on_error=False)
        assert not result.success
        return sum(event.event_type_value == "STEP_UP_FOR_RETRY" for event in result.all_events)

    (tmp_path / "file").touch()
    with Provider(fault=error(401)) as provider:
        assert retries(model="openai/gpt-4o-mini", base_url=provider.base_url) == 0
    assert retries(model="openai_compatible/x", base_url="http://127.0.0.1", store=str(tmp_path / "file" / "db")) == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (400, "Your credit balance is too low to access the API."),
        (429, "Rate limit reached: tokens per day. Please try again in 9h."),
        (400, "The purse of tenant 7 is empty."),
    ],
)
def test_exhausted_credit_fails_the_step_without_retry(code: int, message: str) -> None:
    """With a known or an unknown message, after a few dozen calls at most."""

    @dg.asset
    def reviews() -> pd.DataFrame:
        return pd.DataFrame({"review": [f"red {number}" for number in range(600)]})

    asset = broken_asset(retry_policy=dg.RetryPolicy(max_retries=2))
    with Provider(answer, fault=after(100, error(code, message))) as provider:
        llm = LLMResource(model="openai_compatible/m", base_url=provider.base_url)
        result = materialize(reviews, asset, llm=llm, raise_on_error=False)
        calls = len(provider.ledger.requests)
    assert not result.success
    assert not any(event.event_type_value == "STEP_UP_FOR_RETRY" for event in result.all_events)
    assert message.rstrip(".") in failure_of(result).user_failure_data.description
    assert calls <= 100 + 20 + 2 * 32


def test_one_refused_row_fails_alone() -> None:
    """A content filter fails its row, not the table."""
    with Provider(answer, fault=matching("blue", error(400, "blocked", "content_filter"))) as provider:
        llm = LLMResource(model="openai/gpt-4o-mini", base_url=provider.base_url)
        table = materialize(reviews, broken_asset(), llm=llm).output_for_node("moods")
    assert table["moods_error"].iloc[3].startswith("refused: ")
    assert table["sentiment"].notna().sum() == 3


# -- wrong usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "Classify {review"}, "does not parse"),
        ({"prompt": "Classify it"}, "reads no column"),
        ({"prompt": PROMPT, "output": {"review": str}}, "'review' is an output column and also"),
        ({"prompt": PROMPT, "output": {"mood": {"type": "sting"}}}, "'sting'"),
        ({"prompt": PROMPT, "on_row_error": "skip"}, "'skip'"),
        ({"prompt": PROMPT, "check_specs": [dg.AssetCheckSpec("c", asset="x")]}, "@dg.asset_check"),
        ({"prompt": PROMPT, "batch_size": 0}, "batch_size=0"),
        ({"prompt": PROMPT, "max_cost_usd": 0}, "max_cost_usd=0 must be more than 0"),
        ({"prompt": PROMPT, "batch_format": "yaml"}, "valid are 'json'"),
        ({"prompt": PROMPT, "max_error_rate": 2}, "max_error_rate=2"),
        ({"prompt": Prompt(PROMPT, examples=[("x", {"mood": 3})]), "output": {"mood": str}}, "example 1"),
        (
            {
                "prompt": PROMPT,
                "metadata": {"dagster/column_schema": dg.TableSchema([dg.TableColumn("reviews", "string")])},
            },
            "Did you mean 'reviews'",
        ),
    ],
)
def test_wrong_usage_fails_when_definitions_load(arguments: dict[str, Any], message: str) -> None:
    """The message has the mistake and the fix."""
    with pytest.raises(ConfigError, match=message):
        build_llm_asset(name="x", upstream="reviews", **({"output": "mood"} | arguments))


def test_async_and_generator_functions_are_refused() -> None:
    """The decorated function returns rows; concurrency is internal."""

    async def asynchronous(reviews):  # noqa: ANN001, ANN202
        return reviews

    def generator(reviews):  # noqa: ANN001, ANN202
        yield reviews

    for function in (asynchronous, generator):
        with pytest.raises(ConfigError, match=function.__name__):
            llm_asset(prompt=PROMPT, output="mood")(function)


def test_a_missing_resource_fails_when_definitions_load() -> None:
    """With Dagster's own error that names it."""
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="'llm'"):
        dg.Definitions.validate_loadable(dg.Definitions(assets=[reviews, review_sentiment]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pd.DataFrame({"reviews": ["a"]}), "Did you mean 'reviews'"),
        (pd.DataFrame({"review": ["a"], "mood": ["b"]}), "'mood' is already a column"),
        (pd.DataFrame({"review": ["a"], "moods_error": ["b"]}), "'moods_error' is already a column"),
        (None, "a NoneType, which is not a table"),
        ([{"review": "a"}], "a list, which is not a table"),
        (pa.table({"review": ["a"]}).to_reader(), "a RecordBatchReader, which is not a table"),
        (pd.DataFrame({"review": ["a"], 0: ["b"]}), "a column named 0"),
        (pd.DataFrame([["a", "b"]], columns=["review", "review"]), "two columns of one name"),
    ],
)
def test_missing_columns_fail_before_the_first_call(rows: Any, message: str) -> None:
    """Columns are checked against the rows first."""

    @llm_asset(prompt=PROMPT, output="mood")
    def moods():  # noqa: ANN202
        return rows

    llm = ScriptedModel({"": "fine"})
    result = materialize(moods, llm=llm, raise_on_error=False)
    assert message in failure_of(result).user_failure_data.description
    assert llm.calls == []


def test_resource_of_the_wrong_type_is_refused() -> None:
    """The error says what is expected."""
    result = materialize(reviews, review_sentiment, llm=object(), raise_on_error=False)
    assert "LLMResource or a ChatModel was expected" in failure_of(result).user_failure_data.description


def test_empty_table_stays_empty_with_its_new_columns() -> None:
    """An empty table comes back empty, with its new columns."""

    @llm_asset(prompt=PROMPT, output=Sentiment)
    def moods() -> pd.DataFrame:
        return pd.DataFrame({"review": []})

    table = materialize(moods).output_for_node("moods")
    assert list(table.columns) == ["review", "sentiment", "topic", "moods_error"]
    assert len(table) == 0


def test_refused_is_a_row_outcome_with_a_scripted_model() -> None:
    """Users can script every fault in their own tests."""
    llm = ScriptedModel(answer, faults=[RefusedError("not this one")])
    table = materialize(reviews, review_sentiment, llm=llm).output_for_node("review_sentiment")
    assert table["review_sentiment_error"].notna().sum() in (1, 2)
