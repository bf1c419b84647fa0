"""Checks with rows whose answers are known, asked like the asset's own rows: same prompt, model, batches and store.

Their answers are stored like all others, so checking an unchanged prompt again is free. If they cannot be asked (the
budget is used up, the labels cannot be answers), the check fails but not the step, as the rows of the asset are already
answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

import dagster as dg
from pydantic import Field

from ondine_core.engine.report import Report
from ondine_core.engine.tables import read
from ondine_core.errors import ConfigError, OndineError
from ondine_core.prompts.json_schema import allowed_values
from ondine_core.prompts.task import Task
from ondine_dagster.checks.check import (
    Check,
    CheckContext,
    CheckOutcome,
    NamedColumns,
    as_names,
    check_closed,
    check_columns,
    check_share,
)
from ondine_dagster.checks.scores import NO_ANSWER, Score, as_label, score, shown
from ondine_dagster.frames import as_one_table
from ondine_dagster.reporting.markdown import markdown
from ondine_dagster.reporting.metadata import spend_metadata, table

Metric: TypeAlias = Literal["accuracy", "f1"]

_LABELS_SHOWN = 12
"""The most labels that fit side by side."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GoldenCheck(Check):
    """The answers to labelled rows, asked like the asset's own rows, agree with the labels.

    Args:
        rows: The labelled rows: a frame, a mapping of column to values, a list of mappings; or the key of an asset that
            has them. They have the columns that the prompt reads, and labels in columns named like the output columns.
        columns: The output columns that count; by default those for which the rows have labels.
        min_score: The score that each column has to reach, 0 to 1.
        metric: `"accuracy"`, the share of rows whose answer is their label; or `"f1"`, the arithmetic mean of the F1
            scores of all labels (a column with a closed set of values only).
    """

    type: ClassVar[str] = "golden"
    rows: Annotated[
        Any, Field(description="The labelled rows: the key of an asset that has them, or a list of mappings.")
    ] = field(repr=False)
    min_score: Annotated[float, Field(description="The score that each column has to reach, 0 to 1.")]
    columns: NamedColumns = None
    metric: Annotated[
        Metric, Field(description="Share of labels that were met, or mean of the F1 scores of all labels.")
    ] = "accuracy"

    @property
    def named_columns(self) -> tuple[str, ...] | None:
        """The output columns that the check names."""
        return as_names(self.columns)

    @property
    def upstream(self) -> dg.AssetKey | None:
        """The asset that has the rows; `None` if the check has them itself."""
        match self.rows:
            case str():
                return dg.AssetKey.from_user_string(self.rows)
            case dg.AssetKey():
                return self.rows
            case dg.AssetsDefinition() | dg.AssetSpec():
                return self.rows.key
            case [str(), *_]:
                return dg.AssetKey(self.rows)
            case _:
                return None

    def validate(self, task: Task) -> None:
        """Check the arguments, and the labels of rows that the check has itself."""
        check_share("min_score", self.min_score)
        if self.metric not in get_args(Metric):
            raise ConfigError(f"metric={self.metric!r} of a golden check; valid are 'accuracy' and 'f1'.")
        counted = self.columns_of(task)
        check_columns(counted, task)
        if self.upstream is None:
            names, rows, _ = read(self.rows, ())
            if not rows:
                raise ConfigError("The rows of a golden check are empty.")
            counted = self._labelled_columns(task, names)
            _check_labels(read(self.rows, counted)[2], task)
        if self.metric == "f1" and (self.columns is not None or self.upstream is None):
            for column in counted:
                check_closed(column, task)

    def describe(self) -> str:
        """The condition of the check, in a sentence."""
        return f"Of labelled rows, {self.metric} is at least {self.min_score:.4g}."

    def evaluate(self, context: CheckContext) -> CheckOutcome:
        """Ask about the labelled rows, and compare the answers with the labels."""
        key, task = self.upstream, context.task
        rows = self.rows if key is None else as_one_table(context.labelled[labelled_input(key)])
        try:
            names, _, _ = read(rows, ())
            columns = self._labelled_columns(task, names)
            _, total, values_by_column = read(rows, (*task.prompt.columns, *columns))
            if not total:
                return False, "There are no labelled rows.", {}
            labels = {name: values_by_column[name] for name in task.schema.names if name in columns}
            _check_labels(labels, task)
            report = context.ask({name: values_by_column[name] for name in task.prompt.columns})
        except OndineError as error:
            return False, f"The labelled rows could not be asked: {error}", {}
        answers, answered = report.values(), list(report.outcomes.answered())
        scores = []
        for name, expected in labels.items():
            labelled = [row for row in range(total) if expected[row] is not None or _is_nullable(name, task)]
            if not labelled:
                return False, f"No row has a label in {name!r}.", {}
            compared = ([values[row] for row in labelled] for values in (expected, answers[name], answered))
            scores.append(score(name, *compared))
        return self._outcome(scores, task, report)

    def _outcome(self, scores: Sequence[Score], task: Task, report: Report) -> CheckOutcome:
        reached = {
            column_score.column: column_score.accuracy if self.metric == "accuracy" else column_score.f1
            for column_score in scores
        }
        worst = min(reached, key=reached.__getitem__)
        description = (
            f"The {self.metric} of {worst!r} is {reached[worst]:.3f}, at least {self.min_score:g} is required."
        )
        closed = {column.name for column in task.schema.columns if allowed_values(column.json_schema) is not None}
        metadata: dict[str, Any] = {
            "ondine/score": round(reached[worst], 6),
            "ondine/min_score": float(self.min_score),
            "ondine/rows_total": report.progress.rows_total,
            "ondine/rows_failed": report.progress.rows_failed,
            "ondine/rows_reused": report.progress.rows_reused,
            **spend_metadata(report.spend),
            "ondine/scores": _score_table(scores, closed),
        }
        closed_scores = [column_score for column_score in scores if column_score.column in closed]
        if closed_scores:
            metadata["ondine/labels"] = _label_table(closed_scores)
            metadata["ondine/confusion"] = dg.MetadataValue.md("\n\n".join(map(_confusion, closed_scores)))
        return reached[worst] >= self.min_score, description, metadata

    def _labelled_columns(self, task: Task, names: Sequence[str]) -> tuple[str, ...]:
        """The output columns that count and have labels, if `names` are the columns of the labelled rows."""
        missing = [column for column in task.prompt.columns if column not in names]
        if missing:
            raise ConfigError(f"The rows of a golden check lack {missing[0]!r}, which the prompt reads.")
        counted = self.columns_of(task)
        missing = [column for column in counted if column not in names]
        if self.columns is not None and missing:
            raise ConfigError(f"The rows of a golden check lack the labels {missing[0]!r}.")
        labelled = tuple(column for column in counted if column in names)
        if not labelled:
            choice = " or ".join(map(repr, counted))
            raise ConfigError(f"The rows of a golden check have no labels; name a column {choice}.")
        return labelled


