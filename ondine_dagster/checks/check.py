"""The base class of checks, which are validated when the definitions load and evaluated after a materialization."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Annotated, Any, ClassVar, TypeAlias

import dagster as dg
from pydantic import Field

from ondine_core.engine.report import Report
from ondine_core.errors import ConfigError
from ondine_core.prompts.json_schema import allowed_values
from ondine_core.prompts.task import Task
from ondine_core.types.numbers import is_number

_MAX_LABELS = 100
"""The most values that are counted, since each page of the UI loads all metadata."""

Ask: TypeAlias = Callable[[Mapping[str, Sequence[Any]]], Report]
"""Asks about rows, given the columns that the prompt reads."""

NamedColumns: TypeAlias = Annotated[
    str | Sequence[str] | None, Field(description="Output columns; by default all, or those that have labels.")
]
"""The argument `columns` of a check."""

CheckOutcome: TypeAlias = tuple[bool, str, Mapping[str, Any]]
"""Whether a check passed, a sentence about it, and its figures."""


@dataclass(frozen=True, slots=True)
class CheckContext:
    """The data that checks evaluate.

    `values` also have failed and skipped rows; `there` says whether each row was answered. `labelled` has the labelled
    rows of upstream assets, by input.
    """

    step: dg.AssetExecutionContext
    task: Task
    report: Report
    ask: Ask
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    there: Sequence[bool] = ()
    labelled: Mapping[str, Any] = field(default_factory=dict)

    def answered(self, column: str, rows: slice = slice(None)) -> Iterator[Any]:
        """The values of an output column in the answered ones of `rows`."""
        return compress(self.values[column][rows], self.there[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(ABC):
    """The fields and methods of every check.

    Args:
        blocking: Whether a failed check stops downstream assets; it is then an error, otherwise a warning.
        name: The check's name; by default its type and column.
    """

    type: ClassVar[str]
    of_failures: ClassVar[bool] = False
    """Whether the check is also evaluated if the step fails because of its failed rows."""
    blocking: Annotated[bool, Field(description="Whether a failed check stops downstream assets.")] = False
    name: Annotated[str | None, Field(description="Name of the check; by default its type and column.")] = None

    def __post_init__(self) -> None:
        if not isinstance(self.blocking, bool):
            raise ConfigError(f"blocking={self.blocking!r} must be true or false.")
        if not isinstance(self.name, str | None):
            raise ConfigError(f"name={self.name!r} of a check must be a text, or None.")

    @property
    def named_columns(self) -> tuple[str, ...] | None:
        """The output columns that the check names; `None` if it names none."""
        return None

    @property
    def upstream(self) -> dg.AssetKey | None:
        """The asset that has rows for the check, if there is one."""
        return None

    def columns_of(self, task: Task) -> tuple[str, ...]:
        """The output columns that the check names; all if it names none."""
        named = self.named_columns
        return task.schema.names if named is None else named

    def default_name(self) -> str:
        """The type of the check, and the column if it names one."""
        named = self.named_columns
        if named is None or len(named) != 1:
            return self.type
        return re.sub(r"\W", "_", f"{self.type}_{named[0]}", flags=re.ASCII)

    @abstractmethod
    def validate(self, task: Task) -> None:
        """Check that the arguments are valid for the output of `task`."""

    @abstractmethod
    def describe(self) -> str:
        """The condition of the check, in a sentence."""

    @abstractmethod
    def evaluate(self, context: CheckContext) -> CheckOutcome:
        """Whether a materialization meets the condition."""


def as_names(columns: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The argument `columns` of a check as names."""
    if columns is None:
        return None
    if not isinstance(columns, Sequence):
        raise ConfigError(f"columns={columns!r} of a check must be names of output columns.")
    return (columns,) if isinstance(columns, str) else tuple(columns)


def closed_columns(task: Task) -> dict[str, tuple[Any, ...]]:
    """The output columns with a closed set of at most 100 values, and these values."""
    allowed = {column.name: allowed_values(column.json_schema) for column in task.schema.columns}
    return {name: values for name, values in allowed.items() if values is not None and len(values) <= _MAX_LABELS}


def check_share(name: str, value: Any) -> None:
    """Refuse a `value` of the argument `name` that is not from 0 to 1."""
    if not is_number(value, 0, 1):
        raise ConfigError(f"{name}={value!r} of a check must be between 0 and 1.")


def check_columns(names: Sequence[str], task: Task) -> None:
    """Refuse an empty list of columns, and names of columns that the output does not have."""
    outputs = task.schema.names
    unknown = [name for name in names if name not in outputs]
    if unknown:
        raise ConfigError(f"A check is about {unknown[0]!r}; the output columns are {', '.join(map(repr, outputs))}.")
    if not names:
        raise ConfigError("A check names no columns; leave columns= out for all.")


def check_closed(column: str, task: Task) -> None:
    """Refuse a column without a closed set of values."""
    if column not in closed_columns(task):
        raise ConfigError(
            f"The column {column!r} has no closed set of at most {_MAX_LABELS} values, so its distribution says "
            "nothing; declare it as a Literal, an enum or a boolean."
        )
