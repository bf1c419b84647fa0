"""A project whose runs are executed in containers; the run's config names the model."""

import dagster as dg
import pandas as pd

from ondine_dagster import LLMResource, llm_asset

ROWS = [f"row {number}" for number in range(6)]


@llm_asset(prompt="Say it again.\nText: {text}", output={"answer": str})
def answers() -> pd.DataFrame:
    """Numbered rows, repeated by the model."""
    return pd.DataFrame({"text": ROWS})


def build_job() -> dg.JobDefinition:
    """The job of the asset, with Dagster's default executor."""
    defs = dg.Definitions(
        assets=[answers],
        jobs=[dg.define_asset_job("job", executor_def=dg.in_process_executor)],  # one process less to start
        resources={"llm": LLMResource.configure_at_launch()},
    )
    return defs.resolve_job_def("job")
