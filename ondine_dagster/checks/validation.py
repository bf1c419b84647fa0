"""Checks against the output they are about, when the definitions load.

A column that is not there, a threshold out of range or two checks of one name are errors then, not after the rows are
paid for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

from ondine_core.errors import ConfigError
from ondine_core.prompts.json_schema import allowed_values
from ondine_core.prompts.task import Task
from ondine_core.tables import read
from ondine_dagster.checks.scores import as_label
from ondine_dagster.checks.types import (
    Check,
    CostPerRowCheck,
    DriftCheck,
    ErrorRateCheck,
    GoldenCheck,
    Metric,
    NullRateCheck,
)

__all__ = ["check_labels", "closed_columns", "columns_of", "fit_checks", "labelled_columns"]

_MOST_LABELS = 100
"""Metadata is read with every page of the UI; larger sets are not counted into it."""
_TYPES: Mapping[str, type[Check]] = {kind.type: kind for kind in get_args(Check)}


def fit_checks(given: Sequence[Check | Mapping[str, Any]], task: Task) -> dict[str, Check]:
    """Checks by name, sound and fit for the output of `task`.

    Args:
        given: Checks, or mappings with their `type` (`"error_rate"`, `"null_rate"`, `"cost_per_row"`, `"drift"`,
            `"golden"`) and their arguments.
        task: What the asset asks.

    Raises:
        ConfigError: A check is not one, asks for a column that the output does not have, or has another's name.
    """
    checks: dict[str, Check] = {}
    for one in given:
        check: Any = _parse(one) if isinstance(one, Mapping) else one
        if isinstance(check, type) and issubclass(check, get_args(Check)):
            needed = [each.name for each in fields(check) if each.default is each.default_factory]
            arguments = ", ".join(f"{name}=..." for name in needed)
            raise ConfigError(f"checks has the class {check.__name__}; give a check, {check.__name__}({arguments}).")
        if not isinstance(check, get_args(Check)):
            raise ConfigError(f"checks has a {type(check).__name__}; valid are {', '.join(map(repr, _TYPES))}.")
        _fit(check, task)
        name = check.name or _default_name(check)
        if not re.fullmatch(r"\w+", name, re.ASCII):
            raise ConfigError(f"The name {name!r} of a check may have letters, digits and underscores only.")
        if name in checks:
            raise ConfigError(f"Two checks are called {name!r}; give one of them another name=.")
        checks[name] = check
    return checks


def columns_of(check: NullRateCheck | GoldenCheck, task: Task) -> tuple[str, ...]:
    """The output columns that `check` names, all if it names none."""
    if check.columns is None:
        return tuple(column.name for column in task.schema.columns)
    return (check.columns,) if isinstance(check.columns, str) else tuple(check.columns)


def closed_columns(task: Task) -> dict[str, tuple[Any, ...]]:
    """The output columns that take a few given values only, and those values."""
    found = ((column.name, allowed_values(column.json_schema)) for column in task.schema.columns)
    return {name: values for name, values in found if values is not None and len(values) <= _MOST_LABELS}


def _parse(given: Mapping[str, Any]) -> Check:
    arguments = dict(given)
    kind = _TYPES.get(str(arguments.pop("type", None)))
    if kind is None:
        raise ConfigError(f"A check has type={given.get('type')!r}; valid are {', '.join(map(repr, _TYPES))}.")
    valid = [each.name for each in fields(kind)]
    unknown = [name for name in arguments if name not in valid]
    if unknown:
        raise ConfigError(f"The check {kind.type!r} has no {unknown[0]!r}; valid are {', '.join(map(repr, valid))}.")
    try:
        return kind(**arguments)
    except TypeError:
        raise ConfigError(f"The check {kind.type!r} lacks an argument of {', '.join(map(repr, valid))}.") from None


def _fit(check: Check, task: Task) -> None:
    match check:
        case ErrorRateCheck(max_rate=rate):
            _check_share("max_rate", rate)
        case NullRateCheck(max_rate=rate):
            _check_share("max_rate", rate)
            _check_columns(columns_of(check, task), task)
        case CostPerRowCheck(max_usd=usd):
            if not _is_number(usd) or not usd > 0:
                raise ConfigError(f"max_usd={usd!r} of a check must be a number of more than 0.")
        case DriftCheck(column=column, max_distance=distance):
            _check_share("max_distance", distance)
            _check_columns([column], task)
            _check_closed(column, task)
        case GoldenCheck():
            _fit_golden(check, task)


def _fit_golden(check: GoldenCheck, task: Task) -> None:
    _check_share("min_score", check.min_score)
    if check.metric not in get_args(Metric):
        raise ConfigError(f"metric={check.metric!r} of a golden check; valid are 'accuracy' and 'f1'.")
    named = columns_of(check, task)
    _check_columns(named, task)
    if check.upstream is None:
        names, rows, _ = read(check.rows, ())
        if not rows:
            raise ConfigError("The rows of a golden check are empty.")
        named = labelled_columns(check, task, names)
        check_labels(read(check.rows, named)[2], task)
    if check.metric == "f1" and (check.columns is not None or check.upstream is None):
        for column in named:
            _check_closed(column, task)


def labelled_columns(check: GoldenCheck, task: Task, names: Sequence[str]) -> tuple[str, ...]:
    """The output columns that count, of labelled rows with columns `names`.

    Raises:
        ConfigError: The rows lack a column that the prompt reads, or labels.
    """
    missing = [column for column in task.prompt.columns if column not in names]
    if missing:
        raise ConfigError(f"The rows of a golden check lack {missing[0]!r}, which the prompt reads.")
    wanted = columns_of(check, task)
    missing = [column for column in wanted if column not in names]
    if check.columns is not None and missing:
        raise ConfigError(f"The rows of a golden check lack the labels {missing[0]!r}.")
    found = tuple(column for column in wanted if column in names)
    if not found:
        raise ConfigError(f"The rows of a golden check have no labels; name a column {' or '.join(map(repr, wanted))}.")
    return found


def check_labels(labels: Mapping[str, Sequence[Any]], task: Task) -> None:
    """Check that each of `labels`, by output column, may be an answer; a missing one may stand everywhere.

    Raises:
        ConfigError: One may not, so that it would never be met.
    """
    for column in task.schema.columns:
        allowed = allowed_values(column.json_schema)
        if column.name not in labels or allowed is None:
            continue
        possible = {as_label(value) for value in allowed} | {as_label(None)}
        odd = sum(as_label(value) not in possible for value in labels[column.name])
        if odd:
            raise ConfigError(
                f"{odd} labels of {column.name!r} can be no answer; those are {', '.join(map(as_label, allowed))}."
            )


def _check_share(name: str, value: Any) -> None:
    if not _is_number(value) or not 0 <= value <= 1:
        raise ConfigError(f"{name}={value!r} of a check must be between 0 and 1.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_columns(names: Sequence[str], task: Task) -> None:
    outputs = [column.name for column in task.schema.columns]
    unknown = [name for name in names if name not in outputs]
    if unknown:
        raise ConfigError(f"A check is about {unknown[0]!r}; the output columns are {', '.join(map(repr, outputs))}.")
    if not names:
        raise ConfigError("A check names no columns; leave columns= out for all.")


def _check_closed(column: str, task: Task) -> None:
    if column not in closed_columns(task):
        raise ConfigError(
            f"The column {column!r} has no closed set of at most {_MOST_LABELS} values, so its distribution says "
            "nothing; declare it as a Literal, an enum or a boolean."
        )


def _default_name(check: Check) -> str:
    match check:
        case DriftCheck(column=name) | NullRateCheck(columns=str(name)) | GoldenCheck(columns=str(name)):
            return re.sub(r"\W", "_", f"{check.type}_{name}", flags=re.ASCII)
        case NullRateCheck(columns=[str(name)]) | GoldenCheck(columns=[str(name)]):
            return re.sub(r"\W", "_", f"{check.type}_{name}", flags=re.ASCII)
        case _:
            return check.type