def labelled_input(key: dg.AssetKey) -> str:
    """The step's input for the labelled rows of the asset `key`."""
    return f"labelled_rows_of_{key.to_python_identifier()}"


def _check_labels(labels: Mapping[str, Sequence[Any]], task: Task) -> None:
    """Refuse `labels`, by output column, that cannot be answers; a label may be missing."""
    for column in task.schema.columns:
        allowed = allowed_values(column.json_schema)
        if column.name not in labels or allowed is None:
            continue
        possible = {as_label(value) for value in allowed} | {as_label(None)}
        impossible = sum(as_label(value) not in possible for value in labels[column.name])
        if impossible:
            answers = ", ".join(map(as_label, allowed))
            raise ConfigError(f"{impossible} labels of {column.name!r} can be no answer; those are {answers}.")


def _is_nullable(name: str, task: Task) -> bool:
    """Whether column `name` allows null: a missing label then means that null is the correct answer."""
    (schema,) = (column.json_schema for column in task.schema.columns if column.name == name)
    options = schema.get("anyOf", [schema])
    return any(option.get("type") == "null" or None in option.get("enum", ()) for option in options)


# -- figures -------------------------------------------------------------------------------------------------------


def _score_table(scores: Sequence[Score], closed: set[str]) -> dg.TableMetadataValue:
    rows = []
    for column_score in scores:
        f1 = round(column_score.f1, 4) if column_score.column in closed else None
        rows.append((column_score.column, column_score.rows, round(column_score.accuracy, 4), f1))
    return table(rows, column="string", rows="int", accuracy="float", f1="float")


def _label_table(scores: Sequence[Score]) -> dg.TableMetadataValue:
    rows = []
    for column_score in scores:
        for label in column_score.labels[:_LABELS_SHOWN]:
            shares = (round(share, 4) for share in (label.precision, label.recall, label.f1))
            rows.append((column_score.column, shown(label.label), label.expected, label.answered, *shares))
    figures = {"expected": "int", "answered": "int", "precision": "float", "recall": "float", "f1": "float"}
    return table(rows, column="string", label="string", **figures)


def _confusion(column_score: Score) -> str:
    """A Markdown table of labels by answers; rare labels are counted together."""
    names = [label.label for label in column_score.labels]
    kept = names if len(names) <= _LABELS_SHOWN else names[: _LABELS_SHOWN - 1]
    others = [f"{len(names) - len(kept)} others"] if len(kept) < len(names) else []
    group_of = {name: name if name in kept else others[0] for name in names} | {NO_ANSWER: NO_ANSWER}
    counts = Counter[tuple[str, str]]()
    for (label, answer), rows in column_score.confusion.items():
        counts[group_of[label], group_of[answer]] += rows
    unanswered = [NO_ANSWER] if any(answer == NO_ANSWER for _, answer in counts) else []
    answers = [*kept, *others, *unanswered]
    lines = [[shown(label), *(counts[label, answer] or "" for answer in answers)] for label in (*kept, *others)]
    return markdown([f"{column_score.column}: label, answer →", *map(shown, answers)], lines)
