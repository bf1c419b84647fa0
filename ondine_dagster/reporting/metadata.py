"""Metadata of runs, dry runs and batch jobs, progress, and failures, for Dagster.

Dagster draws only integers and floats as plots, and a key whose name or type changes breaks the line. So each metric
has one fixed key, and an unknown figure is left out, never written as 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import reduce
from typing import Any

import dagster as dg

from ondine_core.engine.estimate import Estimate
from ondine_core.engine.report import Report
from ondine_core.errors import (
    BudgetExhaustedError,
    ConfigError,
    FailedRowsError,
    FatalError,
    JobsUnderWayError,
    OndineError,
)
from ondine_core.types.progress import Progress, Spend, add_usd
from ondine_core.types.values import ModelSpec
from ondine_dagster.reporting.messages import shown_messages

_REASONS_SHOWN = 20
_JOBS_SHOWN = 100
_MINUTE_S = 60


def run_metadata(report: Report, spec: ModelSpec) -> dict[str, Any]:
    """The figures of a finished run."""
    progress = report.progress
    asked = progress.rows_total - progress.rows_skipped
    metadata = {
        "ondine/summary": _summary(progress),
        "ondine/model": spec.model,
        "ondine/provider": spec.provider,
        **_figures(progress),
        "ondine/rows_succeeded": progress.rows_total - progress.rows_failed - progress.rows_skipped,
        "ondine/error_rate": round(report.error_rate, 6),
        "ondine/unique_prompts": report.prompts,
        "ondine/reuse_rate": round(progress.rows_reused / asked, 6) if asked else 0.0,
        "ondine/duration_s": round(progress.elapsed_s, 3),
    }
    preprocess_stats = report.preprocess_stats
    if preprocess_stats:
        metadata["ondine/rows_truncated"] = preprocess_stats.rows_truncated
        metadata["ondine/rows_sanitized"] = preprocess_stats.rows_sanitized
    usage = progress.spend.usage
    if usage.input_tokens:
        metadata["ondine/cache_read_share"] = round(usage.cached_input_tokens / usage.input_tokens, 6)
    if progress.spend.usd is not None:
        metadata["ondine/cache_saved_usd"] = float(progress.spend.cache_saved_usd)
    audit = report.audit
    metadata |= {
        "ondine/requests_answered": audit.answered.calls,
        "ondine/requests_refused": audit.refused.calls,
        "ondine/prompts_paid_twice": audit.paid_twice,
        "ondine/rows_by_fallback": sum(count for name, count in report.models.items() if name != spec.model),
    }
    paid = progress.cost_usd_total
    if paid is not None:
        metadata["ondine/cost_usd_total"] = float(paid)
    latencies = report.latencies_s
    if latencies:
        metadata["ondine/latency_p50_s"] = round(latencies[len(latencies) // 2], 4)
        metadata["ondine/latency_p95_s"] = round(latencies[min(len(latencies) - 1, len(latencies) * 95 // 100)], 4)
    return metadata


def reasons_metadata(report: Report) -> dict[str, Any]:
    """The reasons of failed rows with counts, the most frequent first; empty if no row failed."""
    if not report.failures:
        return {}
    rows = ((count, reason) for reason, count in report.failures.most_common(_REASONS_SHOWN))
    return {"ondine/failures": table(rows, rows="int", reason="string")}


def table(rows: Iterable[Sequence[Any]], /, **columns: str) -> dg.TableMetadataValue:
    """Rows as a table; `columns` are the names and types of its columns."""
    records = [dg.TableRecord(dict(zip(columns, row, strict=True))) for row in rows]
    return dg.MetadataValue.table(records, dg.TableSchema([dg.TableColumn(*column) for column in columns.items()]))


def progress_metadata(progress: Progress) -> dict[str, Any]:
    """The figures of a run that is in progress, failed or was terminated.

    They have keys of their own, since plots over materializations would otherwise also show them.
    """
    figures = {"ondine/summary": progress_line(progress), **_figures(progress)}
    return {f"ondine/progress/{key.removeprefix('ondine/')}": figure for key, figure in figures.items()}


def summary(rows: int, failed: int, skipped: int, *details: str) -> str:
    """One line about a table: the numbers of rows, of failed and of skipped ones, and further `details`."""
    skipped_part = [f"{skipped:,} skipped"] if skipped else []
    return ", ".join((f"{rows:,} rows", f"{failed:,} failed", *skipped_part, *details))


def _summary(progress: Progress) -> str:
    reused = [f"{progress.rows_reused:,} reused"] if progress.rows_reused else []
    cost = [str(progress.spend)] if progress.spend.usd is not None or progress.spend.calls else []
    details = (*reused, *cost, _duration(progress.elapsed_s))
    return summary(progress.rows_total, progress.rows_failed, progress.rows_skipped, *details)


def _duration(seconds: float) -> str:
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    minutes = round(seconds / _MINUTE_S)
    return f"{minutes} min" if minutes < 2 * 60 else f"{minutes // 60} h {minutes % 60} min"


def _figures(progress: Progress) -> dict[str, Any]:
    return {
        "ondine/rows_total": progress.rows_total,
        "ondine/rows_done": progress.rows_done,
        "ondine/rows_reused": progress.rows_reused,
        "ondine/rows_failed": progress.rows_failed,
        "ondine/rows_skipped": progress.rows_skipped,
        "ondine/rows_per_s": round(progress.rows_per_s, 2),
        **spend_metadata(progress.spend),
    }


def spend_metadata(spend: Spend) -> dict[str, Any]:
    """The figures of calls, tokens and cost."""
    metadata: dict[str, Any] = {
        "ondine/requests": spend.calls,
        "ondine/requests_unknown": spend.unknown,
        "ondine/input_tokens": spend.usage.input_tokens,
        "ondine/cached_input_tokens": spend.usage.cached_input_tokens,
        "ondine/output_tokens": spend.usage.output_tokens,
        "ondine/reasoning_tokens": spend.usage.reasoning_tokens,
        "ondine/cost_known": spend.usd is not None and not spend.at_most_calls and not spend.unknown,
        "ondine/cost": str(spend),
    }
    if spend.usd is not None:
        metadata["ondine/cost_usd"] = float(spend.usd)
        metadata["ondine/cost_is_upper_bound"] = spend.at_most_calls > 0
    if spend.unknown and spend.unknown_usd is not None:
        metadata["ondine/unknown_cost_usd"] = float(spend.unknown_usd)
    return metadata


def progress_line(progress: Progress) -> str:
    """The progress of a run in one line, for the log."""
    parts = [f"{progress.rows_done:,} of {progress.rows_total:,} rows", progress.pace]
    if progress.remaining_s:
        parts.append(f"about {progress.remaining_s:,.0f} s left")
    if progress.rows_failed:
        parts.append(f"{progress.rows_failed:,} failed")
    if progress.rows_skipped:
        parts.append(f"{progress.rows_skipped:,} skipped")
    if progress.spend.usd is not None or progress.spend.calls:
        parts.append(str(progress.spend))
    return ", ".join(parts)


def partition_keys(context: dg.AssetExecutionContext) -> Sequence[str]:
    """The partitions of the asset that the run fills; empty if the asset is not partitioned, even if the run is."""
    is_partitioned = context.has_partition_key or context.has_partition_key_range
    return context.partition_keys if is_partitioned and context.assets_def.partitions_def is not None else ()


def row_count(context: dg.AssetExecutionContext, rows: int) -> dict[str, int]:
    """The number of stored rows under Dagster's key; in a run of several partitions each partition has its own."""
    keys = partition_keys(context)
    if not keys:
        return {"dagster/row_count": rows}
    return {"dagster/partition_row_count": rows} if len(keys) == 1 else {}


