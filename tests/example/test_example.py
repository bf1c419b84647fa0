"""The example project, as a newcomer meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from example_project.definitions import defs
from example_project.defs.assets import days

from ondine_dagster import LLMResource
from tests.support.provider import Provider

ROOT = Path(__file__).parents[2]
TABLE = pd.read_csv(ROOT / "example_project/src/example_project/data/reviews.csv", keep_default_na=False)


def test_the_data_are_worth_looking_at() -> None:
    """A few hundred reviews over every day, some empty, some twice, and labelled."""
    assert set(TABLE["date"]) == set(days.get_partition_keys())
    assert len(TABLE) > 300
    assert TABLE["review_id"].is_unique
    written = TABLE[TABLE["review"].str.strip() != ""]
    assert set(written["label"]) == {"positive", "negative", "neutral"}
    assert (TABLE["review"].str.strip() == "").any()
    assert written["review"].duplicated().any()


@pytest.mark.parametrize("arguments", [["-w", "workspace.yaml"], ["-m", "example_project.definitions"]])
def test_dagster_loads_the_workspace(arguments: list[str], tmp_path: Path) -> None:
    """What `dagster dev` reads is valid."""
    validate(["dagster", "definitions", "validate", *arguments], ROOT, tmp_path)


def test_dg_loads_the_project(tmp_path: Path) -> None:
    """What `dg dev` reads is valid, and `dg` knows our package."""
    validate(["dg", "check", "defs"], ROOT / "example_project", tmp_path)


def validate(command: list[str], folder: Path, home: Path) -> None:
    program = Path(sys.executable).with_name(command[0])
    environment = os.environ | {"DAGSTER_HOME": str(home)}
    done = subprocess.run(
        [program, *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def run_day(instance: dg.DagsterInstance, day: str, llm: LLMResource | None = None) -> dg.ExecuteInProcessResult:
    definitions = defs() if llm is None else dg.Definitions.merge(defs(), dg.Definitions(resources={"llm": llm}))
    return definitions.resolve_job_def("classify_reviews").execute_in_process(instance=instance, partition_key=day)


def figures(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    events = result.get_asset_materialization_events()
    return {name: entry.value for event in events for name, entry in event.materialization.metadata.items()}


def test_the_embedded_model_beats_the_majority_and_a_re_run_asks_nothing(tmp_path: Path) -> None:
    """A real model classifies a day of reviews clearly better than guessing; the second run is free."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        first, second = (figures(run_day(instance, "2026-01-07")) for _ in range(2))
    assert first["agreement"] > first["majority_share"] + 0.15
    assert first["ondine/requests"] > 40
    assert (second["ondine/requests"], second["agreement"]) == (0, first["agreement"])
    assert Path(first["file"]).stat().st_size > 1000


def test_one_variable_switches_the_model(tmp_path: Path) -> None:
    """ONDINE_MODEL and ONDINE_BASE_URL send the same example to another model; duplicates are asked once."""
    with Provider(lambda _: {"sentiment": "neutral"}) as provider:
        environment = os.environ | {
            "ONDINE_MODEL": "openai/gpt-4o-mini",
            "ONDINE_BASE_URL": provider.base_url,
            "DAGSTER_HOME": str(tmp_path),
        }
        command = [sys.executable, "-m", "example_project", "2026-01-06"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        calls = Counter(asked.prompt for asked in provider.books.requests)
    assert done.returncode == 0, done.stderr
    reviews = TABLE[(TABLE["date"] == "2026-01-06") & (TABLE["review"].str.strip() != "")]["review"]
    assert calls.total() == len(calls) == reviews.nunique()
    assert (
        f"{len(reviews)} reviews, 0 answered before, {calls.total()} calls to openai/gpt-4o-mini, $0.0" in done.stdout
    )
    assert all("label" not in asked.prompt for asked in provider.books.requests)
