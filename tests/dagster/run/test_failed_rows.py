"""Failed rows as an asset of their own, through real materializations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import narwhals as nw
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from ondine_core.errors import ConfigError, RefusedError
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.store.__main__ import main
from ondine_dagster import ErrorRateCheck, LLMResource, NullRateCheck, llm_asset, replay_failed_rows_job
from ondine_dagster.resource import default_store
from tests.support import instances
from tests.support.provider import Provider
from tests.support.review_assets import PROMPT, Mood, answer, checks_of, metadata_of, moods_of, run

ADDED = ["error_reason", "error_detail", "error_model", "error_attempts", "error_cost_usd"]
DAYS = dg.DailyPartitionsDefinition("2026-01-01")


def failed(result: dg.ExecuteInProcessResult) -> Any:
    return result.output_for_node("moods", "failed")


def test_failed_rows_of_an_asset_that_depends_on_its_own_earlier_partition() -> None:
    """They depend on the other inputs alone: Dagster wants the output that others depend on first."""
    yesterday = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)

    @llm_asset(
        prompt=PROMPT,
        output=Mood,
        failed_rows=True,
        partitions_def=DAYS,
        ins={"moods": dg.AssetIn(partition_mapping=yesterday)},
    )
    def moods(moods: pd.DataFrame | None) -> pd.DataFrame:
        return pd.DataFrame({"review": ["good", "junk"] if moods is None else ["bad", "junk too", *moods["review"]]})

    with instances.ephemeral() as instance:
        llm = ScriptedModel(answer)
        days = [
            dg.materialize([moods], partition_key=day, resources={"llm": llm}, instance=instance)
            for day in ("2026-01-01", "2026-01-02")
        ]
    assert [len(failed(day)) for day in days] == [1, 2]
    assert len(days[1].output_for_node("moods")) == 4


# -- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_row_error", ["null", "drop"])
@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, pa.table])
def test_failed_rows_are_a_frame_of_the_same_kind(kind: Any, on_row_error: str) -> None:
    """The rows' own columns, with reason, model and attempts; also of dropped rows."""

    @llm_asset(prompt=PROMPT, output=Mood, failed_rows=True, on_row_error=on_row_error)
    def moods():  # noqa: ANN202
        return kind({"id": [1, 2, 3, 4], "review": ["good", "junk", "bad", "refused"]})

    def script(prompt: str) -> Any:
        if "refused" in prompt:
            raise RefusedError("content filter")
        return answer(prompt)

    result = run(moods, llm=ScriptedModel(script))
    table = failed(result)
    assert type(table) is type(kind({}))
    rows = list(nw.from_native(table, eager_only=True).rows(named=True))
    assert [list(row) for row in rows] == [["id", "review", *ADDED]] * 2
    assert [(row["id"], row["error_reason"], row["error_attempts"]) for row in rows] == [
        (2, "invalid", 4),
        (4, "refused", 1),
    ]
    assert {row["error_model"] for row in rows} == {"scripted/ScriptedModel"}
    assert rows[1]["error_detail"] == "content filter"
    enriched = nw.from_native(result.output_for_node("moods"), eager_only=True)
    assert len(enriched) == (4 if on_row_error == "null" else 2)


def test_costs_add_up_to_what_the_failed_rows_were_billed(tmp_path: Path) -> None:
    """Rows with one prompt share its cost, repairs included; the metadata has the sum."""
    with Provider(answer) as provider:
        llm = LLMResource(model="openai/gpt-4o-mini", base_url=provider.base_url, store=str(tmp_path / "answers.db"))
        result = run(moods_of("good", "junk", "junk", "junk too", failed_rows=True), llm=llm)
        ledger = provider.ledger
        billed = (ledger.input_tokens * 0.15 + ledger.output_tokens * 0.60) / 1e6
    table = failed(result)
    assert table["review"].tolist() == ["junk", "junk", "junk too"]
    assert table["error_attempts"].tolist() == [4, 4, 4]
    costs = table["error_cost_usd"].tolist()
    assert costs[0] == costs[1] == pytest.approx(costs[2] / 2, rel=0.05)
    found = metadata_of(result, "moods_failed")
    assert sum(costs) == pytest.approx(found["ondine/cost_usd"])
    assert 0 < found["ondine/cost_usd"] < billed
    total = metadata_of(result, "moods")["ondine/cost_usd_total"]
    assert total == metadata_of(result, "moods")["ondine/cost_usd"] == pytest.approx(billed)


def test_failed_rows_are_shown_with_counts_and_reasons() -> None:
    """Summary, first rows and counts by reason lead the metadata; the columns have descriptions."""
    result = run(moods_of("good", "junk 4711", "junk", failed_rows=True))
    found = metadata_of(result, "moods_failed")
    assert (found["dagster/row_count"], found["ondine/rows_failed"], found["ondine/rows_failed_invalid"]) == (2, 2, 2)
    assert found["ondine/error_rate"] == pytest.approx(2 / 3, abs=1e-6)
    schema = {column.name: column for column in found["dagster/column_schema"].columns}
    assert list(schema) == ["review", *ADDED]
    assert schema["error_attempts"].description == "How often it was asked, repairs included."
    assert list(found)[:3] == ["ondine/summary", "ondine/preview", "ondine/failures"]
    assert found["ondine/summary"].startswith("3 rows, 2 failed")
    assert found["ondine/preview"].splitlines() == [
        "| error\\_reason | review |",
        "| --- | --- |",
        "| invalid | junk 4711 |",
        "| invalid | junk |",
    ]
    (reason,) = found["ondine/failures"]
    assert reason["rows"] == 2
    assert reason["reason"].startswith("invalid: ")


