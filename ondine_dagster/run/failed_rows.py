"""The asset of failed rows beside the enriched one, with reason, model, attempts and cost.

One step makes both. The failed rows are stored before the step fails because there are too many of them, so they can be
read also then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import dagster as dg

from ondine_core.errors import ConfigError
from ondine_core.prompts.output_schema import Column
from ondine_dagster.frames import FAILED_COLUMNS, AskedRows, column_schema, failed_rows, partition_slices
from ondine_dagster.reporting.metadata import lineage, reasons_metadata, row_count, summary
from ondine_dagster.reporting.preview import shown_failures

FAILED_OUTPUT = "failed"
"""Name of the step's second output; the first is Dagster's own, `result`."""


def failed_rows_result(
    context: dg.AssetExecutionContext,
    asked: AskedRows,
    lengths: Mapping[str, int],
    upstream: Mapping[dg.AssetKey, Sequence[str]],
) -> dg.MaterializeResult[Any]:
    """The failed rows of a run as the second output of its step."""
    report, table = asked.report, failed_rows(asked.frame, asked.report)
    added = [Column(name, {"description": description}) for name, description in FAILED_COLUMNS.items()]
    key = context.asset_key_for_output(FAILED_OUTPUT)
    metadata: dict[str, Any] = {
        "dagster/column_schema": column_schema(table, added),
        "dagster/column_lineage": lineage(asked.frame.columns, (), (), upstream),
    }
    # Rows with the same prompt share one failure and its cost.
    sharing = Counter(id(failure) for failure in report.outcomes.failures() if failure is not None)
    if len(lengths) > 1:
        for partition, rows in partition_slices(lengths):
            share = _figures(asked.part(rows), sharing)
            share["dagster/partition_row_count"] = share["ondine/rows_failed"]
            context.add_asset_metadata(share, asset_key=key, partition_key=partition)
    else:
        metadata = {**_figures(asked, sharing), **row_count(context, len(table)), **metadata}
    return dg.MaterializeResult(asset_key=key, value=table.to_native(), metadata=metadata)


def _figures(asked: AskedRows, sharing: Mapping[int, int]) -> dict[str, Any]:
    """The figures of the failed rows: number, preview, reasons and cost.

    `sharing` has the number of rows that share a failure, by the `id` of the failure.
    """
    outcomes = asked.report.outcomes
    failures = [failure for failure in outcomes.failures() if failure is not None]
    skipped = sum(row is not None for row in outcomes.skipped())
    reasons = Counter(failure.reason for failure in failures)
    costs = [None if failure.cost_usd is None else failure.cost_usd / sharing[id(failure)] for failure in failures]
    usd = None if None in costs else sum(filter(None, costs), Decimal(0))
    cost = [] if usd is None else [f"${usd:.4f}"]
    preview = shown_failures(asked)
    figures: dict[str, Any] = {
        "ondine/summary": summary(len(outcomes), len(failures), skipped, *cost),
        **({"ondine/preview": dg.MetadataValue.md(preview)} if preview else {}),
        **reasons_metadata(asked.report),
        "ondine/rows_failed": len(failures),
        "ondine/error_rate": round(len(failures) / max(1, len(outcomes) - skipped), 6),
        **{f"ondine/rows_failed_{reason}": count for reason, count in reasons.items()},
    }
    if usd is not None:
        figures["ondine/cost_usd"] = float(usd)
    return figures


def replay_failed_rows_job(asset: dg.AssetsDefinition, name: str | None = None, **arguments: Any) -> Any:
    """A job that asks again about the rows of an `llm_asset` that have no answer.

    It materializes the asset: known answers are read from the store, so only failed rows (and new upstream rows) are
    asked, whatever the asset's `retry_failed_rows`. Launch it for the partitions with failed rows, or on a schedule.

    Args:
        asset: The asset, with or without `failed_rows=True`.
        name: Name of the job; by default `replay_<asset>`.
        **arguments: The other arguments of `dg.define_asset_job`.

    Returns:
        A job for `dg.Definitions(jobs=[...])`.

    Raises:
        ConfigError: `asset` is not an asset definition.
    """
    untyped: Any = asset
    if not isinstance(untyped, dg.AssetsDefinition):
        raise ConfigError(f"replay_failed_rows_job({untyped!r}): give the asset itself, as llm_asset returned it.")
    selection = dg.AssetSelection.assets(asset)
    config_type: Any = asset.op.config_schema.config_type if asset.op.config_schema else None
    if "retry_failed_rows" in getattr(config_type, "fields", ()):
        arguments.setdefault("config", {"ops": {asset.op.name: {"config": {"retry_failed_rows": True}}}})
    return dg.define_asset_job(name or f"replay_{asset.op.name}", selection, **arguments)