_ADDED_UP = (
    *("requests", "tokens", "cost_usd", "saved_usd", "prompts", "rows_reused", "rows_by"),
    *("rows_truncated", "rows_sanitized"),
)


def share_of(figures: Mapping[str, Any], rows: slice, rows_total: int, failed: int, skipped: int) -> dict[str, Any]:
    """The figures of a partition with the slice `rows` of a run, of which `failed` failed and `skipped` were skipped.

    The spend of the run is divided in proportion to the rows, so the figures of partitions add up to those of the run.
    """
    start: int = rows.start
    stop: int = rows.stop
    length, total = stop - start, max(1, rows_total)

    def part(figure: float) -> float:
        if isinstance(figure, int):
            # A difference of rounded numbers, since separately rounded shares would not add up.
            return figure * stop // total - figure * start // total
        return figure * length / total

    shared: dict[str, Any] = {
        name: part(figure)
        for name, figure in figures.items()
        if isinstance(figure, int | float) and not isinstance(figure, bool) and any(kind in name for kind in _ADDED_UP)
    }
    usd = shared.get("ondine/cost_usd")
    if usd is not None:
        shared["ondine/cost"] = f"{'at most ' if figures.get('ondine/cost_is_upper_bound') else ''}${usd:.4f}"
    cost = [shared["ondine/cost"]] if "ondine/cost" in shared else []
    return shared | {
        "ondine/summary": summary(length, failed, skipped, *cost),
        "ondine/rows_total": length,
        "ondine/rows_done": length,
        "ondine/rows_failed": failed,
        "ondine/rows_skipped": skipped,
        "ondine/rows_succeeded": length - failed - skipped,
        "ondine/error_rate": round(failed / (length - skipped), 6) if length > skipped else 0.0,
    }


