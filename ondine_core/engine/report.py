"""The result of a run: one outcome a row, counts, cost and duration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import islice
from typing import Any, TypeVar

from ondine_core.batching.calibration import CalibrationResult
from ondine_core.engine.outcomes import Outcomes
from ondine_core.engine.tables import new_column
from ondine_core.errors import ConfigError, OndineError
from ondine_core.limits import Setting
from ondine_core.preprocessing.preprocess import PreprocessStats
from ondine_core.types.ledger import Audit
from ondine_core.types.progress import Progress, Spend
from ondine_core.types.values import Answer, Json

Frame = TypeVar("Frame")

_ROWS_SHOWN = 5
_MAX_SHOWN = 100
_REASONS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a run.

    Iterating over it yields a mapping of output column to value for each row, as `pandas.DataFrame(report)` reads it.

    Args:
        outcomes: One a row, in row order.
        columns: Names of the output columns.
        progress: The final counts, spend and duration.
        prompts: Number of unique prompts among the rows.
        latencies_s: Seconds of each call that was answered, sorted.
        concurrency: The limits that were measured, each with the time from which it applied.
        audit: The ledger of the run and its asset, killed attempts included.
        calibrated: How answers of rows asked together and alone compare; `None` without calibration.
        stopped_by: Why the model was not asked about all rows; `None` if it was.
        preprocess_stats: How many rows were truncated and sanitized; `None` without preprocessing.
        json_schemas: The JSON schema of each output column.
        overwrite: Whether `to_frame` replaces existing columns by default.
    """

    outcomes: Outcomes
    columns: tuple[str, ...]
    progress: Progress
    prompts: int
    latencies_s: Sequence[float]
    concurrency: Sequence[Setting]
    audit: Audit
    calibrated: CalibrationResult | None = None
    stopped_by: OndineError | None = None
    preprocess_stats: PreprocessStats | None = None
    json_schemas: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    overwrite: bool = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The output columns of each row, in row order; a row that failed or was skipped has `None` in each."""
        for outcome in self.outcomes:
            values: Mapping[str, Any] = outcome.values if isinstance(outcome, Answer) else {}
            yield {name: values.get(name) for name in self.columns}

    def __repr__(self) -> str:
        return f"<Report: {'; '.join(f'{name} {text}' for name, text in self._summary().items())}>"

    def _repr_html_(self) -> str:
        """The summary and the first rows, for notebooks."""
        figures = _html_table([], [[f"<b>{name}</b>", escape(text)] for name, text in self._summary().items()])
        failures = self.failures.most_common(_REASONS_SHOWN)
        reasons = _html_table(["failed rows", "why"], [[f"{rows:,}", escape(why)] for why, rows in failures])
        shown = [[escape(_shorten(row[name])) for name in self.columns] for row in islice(self, _ROWS_SHOWN)]
        first = _html_table([escape(name) for name in self.columns], shown)
        return f"<div>{figures}{reasons if failures else ''}{first if shown else ''}</div>"

    def _summary(self) -> dict[str, str]:
        progress, usage = self.progress, self.spend.usage
        known = f" ({progress.rows_reused:,} known before)" if progress.rows_reused else ""
        failed = f", {progress.rows_failed:,} failed" if progress.rows_failed else ""
        skipped = f", {progress.rows_skipped:,} skipped" if progress.rows_skipped else ""
        return {
            "rows": f"{progress.rows_total:,}{known}{failed}{skipped}",
            "columns": ", ".join(self.columns),
            "calls": f"{self.spend.calls:,}",
            "tokens": f"{usage.input_tokens:,} in, {usage.output_tokens:,} out",
            "cost": str(self.spend),
            "time": f"{progress.elapsed_s:,.1f} s, {progress.pace}",
        }

    def to_frame(self, table: Frame, *, error_column: str | None = "error", overwrite: bool | None = None) -> Frame:
        """Add the output columns to `table`, as a new frame of the same kind.

        Args:
            table: The pandas, polars or pyarrow frame that was asked about, with its rows in the same order; only their
                number is checked.
            error_column: Name of the column that says why a row failed, or `None` for none.
            overwrite: Replace columns of these names that `table` has already; by default as `enrich` was called.

        Returns:
            A frame of the same kind and length, with one further column for each output column, and `error_column`.

        Raises:
            ConfigError: `table` is not a frame, has another number of rows, or has a column of such a name.
        """
        import narwhals as nw

        native: Any = table
        try:
            frame = nw.from_native(native, eager_only=True)
        except TypeError:
            raise ConfigError(
                f"A {type(table).__name__} is not a pandas, polars or pyarrow frame; report.values() has the output "
                "columns as lists."
            ) from None
        if len(frame) != len(self.outcomes):
            raise ConfigError(f"The table has {len(frame):,} rows, but {len(self.outcomes):,} were asked about.")
        replaced = self.overwrite if overwrite is None else overwrite
        added = [*self.columns, *([] if error_column is None else [error_column])]
        if len(set(added)) < len(added):
            raise ConfigError(f"error_column={error_column!r} is also an output column; choose another name, or None.")
        existing = [name for name in added if name in frame.columns]
        if existing and not replaced:
            name = existing[0]
            other = "" if name in self.columns else ", or error_column= to choose another name"
            raise ConfigError(f"The table has a column {name!r} already; give overwrite=True to replace it{other}.")
        values = self.values()
        series = [new_column(frame, name, values.pop(name), self.json_schemas[name]) for name in self.columns]
        if error_column is not None:
            series.append(new_column(frame, error_column, self.errors(), {"type": "string"}))
        enriched: Frame = frame.with_columns(*series).to_native()
        return enriched

    def merge_rest(self, indices: Sequence[int], rest: Report) -> Report:
        """Merge with the report `rest` of a run over the rows at `indices`, which this one left unanswered."""
        return replace(
            self,
            outcomes=self.outcomes.with_others(indices, rest.outcomes),
            progress=self.progress.merge_rest(rest.progress),
            latencies_s=sorted((*self.latencies_s, *rest.latencies_s)),
            concurrency=(*self.concurrency, *rest.concurrency),
            audit=rest.audit,
            calibrated=self.calibrated or rest.calibrated,
            stopped_by=rest.stopped_by,
        )

    @property
    def models(self) -> Counter[str]:
        """How many rows each model answered."""
        outcomes = map(self.outcomes.as_kept, range(len(self.outcomes)))
        return Counter(outcome.model for outcome in outcomes if isinstance(outcome, Answer))

    @property
    def spend(self) -> Spend:
        """Calls, tokens and money of this run."""
        return self.progress.spend

    @property
    def error_rate(self) -> float:
        """Failed rows among all that were not skipped, 0 to 1."""
        rows = len(self.outcomes) - self.progress.rows_skipped
        return self.progress.rows_failed / rows if rows else 0.0

    @property
    def failures(self) -> Counter[str]:
        """Failed rows by reason and detail."""
        return Counter(str(failure) for failure in self.outcomes.failures() if failure)

    def column(self, name: str) -> list[Any]:
        """The values of output column `name` in row order, `None` where a row failed or was skipped."""
        return self.values()[name]

    def values(self, *, as_kept: bool = False) -> dict[str, list[Any]]:
        """All output columns by name; a row that failed or was skipped has `None` in each.

        Args:
            as_kept: Keep the placeholders that stand for sanitized data of rows.
        """
        columns: dict[str, list[Any]] = {name: [] for name in self.columns}
        outcomes = map(self.outcomes.as_kept, range(len(self.outcomes))) if as_kept else self.outcomes
        for outcome in outcomes:
            values: Mapping[str, Any] = outcome.values if isinstance(outcome, Answer) else {}
            for name, column in columns.items():
                column.append(values.get(name))
        return columns

    def errors(self) -> list[str | None]:
        """Why each row failed, `None` where it has an answer or was skipped."""
        return [str(failure) if failure else None for failure in self.outcomes.failures()]


def _shorten(value: Any) -> str:
    """Convert a value to one short line for a notebook."""
    text = "" if value is None else " ".join(str(value).split())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML."""
    lines = ["".join(f"<th>{name}</th>" for name in head)] if head else []
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
