"""Runs a step: takes rows, yields enriched rows with their figures.

The step is synchronous and runs the engine's event loop in a thread: an interrupt arrives in the main thread, where it
cancels the calls in flight and is raised again unchanged. All rows are in one frame from the return of the asset
function until they are passed to Dagster.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dagster as dg

from ondine_core.api import answer
from ondine_core.engine.estimate import estimate, example_calls
from ondine_core.engine.in_thread import run_in_thread
from ondine_core.engine.report import Report
from ondine_core.errors import ConfigError, FailedRowsError, JobsUnderWayError, OndineError
from ondine_dagster.checks.check import Check, CheckContext
from ondine_dagster.checks.drift import distribution_metadata
from ondine_dagster.checks.evaluation import check_results
from ondine_dagster.config.launchpad import LLMAssetConfig
from ondine_dagster.frames import (
    FAILED_COLUMNS,
    AskedRows,
    checked_frame,
    column_schema,
    concat_partitions,
    join,
    names_of,
    partition_slices,
    typed_as,
)
from ondine_dagster.reporting.metadata import (
    estimate_line,
    estimate_metadata,
    failure,
    jobs_metadata,
    lineage,
    partition_keys,
    progress_line,
    reasons_metadata,
    row_count,
    run_metadata,
    share_of,
)
from ondine_dagster.reporting.plots import distributions
from ondine_dagster.reporting.preview import shown_rows
from ondine_dagster.reporting.thumbnails import shown_thumbnails
from ondine_dagster.run.failed_rows import FAILED_OUTPUT, failed_rows_result
from ondine_dagster.run.partitions import count_unassigned, joined_by_key, rows_by_partition
from ondine_dagster.run.plan import Enrichment, Plan, ask_as_asset, plan
from ondine_dagster.run.progress import Watch, log_observation
from ondine_dagster.run.trial import choose_rows, trial_metadata

if TYPE_CHECKING:
    import narwhals as nw

Results = Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]


@dataclass(frozen=True, slots=True)
class StepInput:
    """The input of a step.

    `rows` is the frame to enrich, or a frame by partition. `inputs` has the values of upstream assets for the lineage
    of columns, `labelled` those for checks, by input name.
    """

    rows: Any
    llm: Any
    config: LLMAssetConfig
    inputs: Mapping[str, Any]
    labelled: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a run.

    `lengths` has the number of rows of each partition, if that is known; `unassigned` is the number of rows without a
    partition, with `partition_by`.
    """

    frame: nw.DataFrame[Any]
    lengths: Mapping[str, int]
    unassigned: int | None


@dataclass(frozen=True, slots=True)
class _Run:
    """A run whose rows all have an outcome."""

    plan: Plan
    rows: _Rows
    asked: AskedRows
    watch: Watch


def materialize(context: dg.AssetExecutionContext, enrichment: Enrichment, step_input: StepInput) -> Results:
    """Ask about the rows and add the answers; the asset of failed rows comes first, if it is selected.

    Yields:
        A result for each selected asset, and results of checks that are selected without their asset; nothing in a dry
        run, a trial, a run whose batch jobs are under way, or one without any upstream table.

    Raises:
        Failure: The step cannot go on, or too many rows failed; all answers are kept.
    """
    if isinstance(step_input.rows, Mapping) and not step_input.rows:
        context.log.addFilter(_is_not_about_outputs)
        context.log.warning(
            "There are no rows: no upstream partition of this run has a table. Nothing is asked or materialized."
        )
        return
    run = _run(context, enrichment, step_input)
    if run is None:
        return
    if step_input.config.max_rows is not None:
        _show_trial(context, enrichment, run)
        return
    upstream = {context.asset_key_for_input(name): names_of(value) for name, value in step_input.inputs.items()}
    has_failed_rows = enrichment.arguments.failed_rows
    if has_failed_rows and context.asset_key_for_output(FAILED_OUTPUT) in context.selected_asset_keys:
        yield failed_rows_result(context, run.asked, run.rows.lengths, upstream)
    report = run.asked.report
    check_context = CheckContext(
        context,
        run.plan.task,
        report,
        ask_as_asset(run.plan, report, run.watch),
        report.values(as_kept=True),
        list(report.outcomes.answered()),
        step_input.labelled,
    )
    checks = _selected_checks(context, enrichment)
    try:
        _check_failed_rows(context, report, enrichment)
    except FailedRowsError as error:
        checks_of_failures = {name: check for name, check in checks.items() if check.of_failures}
        yield from check_results(checks_of_failures, check_context)
        run.watch.observe()
        raise failure(error, run.watch.latest) from error
    _log_report(context, report)
    yield from _results(context, enrichment, run, check_context, upstream)


