"""A trial: a few rows are asked about and shown, and the stored table stays as it is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import dagster as dg

from ondine_core.engine.report import Report
from ondine_core.prompts.task import Task
from ondine_core.types.values import Call
from ondine_dagster.config.launchpad import Sample
from ondine_dagster.frames import frame_of, join
from ondine_dagster.reporting.messages import shown_messages
from ondine_dagster.reporting.metadata import reasons_metadata, run_metadata
from ondine_dagster.reporting.preview import shown_rows
from ondine_dagster.reporting.thumbnails import shown_thumbnails

__all__ = ["choose_rows", "trial_metadata"]

_SEED = 0
"""Always the same, so that a repeated trial asks about the same rows, and a larger one about these and others."""
_ROWS_SHOWN = 50


def choose_rows(table: Any, max_rows: int, sample: Sample) -> Any:
    """At most `max_rows` rows of `table` in their order: the first, or a random sample that is always the same."""
    frame = frame_of(table)
    if sample is Sample.first or max_rows >= len(frame):
        return frame.head(max_rows).to_native()
    shuffled = list(range(len(frame)))
    random.Random(_SEED).shuffle(shuffled)  # noqa: S311  (no secret)
    return frame[sorted(shuffled[:max_rows])].to_native()


def trial_metadata(  # noqa: PLR0913, PLR0917  (one caller)
    rows: Any,
    rows_available: int,
    task: Task,
    report: Report,
    error_column: str,
    calls: Sequence[Call],
    *,
    thumbnails: bool,
) -> dict[str, Any]:
    """The rows and figures of a trial, under keys of their own, so that plots show materializations only.

    Args:
        rows: The frame that was asked about.
        rows_available: How many rows a run without `max_rows` would ask about.
        task: What was asked.
        report: One outcome a row of `rows`.
        error_column: Name of the column that says why a row failed.
        calls: Calls that carried the first prompts.
        thumbnails: Whether images are shown, too.
    """
    outputs = task.schema.columns
    table = join(rows, report, outputs, error_column, "null")
    failed = [error_column] if report.progress.rows_failed else []
    shown = shown_rows(
        rows,
        table,
        names=[*(column.name for column in outputs), *task.prompt.columns, *failed],
        task=task,
        report=report,
        error_column=error_column,
        drop=False,
        limit=_ROWS_SHOWN,
        in_full=True,
    )
    images = shown_thumbnails(table, task.prompt, [column.name for column in outputs]) if thumbnails else None
    run = run_metadata(report, task.model)
    figures = {**reasons_metadata(report), "rows_available": rows_available, **run}
    return {
        "ondine/trial/summary": run["ondine/summary"],
        "ondine/trial/rows": dg.MetadataValue.md(shown),
        **({"ondine/trial/thumbnails": dg.MetadataValue.md(images)} if images else {}),
        "ondine/trial/messages": dg.MetadataValue.md(shown_messages(calls)),
        **{f"ondine/trial/{name.removeprefix('ondine/')}": figure for name, figure in figures.items()},
    }
