"""Classify one day of reviews through Dagster and print a summary: `python -m example_project [day]`."""

import os
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
HOME = Path(os.environ.setdefault("DAGSTER_HOME", str(ROOT / ".dagster_home")))

import dagster as dg  # noqa: E402  (DAGSTER_HOME has to be set before)
import pandas as pd  # noqa: E402

from example_project.definitions import defs  # noqa: E402
from example_project.defs.assets import days  # noqa: E402

_RUN_CONFIG = {"loggers": {"console": {"config": {"log_level": "INFO"}}}}
_OF_A_DAY = [dg.AssetKey(name) for name in ("reviews", "review_sentiment", "review_department", "sentiment_report")]
_INSTANCE = "telemetry: {enabled: false}\nnux: {enabled: false}\n"


def main(day: str = "2026-01-05") -> None:
    """Materialize the assets of `day` and print a summary."""
    HOME.mkdir(parents=True, exist_ok=True)
    if not (HOME / "dagster.yaml").exists():
        (HOME / "dagster.yaml").write_text(_INSTANCE, encoding="utf-8")
    if day not in days.get_partition_keys():
        sys.exit(f"There are no reviews of {day!r}; days are {', '.join(days.get_partition_keys())}.")
    job = defs().resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.get() as instance:
        result = job.execute_in_process(
            instance=instance, partition_key=day, run_config=_RUN_CONFIG, asset_selection=_OF_A_DAY
        )
    figures = figures_by_asset(result)
    if not {"review_sentiment", "review_department"} <= figures.keys():
        sys.exit("Batch jobs are in progress. Run this command again later; it reads their answers.")
    table: pd.DataFrame = result.output_for_node("review_sentiment")
    departments = result.output_for_node("review_department")[["review_id", "department"]]
    show(day, table.merge(departments, on="review_id"), figures)


def figures_by_asset(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """The metadata of each materialization."""
    return {
        event.asset_key.to_user_string(): {
            name: entry.value for name, entry in event.step_materialization_data.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }


def show(day: str, table: pd.DataFrame, figures: dict[str, dict[str, Any]]) -> None:
    """Print the first rows and the figures of the run."""
    sentiment, department, report = (
        figures[name] for name in ("review_sentiment", "review_department", "sentiment_report")
    )
    cost = f"${sentiment['ondine/cost_usd']:.4f}" if sentiment["ondine/cost_known"] else "cost unknown"
    print(f"\n{'review':<56}  {'department':<16} {'model':<9} {'label':<9}")
    for row in table.head(12).to_dict("records"):
        review = textwrap.shorten(row["review"], 54, placeholder=" ...")
        print(f"{review:<56}  {row['department'] or '-':<16} {row['sentiment'] or '-':<9} {row['label']:<9}")
    complaints = table[table["sentiment"] == "negative"]["department"].value_counts()
    print(
        f"\n{day}: {len(table)} reviews, {sentiment['ondine/rows_reused']} with stored answers, "
        f"{sentiment['ondine/requests']} calls to {sentiment['ondine/model']}, {cost}, "
        f"{sentiment['ondine/rows_per_s']:,.1f} rows/s.\n"
        f"The model agrees with the labels on {report['agreement']:.0%} of them; "
        f"always guessing the commonest label would on {report['majority_share']:.0%}.\n"
        f"Departments, declared in YAML, took {department['ondine/requests']} calls, one for each product.\n"
        f"Most complaints: {', '.join(f'{name} ({count})' for name, count in complaints.head(3).items()) or 'none'}.\n"
        f"Picture: {report['file']}\n\n"
        f"Open the results in the Dagster UI:\n"
        f"  DAGSTER_HOME={HOME} {Path(sys.executable).with_name('dagster')} dev -w {ROOT / 'workspace.yaml'}\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
