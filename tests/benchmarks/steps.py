"""Assets that Dagster materializes in this process: an `@llm_asset`, and a plain one for Dagster's own time."""

import time
from typing import Any

import dagster as dg
import pandas as pd

from tests.benchmarks.workload import PROMPT, SCHEMA, Workload

__all__ = ["materialize_llm_asset", "materialize_plain_asset", "twice"]


def materialize_llm_asset(work: Workload) -> list[dict[str, Any]]:
    """Materialize an `@llm_asset` with the rows of `work` and return its answers."""
    from ondine_dagster import LLMResource, llm_asset

    @llm_asset(prompt=PROMPT, output=SCHEMA, batch_size=work.batch_size)
    def enriched(reviews: pd.DataFrame) -> pd.DataFrame:
        return reviews

    llm = LLMResource(
        model="openai_compatible/bench",
        api_key="no-key",
        base_url=work.base_url,
        max_concurrency=work.concurrency,
        store=work.store,
    )
    answers: list[dict[str, Any]] = _materialize(work, enriched, {"llm": llm})[list(SCHEMA["properties"])].to_dict(
        "records"
    )
    return answers


def materialize_plain_asset(work: Workload) -> None:
    """Materialize an asset that returns the same rows unchanged."""

    @dg.asset
    def enriched(reviews: pd.DataFrame) -> pd.DataFrame:
        return reviews

    _materialize(work, enriched, {})


def twice(materialize: Any, work: Workload) -> dict[str, float]:
    """Seconds of the first materialization in a process, and of the second, when all modules are imported."""
    took = []
    for first in (0, work.rows):
        began = time.perf_counter()
        materialize(Workload(work.base_url, work.rows, work.concurrency, store=work.store, first=first))
        took.append(time.perf_counter() - began)
    return {"first_s": took[0], "again_s": took[1]}


def _materialize(work: Workload, enriched: dg.AssetsDefinition, resources: dict[str, Any]) -> pd.DataFrame:
    @dg.asset
    def reviews() -> pd.DataFrame:
        return pd.DataFrame({"review": work.reviews})

    result = dg.materialize([reviews, enriched], resources={**resources, "io_manager": dg.mem_io_manager})
    frame: pd.DataFrame = result.output_for_node("enriched")
    return frame
