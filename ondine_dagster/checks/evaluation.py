"""Checks in Dagster's terms: their specs when the definitions load, their results when a materialization is done.

Results belong to the run. On a partitioned asset they are about the partition that was filled, and say which; the last
one is what the asset shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from types import MappingProxyType
from typing import Any

import dagster as dg

from ondine_core.engine.report import Report
from ondine_core.prompts.task import Task
from ondine_dagster.checks.drift import Before, Counts, distance, distance_by_chance, find_before
from ondine_dagster.checks.golden import Ask, CheckOutcome, judge_golden
from ondine_dagster.checks.scores import as_label, shown
from ondine_dagster.checks.types import Check, CostPerRowCheck, DriftCheck, ErrorRateCheck, GoldenCheck, NullRateCheck
from ondine_dagster.checks.validation import closed_columns, columns_of
from ondine_dagster.frames import as_one_table

__all__ = [
    "CheckContext",
    "check_results",
    "check_specs",
    "checks_of_failures",
    "collect",
    "count_values",
    "golden_inputs",
]

_VALUES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class CheckContext:
    """What checks look at.

    Args:
        task: What was asked.
        report: What came of it.
        values: The output columns, failed and skipped rows among them.
        there: Whether each row was answered.
    """

    task: Task
    report: Report
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    there: Sequence[bool] = ()

    def answered(self, column: str, rows: slice = slice(None)) -> Iterator[Any]:
        """The values of an output column in those of `rows` that were answered."""
        return compress(self.values[column][rows], self.there[rows])


def collect(task: Task, report: Report, values: Mapping[str, Sequence[Any]]) -> CheckContext:
    """What there is to look at: the output columns `values`, and in which rows they are answers."""
    return CheckContext(task, report, values, list(report.outcomes.answered()))


def count_values(evidence: CheckContext, rows: slice = slice(None)) -> dict[str, Counter[Any]]:
    """Answered rows by value, among `rows`, of the columns with a closed set of values."""
    return {name: Counter(evidence.answered(name, rows)) for name in closed_columns(evidence.task)}


def check_specs(checks: Mapping[str, Check], asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """Specs of `checks`, by name."""
    return [
        dg.AssetCheckSpec(name, asset=asset, blocking=check.blocking, description=_describe(check))
        for name, check in checks.items()
    ]


def golden_inputs(checks: Mapping[str, Check]) -> dict[str, dg.AssetKey]:
    """The inputs that labelled rows come by, and their assets."""
    keys = [check.upstream for check in checks.values() if isinstance(check, GoldenCheck)]
    return {f"labelled_rows_of_{key.to_python_identifier()}": key for key in keys if key is not None}


def checks_of_failures(checks: Mapping[str, Check]) -> dict[str, Check]:
    """Those of `checks` that can be answered although the step fails because of its failed rows."""
    return {name: check for name, check in checks.items() if isinstance(check, ErrorRateCheck)}


def check_results(  # noqa: PLR0913  (by keyword)
    checks: Mapping[str, Check],
    evidence: CheckContext,
    context: dg.AssetExecutionContext,
    *,
    asset: dg.AssetKey,
    ask: Ask,
    labelled: Mapping[str, Any] = MappingProxyType({}),
) -> list[dg.AssetCheckResult]:
    """Judge a finished run.

    Args:
        checks: Checks by name.
        evidence: What they look at.
        context: The step's.
        asset: What the checks are of.
        ask: Asks about labelled rows.
        labelled: Labelled rows that came from upstream, by input.
    """
    inputs = {key: as_one_table(labelled[name]) for name, key in golden_inputs(checks).items()}
    results = []
    for name, check in checks.items():
        match check:
            case GoldenCheck():
                rows = check.rows if check.upstream is None else inputs[check.upstream]
                outcome = judge_golden(check, rows, evidence.task, ask)
            case DriftCheck():
                now = Counter(evidence.answered(check.column))
                outcome = _judge_drift(check, now, find_before(context, check.column))
            case _:
                outcome = _judge(check, evidence)
        results.append(_result(name, check, outcome, asset))
    return results


def _result(name: str, check: Check, outcome: CheckOutcome, asset: dg.AssetKey) -> dg.AssetCheckResult:
    passed, said, metadata = outcome
    severity = dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        passed=passed, asset_key=asset, check_name=name, severity=severity, description=said, metadata=metadata
    )


def _describe(check: Check) -> str:
    match check:
        case ErrorRateCheck(max_rate=rate):
            return f"At most {rate:.4g} of the rows failed."
        case NullRateCheck(max_rate=rate):
            return f"At most {rate:.4g} of the answers are null."
        case CostPerRowCheck(max_usd=usd):
            return f"A row costs at most ${usd:.6g}."
        case DriftCheck(column=column, max_distance=most):
            return f"{column!r} is distributed as before, but for a total variation distance of {most:.4g}."
        case GoldenCheck(min_score=least, metric=metric):
            return f"Of labelled rows, {metric} is at least {least:.4g}."


# -- one verdict a kind --------------------------------------------------------------------------------------------


def _judge(check: ErrorRateCheck | NullRateCheck | CostPerRowCheck, evidence: CheckContext) -> CheckOutcome:
    progress = evidence.report.progress
    match check:
        case ErrorRateCheck(max_rate=most):
            rate = evidence.report.error_rate
            said = f"{progress.rows_failed:,} of {progress.rows_total:,} rows failed."
            return rate <= most, said, {"ondine/error_rate": round(rate, 6), "ondine/rows_failed": progress.rows_failed}
        case NullRateCheck(max_rate=most):
            nulls = {name: _null_rate(list(evidence.answered(name))) for name in columns_of(check, evidence.task)}
            worst = max(nulls, key=nulls.__getitem__)
            said = f"{nulls[worst]:.4g} of the answers in {worst!r} are null."
            metadata = {"ondine/null_rate": round(nulls[worst], 6)}
            table = [dg.TableRecord({"column": name, "null_rate": round(rate, 6)}) for name, rate in nulls.items()]
            schema = dg.TableSchema([dg.TableColumn("column", "string"), dg.TableColumn("null_rate", "float")])
            return nulls[worst] <= most, said, metadata | {"ondine/nulls": dg.MetadataValue.table(table, schema)}
        case CostPerRowCheck(max_usd=most):
            if not progress.rows_asked:
                return True, "No row was asked.", {}
            if progress.spend.usd is None:
                return False, "The price is unknown; set input_cost_per_1k_tokens and output_cost_per_1k_tokens.", {}
            usd = float(progress.spend.usd / progress.rows_asked)
            at_most = "at most " if progress.spend.at_most_calls else ""
            said = f"{progress.rows_asked:,} rows were asked for {at_most}${usd:.6g} each."
            return usd <= most, said, {"ondine/cost_per_row_usd": usd}


def _null_rate(values: Sequence[Any]) -> float:
    return sum(value is None for value in values) / len(values) if values else 0.0


def _judge_drift(check: DriftCheck, now: Counts, before: Before | None) -> CheckOutcome:
    if before is None:
        return True, "There is no earlier materialization to compare with.", {}
    if not now:
        return True, "No row was answered.", {}
    found = distance(before.counts, now)
    rows = {"before": sum(before.counts.values()), "now": sum(now.values())}
    shares = [
        (value, before.counts.get(value, 0) / rows["before"], now.get(value, 0) / rows["now"])
        for value in {**before.counts, **now}
    ]
    shares.sort(key=lambda share: -abs(share[1] - share[2]))
    records = [
        dg.TableRecord({"value": shown(as_label(value)), "before": round(was, 4), "now": round(is_, 4)})
        for value, was, is_ in shares[:_VALUES_SHOWN]
    ]
    columns = [("value", "string"), ("before", "float"), ("now", "float")]
    metadata = {
        "ondine/distance": round(found, 6),
        "ondine/distance_by_chance": round(distance_by_chance(before.counts, now), 6),
        "ondine/rows_before": rows["before"],
        "ondine/rows_now": rows["now"],
        "ondine/shares": dg.MetadataValue.table(records, dg.TableSchema([dg.TableColumn(*each) for each in columns])),
    }
    said = f"The distance from {before.name} is {found:.4g}, at most {check.max_distance:g} is allowed."
    return found <= check.max_distance, said, metadata
