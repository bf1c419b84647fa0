"""A Dagster project for tests with real processes: `python -m tests.support.step_project` runs its job.

This process is the run worker and the step is its child, as in production. Settings that differ between tests are read
from environment variables, because the step's process imports this module again.
"""

import os
from importlib import import_module
from pathlib import Path

import dagster as dg
import pandas as pd

from ondine_dagster import LLMResource, llm_asset

ROWS = int(os.environ.get("TEST_ROWS", "0"))


@llm_asset(prompt="Say it again.\nText: {text}", output={"answer": str})
def answers() -> pd.DataFrame:
    """Numbered rows, repeated by the model."""
    Path(os.environ["TEST_STEP_PID_FILE"]).write_text(str(os.getpid()), encoding="utf-8")
    return pd.DataFrame({"text": [f"row {number}" for number in range(ROWS)]})


def build_job() -> dg.JobDefinition:
    """The job of the asset, its step in a process of its own."""
    llm = LLMResource(
        model="openai_compatible/test",
        base_url=os.environ["TEST_BASE_URL"],
        max_concurrency=8,
        progress_every_s=0.2,
        lease_ttl_s=2,
    )
    defs = dg.Definitions(
        assets=[answers],
        jobs=[dg.define_asset_job("job", executor_def=dg.multiprocess_executor)],
        resources={"llm": llm},
    )
    return defs.resolve_job_def("job")


if __name__ == "__main__":
    # By its importable name, so that the step's process finds it.
    build_job = import_module("tests.support.step_project").build_job
    with dg.DagsterInstance.get() as instance:
        result = dg.execute_job(dg.reconstructable(build_job), instance=instance)
        raise SystemExit(0 if result.success else 1)
