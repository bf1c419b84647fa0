"""Rows without a value in a column that the prompt reads."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

from ondine_core import Answer, ConfigError, Failure, Options, Policy, Prompt, Report, Skipped, enrich_sync
from ondine_core.engine.estimate import estimate
from ondine_core.engine.in_thread import run_in_thread
from ondine_core.prompts.task import compile_task
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.types.values import ModelSpec

OUTPUT = {"mood": str}
TABLE = {"text": ["good", None, " \t\n", "", "good"], "title": ["a", "b", "c", "d", None]}


def ask(
    prompt: str | Prompt, table: Any = TABLE, on_missing: Literal["skip", "fail", "ask"] = "skip", **arguments: Any
) -> tuple[Report, ScriptedModel]:
    model = ScriptedModel(lambda _: {"mood": "good"})
    options = Options(policy=Policy(on_missing=on_missing))
    return enrich_sync(table, prompt=prompt, output=OUTPUT, model=model, options=options, **arguments), model


def skipped(report: Report) -> list[int]:
    return [number for number, outcome in enumerate(report.outcomes) if isinstance(outcome, Skipped)]


def test_row_with_a_missing_input_is_skipped() -> None:
    """Null and blank texts make no call and no failure; they are counted separately."""
    report, model = ask("Mood of {text}")
    assert [type(outcome) for outcome in report.outcomes] == [Answer, Skipped, Skipped, Skipped, Answer]
    assert len(model.calls) == 1
    assert report.column("mood") == ["good", None, None, None, "good"]
    assert report.errors() == [None] * 5
    progress = report.progress
    assert (progress.rows_done, progress.rows_skipped, progress.rows_failed, progress.rows_asked) == (5, 3, 0, 2)
    assert report.error_rate == 0


def test_skipped_rows_are_not_in_the_error_rate() -> None:
    """The error rate counts asked rows only: of two, one failed."""
    model = ScriptedModel(lambda prompt: "nonsense" if "bad" in prompt else {"mood": "good"})
    report = enrich_sync({"text": ["good", "bad", None, ""]}, prompt="{text}", output=OUTPUT, model=model)
    assert report.error_rate == 0.5


def test_a_missing_input_can_be_a_failure() -> None:
    """With `on_missing="fail"` it costs no call, and the failure names the column."""
    report, model = ask("Mood of {text}", on_missing="fail")
    assert report.outcomes[1] == Failure("missing", "column 'text' is null or blank")
    assert (report.progress.rows_failed, report.progress.rows_skipped) == (3, 0)
    assert len(model.calls) == 1


def test_a_missing_input_can_be_asked_about() -> None:
    """With `on_missing="ask"` all rows are asked as they are."""
    report, model = ask("Mood of {text}", on_missing="ask")
    assert report.column("mood") == ["good"] * 5
    assert len(model.calls) == 3  # "", " \t\n" and "good"


@pytest.mark.parametrize(
    ("prompt", "rows"),
    [
        ("{title}: {text}", [1, 2, 3, 4]),
        (Prompt("{{ title }}: {{ text }}", syntax="jinja2"), [1, 2, 3, 4]),
        (Prompt("{% if title %}{{ title }}: {% endif %}{{ text }}", syntax="jinja2"), [1, 2, 3]),
        (Prompt("{{ title or 'No title' }}: {{ text|trim }}", syntax="jinja2"), [1, 2, 3]),
        (Prompt("{{ title|default('', true) }}: {{ text }}", syntax="jinja2"), [1, 2, 3]),
        (Prompt("{{ title + ': ' if title }}{{ text }}", syntax="jinja2"), [1, 2, 3]),
        (Prompt("{% if title %}{{ title }}{% else %}{{ text }}{% endif %}", syntax="jinja2"), []),
        (Prompt("{% if text %}{{ text }}{% endif %}?", syntax="jinja2"), [1, 2, 3]),
    ],
)
def test_conditionally_read_columns_may_be_missing(prompt: str | Prompt, rows: list[int]) -> None:
    """Each other column is needed; a row in which all are missing is skipped whatever the template says."""
    report, _ = ask(prompt)
    assert skipped(report) == rows


def test_text_that_is_blank_after_cleaning_is_missing() -> None:
    """The text that would be sent counts."""
    report, _ = ask("{text}", {"text": ["<p> </p>", "<p>good</p>"]}, clean=["html"])
    assert skipped(report) == [0]


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"value": [1.0, float("nan"), 0.0]}),
        {"value": [1.0, float("nan"), 0.0]},
        {"value": [1, pd.NA, 0]},
        {"value": [pd.Timestamp("2026-01-01"), pd.NaT, False]},
        {"value": [np.float64(1), np.float64("nan"), []]},
    ],
)
def test_every_kind_of_null_is_missing_and_zero_is_not(table: Any) -> None:
    """`False` and an empty list are values, too."""
    report, _ = ask("{value}", table)
    assert skipped(report) == [1]


def test_estimate_counts_skipped_rows() -> None:
    """They take no call."""
    task = compile_task("{text}", OUTPUT, ModelSpec("scripted/any"))
    found = run_in_thread(lambda: estimate(TABLE, task, Options(), ScriptedModel({})))
    assert (found.rows, found.rows_skipped, found.rows_unaskable, found.calls) == (5, 3, 0, 1)


def test_unknown_on_missing_is_refused() -> None:
    """The error lists the valid values."""
    with pytest.raises(ConfigError, match="on_missing='drop' must be 'skip', 'fail' or 'ask'"):
        Policy(on_missing="drop")  # type: ignore[arg-type]