# -- a dry run -----------------------------------------------------------------------------------------------------


def estimate_metadata(estimate: Estimate, spec: ModelSpec) -> dict[str, Any]:
    """The estimated figures of a run."""
    least, likely, most = estimate.output_tokens
    metadata: dict[str, Any] = {
        "ondine/summary": estimate_line(estimate),
        "ondine/dry_run": True,
        "ondine/model": spec.model,
        "ondine/estimated_rows": estimate.rows,
        "ondine/estimated_rows_reused": estimate.rows_reused,
        "ondine/estimated_rows_skipped": estimate.rows_skipped,
        "ondine/estimated_unique_prompts": estimate.prompts,
        "ondine/estimated_requests": estimate.calls,
        "ondine/estimated_input_tokens": estimate.input_tokens,
        "ondine/estimated_output_tokens": likely,
        "ondine/estimated_output_tokens_least": least,
        "ondine/estimated_output_tokens_most": most,
        "ondine/estimated_reasoning_tokens": estimate.reasoning_tokens.likely,
        "ondine/cost_known": estimate.usd is not None,
    }
    if estimate.usd is not None:
        keys = ("ondine/estimated_cost_usd_least", "ondine/estimated_cost_usd", "ondine/estimated_cost_usd_most")
        metadata |= zip(keys, map(float, estimate.usd), strict=True)
    if len(estimate.usd_by_tier) > 1:
        max_call_s = {tier: replace(spec, tier=tier).max_call_s for tier in estimate.usd_by_tier}
        max_call_s["batch"] = _BATCH_JOB_S
        rows = ((tier, *map(float, usd), max_call_s[tier]) for tier, usd in estimate.usd_by_tier.items())
        metadata["ondine/estimated_cost_by_tier"] = table(
            rows, tier="string", usd_least="float", usd="float", usd_most="float", call_s_most="float"
        )
    if estimate.sample:
        metadata["ondine/messages"] = dg.MetadataValue.md(shown_messages(estimate.sample))
    if estimate.advice:
        metadata["ondine/prompt_advice"] = estimate.advice
    if estimate.limited_by:
        metadata["ondine/batches_limited_by"] = estimate.limited_by
    if estimate.least_s:
        metadata["ondine/estimated_duration_s_least"] = round(estimate.least_s, 1)
    return metadata


_BATCH_JOB_S = 86_400.0
"""Providers promise the answers of a batch job within a day."""


