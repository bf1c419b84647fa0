"""Classify one day of reviews through Dagster and show what came of it: `python -m example_project [day]`."""

import os
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
HOME = Path(os.environ.setdefault("DAGSTER_HOME", str(ROOT / ".dagster_home")))

import dagster as dg  # noqa: E402  (DAGSTER_HOME comes first)
import pandas as pd  # noqa: E402

from example_project.definitions import defs  # noqa: E402
from example_project.defs.assets import days  # noqa: E402

_QUIET = {"loggers": {"console": {"config": {"log_level": "INFO"}}}}
_INSTANCE = "telemetry: {enabled: false}\nnux: {enabled: false}\n"


def main(day: str = "2026-01-05") -> None:
    """Materialize the assets of `day` and print a summary."""
    HOME.mkdir(parents=True, exist_ok=True)
    if not (HOME / "dagster.yaml").exists():
        (HOME / "dagster.yaml").write_text(_INSTANCE, encoding="utf-8")
    if day not in days.get_partition_keys():
        sys.exit(f"There are no reviews of {day!r}; days are {', '.join(days.get_partition_keys())}.")
    job = defs().resolve_job_def("classify_reviews")
    with dg.DagsterInstance.get() as instance:
        result = job.execute_in_process(instance=instance, partition_key=day, run_config=_QUIET)
    table: pd.DataFrame = result.output_for_node("review_sentiment")
    figures: dict[str, Any] = {
        name: entry.value
        for event in result.get_asset_materialization_events()
        for name, entry in event.materialization.metadata.items()
    }
    cost = f"${figures['ondine/cost_usd']:.4f}" if figures["ondine/cost_known"] else "cost unknown"
    print(f"\n{'review':<66}  {'model':<9} {'label':<9}")
    for row in table.head(12).to_dict("records"):
        review = textwrap.shorten(row["review"], 64, placeholder=" ...")
        print(f"{review:<66}  {row['sentiment'] or '-':<9} {row['label']:<9}")
    print(
        f"\n{day}: {len(table)} reviews, {figures['ondine/rows_reused']} answered before, "
        f"{figures['ondine/requests']} calls to {figures['ondine/model']}, {cost}, "
        f"{figures['ondine/rows_per_s']:,.1f} rows/s.\n"
        f"The model agrees with the labels on {figures['agreement']:.0%} of them; "
        f"always guessing the commonest label would on {figures['majority_share']:.0%}.\n"
        f"Picture: {figures['file']}\n\n"
        f"See it in the Dagster UI:\n"
        f"  DAGSTER_HOME={HOME} {Path(sys.executable).with_name('dagster')} dev -w {ROOT / 'workspace.yaml'}\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