def _run(context: dg.AssetExecutionContext, enrichment: Enrichment, step_input: StepInput) -> _Run | None:
    """Find the rows and ask about them; `None` in a dry run, or while batch jobs are under way."""
    config, watch = step_input.config, Watch(context)
    try:
        step_plan = plan(context, enrichment, step_input.llm, config, watch)
        rows = _find_rows(context, enrichment, step_input)
        frame = choose_rows(rows.frame, config)
        if config.dry_run:
            _dry_run(context, frame, step_plan, watch)
            return None
        report = run_in_thread(lambda: answer(frame, step_plan.task, step_plan.options, step_plan.model), watch.tick)
    except JobsUnderWayError as error:
        watch.flush()
        context.log.info(str(error))
        _observe(context, jobs_metadata(error))
        return None
    except OndineError as error:
        watch.observe()
        raise failure(error, watch.latest) from error
    except BaseException:
        # An interrupt: report the spend, and raise the exception unchanged.
        watch.observe()
        raise
    watch.flush()
    error_column = None if enrichment.arguments.on_row_error == "drop" else enrichment.error_column
    return _Run(step_plan, rows, AskedRows(frame, step_plan.task, report, error_column), watch)


# -- the rows ------------------------------------------------------------------------------------------------------


def _find_rows(context: dg.AssetExecutionContext, enrichment: Enrichment, step_input: StepInput) -> _Rows:
    """Find and check the rows of this run."""
    lengths: Mapping[str, int] = {}
    unassigned = None
    if isinstance(step_input.rows, Mapping):
        frame, lengths = joined_by_key(context, step_input.rows, step_input.inputs)
    else:
        frame = checked_frame(step_input.rows)
    by, partitions = enrichment.arguments.partition_by, context.assets_def.partitions_def
    if by is not None and not lengths:
        keys = partition_keys(context)
        if not keys:
            raise ConfigError(
                f"partition_by={by!r} needs a run of partitions, and this run has none: materialize a partition, which "
                "also answers the checks."
            )
        tables = rows_by_partition(frame, by, partitions, keys)
        unassigned = count_unassigned(frame, by, partitions, context.instance)
        if unassigned:
            context.log.warning(
                f"{unassigned:,} of {len(frame):,} rows have no value in partition_by={by!r}, or "  # noqa: G004
                "one that belongs to no partition: no run enriches them."
            )
        whole = frame
        frame, lengths = concat_partitions(tables, keys)
        frame = typed_as(frame, whole)
    failed_columns = FAILED_COLUMNS if enrichment.arguments.failed_rows else ()
    for added in filter(None, (enrichment.error_column, enrichment.arguments.model_column, *failed_columns)):
        if added in frame.columns:
            raise ConfigError(f"{added!r} is already a column of the rows; rename it, or what is added to them.")
    return _Rows(frame, lengths, unassigned)


# -- runs that store nothing ---------------------------------------------------------------------------------------


def _dry_run(context: dg.AssetExecutionContext, frame: nw.DataFrame[Any], step_plan: Plan, watch: Watch) -> None:
    """Report the estimate of the run in the log and as an observation of the asset."""
    task, options, model = step_plan.task, step_plan.options, step_plan.model
    estimated = run_in_thread(lambda: estimate(frame, task, options, model), watch.tick)
    context.log.info(estimate_line(estimated))
    _observe(context, estimate_metadata(estimated, task.model))


