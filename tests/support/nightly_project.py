"""A project whose tables are labelled at night by batch jobs, and two assets whose runs are terminated.

The provider's address is in an environment variable.
"""

import os
from typing import Any

import dagster as dg
import polars as pl  # every run and step imports it, in a tenth of the time that pandas takes

from ondine_dagster import LLMResource, batch_sensor, llm_asset

ROWS = 40
ASKS: dict[str, Any] = {"prompt": "Say it again.\nText: {text}", "output": {"answer": str}, "tier": "batch"}


def table(name: str) -> pl.DataFrame:
    """Rows that no other asset has."""
    return pl.DataFrame({"text": [f"{name} {number}" for number in range(ROWS)]})


DAYS = ["monday", "tuesday"]
days = dg.StaticPartitionsDefinition(DAYS)


@dg.asset(group_name="tickets", partitions_def=days)
def tickets(context: dg.AssetExecutionContext) -> pl.DataFrame:
    """The tickets of the day."""
    return table(context.partition_key)


@llm_asset(**ASKS, group_name="tickets", partitions_def=days)
def ticket_answers(tickets: pl.DataFrame) -> pl.DataFrame:
    """An answer to every ticket."""
    return tickets


@dg.asset(group_name="tickets", partitions_def=days)
def ticket_report(ticket_answers: pl.DataFrame) -> int:
    """The number of answers."""
    return int(ticket_answers["answer"].is_not_null().sum())


@llm_asset(**ASKS, resource_key="waiting_llm")
def terminated() -> pl.DataFrame:
    """An asset whose run is terminated and whose job continues."""
    return table("terminated")


@llm_asset(**ASKS, resource_key="cancelling_llm")
def cancelled() -> pl.DataFrame:
    """An asset whose run is terminated and whose job is cancelled."""
    return table("cancelled")


def model(**fields: Any) -> LLMResource:
    """The model of the assets."""
    return LLMResource(
        model="openai/gpt-4o-mini",
        api_key="key",
        base_url=os.environ.get("TEST_BASE_URL", ""),
        max_output_tokens=50,
        **fields,
    )


nightly = dg.define_asset_job("nightly", ["tickets", "ticket_answers", "ticket_report"])


@dg.schedule(job=nightly, cron_schedule="0 22 * * *")
def every_night() -> dg.RunRequest:
    """The tickets of the day."""
    return dg.RunRequest(partition_key=DAYS[0])


sensor = batch_sensor(
    resource_keys=["llm", "waiting_llm", "cancelling_llm"],
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
defs = dg.Definitions(
    assets=[tickets, ticket_answers, ticket_report, terminated, cancelled],
    jobs=[nightly],
    schedules=[every_night],
    sensors=[sensor],
    resources={
        "llm": model(batch_wait_s=1),
        "waiting_llm": model(batch_wait_s=600),
        "cancelling_llm": model(batch_wait_s=600, cancel_on_terminate=True),
    },
    executor=dg.in_process_executor,
)
