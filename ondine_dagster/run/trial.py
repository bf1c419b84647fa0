"""Chooses and shows the rows of a trial, which asks about a few rows and does not change the stored table."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from ondine_core.types.values import Call
from ondine_dagster.config.launchpad import LLMAssetConfig, Sample
from ondine_dagster.frames import AskedRows, join
from ondine_dagster.reporting.messages import shown_messages
from ondine_dagster.reporting.metadata import reasons_metadata, run_metadata
from ondine_dagster.reporting.preview import shown_rows
from ondine_dagster.reporting.thumbnails import shown_thumbnails

if TYPE_CHECKING:
    import narwhals as nw

_SEED = 0
"""Constant, so a repeated trial asks about the same rows, and a larger one about these and others."""


def choose_rows(frame: nw.DataFrame[Any], config: LLMAssetConfig) -> nw.DataFrame[Any]:
    """The rows that a run with `config` asks about, in their order: all, or those of a trial.

    A random sample is always the same.
    """
    max_rows = config.max_rows
    if max_rows is None or max_rows >= len(frame):
        return frame
    if config.sample == Sample.first:
        return frame.head(max_rows)
    shuffled = list(range(len(frame)))
    random.Random(_SEED).shuffle(shuffled)  # noqa: S311  (no secret)
    return frame[sorted(shuffled[:max_rows])]


def trial_metadata(asked: AskedRows, rows_available: int, calls: Sequence[Call], *, thumbnails: bool) -> dict[str, Any]:
    """The rows and figures of a trial, under keys of their own, so plots show materializations only.

    `calls` are the calls with the first prompts.
    """
    task = asked.task
    table = join(asked.frame, asked.report, task.schema.columns, asked.error_column)
    images = shown_thumbnails(table, task.prompt, task.schema.names) if thumbnails else None
    run = run_metadata(asked.report, task.model)
    figures = {**reasons_metadata(asked.report), "rows_available": rows_available, **run}
    return {
        "ondine/trial/summary": run["ondine/summary"],
        "ondine/trial/rows": dg.MetadataValue.md(shown_rows(asked, table, in_full=True)),
        **({"ondine/trial/thumbnails": dg.MetadataValue.md(images)} if images else {}),
        "ondine/trial/messages": dg.MetadataValue.md(shown_messages(calls)),
        **{f"ondine/trial/{name.removeprefix('ondine/')}": figure for name, figure in figures.items()},
    }