def _show_trial(context: dg.AssetExecutionContext, enrichment: Enrichment, run: _Run) -> None:
    """Report a trial in the log and as an observation of the asset."""
    available = len(run.rows.frame)
    calls = example_calls(run.asked.frame, run.plan.task, run.plan.options.policy)
    asked = replace(run.asked, error_column=enrichment.error_column)
    context.log.info(
        f"Trial of {len(asked.frame):,} of {available:,} rows: nothing is materialized and no check runs. The "  # noqa: G004
        "answers are kept for the real run; the rows are in the observation, under ondine/trial/rows."
    )
    _observe(context, trial_metadata(asked, available, calls, thumbnails=enrichment.arguments.thumbnails))
    _log_report(context, asked.report)
    _log_failures(context, asked.report)


def _observe(context: dg.AssetExecutionContext, metadata: Mapping[str, Any]) -> None:
    """Log an observation instead of a materialization."""
    context.log.addFilter(_is_not_about_outputs)
    log_observation(context, metadata)


def _is_not_about_outputs(record: logging.LogRecord) -> bool:
    """A log filter without Dagster's message about outputs that a step did not yield, as in a dry run."""
    return "did not yield or return expected outputs" not in record.getMessage()


# -- results -------------------------------------------------------------------------------------------------------


def _results(
    context: dg.AssetExecutionContext,
    enrichment: Enrichment,
    run: _Run,
    check_context: CheckContext,
    upstream: Mapping[dg.AssetKey, Sequence[str]],
) -> Results:
    """The enriched rows, if they are selected, and the results of checks."""
    key, asked, columns = context.asset_key_for_output(), run.asked, run.plan.task.schema.columns
    results = check_results(_selected_checks(context, enrichment), check_context)
    if key not in context.selected_asset_keys:
        yield from results
        return
    table = join(asked.frame, asked.report, columns, asked.error_column, enrichment.arguments.model_column)
    figures = run_metadata(asked.report, asked.task.model)
    metadata: dict[str, Any] = {
        **({} if run.rows.unassigned is None else {"ondine/rows_without_partition": run.rows.unassigned}),
        "dagster/column_schema": column_schema(table, columns, enrichment.error_column),
        "dagster/column_lineage": lineage(table.columns, asked.task.prompt.columns, asked.report.columns, upstream),
    }
    if len(run.rows.lengths) > 1:
        _add_partition_metadata(enrichment, run, table, figures, check_context)
    else:
        metadata = {
            "ondine/summary": figures["ondine/summary"],
            **_shown(enrichment, asked, table, check_context),
            **figures,
            **row_count(context, len(table)),
            **metadata,
            **distribution_metadata(check_context),
        }
    yield dg.MaterializeResult(asset_key=key, value=table.to_native(), metadata=metadata, check_results=results)


def _shown(
    enrichment: Enrichment,
    asked: AskedRows,
    table: nw.DataFrame[Any],
    check_context: CheckContext,
    rows: slice = slice(None),
) -> dict[str, Any]:
    """The first rows, their images, a plot of the values, and the reasons of failed rows, as far as there are any.

    `asked` has the part of the run with these `rows`, and `table` the stored rows of that part.
    """
    task, outcomes = asked.task, asked.report.outcomes
    failed = sum(failure is not None for failure in outcomes.failures())
    skipped = sum(row is not None for row in outcomes.skipped())
    values = {name: column[rows] for name, column in check_context.values.items()}
    thumbnails = None
    if enrichment.arguments.thumbnails:
        thumbnails = shown_thumbnails(table, task.prompt, task.schema.names)
    texts = {
        "ondine/preview": shown_rows(asked, table),
        "ondine/thumbnails": thumbnails,
        "ondine/plot": distributions(values, failed, skipped),
    }
    markdown = {name: dg.MetadataValue.md(text) for name, text in texts.items() if text is not None}
    return {**markdown, **reasons_metadata(asked.report)}


