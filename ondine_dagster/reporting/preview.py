"""Shows rows and answers as metadata, which all users of the Dagster UI can read.

Sanitized rows are shown as the model saw them, and answers as the model gave them, since more people can read metadata
than the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from ondine_core.engine.tables import read
from ondine_core.preprocessing.media import Gallery
from ondine_core.prompts.template import CompiledPrompt
from ondine_core.types.media import Media
from ondine_core.types.values import Answer, Failure
from ondine_dagster.frames import AskedRows
from ondine_dagster.reporting.markdown import in_place, markdown, preview
from ondine_dagster.reporting.thumbnails import describe, describe_cell

if TYPE_CHECKING:
    import narwhals as nw

_ROWS, _ROWS_IN_FULL = 10, 50


def shown_rows(asked: AskedRows, table: nw.DataFrame[Any], *, in_full: bool = False) -> str:
    """The first rows of a run as a Markdown table.

    `table` has the same rows, enriched. With `in_full` it shows more rows, without a limit on the length of the text.
    """
    prompt, report, error_column = asked.task.prompt, asked.report, asked.error_column
    # The reasons come last, since Dagster cuts wide tables off at the right, and reasons have a table of their own.
    names = [*asked.task.schema.names, *prompt.columns]
    if report.progress.rows_failed and error_column is not None:
        names.append(error_column)
    limit = _ROWS_IN_FULL if in_full else _ROWS
    if not prompt.is_sanitized:
        return preview(table, names, limit, in_full=in_full, described=_described(prompt))
    _, count, columns = read(asked.frame.head(limit), prompt.columns)
    shown = []
    for index in range(count):
        outcome = report.outcomes.as_kept(index)
        if isinstance(outcome, Failure):
            if error_column is None:
                continue
            cells: dict[str, Any] = {error_column: str(outcome)}
        else:
            cells = dict(outcome.values) if isinstance(outcome, Answer) else {}
        cells |= _preprocessed({name: values[index] for name, values in columns.items()}, prompt)
        shown.append([cells.get(name) for name in names])
    return markdown(names, shown) if in_full else in_place(names, shown)


def shown_failures(asked: AskedRows) -> str | None:
    """The first rows that failed as a Markdown table, each with the reason; `None` if none did."""
    prompt, outcomes = asked.task.prompt, asked.report.outcomes
    indexed = ((index, failure) for index, failure in enumerate(outcomes.failures()) if failure is not None)
    failures = dict(islice(indexed, _ROWS))
    if not failures:
        return None
    names = prompt.columns
    _, _, columns = read(asked.frame[list(failures)], names)
    shown = []
    for number, failure in enumerate(failures.values()):
        row = {name: values[number] for name, values in columns.items()}
        if prompt.preparation is not None:
            row = dict(_preprocessed(row, prompt))
        else:
            row |= {name: show(row[name]) for name, show in _described(prompt).items()}
        shown.append([failure.reason, *(row.get(name) for name in names)])
    return in_place(["error_reason", *names], shown)


def _described(prompt: CompiledPrompt) -> Mapping[str, Callable[[Any], Any]]:
    """The functions that describe cells with images or documents, by column."""
    reader = prompt.reader
    if reader is None:
        return {}
    return {name: partial(describe_cell, kind=kind, reader=reader) for name, kind in prompt.media_columns.items()}


def _preprocessed(row: Mapping[str, Any], prompt: CompiledPrompt) -> Mapping[str, Any]:
    try:
        values = prompt.prepare(row).values
    except Exception:  # noqa: BLE001  (a file or a step of the user's failed, so the row was not asked)
        return {}
    return {name: _describe_media(value) for name, value in values.items()}


def _describe_media(value: Any) -> Any:
    if isinstance(value, Gallery):
        return "; ".join(map(describe, value))
    return describe(value) if isinstance(value, Media) else value
