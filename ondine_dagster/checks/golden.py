"""Rows with known answers, asked as the asset's own are: same prompt, same model, same batches, same store.

Its answers are kept like any others, so an unchanged prompt is judged again for nothing. A sample that cannot be asked
(the budget is used up, the labels are no possible answers) is a check that failed, never a step that failed: the rows
of the asset are answered by then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import dagster as dg

from ondine_core.engine.report import Report
from ondine_core.errors import OndineError
from ondine_core.prompts.json_schema import allowed_values
from ondine_core.prompts.task import Task
from ondine_core.tables import read
from ondine_dagster.checks.scores import NO_ANSWER, Score, score, shown
from ondine_dagster.checks.types import GoldenCheck
from ondine_dagster.checks.validation import check_labels, labelled_columns
from ondine_dagster.reporting.markdown import markdown
from ondine_dagster.reporting.metadata import spend_metadata

__all__ = ["Ask", "CheckOutcome", "judge_golden"]

Ask: TypeAlias = Callable[[Mapping[str, Sequence[Any]]], Report]
"""Asks about rows, given the columns that the prompt reads."""

CheckOutcome: TypeAlias = tuple[bool, str, Mapping[str, Any]]
"""Whether a check passed, a sentence about it, and its figures."""

_LABELS_SHOWN = 12
"""More do not fit beside each other."""


def judge_golden(check: GoldenCheck, rows: Any, task: Task, ask: Ask) -> CheckOutcome:
    """Ask about labelled rows and compare.

    Args:
        check: What is wanted.
        rows: The labelled rows.
        task: What the asset asks.
        ask: Asks it.
    """
    try:
        names, _, _ = read(rows, ())
        columns = labelled_columns(check, task, names)
        _, total, given = read(rows, (*task.prompt.columns, *columns))
        if not total:
            return False, "There are no labelled rows.", {}
        labels = {column.name: given[column.name] for column in task.schema.columns if column.name in columns}
        check_labels(labels, task)
        report = ask({name: given[name] for name in task.prompt.columns})
    except OndineError as error:
        return False, f"The labelled rows could not be asked: {error}", {}
    answers, answered = report.values(), list(report.outcomes.answered())
    scores = []
    for name, wanted in labels.items():
        known = [row for row in range(total) if wanted[row] is not None or _is_nullable(name, task)]
        if not known:
            return False, f"No row has a label in {name!r}.", {}
        columns_ = (wanted, answers[name], answered)
        scores.append(score(name, *([values[row] for row in known] for values in columns_)))
    return _conclude(check, scores, task, report)


def _conclude(check: GoldenCheck, scores: Sequence[Score], task: Task, report: Report) -> CheckOutcome:
    reached = {one.column: one.accuracy if check.metric == "accuracy" else one.f1 for one in scores}
    worst = min(reached, key=reached.__getitem__)
    said = f"{check.metric} of {worst!r} is {reached[worst]:.3f}, at least {check.min_score:g} is wanted"
    closed = {column.name for column in task.schema.columns if allowed_values(column.json_schema) is not None}
    metadata: dict[str, Any] = {
        "ondine/score": round(reached[worst], 6),
        "ondine/min_score": float(check.min_score),
        "ondine/rows_total": report.progress.rows_total,
        "ondine/rows_failed": report.progress.rows_failed,
        "ondine/rows_reused": report.progress.rows_reused,
        **spend_metadata(report.spend),
        "ondine/scores": _score_table(scores, closed),
    }
    few = [one for one in scores if one.column in closed]
    if few:
        metadata["ondine/labels"] = _label_table(few)
        metadata["ondine/confusion"] = dg.MetadataValue.md("\n\n".join(map(_confusion, few)))
    return reached[worst] >= check.min_score, f"The {said}.", metadata


def _is_nullable(name: str, task: Task) -> bool:
    """Whether a missing label of column `name` says that null is the right answer, rather than an unknown one."""
    (schema,) = (column.json_schema for column in task.schema.columns if column.name == name)
    options = schema.get("anyOf", [schema])
    return any(option.get("type") == "null" or None in option.get("enum", ()) for option in options)


# -- figures -------------------------------------------------------------------------------------------------------


def _score_table(scores: Sequence[Score], closed: set[str]) -> dg.TableMetadataValue:
    records = [
        dg.TableRecord(
            {
                "column": one.column,
                "rows": one.rows,
                "accuracy": round(one.accuracy, 4),
                "f1": round(one.f1, 4) if one.column in closed else None,
            }
        )
        for one in scores
    ]
    return dg.MetadataValue.table(records, _schema(column="string", rows="int", accuracy="float", f1="float"))


def _label_table(scores: Sequence[Score]) -> dg.TableMetadataValue:
    records = [
        dg.TableRecord(
            {
                "column": one.column,
                "label": shown(label.label),
                "expected": label.expected,
                "answered": label.answered,
                "precision": round(label.precision, 4),
                "recall": round(label.recall, 4),
                "f1": round(label.f1, 4),
            }
        )
        for one in scores
        for label in one.labels[:_LABELS_SHOWN]
    ]
    figures = {"expected": "int", "answered": "int", "precision": "float", "recall": "float", "f1": "float"}
    return dg.MetadataValue.table(records, _schema(column="string", label="string", **figures))


def _schema(**types: str) -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(name, kind) for name, kind in types.items()])


def _confusion(one: Score) -> str:
    """Labels by answers, as a Markdown table; the rarer ones of many together."""
    names = [label.label for label in one.labels]
    kept = names if len(names) <= _LABELS_SHOWN else names[: _LABELS_SHOWN - 1]
    rest = [f"{len(names) - len(kept)} others"] if len(kept) < len(names) else []
    counts = Counter[tuple[str, str]]()
    for (label, answer), rows in one.confusion.items():
        counts[label if label in kept else rest[0], answer if answer in kept or answer == NO_ANSWER else rest[0]] += (
            rows
        )
    unanswered = [NO_ANSWER] if any(answer == NO_ANSWER for _, answer in counts) else []
    answers = [*kept, *rest, *unanswered]
    lines = [[shown(label), *(counts[label, answer] or "" for answer in answers)] for label in (*kept, *rest)]
    return markdown([f"{one.column}: label, answer →", *map(shown, answers)], lines)