def test_failed_rows_are_shown_sanitized() -> None:
    """Data replaced by the sanitizer are in the table, not in its metadata."""
    result = run(moods_of("good", "junk of ann@example.com", failed_rows=True, sanitize="redact"))
    assert failed(result)["review"].tolist() == ["junk of ann@example.com"]
    assert "ann@" not in str(metadata_of(result, "moods_failed"))
    assert r"junk of \[EMAIL\]" in metadata_of(result, "moods_failed")["ondine/preview"]


def test_when_no_row_failed_the_table_is_empty_and_has_its_columns() -> None:
    """With their types, as a warehouse needs."""
    result = run(moods_of("good", "bad", failed_rows=True))
    table = failed(result)
    assert (len(table), list(table.columns)) == (0, ["review", *ADDED])
    assert str(table["error_attempts"].dtype) == "Int64"
    found = metadata_of(result, "moods_failed")
    assert found["dagster/row_count"] == 0
    assert found["ondine/summary"].startswith("2 rows, 0 failed")
    assert not {"ondine/preview", "ondine/failures"} & found.keys()


def test_unknown_cost_is_null_in_the_table_and_absent_in_metadata() -> None:
    """It is never 0."""
    with Provider(answer) as provider:
        llm = LLMResource(model="openai_compatible/unheard-of", base_url=provider.base_url)
        result = run(moods_of("good", "junk", failed_rows=True), llm=llm)
    assert failed(result)["error_cost_usd"].isna().all()
    assert "ondine/cost_usd" not in metadata_of(result, "moods_failed")


# -- two assets of one step ------------------------------------------------------------------------------------------


def test_failed_rows_asset_has_the_settings_of_the_first() -> None:
    """Keys, group, owners, partitions and step settings; one step fills both."""
    asset = moods_of(
        "good",
        failed_rows=True,
        name="moods",
        key_prefix=["shop"],
        group_name="enrich",
        owners=["team:shop"],
        tags={"tier": "1"},
        partitions_def=DAYS,
        pool="llm",
        retry_policy=dg.RetryPolicy(max_retries=2),
        automation_condition=dg.AutomationCondition.on_cron("@daily"),
        deps=["calendar"],
        metadata={"partition_expr": "day", "dagster/table_name": "shop.moods"},
    )
    specs = {spec.key.to_user_string(): spec for spec in asset.specs}
    main, second = specs["shop/moods"], specs["shop/moods_failed"]
    assert (main.group_name, main.owners, main.tags["tier"]) == (second.group_name, second.owners, second.tags["tier"])
    assert main.partitions_def == second.partitions_def == DAYS
    assert main.metadata.items() >= {"partition_expr": "day", "dagster/table_name": "shop.moods"}.items()
    assert second.metadata == {"partition_expr": "day"}  # an IO manager of a database needs it
    assert main.automation_condition is not None
    assert second.automation_condition is None
    assert main.code_version == second.code_version
    assert second.description == "The rows of shop/moods that have no answer, and why."
    assert (asset.op.pool, asset.op.retry_policy) == ("llm", dg.RetryPolicy(max_retries=2))
    assert dg.AssetKey("calendar") in asset.dependency_keys
    dg.Definitions.validate_loadable(dg.Definitions(assets=[asset], resources={"llm": ScriptedModel(answer)}))


def test_failed_rows_are_stored_also_if_one_of_the_assets_is_renamed() -> None:
    """Dagster's ways to load or to map assets rename them after their definition."""
    renamed = {dg.AssetKey("moods"): dg.AssetKey(["shop", "feelings"])}
    result = run(moods_of("good", "junk", failed_rows=True).with_attributes(asset_key_replacements=renamed))
    assert len(failed(result)) == 1
    keys = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key}
    assert keys == {"shop/feelings", "moods_failed"}


def test_both_can_be_used_downstream() -> None:
    """Through any IO manager."""

    @dg.asset
    def inbox(moods_failed: pd.DataFrame, moods: pd.DataFrame) -> tuple[int, int]:
        return len(moods_failed), len(moods)

    result = run(moods_of("good", "junk", failed_rows=True), inbox)
    assert result.output_for_node("inbox") == (1, 2)


def test_failed_rows_are_stored_when_too_many_fail_the_step() -> None:
    """The step fails, and what failed can be looked at."""
    result = run(moods_of("good", "junk", failed_rows=True, max_error_rate=0.1))
    filled = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
    assert not result.success
    assert filled == {"moods_failed"}
    assert failed(result)["review"].tolist() == ["junk"]


