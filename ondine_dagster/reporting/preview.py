"""Rows and answers as metadata, which everybody with access to the Dagster UI may read.

Where rows are sanitized, they are shown as the model saw them and answers as it gave them: metadata is read by more
people than the table is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from ondine_core.engine.report import Report
from ondine_core.preprocessing.media import Gallery
from ondine_core.prompts.task import Task
from ondine_core.prompts.template import CompiledPrompt
from ondine_core.tables import read
from ondine_core.types.media import Media
from ondine_core.types.values import Answer, Failure
from ondine_dagster.frames import frame_of
from ondine_dagster.reporting.markdown import in_place, markdown, preview
from ondine_dagster.reporting.thumbnails import describe, describe_cell

__all__ = ["shown_failures", "shown_rows"]

_ROWS = 10


def shown_rows(  # noqa: PLR0913  (by keyword)
    rows: Any,
    table: Any,
    *,
    names: Sequence[str],
    task: Task,
    report: Report,
    error_column: str,
    drop: bool,
    limit: int = _ROWS,
    in_full: bool = False,
) -> str:
    """The first rows of a run as a Markdown table.

    Args:
        rows: The frame that was asked about.
        table: The same, enriched.
        names: The columns to show.
        task: What was asked.
        report: One outcome a row of `rows`.
        error_column: Name of the column that says why a row failed.
        drop: Whether failed rows are left out of `table`.
        limit: How many rows at most.
        in_full: Whether all of them are shown, however long the text gets.
    """
    preparation = task.prompt.preparation
    if preparation is None or preparation.sanitizer is None:
        return preview(table, names, limit, in_full=in_full, described=_described(task.prompt))
    head = frame_of(rows).head(limit).to_native()
    _, count, columns = read(head, task.prompt.columns)
    shown = []
    for index in range(count):
        outcome = report.outcomes.as_kept(index)
        if isinstance(outcome, Failure):
            if drop:
                continue
            cells: dict[str, Any] = {error_column: str(outcome)}
        else:
            cells = dict(outcome.values) if isinstance(outcome, Answer) else {}
        cells |= _as_asked({name: values[index] for name, values in columns.items()}, task.prompt)
        shown.append([cells.get(name) for name in names])
    return markdown(names, shown) if in_full else in_place(names, shown)


def shown_failures(rows: Any, *, task: Task, report: Report) -> str | None:
    """The first rows that failed as a Markdown table, each with the reason; `None` if none did.

    Args:
        rows: The frame that was asked about.
        task: What was asked.
        report: One outcome a row of `rows`.
    """
    found = ((index, failure) for index, failure in enumerate(report.outcomes.failures()) if failure is not None)
    failures = dict(islice(found, _ROWS))
    if not failures:
        return None
    names = task.prompt.columns
    _, _, columns = read(frame_of(rows)[list(failures)].to_native(), names)
    shown = []
    for number, failure in enumerate(failures.values()):
        row = {name: values[number] for name, values in columns.items()}
        if task.prompt.preparation is not None:
            row = dict(_as_asked(row, task.prompt))
        else:
            row |= {name: show(row[name]) for name, show in _described(task.prompt).items()}
        shown.append([failure.reason, *(row.get(name) for name in names)])
    return in_place(["error_reason", *names], shown)


def _described(prompt: CompiledPrompt) -> Mapping[str, Callable[[Any], Any]]:
    """What is shown of a cell with images or documents, by column."""
    reader = prompt.reader
    if reader is None:
        return {}
    return {name: partial(describe_cell, kind=kind, reader=reader) for name, kind in prompt.media_columns.items()}


def _as_asked(row: Mapping[str, Any], prompt: CompiledPrompt) -> Mapping[str, Any]:
    try:
        values = prompt.prepare(row).values
    except Exception:  # noqa: BLE001  (a step of the user's, or a file, could not be read: the row was not asked)
        return {}
    return {name: _in_words(value) for name, value in values.items()}


def _in_words(value: Any) -> Any:
    if isinstance(value, Gallery):
        return "; ".join(map(describe, value))
    return describe(value) if isinstance(value, Media) else value