def estimate_line(estimate: Estimate) -> str:
    """The estimated figures of a run in one line for the log."""
    least, likely, most = estimate.output_tokens
    thinking = estimate.reasoning_tokens.likely
    parts = [
        f"{estimate.rows:,} rows, {estimate.prompts:,} unique prompts, {estimate.rows_reused:,} rows answered already",
        f"{estimate.calls:,} calls, {estimate.input_tokens:,} input tokens, "
        f"about {likely:,} output ({least:,} to {most:,})"
        + (f", about {thinking:,} of them thinking" if thinking else ""),
        _price_line(estimate.usd),
    ]
    if len(estimate.usd_by_tier) > 1:
        tiers = ", ".join(f"{tier} ${usd.likely:.4f}" for tier, usd in estimate.usd_by_tier.items())
        parts.append(f"at each tier about {tiers}")
    if estimate.rows_unaskable:
        parts.append(f"{estimate.rows_unaskable:,} rows that no prompt can be made of")
    if estimate.rows_skipped:
        parts.append(f"{estimate.rows_skipped:,} rows skipped, since a column that the prompt reads is null or blank")
    if estimate.advice:
        parts.append(estimate.advice.removesuffix("."))
    if estimate.limited_by:
        parts.append(estimate.limited_by.removesuffix("."))
    if estimate.least_s:
        parts.append(f"at least {estimate.least_s:,.0f} s at the rates that are set")
    return f"Dry run, nothing was asked: {'; '.join(parts)}."


def _price_line(usd: tuple[Decimal, Decimal, Decimal] | None) -> str:
    if usd is None:
        return "at an unknown price"
    least, likely, most = usd
    return f"about ${likely:.4f} (${least:.4f} to ${most:.4f})"


# -- batch jobs ----------------------------------------------------------------------------------------------------


def jobs_metadata(error: JobsUnderWayError) -> dict[str, Any]:
    """The figures of a run's batch jobs that are in progress."""
    jobs = error.jobs
    states = Counter(job.shown_status for job in jobs)
    metadata: dict[str, Any] = {
        "ondine/job/summary": str(error),
        "ondine/job/count": len(jobs),
        "ondine/job/state": ", ".join(f"{count:,} {state}" for state, count in states.most_common()) or "no room",
        "ondine/job/requests": sum(job.requests for job in jobs),
        "ondine/job/requests_done": sum(job.done for job in jobs),
        "ondine/job/rows_left": error.rows_left,
    }
    zero: Decimal | None = Decimal(0)
    held_usd = reduce(add_usd, (job.at_most_usd for job in jobs), zero)
    if held_usd is not None:
        metadata["ondine/job/held_usd"] = float(held_usd)
    rows = (
        (
            job.marker,
            job.job_id or "",
            job.shown_status,
            job.requests,
            job.done,
            "" if job.at_most_usd is None else float(job.at_most_usd),
        )
        for job in jobs[:_JOBS_SHOWN]
    )
    metadata["ondine/job/jobs"] = table(
        rows,
        job="string",
        provider_id="string",
        state="string",
        requests="int",
        requests_done="int",
        held_usd="float",
    )
    metadata["ondine/job/help"] = "Explained in docs/guides/batch-tier.md"
    return metadata


# -- the end -------------------------------------------------------------------------------------------------------


def failure(error: OndineError, progress: Progress | None) -> dg.Failure:
    """The `Failure` of a step because of `error`; Dagster may retry it unless a person has to fix the cause."""
    metadata = progress_metadata(progress) if progress else {}
    may_retry = not isinstance(error, BudgetExhaustedError | ConfigError | FatalError)
    if isinstance(error, FailedRowsError):
        may_retry = error.retry_helps
    return dg.Failure(f"{type(error).__name__}: {error}", metadata=metadata, allow_retries=may_retry)


def lineage(
    columns: Sequence[str], asked: Sequence[str], outputs: Sequence[str], upstream: Mapping[dg.AssetKey, Sequence[str]]
) -> dg.TableColumnLineage:
    """The lineage of `columns`: each of the `outputs` depends on all columns that are `asked` about.

    Other columns depend on the columns of the same name in upstream assets.
    """

    def sources(names: Sequence[str]) -> list[dg.TableColumnDep]:
        return [dg.TableColumnDep(key, name) for name in names for key, columns in upstream.items() if name in columns]

    deps = {name: sources(asked if name in outputs else [name]) for name in columns}
    return dg.TableColumnLineage({name: column_deps for name, column_deps in deps.items() if column_deps})