def test_each_partition_has_its_own_failed_rows() -> None:
    """With the partition's row count."""

    @llm_asset(prompt=PROMPT, output=Mood, failed_rows=True, partitions_def=DAYS)
    def moods(context):  # noqa: ANN001, ANN202
        return pd.DataFrame({"review": ["good", f"junk {context.partition_key}"]})

    result = run(moods, partition_key="2026-01-03")
    assert failed(result)["review"].tolist() == ["junk 2026-01-03"]
    assert metadata_of(result, "moods_failed")["dagster/partition_row_count"] == 1


@pytest.mark.parametrize("blocking", [True, False])
def test_error_rate_check_belongs_to_the_table(blocking: bool) -> None:
    """It is answered when the failed rows fail the step, and blocks assets downstream of the table."""

    @dg.asset
    def dashboard(moods: pd.DataFrame) -> int:
        return len(moods)

    checks = [ErrorRateCheck(max_rate=0.1, blocking=blocking), NullRateCheck(max_rate=1)]
    result = run(moods_of("good", "junk", failed_rows=True, checks=checks), dashboard)
    found = checks_of(result)
    assert {name: check.asset_key.to_user_string() for name, check in found.items()} == {
        "error_rate": "moods",
        "null_rate": "moods",
    }
    assert not found["error_rate"].passed
    filled = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
    assert filled == {"moods", "moods_failed"} | (set() if blocking else {"dashboard"})
    for failed_rows in (True, False):
        strict = run(moods_of("good", "junk", failed_rows=failed_rows, checks=checks, max_error_rate=0.1))
        assert not strict.success
        (check,) = checks_of(strict).values()
        assert (check.check_name, check.asset_key, check.passed) == ("error_rate", dg.AssetKey("moods"), False)


@pytest.mark.parametrize("name", ADDED)
def test_conflicting_column_is_refused_before_the_first_call(name: str) -> None:
    """By name; without `failed_rows` it is an ordinary column."""

    def moods(**options: Any) -> dg.AssetsDefinition:
        @llm_asset(prompt=PROMPT, output=Mood, **options)
        def moods():  # noqa: ANN202
            return pd.DataFrame({"review": ["good"], name: [1]})

        return moods

    llm = ScriptedModel(answer)
    result = run(moods(failed_rows=True), llm=llm)
    (event,) = [event for event in result.all_events if event.is_step_failure]
    assert f"{name!r} is already a column" in str(event.step_failure_data.user_failure_data.description)
    assert llm.calls == []
    assert run(moods()).success


def test_replay_job_of_a_name_is_an_error() -> None:
    """The asset itself knows its failed rows."""
    with pytest.raises(ConfigError, match=r"replay_failed_rows_job\('moods'\): give the asset itself"):
        replay_failed_rows_job("moods")


def test_io_manager_def_is_refused_with_failed_rows() -> None:
    """An inline definition is for single assets; a key works."""
    with pytest.raises(ConfigError, match="io_manager_key"):
        moods_of("good", failed_rows=True, io_manager_def=dg.mem_io_manager)


# -- asking again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failed_rows", [True, False])
def test_replay_job_asks_only_the_failed_rows(failed_rows: bool) -> None:
    """After the model was fixed their table is empty, and the enriched one is complete."""
    asset = moods_of("good", "junk", "bad", failed_rows=failed_rows)
    job = replay_failed_rows_job(asset, description="Once more.")
    assert (job.name, job.description) == ("replay_moods", "Once more.")
    mended = ScriptedModel(lambda _: {"mood": "good", "topic": None, "angry": False, "summary": None})
    with instances.ephemeral() as instance:
        run(asset, instance=instance)
        definitions = dg.Definitions(assets=[asset], jobs=[job], resources={"llm": mended})
        result = definitions.resolve_job_def("replay_moods").execute_in_process(instance=instance)
    assert [call.messages[-1].content[-4:] for call in mended.calls] == ["junk"]
    assert result.output_for_node("moods")["mood"].tolist() == ["good", "good", "bad"]
    if failed_rows:
        assert len(result.output_for_node("moods", "failed")) == 0


@pytest.mark.parametrize(
    ("declared", "chosen", "kept"),
    [(True, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
def test_a_reply_is_kept_in_the_store_and_shown_nowhere_else(
    declared: bool, chosen: bool | None, kept: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only with `keep_replies`, of the asset or the run; only the command `why` shows it."""
    moods = moods_of("good", "junk", failed_rows=True, keep_replies=declared)
    config = {"ops": {"moods": {"config": {} if chosen is None else {"keep_replies": chosen}}}}
    with instances.ephemeral() as instance:
        llm = ScriptedModel(lambda text: "I would rather not." if "junk" in text else answer(text))
        result = run(moods, llm=llm, instance=instance, run_config=config)
        events = [str(record.event_log_entry) for record in instance.get_records_for_run(result.run_id).records]
        assert main([default_store(instance), "why", "--asset", "moods", "--text", "junk"]) == 0
    assert ("I would rather not." in capsys.readouterr().out) is kept
    assert len(events) > 5
    assert "rather not" not in "".join(events) + str(failed(result).to_dict())
