"""The types of checks. A new one is a class, here or in a module of its own, and its name in `KINDS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ondine_core.errors import ConfigError
from ondine_core.prompts.task import Task
from ondine_core.types.numbers import is_positive
from ondine_dagster.checks.check import (
    Check,
    CheckContext,
    CheckOutcome,
    NamedColumns,
    as_names,
    check_columns,
    check_share,
)
from ondine_dagster.checks.drift import DriftCheck
from ondine_dagster.checks.golden import GoldenCheck
from ondine_dagster.reporting.metadata import table


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRateCheck(Check):
    """At most the share `max_rate` (0 to 1) of the rows failed; also evaluated if failed rows fail the step."""

    type: ClassVar[str] = "error_rate"
    of_failures: ClassVar[bool] = True
    max_rate: Annotated[float, Field(description="Share of rows, 0 to 1.")]

    def validate(self, task: Task) -> None:  # noqa: ARG002
        """Check the threshold."""
        check_share("max_rate", self.max_rate)

    def describe(self) -> str:
        """The condition of the check, in a sentence."""
        return f"At most {self.max_rate:.4g} of the rows failed."

    def evaluate(self, context: CheckContext) -> CheckOutcome:
        """Compare the share of failed rows."""
        rate, progress = context.report.error_rate, context.report.progress
        description = f"{progress.rows_failed:,} of {progress.rows_total:,} rows failed."
        metadata = {"ondine/error_rate": round(rate, 6), "ondine/rows_failed": progress.rows_failed}
        return rate <= self.max_rate, description, metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class NullRateCheck(Check):
    """Of the answered rows, at most the share `max_rate` (0 to 1) is null in each of `columns`, by default in all."""

    type: ClassVar[str] = "null_rate"
    max_rate: Annotated[float, Field(description="Share of rows, 0 to 1.")]
    columns: NamedColumns = None

    @property
    def named_columns(self) -> tuple[str, ...] | None:
        """The output columns that the check names."""
        return as_names(self.columns)

    def validate(self, task: Task) -> None:
        """Check the threshold and the columns."""
        check_share("max_rate", self.max_rate)
        check_columns(self.columns_of(task), task)

    def describe(self) -> str:
        """The condition of the check, in a sentence."""
        return f"At most {self.max_rate:.4g} of the answers are null."

    def evaluate(self, context: CheckContext) -> CheckOutcome:
        """Compare the share of nulls in the column with the most nulls."""
        nulls = {}
        for name in self.columns_of(context.task):
            missing = [value is None for value in context.answered(name)]
            nulls[name] = sum(missing) / max(1, len(missing))
        worst = max(nulls, key=nulls.__getitem__)
        description = f"{nulls[worst]:.4g} of the answers in {worst!r} are null."
        rates = ((name, round(rate, 6)) for name, rate in nulls.items())
        metadata = {
            "ondine/null_rate": round(nulls[worst], 6),
            "ondine/nulls": table(rates, column="string", null_rate="float"),
        }
        return nulls[worst] <= self.max_rate, description, metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class CostPerRowCheck(Check):
    """The rows that a materialization asked cost at most `max_usd` each, repairs included; it needs a known price."""

    type: ClassVar[str] = "cost_per_row"
    max_usd: Annotated[float, Field(description="USD a row.")]

    def validate(self, task: Task) -> None:  # noqa: ARG002
        """Check the threshold."""
        if not is_positive(self.max_usd):
            raise ConfigError(f"max_usd={self.max_usd!r} of a check must be a number of more than 0.")

    def describe(self) -> str:
        """The condition of the check, in a sentence."""
        return f"A row costs at most ${self.max_usd:.6g}."

    def evaluate(self, context: CheckContext) -> CheckOutcome:
        """Compare the average cost of a row."""
        progress = context.report.progress
        if not progress.rows_asked:
            return True, "No row was asked.", {}
        if progress.spend.usd is None:
            return False, "The price is unknown; set input_cost_per_1k_tokens and output_cost_per_1k_tokens.", {}
        usd = float(progress.spend.usd / progress.rows_asked)
        at_most = "at most " if progress.spend.at_most_calls else ""
        description = f"{progress.rows_asked:,} rows were asked for {at_most}${usd:.6g} each."
        return usd <= self.max_usd, description, {"ondine/cost_per_row_usd": usd}


KINDS: tuple[type[Check], ...] = (ErrorRateCheck, NullRateCheck, CostPerRowCheck, DriftCheck, GoldenCheck)
"""All types of checks, in the order of messages to users."""
