"""One step: rows in, enriched rows and their figures out.

The step is synchronous and runs the engine's event loop in a thread: an interrupt lands in the main thread, where it
cancels the calls in flight and goes on unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import dagster as dg

from ondine_core.batching import JSON, Strategy, explain_fallback
from ondine_core.calibration import CalibrationPlan
from ondine_core.enrichment import Options, answer, spec_of
from ondine_core.errors import ConfigError, FailedRowsError, OndineError
from ondine_core.question import Question
from ondine_core.report import Report
from ondine_core.thread import run_in_thread
from ondine_core.values import ChatModel, Origin
from ondine_dagster.checks import Check
from ondine_dagster.dead_letters import failed_key, letters
from ondine_dagster.drift import to_metadata
from ondine_dagster.golden import Ask
from ondine_dagster.judging import Evidence, check_results, collect, split_checks
from ondine_dagster.report import failure, lineage, progress_line, run_metadata
from ondine_dagster.resources import LLMResource, default_store, store_warning
from ondine_dagster.tables import FAILED_COLUMNS, check_frame, column_schema, join, names_of, preview
from ondine_dagster.watch import Watch

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
    checks: Mapping[str, Check] = field(default_factory=dict)
    failed_rows: bool = False


def materialize(  # noqa: PLR0913, PLR0917  (one caller)
    context: dg.AssetExecutionContext,
    rows: Any,
    enrichment: Enrichment,
    llm: Any,
    inputs: Mapping[str, Any],
    labelled: Mapping[str, Any],
) -> Iterator[dg.MaterializeResult[Any]]:
    """Ask about `rows` and join what comes of it; the failed rows come first, if they are wanted.

    Args:
        context: The step's.
        rows: The frame to enrich.
        enrichment: What is added to it.
        llm: The resource that is asked.
        inputs: Upstream values by input name, for the lineage of columns.
        labelled: Upstream values by input name, for checks.

    Raises:
        Failure: The step cannot go on, or too many rows failed; what was answered is kept.
    """
    watch = Watch(context)
    try:
        question, options, model = _resolve(context, enrichment, llm, watch)
        check_frame(rows)
        noted = FAILED_COLUMNS if enrichment.failed_rows else ()
        for added in filter(None, (enrichment.error_column, enrichment.model_column, *noted)):
            if added in names_of(rows):
                raise ConfigError(f"{added!r} is already a column of the rows; rename it, or what is added to them.")
        report = run_in_thread(lambda: answer(rows, question, options, model), watch.tick)
    except OndineError as error:
        watch.observe()
        raise failure(error, watch.latest) from error
    except BaseException:
        # An interrupt: what was spent stays visible, and the exception goes on as it came.
        watch.observe()
        raise
    watch.flush()
    upstream = {context.asset_key_for_input(name): names_of(value) for name, value in inputs.items()}
    key, checks, ask = (
        context.asset_key_for_output(),
        enrichment.checks,
        _ask_as_asset(question, options, model, report, watch),
    )
    if enrichment.failed_rows:
        about, checks = split_checks(checks)
        results = check_results(about, Evidence(question, report), context, asset=failed_key(key), ask=ask)
        yield letters(context, rows, report, upstream=upstream, results=results)
    try:
        _judge(context, report, enrichment)
    except FailedRowsError as error:
        watch.observe()
        raise failure(error, watch.latest) from error
    context.log.info(progress_line(report.progress))
    if report.calibrated and report.calibrated.complaint:
        context.log.warning(report.calibrated.complaint)
    columns = question.schema.columns
    table = join(rows, report, columns, enrichment.error_column, enrichment.on_row_error, enrichment.model_column)
    outputs = [column.name for column in columns]
    failed = report.progress.rows_failed > 0 and enrichment.on_row_error != "drop"
    shown = [*outputs, *([enrichment.error_column] if failed else []), *question.prompt.columns]
    evidence = collect(checks, question, report, table)
    metadata = {
        "ondine/preview": dg.MetadataValue.md(preview(table, shown)),
        **run_metadata(report, question.model),
        "dagster/partition_row_count" if context.has_partition_key else "dagster/row_count": len(table),
        "dagster/column_schema": column_schema(table, columns, enrichment.error_column),
        "dagster/column_lineage": lineage(names_of(table), question.prompt.columns, outputs, upstream),
        **to_metadata(evidence.counts),
    }
    results = check_results(checks, evidence, context, asset=key, ask=ask, labelled=labelled)
    yield dg.MaterializeResult(asset_key=key, value=table, metadata=metadata, check_results=results)


def _ask_as_asset(question: Question, options: Options, model: ChatModel | None, report: Report, watch: Watch) -> Ask:
    """Asks about labelled rows as those of the asset were asked.

    Partitions that run at once ask one after the other, so that the first one pays and the others find its answers.
    """
    size = report.calibrated.batch_size if report.calibrated else options.policy.batch_size
    options = replace(
        options,
        policy=replace(options.policy, batch_size=size, calibration=None),
        lease=f"{options.origin.asset}/labelled rows",
        on_progress=lambda _: None,
        on_wait=lambda _: None,
    )
    return lambda columns: run_in_thread(lambda: answer(columns, question, options, model), watch.tick)


def _resolve(
    context: dg.AssetExecutionContext, enrichment: Enrichment, llm: Any, watch: Watch
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
    asset, partition = context.asset_key_for_output().to_user_string(), _partition(context)
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
