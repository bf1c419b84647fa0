"""One step: rows in, enriched rows and their figures out.

The step is synchronous and runs the engine's event loop in a thread: an interrupt lands in the main thread, where it
cancels the calls in flight and goes on unchanged.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import dagster as dg

from ondine_core.api import answer
from ondine_core.engine.estimate import estimate, example_calls
from ondine_core.engine.in_thread import run_in_thread
from ondine_core.engine.report import Report
from ondine_core.errors import ConfigError, FailedRowsError, JobsUnderWayError, OndineError
from ondine_dagster.checks.drift import to_metadata
from ondine_dagster.checks.evaluation import CheckContext, check_results, checks_of_failures, collect, count_values
from ondine_dagster.checks.types import Check
from ondine_dagster.config.launchpad import LLMAssetConfig
from ondine_dagster.frames import FAILED_COLUMNS, check_frame, column_schema, join, joined, names_of
from ondine_dagster.reporting.metadata import (
    estimate_line,
    estimate_metadata,
    failure,
    jobs_metadata,
    lineage,
    progress_line,
    reasons_metadata,
    run_metadata,
    share_of,
)
from ondine_dagster.reporting.plots import distributions
from ondine_dagster.reporting.preview import shown_rows
from ondine_dagster.reporting.thumbnails import shown_thumbnails
from ondine_dagster.run.failed_rows import failed_key, failed_rows_result
from ondine_dagster.run.partitions import count_unassigned, joined_by_key, rows_by_partition
from ondine_dagster.run.plan import Enrichment, Plan, ask_as_asset, plan
from ondine_dagster.run.progress import Watch
from ondine_dagster.run.trial import choose_rows, trial_metadata

__all__ = ["materialize"]


def materialize(  # noqa: PLR0913, PLR0917  (one caller)
    context: dg.AssetExecutionContext,
    rows: Any,
    enrichment: Enrichment,
    llm: Any,
    config: LLMAssetConfig,
    inputs: Mapping[str, Any],
    labelled: Mapping[str, Any],
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """Ask about `rows` and join what comes of it; the failed rows come first, if they are wanted.

    Args:
        context: The step's.
        rows: The frame to enrich, or a frame by partition.
        enrichment: What is added to it.
        llm: The resource that is asked.
        config: What this run does differently.
        inputs: Upstream values by input name, for the lineage of columns.
        labelled: Upstream values by input name, for checks.

    Yields:
        A result an asset that is selected, and those of checks that are selected without theirs; none from a dry run,
        a trial, or a run whose batch jobs are under way.

    Raises:
        Failure: The step cannot go on, or too many rows failed; what was answered is kept.
    """
    watch = Watch(context)
    try:
        todo = plan(context, enrichment, llm, config, watch)
        rows, lengths, unassigned = _rows_of_run(context, rows, enrichment, inputs)
        rows_available = len(rows)
        if config.max_rows is not None:
            rows = choose_rows(rows, config.max_rows, config.sample)
        if config.dry_run:
            _dry_run(context, rows, todo, watch)
            return
        report = run_in_thread(lambda: answer(rows, todo.task, todo.options, todo.model), watch.tick)
    except JobsUnderWayError as error:
        watch.flush()
        context.log.info(str(error))
        _observe(context, jobs_metadata(error))
        return
    except OndineError as error:
        watch.observe()
        raise failure(error, watch.latest) from error
    except BaseException:
        # An interrupt: what was spent stays visible, and the exception goes on as it came.
        watch.observe()
        raise
    watch.flush()
    if config.max_rows is not None:
        calls = example_calls(rows, todo.task, todo.options.policy)
        trial = trial_metadata(
            rows,
            rows_available,
            todo.task,
            report,
            enrichment.error_column,
            calls,
            thumbnails=enrichment.thumbnails,
        )
        _show_trial(context, trial)
        _log_report(context, report)
        _log_failures(context, report)
        return
    yield from _results(context, rows, enrichment, todo, report, watch, lengths, unassigned, inputs, labelled)


def _results(  # noqa: PLR0913, PLR0917  (one caller)
    context: dg.AssetExecutionContext,
    rows: Any,
    enrichment: Enrichment,
    todo: Plan,
    report: Report,
    watch: Watch,
    lengths: Mapping[str, int],
    unassigned: int | None,
    inputs: Mapping[str, Any],
    labelled: Mapping[str, Any],
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """The results of a finished run, the failed rows first.

    Raises:
        Failure: Too many rows failed.
    """
    task, ask = todo.task, ask_as_asset(todo, report, watch)
    upstream = {context.asset_key_for_input(name): names_of(value) for name, value in inputs.items()}
    key = context.asset_key_for_output()
    if enrichment.failed_rows and failed_key(key) in context.selected_asset_keys:
        yield failed_rows_result(context, rows, report, task=task, lengths=lengths, upstream=upstream)
    checks = _selected(context, key, enrichment.checks)
    try:
        _judge(context, report, enrichment)
    except FailedRowsError as error:
        yield from check_results(checks_of_failures(checks), CheckContext(task, report), context, asset=key, ask=ask)
        watch.observe()
        raise failure(error, watch.latest) from error
    _log_report(context, report)
    columns = task.schema.columns
    table = join(rows, report, columns, enrichment.error_column, enrichment.on_row_error, enrichment.model_column)
    outputs = [column.name for column in columns]
    failed = report.progress.rows_failed > 0 and enrichment.on_row_error != "drop"
    # The reasons come last, since Dagster cuts a wide table off at the right; they have a table of their own.
    shown = [*outputs, *task.prompt.columns, *([enrichment.error_column] if failed else [])]
    evidence = collect(task, report, report.values(as_kept=True))
    first = shown_rows(
        rows,
        table,
        names=shown,
        task=task,
        report=report,
        error_column=enrichment.error_column,
        drop=enrichment.on_row_error == "drop",
    )
    images = shown_thumbnails(table, task.prompt, outputs) if enrichment.thumbnails else None
    picture = distributions(evidence.values, report.progress.rows_failed, report.progress.rows_skipped)
    figures = run_metadata(report, task.model)
    metadata = {
        "ondine/summary": figures["ondine/summary"],
        "ondine/preview": dg.MetadataValue.md(first),
        **({"ondine/thumbnails": dg.MetadataValue.md(images)} if images else {}),
        **({"ondine/plot": dg.MetadataValue.md(picture)} if picture else {}),
        **reasons_metadata(report),
        **figures,
        **({} if unassigned is None else {"ondine/rows_without_partition": unassigned}),
        "dagster/partition_row_count" if context.has_partition_key else "dagster/row_count": len(table),
        "dagster/column_schema": column_schema(table, columns, enrichment.error_column),
        "dagster/column_lineage": lineage(names_of(table), task.prompt.columns, outputs, upstream),
        **to_metadata(count_values(evidence)),
    }
    results = check_results(checks, evidence, context, asset=key, ask=ask, labelled=labelled)
    if key not in context.selected_asset_keys:
        yield from results
        return
    _share_out(context, figures, lengths, evidence)
    yield dg.MaterializeResult(asset_key=key, value=table, metadata=metadata, check_results=results)


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


def _selected(
    context: dg.AssetExecutionContext, asset: dg.AssetKey, checks: Mapping[str, Check]
) -> Mapping[str, Check]:
    """Those of `checks` that the run is to answer: checks can be run by themselves."""
    wanted = context.selected_asset_check_keys
    return {name: check for name, check in checks.items() if dg.AssetCheckKey(asset, name) in wanted}


def _rows_of_run(
    context: dg.AssetExecutionContext,
    rows: Any,
    enrichment: Enrichment,
    inputs: Iterable[str],
) -> tuple[Any, Mapping[str, int], int | None]:
    """The rows that this run is about, checked.

    Returns:
        The frame; the rows of each partition, as far as that is known; with `partition_by`, the rows of no partition.
    """
    lengths: Mapping[str, int] = {}
    unassigned = None
    if isinstance(rows, Mapping):
        rows, lengths = joined_by_key(context, rows, inputs)
    check_frame(rows)
    if enrichment.partition_by is not None and not lengths:
        by, partitions = enrichment.partition_by, context.assets_def.partitions_def
        tables = rows_by_partition(rows, by, partitions, context.partition_keys)
        unassigned = count_unassigned(rows, by, partitions, context.instance)
        if unassigned:
            context.log.warning(
                f"{unassigned:,} of {len(rows):,} rows have no value in partition_by={by!r}, or "  # noqa: G004
                "one that belongs to no partition: no run enriches them."
            )
        rows, lengths = joined(tables, context.partition_keys)
    noted = FAILED_COLUMNS if enrichment.failed_rows else ()
    for added in filter(None, (enrichment.error_column, enrichment.model_column, *noted)):
        if added in names_of(rows):
            raise ConfigError(f"{added!r} is already a column of the rows; rename it, or what is added to them.")
    return rows, lengths, unassigned


def _dry_run(context: dg.AssetExecutionContext, rows: Any, todo: Plan, watch: Watch) -> None:
    """Say what the run would take, in the log and as an observation of the asset."""
    found = run_in_thread(lambda: estimate(rows, todo.task, todo.options, todo.model), watch.tick)
    context.log.info(estimate_line(found))
    _observe(context, estimate_metadata(found, todo.task.model))


def _show_trial(context: dg.AssetExecutionContext, metadata: Mapping[str, Any]) -> None:
    """Say what a trial came to, in the log and as an observation of the asset."""
    asked, available = metadata["ondine/trial/rows_total"], metadata["ondine/trial/rows_available"]
    context.log.info(
        f"Trial of {asked:,} of {available:,} rows: nothing is materialized and no check runs. The answers are kept "  # noqa: G004
        "for the real run; the rows are in the observation, under ondine/trial/rows."
    )
    _observe(context, metadata)


def _observe(context: dg.AssetExecutionContext, metadata: Mapping[str, Any]) -> None:
    """Log an observation in the place of a materialization."""
    context.log.addFilter(_is_no_missing_output)
    partition = context.partition_key if context.has_partition_key else None
    context.log_event(dg.AssetObservation(context.asset_key_for_output(), partition=partition, metadata=metadata))


def _is_no_missing_output(record: logging.LogRecord) -> bool:
    """Dagster logs outputs of checks that a step did not yield, which dry runs and the like never do."""
    return "did not yield or return expected outputs" not in record.getMessage()


def _share_out(
    context: dg.AssetExecutionContext, figures: Mapping[str, Any], lengths: Mapping[str, int], evidence: CheckContext
) -> None:
    """Tell of each of several partitions its share; otherwise all would show the figures of the whole run."""
    if len(lengths) < 2:  # noqa: PLR2004
        return
    key, start = context.asset_key_for_output(), 0
    failed = [failure is not None for failure in evidence.report.outcomes.failures()]
    for partition, length in lengths.items():
        rows = slice(start, start + length)
        lost = sum(failed[rows])
        share = share_of(figures, length, len(failed), lost, length - lost - sum(evidence.there[rows]))
        share |= to_metadata(count_values(evidence, rows))
        context.add_asset_metadata(share, asset_key=key, partition_key=partition)
        start += length


def _judge(context: dg.AssetExecutionContext, report: Report, enrichment: Enrichment) -> None:
    """Fail the step if more rows failed than the user allows; the answers are kept, a re-run asks the failed rows."""
    failed, total = report.progress.rows_failed, report.progress.rows_total
    if not failed:
        return
    reasons = _log_failures(context, report)
    if enrichment.on_row_error == "raise":
        rule = "on_row_error='raise'"
    elif enrichment.max_error_rate is not None and report.error_rate > enrichment.max_error_rate:
        rule = f"max_error_rate={enrichment.max_error_rate:g}"
    elif enrichment.max_error_rate is None and failed == total - report.progress.rows_skipped:
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
