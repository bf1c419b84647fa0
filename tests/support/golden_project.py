"""An asset with partitions and a golden check: `python -m tests.support.golden_project a` fills partition `a`."""

import os
import sys

import dagster as dg
import pandas as pd

from ondine_dagster import GoldenCheck, LLMResource, llm_asset

LABELLED = [f"labelled {number}" for number in range(30)]


@llm_asset(
    prompt="Say it again.\nText: {text}",
    output={"answer": str},
    partitions_def=dg.StaticPartitionsDefinition(["a", "b", "c"]),
    checks=[GoldenCheck(rows={"text": LABELLED, "answer": LABELLED}, min_score=1.0)],
)
def answers(context):  # noqa: ANN001, ANN201
    """One row that no other partition has, repeated by the model."""
    return pd.DataFrame({"text": [f"row of {context.partition_key}"]})


if __name__ == "__main__":
    llm = LLMResource(model="openai_compatible/test", base_url=os.environ["TEST_BASE_URL"], max_concurrency=4)
    with dg.DagsterInstance.get() as instance:
        result = dg.materialize([answers], resources={"llm": llm}, partition_key=sys.argv[1], instance=instance)
        raise SystemExit(0 if all(check.passed for check in result.get_asset_check_evaluations()) else 1)
