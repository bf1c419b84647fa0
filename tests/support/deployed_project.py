"""The definitions of a deployment under test: assets that run in different ways, each with its own provider.

Settings that differ between tests are read from the environment and from files in the instance's folder, because every
run imports this module.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl  # every run and step imports it, in a tenth of the time that pandas takes

from ondine_dagster import LLMResource, SharedBudget, llm_asset
from tests.support import guide
from tests.support.deployed_figures import (
    BURST,
    CONCURRENCY,
    DAYS,
    INPUT_USD_PER_1K,
    OUTPUT_USD_PER_1K,
    PARTS,
    PER_S,
    ROWS,
    ROWS_A_DAY,
    ROWS_A_PART,
    table_file,
    texts,
)

HOME = Path(os.environ["TEST_HOME"])
URLS: dict[str, str] = json.loads(os.environ["TEST_URLS"])
EXECUTOR = os.environ.get("TEST_EXECUTOR")
WITH_BUDGET = ("paced", "ranged", "capped", "spread")
"""Assets whose resource has a budget that all their runs share."""


class Tables(dg.ConfigurableIOManager):
    """Stores each partition in a file of its own; a run of several partitions writes one file for each."""

    def handle_output(self, context: dg.OutputContext, obj: pl.DataFrame) -> None:
        """Write the rows of each partition."""
        for partition in context.asset_partition_keys if context.has_asset_partitions else ("all",):
            rows = obj.filter(pl.col("part") == partition) if context.has_asset_partitions else obj
            rows.write_parquet(table_file(HOME, context.asset_key.to_user_string(), partition))

    def load_input(self, _: dg.InputContext) -> Any:
        """No asset is downstream."""
        raise NotImplementedError


def rows_of(asset: str, partition: str, count: int) -> pl.DataFrame:
    """Rows that no other partition has."""
    return pl.DataFrame({"part": partition, "text": texts(asset, partition, count)})


def echoed(name: str, rows: Callable[[str], pl.DataFrame], **arguments: Any) -> dg.AssetsDefinition:
    """An asset whose model, one for each asset, echoes the rows."""

    @llm_asset(
        name=name,
        prompt="Say it again.\nText: {text}",
        output={"answer": str},
        resource_key=f"{name}_llm",
        io_manager_key="tables",
        **arguments,
    )
    def table(context: dg.AssetExecutionContext) -> pl.DataFrame:
        (HOME / f"pids-{context.run.run_id}").write_text(f"{os.getpid()} {os.getppid()}")
        parts = context.partition_keys if context.has_partition_key or context.has_partition_key_range else [""]
        return pl.concat([rows(part) for part in parts])

    return table


def model(name: str) -> LLMResource:
    """The model of an asset."""
    paced = {"requests_per_minute": 60 * PER_S, "burst": BURST} if name in ("paced", "spread") else {}
    cap = (HOME / "budget").read_text() if name == "capped" else "1000"
    budgets = [SharedBudget(name=name, max_cost_usd=float(cap), period="ever")] if name in WITH_BUDGET else []
    return LLMResource(
        model=f"openai_compatible/{name}",
        base_url=URLS[name],
        max_concurrency=CONCURRENCY,
        max_output_tokens=20,
        input_cost_per_1k_tokens=INPUT_USD_PER_1K,
        output_cost_per_1k_tokens=OUTPUT_USD_PER_1K,
        budgets=budgets,
        progress_every_s=0.5,
        lease_ttl_s=60,
        store=os.environ.get("TEST_STORE"),
        **paced,
    )


def plain(name: str, **arguments: Any) -> dg.AssetsDefinition:
    """An asset without partitions that takes a while."""
    return echoed(name, lambda _: rows_of(name, "all", ROWS), **arguments)


def executor() -> dg.ExecutorDefinition:
    """The executor of a run's steps; for Celery the one of the guide."""
    if EXECUTOR == "celery":
        return guide.executor("in_process_executor")
    return dg.in_process_executor if EXECUTOR == "in_process" else dg.multiprocess_executor


def jobs() -> list[Any]:
    """A job whose single steps are distributed over Celery's workers, if there are any."""
    if EXECUTOR != "celery":
        return []
    return [dg.define_asset_job("stepwise_job", "stepwise", executor_def=guide.executor("celery_executor"))]


days = dg.StaticPartitionsDefinition(DAYS)
parts = dg.StaticPartitionsDefinition(PARTS)
assets = {
    "paced": echoed("paced", lambda day: rows_of("paced", day, ROWS_A_DAY), partitions_def=days, pool="llm"),
    "ranged": echoed(
        "ranged",
        lambda day: rows_of("ranged", day, ROWS_A_DAY),
        partitions_def=days,
        backfill_policy=dg.BackfillPolicy.multi_run(2),
    ),
    "capped": echoed("capped", lambda part: rows_of("capped", part, ROWS_A_PART), partitions_def=parts),
    "spread": echoed("spread", lambda part: rows_of("spread", part, ROWS_A_PART), partitions_def=parts),
    "terminated": plain("terminated"),
    "retried": plain("retried", retry_policy=dg.RetryPolicy(max_retries=2)),
    "stopped": plain("stopped"),
    "orphaned": plain("orphaned"),
    "stepwise": echoed("stepwise", lambda _: rows_of("stepwise", "all", ROWS_A_PART)),
}
defs = dg.Definitions(
    assets=[asset for name, asset in assets.items() if name in URLS],
    resources={"tables": Tables(), **{f"{name}_llm": model(name) for name in assets if name in URLS}},
    jobs=jobs(),
    executor=executor(),
)