def _add_partition_metadata(
    enrichment: Enrichment,
    run: _Run,
    table: nw.DataFrame[Any],
    figures: Mapping[str, Any],
    check_context: CheckContext,
) -> None:
    """Add metadata for each of several partitions; otherwise all would show the figures of the whole run."""
    context, drops_failed = check_context.step, run.asked.error_column is None
    first_stored = 0
    for partition, rows in partition_slices(run.rows.lengths):
        asked = run.asked.part(rows)
        length = rows.stop - rows.start
        failed = asked.report.failures.total()
        stored = length - failed if drops_failed else length
        skipped = length - failed - sum(check_context.there[rows])
        share = share_of(figures, rows, len(run.asked.frame), failed, skipped)
        metadata = {
            "ondine/summary": share["ondine/summary"],
            **_shown(enrichment, asked, table[first_stored : first_stored + stored], check_context, rows),
            **figures,
            **share,
            "dagster/partition_row_count": stored,
            **distribution_metadata(check_context, rows),
        }
        context.add_asset_metadata(metadata, asset_key=context.asset_key_for_output(), partition_key=partition)
        first_stored += stored


def _selected_checks(context: dg.AssetExecutionContext, enrichment: Enrichment) -> Mapping[str, Check]:
    """The checks that are selected in this run, which may be selected without their asset."""
    asset, selected = context.asset_key_for_output(), context.selected_asset_check_keys
    return {name: check for name, check in enrichment.checks.items() if dg.AssetCheckKey(asset, name) in selected}


def _log_report(context: dg.AssetExecutionContext, report: Report) -> None:
    context.log.info(progress_line(report.progress))
    if report.calibrated and report.calibrated.complaint:
        context.log.warning(report.calibrated.complaint)
    skipped = report.progress.rows_skipped
    if skipped:
        by_column = Counter(row.column for row in report.outcomes.skipped() if row)
        counts = ", ".join(f"{name!r}: {count:,}" for name, count in by_column.most_common())
        context.log.warning(
            f"{skipped:,} of {report.progress.rows_total:,} rows were not asked about, since a column that the prompt "  # noqa: G004
            f"reads is null or blank ({counts}); their outputs are null. on_missing='ask' asks about them, 'fail' "
            "makes them failed rows."
        )
    truncated = report.preprocess_stats.rows_truncated if report.preprocess_stats else 0
    if truncated:
        total = report.progress.rows_total
        context.log.warning(f"{truncated:,} of {total:,} rows were truncated before they were asked.")  # noqa: G004


def _check_failed_rows(context: dg.AssetExecutionContext, report: Report, enrichment: Enrichment) -> None:
    """Raise `FailedRowsError` if more rows failed than the user allows."""
    failed, total = report.progress.rows_failed, report.progress.rows_total
    if not failed:
        return
    reasons = _log_failures(context, report)
    if enrichment.arguments.on_row_error == "raise":
        rule = "on_row_error='raise'"
    elif enrichment.arguments.max_error_rate is not None and report.error_rate > enrichment.arguments.max_error_rate:
        rule = f"max_error_rate={enrichment.arguments.max_error_rate:g}"
    elif enrichment.arguments.max_error_rate is None and failed == total - report.progress.rows_skipped:
        rule = "no row got an answer"
    else:
        return
    retry_helps = any(failure is not None and failure.reason == "unreachable" for failure in report.outcomes.failures())
    message = f"{failed:,} of {total:,} rows failed ({rule}): {reasons}. The other answers are kept."
    raise FailedRowsError(message, retry_helps=retry_helps)


def _log_failures(context: dg.AssetExecutionContext, report: Report) -> str:
    """Log a warning if rows failed; returns the most frequent reasons."""
    reasons = "; ".join(f"{reason} ({count:,} rows)" for reason, count in report.failures.most_common(3))
    failed = report.progress.rows_failed
    if failed:
        context.log.warning(f"{failed:,} of {report.progress.rows_total:,} rows failed: {reasons}")  # noqa: G004
    return reasons
