"""Rows without a value in a column of the prompt: their outputs, counts and checks."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pandas as pd

from ondine_core.providers.scripted import ScriptedModel
from ondine_dagster import ErrorRateCheck, LLMAssetConfig, NullRateCheck, llm_asset
from tests.support.review_assets import PROMPT, checks_of, metadata_of, moods_of, run

REVIEWS: tuple[Any, ...] = ("good", None, " ", "junk")


def test_skipped_rows_are_counted_apart_from_failures() -> None:
    """Of two asked rows one failed; skipped rows have neither an answer nor an error."""
    checks = [ErrorRateCheck(max_rate=0.5), NullRateCheck(columns="mood", max_rate=0.0)]
    result = run(moods_of(*REVIEWS, checks=checks, failed_rows=True))
    table = result.output_for_node("moods", "result")
    assert table["mood"].isna().tolist() == [False, True, True, True]
    assert table["moods_error"].isna().tolist() == [True, True, True, False]
    assert result.output_for_node("moods", "failed")["review"].tolist() == ["junk"]
    found = metadata_of(result, "moods")
    figures = {name: found[f"ondine/rows_{name}"] for name in ("total", "done", "skipped", "failed", "succeeded")}
    assert figures == {"total": 4, "done": 4, "skipped": 2, "failed": 1, "succeeded": 1}
    assert found["ondine/error_rate"] == metadata_of(result, "moods_failed")["ondine/error_rate"] == 0.5
    assert all(check.passed for check in checks_of(result).values())


def test_a_step_fails_when_every_row_that_was_asked_failed() -> None:
    """Skipped rows do not count as answers."""
    assert not run(moods_of(None, "junk")).success
    assert run(moods_of(None, "")).success


def test_missing_inputs_can_be_failed_rows_or_be_asked_about() -> None:
    """As `on_missing` is set."""
    failed = run(moods_of(*REVIEWS, on_missing="fail"))
    assert metadata_of(failed, "moods")["ondine/rows_failed"] == 3
    llm = ScriptedModel(lambda _: {"mood": "good", "topic": None, "angry": False, "summary": None})
    run(moods_of(*REVIEWS, on_missing="ask"), llm=llm)
    assert len(llm.calls) == 4


def test_partitions_of_one_run_have_their_own_counts() -> None:
    """Of skipped and failed rows."""
    days = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-03")

    @llm_asset(prompt=PROMPT, output={"mood": {"enum": ["good", "bad"]}}, partitions_def=days, partition_by="day")
    def moods() -> pd.DataFrame:
        day = ["2026-01-01"] * 2 + ["2026-01-02"] * 3
        return pd.DataFrame({"review": [None, "good", "junk", "", "good"], "day": day})

    def answer(prompt: str) -> Any:
        return "nonsense" if "junk" in prompt else {"mood": "good"}

    tags = {"dagster/asset_partition_range_start": "2026-01-01", "dagster/asset_partition_range_end": "2026-01-02"}
    llm = ScriptedModel(answer)
    job = dg.Definitions(assets=[moods], resources={"llm": llm, "io_manager": dg.mem_io_manager})
    result = job.resolve_implicit_global_asset_job_def().execute_in_process(tags=tags)
    found = {
        event.partition: [event.materialization.metadata[f"ondine/rows_{name}"].value for name in ("failed", "skipped")]
        for event in result.get_asset_materialization_events()
    }
    assert found == {"2026-01-01": [0, 1], "2026-01-02": [1, 1]}


def test_dry_run_counts_skipped_rows() -> None:
    """Like the run."""
    config = dg.RunConfig(ops={"moods": LLMAssetConfig(dry_run=True)})
    result = run(moods_of(*REVIEWS), run_config=config)
    (event,) = result.get_asset_observation_events()
    assert event.asset_observation_data.asset_observation.metadata["ondine/estimated_rows_skipped"].value == 2
