"""One step: rows in, enriched rows and their figures out.

The step is synchronous and runs the engine's event loop in a thread: an interrupt lands in the main thread, where it
cancels the calls in flight and goes on unchanged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Literal

import dagster as dg

from ondine_core.batching import JSON, Strategy, explain_fallback
from ondine_core.calibration import CalibrationPlan
from ondine_core.enrichment import Options, answer, spec_of
from ondine_core.errors import ConfigError, FailedRowsError, OndineError
from ondine_core.question import Question
from ondine_core.report import Progress, Report
from ondine_core.thread import run_in_thread
from ondine_core.values import ChatModel, Origin
from ondine_dagster.report import failure, lineage, progress_line, progress_metadata, run_metadata
from ondine_dagster.resources import LLMResource, default_store, store_warning
from ondine_dagster.tables import check_frame, column_schema, join, names_of, preview

__all__ = ["Enrichment", "OnRowError", "materialize"]

OnRowError = Literal["null", "drop", "raise"]


@dataclass(frozen=True, slots=True)
class Enrichment:
    """What an asset adds to its rows; `question.model` is filled in by the resource."""

    question: Question
    error_column: str
    on_row_error: OnRowError
    max_error_rate: float | None
    batch_size: int | Literal["auto"] = 1
    strategy: Strategy = JSON
    calibration: CalibrationPlan | None = None
    model_column: str | None = None
    max_cost_usd: float | None = None


def materialize(
    context: dg.AssetExecutionContext, rows: Any, enrichment: Enrichment, llm: Any, inputs: Mapping[str, Any]
) -> dg.MaterializeResult[Any]:
    """Ask about `rows` and join what comes of it.

    Args:
        context: The step's.
        rows: The frame to enrich.
        enrichment: What is added to it.
        llm: The resource that is asked.
        inputs: Upstream values by input name, for the lineage of columns.

    Raises:
        Failure: The step cannot go on, or too many rows failed; what was answered is kept.
    """
    watch = _Watch(context)
    try:
        question, options, model = _resolve(context, enrichment, llm, watch)
        check_frame(rows)
        for added in filter(None, (enrichment.error_column, enrichment.model_column)):
            if added in names_of(rows):
                raise ConfigError(f"{added!r} is already a column of the rows; rename it, or what is added to them.")
        report = run_in_thread(lambda: answer(rows, question, options, model), watch.tick)
        watch.flush()
        _judge(context, report, enrichment)
    except OndineError as error:
        watch.observe()
        raise failure(error, watch.latest) from error
    except BaseException:
        # An interrupt: what was spent stays visible, and the exception goes on as it came.
        watch.observe()
        raise
    context.log.info(progress_line(report.progress))
    if report.calibrated and report.calibrated.complaint:
        context.log.warning(report.calibrated.complaint)
    columns = question.schema.columns
    table = join(rows, report, columns, enrichment.error_column, enrichment.on_row_error, enrichment.model_column)
    outputs = [column.name for column in columns]
    failed = report.progress.rows_failed > 0 and enrichment.on_row_error != "drop"
    shown = [*outputs, *([enrichment.error_column] if failed else []), *question.prompt.columns]
    upstream = {context.asset_key_for_input(name): names_of(value) for name, value in inputs.items()}
    metadata = {
        "ondine/preview": dg.MetadataValue.md(preview(table, shown)),
        **run_metadata(report, question.model),
        "dagster/partition_row_count" if context.has_partition_key else "dagster/row_count": len(table),
        "dagster/column_schema": column_schema(table, columns, enrichment.error_column),
        "dagster/column_lineage": lineage(names_of(table), question.prompt.columns, outputs, upstream),
    }
    return dg.MaterializeResult(value=table, metadata=metadata)


def _resolve(
    context: dg.AssetExecutionContext, enrichment: Enrichment, llm: Any, watch: _Watch
) -> tuple[Question, Options, ChatModel | None]:
    """The question with its model, how to run it, and the model if it is open already."""
    store, model = default_store(context.instance), None
    if isinstance(llm, LLMResource):
        store = llm.store or store
        spec, options = llm.spec(), llm.options(store)
        watch.every_s = llm.progress_every_s
    elif callable(llm):
        spec, options, model = spec_of(llm), Options(store=store), llm
    else:
        raise ConfigError(f"The resource is a {type(llm).__name__}; an LLMResource or a ChatModel was expected.")
    if warning := store_warning(store):
        context.log.warning(warning)
    if enrichment.batch_size != 1 and (fallback := explain_fallback(enrichment.question)):
        context.log.info(fallback)
    policy = replace(
        options.policy,
        batch_size=enrichment.batch_size,
        strategy=enrichment.strategy,
        calibration=enrichment.calibration,
    )
    question = replace(enrichment.question, model=spec)
    asset, partition = context.asset_key.to_user_string(), _partition(context)
    options = replace(
        options,
        policy=policy,
        origin=Origin(context.run.run_id, asset, partition),
        lease=f"{asset}/{partition}",
        max_cost_usd=enrichment.max_cost_usd,
        on_progress=watch.keep,
        on_wait=watch.wait,
        on_threshold=watch.warn,
        on_fallback=watch.warn,
    )
    return question, options, model


def _partition(context: dg.AssetExecutionContext) -> str:
    """The partition, the first and last of a range, or nothing."""
    if not (context.has_partition_key or context.has_partition_key_range):
        return ""
    first, *others = context.partition_keys
    return f"{first}...{others[-1]}" if others else str(first)


def _judge(context: dg.AssetExecutionContext, report: Report, enrichment: Enrichment) -> None:
    """Fail the step if more rows failed than the user allows; the answers are kept, a re-run asks the failed rows."""
    failed, total = report.progress.rows_failed, report.progress.rows_total
    if not failed:
        return
    reasons = "; ".join(f"{reason} ({count:,} rows)" for reason, count in report.failures.most_common(3))
    context.log.warning(f"{failed:,} of {total:,} rows failed: {reasons}")  # noqa: G004
    if enrichment.on_row_error == "raise":
        rule = "on_row_error='raise'"
    elif enrichment.max_error_rate is not None and report.error_rate > enrichment.max_error_rate:
        rule = f"max_error_rate={enrichment.max_error_rate:g}"
    elif enrichment.max_error_rate is None and failed == total:
        rule = "no row got an answer"
    else:
        return
    passing = any(failure is not None and failure.reason == "unreachable" for failure in report.outcomes.failures())
    message = f"{failed:,} of {total:,} rows failed ({rule}): {reasons}. The other answers are kept."
    raise FailedRowsError(message, retry_helps=passing)


class _Watch:
    """Reports a running step from its main thread: a log line and an observation every `every_s` seconds.

    The event log takes a few hundred events a second, so rows are never reported one by one.
    """

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context, self._due = context, monotonic()
        self.every_s = 10.0
        self._said: deque[str] = deque()
        self.latest: Progress | None = None

    def keep(self, progress: Progress) -> None:
        """Called on the event loop's thread; only remembers."""
        self.latest = progress

    def warn(self, message: str) -> None:
        """Called on the event loop's thread; only remembers."""
        self._said.append(message)

    def wait(self, seconds: float) -> None:
        """Called on the event loop's thread while another process has the lease."""
        self.warn(
            "Another process is at work on this asset and partition; this step waits for it and will find its answers. "
            f"If that process is dead, its work is taken over in {seconds:.0f} s."
        )

    def tick(self) -> None:
        """Called in the main thread, several times a second."""
        self.flush()
        if self.latest is None:
            self._due = monotonic() + self.every_s
        elif monotonic() >= self._due:
            self._due = monotonic() + self.every_s
            self._context.log.info(progress_line(self.latest))
            self.observe()

    def flush(self) -> None:
        """Log what was remembered."""
        while self._said:
            self._context.log.warning(self._said.popleft())

    def observe(self) -> None:
        """Log the figures so far as an observation: those of a failed step appear on the asset's page only so."""
        if self.latest is not None:
            partition = self._context.partition_key if self._context.has_partition_key else None
            metadata = progress_metadata(self.latest)
            event = dg.AssetObservation(self._context.asset_key, partition=partition, metadata=metadata)
            self._context.log_event(event)
