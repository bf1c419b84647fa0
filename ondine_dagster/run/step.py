"""One step: rows in, enriched rows and their figures out.

The step is synchronous and runs the engine's event loop in a thread: an interrupt arrives in the main thread, where it
cancels the calls in flight and is raised again unchanged. The rows are one frame from the return of the asset function
until Dagster gets them.
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
    join,
    joined,
    names_of,
    slices,
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
    """The rows that a run is about.

    `lengths` has the rows of each partition, as far as that is known; with `partition_by`, `unassigned` rows are of
    none.
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


def materialize(context: dg.AssetExecutionContext, enrichment: Enrichment, given: StepInput) -> Results:
    """Ask about rows and join the outcomes; the failed rows come first, if they are requested.

    Yields:
        A result an asset that is selected, and those of checks that are selected without theirs; none from a dry run,
        a trial, a run whose batch jobs are under way, or one without any upstream table.

    Raises:
        Failure: The step cannot go on, or too many rows failed; what was answered is kept.
    """
    if isinstance(given.rows, Mapping) and not given.rows:
        context.log.addFilter(_is_no_missing_output)
        context.log.warning(
            "There are no rows: no upstream partition of this run has a table. Nothing is asked or materialized."
        )
        return
    run = _run(context, enrichment, given)
    if run is None:
        return
    if given.config.max_rows is not None:
        _show_trial(context, enrichment, run)
        return
    upstream = {context.asset_key_for_input(name): names_of(value) for name, value in given.inputs.items()}
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
        given.labelled,
    )
    checks = _selected_checks(context, enrichment)
    try:
        _judge(context, report, enrichment)
    except FailedRowsError as error:
        yield from check_results({name: one for name, one in checks.items() if one.of_failures}, check_context)
        run.watch.observe()
        raise failure(error, run.watch.latest) from error
    _log_report(context, report)
    yield from _results(context, enrichment, run, check_context, upstream)


def _run(context: dg.AssetExecutionContext, enrichment: Enrichment, given: StepInput) -> _Run | None:
    """Find the rows and ask about them; `None` if nothing is stored: in a dry run, or while jobs are under way."""
    config, watch = given.config, Watch(context)
    try:
        todo = plan(context, enrichment, given.llm, config, watch)
        rows = _find_rows(context, enrichment, given)
        frame = rows.frame if config.max_rows is None else choose_rows(rows.frame, config.max_rows, config.sample)
        if config.dry_run:
            _dry_run(context, frame, todo, watch)
            return None
        report = run_in_thread(lambda: answer(frame, todo.task, todo.options, todo.model), watch.tick)
    except JobsUnderWayError as error:
        watch.flush()
        context.log.info(str(error))
        _observe(context, jobs_metadata(error))
        return None
    except OndineError as error:
        watch.observe()
        raise failure(error, watch.latest) from error
    except BaseException:
        # An interrupt: the spend stays visible, and the exception is raised unchanged.
        watch.observe()
        raise
    watch.flush()
    error_column = None if enrichment.arguments.on_row_error == "drop" else enrichment.error_column
    return _Run(todo, rows, AskedRows(frame, todo.task, report, error_column), watch)


# -- the rows ------------------------------------------------------------------------------------------------------


def _find_rows(context: dg.AssetExecutionContext, enrichment: Enrichment, given: StepInput) -> _Rows:
    """The rows that this run is about, checked."""
    lengths: Mapping[str, int] = {}
    unassigned = None
    if isinstance(given.rows, Mapping):
        frame, lengths = joined_by_key(context, given.rows, given.inputs)
    else:
        frame = checked_frame(given.rows)
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
        frame, lengths = joined(tables, keys)
        frame = typed_as(frame, whole)
    noted = FAILED_COLUMNS if enrichment.arguments.failed_rows else ()
    for added in filter(None, (enrichment.error_column, enrichment.arguments.model_column, *noted)):
        if added in frame.columns:
            raise ConfigError(f"{added!r} is already a column of the rows; rename it, or what is added to them.")
    return _Rows(frame, lengths, unassigned)


# -- runs that store nothing ---------------------------------------------------------------------------------------


def _dry_run(context: dg.AssetExecutionContext, frame: nw.DataFrame[Any], todo: Plan, watch: Watch) -> None:
    """Report the estimate of the run in the log and as an observation of the asset."""
    found = run_in_thread(lambda: estimate(frame, todo.task, todo.options, todo.model), watch.tick)
    context.log.info(estimate_line(found))
    _observe(context, estimate_metadata(found, todo.task.model))


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
    """Log an observation in the place of a materialization."""
    context.log.addFilter(_is_no_missing_output)
    log_observation(context, metadata)


def _is_no_missing_output(record: logging.LogRecord) -> bool:
    """Dagster logs outputs of checks that a step did not yield, which dry runs and the like never do."""
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
        _share_out(enrichment, run, table, figures, check_context)
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
    """The first rows, their images, how values are distributed, and why rows failed, as far as there is any.

    `asked` are those of `rows`, and `table` is what is stored of them.
    """
    task, outcomes = asked.task, asked.report.outcomes
    failed = sum(one is not None for one in outcomes.failures())
    skipped = sum(one is not None for one in outcomes.skipped())
    values = {name: column[rows] for name, column in check_context.values.items()}
    found = {
        "ondine/preview": shown_rows(asked, table),
        "ondine/thumbnails": shown_thumbnails(table, task.prompt, task.schema.names)
        if enrichment.arguments.thumbnails
        else None,
        "ondine/plot": distributions(values, failed, skipped),
    }
    pictures = {name: dg.MetadataValue.md(text) for name, text in found.items() if text is not None}
    return {**pictures, **reasons_metadata(asked.report)}


def _share_out(
    enrichment: Enrichment,
    run: _Run,
    table: nw.DataFrame[Any],
    figures: Mapping[str, Any],
    check_context: CheckContext,
) -> None:
    """Tell of each of several partitions its rows and its share; otherwise all would show those of the whole run."""
    context, drops_failed = check_context.step, run.asked.error_column is None
    first_stored = 0
    for partition, rows in slices(run.rows.lengths):
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
    """The checks that the run is to answer: they can be run by themselves."""
    asset, wanted = context.asset_key_for_output(), context.selected_asset_check_keys
    return {name: check for name, check in enrichment.checks.items() if dg.AssetCheckKey(asset, name) in wanted}


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
    if report.preprocess_stats and (cut := report.preprocess_stats.rows_truncated):
        total = report.progress.rows_total
        context.log.warning(f"{cut:,} of {total:,} rows were truncated before they were asked.")  # noqa: G004


def _judge(context: dg.AssetExecutionContext, report: Report, enrichment: Enrichment) -> None:
    """Fail the step if more rows failed than the user allows; the answers are kept, a re-run asks the failed rows."""
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
    passing = any(failure is not None and failure.reason == "unreachable" for failure in report.outcomes.failures())
    message = f"{failed:,} of {total:,} rows failed ({rule}): {reasons}. The other answers are kept."
    raise FailedRowsError(message, retry_helps=passing)


def _log_failures(context: dg.AssetExecutionContext, report: Report) -> str:
    """Warn of failed rows, if there are any, and return the most frequent reasons."""
    reasons = "; ".join(f"{reason} ({count:,} rows)" for reason, count in report.failures.most_common(3))
    failed = report.progress.rows_failed
    if failed:
        context.log.warning(f"{failed:,} of {report.progress.rows_total:,} rows failed: {reasons}")  # noqa: G004
    return reasons
