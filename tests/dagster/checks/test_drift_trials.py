"""A trial on a few rows is not a baseline for drift."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pandas as pd
import pytest

from ondine_dagster import DriftCheck, llm_asset
from tests.support import instances
from tests.support.review_assets import PROMPT, Mood, checks_of, moods_of, run

DRIFT = [DriftCheck(column="mood", max_distance=0.1)]


def drift_of(instance: dg.DagsterInstance, asset: Any, **options: Any) -> str:
    check = checks_of(run(asset, instance=instance, **options))["drift_mood"]
    return f"{check.passed} {check.description}"


def try_out(instance: dg.DagsterInstance, asset: Any, **options: Any) -> None:
    config = {"ops": {"moods": {"config": {"max_rows": 1}}}}
    assert checks_of(run(asset, instance=instance, run_config=config, **options)) == {}


@pytest.mark.parametrize("trials", [1, 12])
def test_a_trial_is_no_baseline(trials: int) -> None:
    """A whole run after trials is compared with the whole run before them, and passes."""
    asset = moods_of("good", "bad", "bad", "bad", checks=DRIFT)
    with instances.ephemeral() as instance:
        first = run(asset, instance=instance).run_id[:8]
        for _ in range(trials):
            try_out(instance, asset)
        assert f"True The distance from run {first} is 0" in drift_of(instance, asset)


def test_trial_of_a_day_is_skipped_as_a_baseline() -> None:
    """The day before it is used."""

    @llm_asset(prompt=PROMPT, output=Mood, partitions_def=dg.DailyPartitionsDefinition("2026-01-01"), checks=DRIFT)
    def moods():  # noqa: ANN202
        return pd.DataFrame({"review": ["good", "bad"]})

    with instances.ephemeral() as instance:
        drift_of(instance, moods, partition_key="2026-01-02")
        try_out(instance, moods, partition_key="2026-01-03")
        assert "True The distance from 2026-01-02" in drift_of(instance, moods, partition_key="2026-01-04")
