"""Assets for tests of the UI: slow, with failed rows, by batch jobs, a spend report, and a failing step.

This file is copied into the quickstart's project; environment variables have the providers' addresses and the folders.
"""

import os
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from ondine_dagster import ErrorRateCheck, LLMResource, MediaOptions, Prompt, batch_sensor, llm_asset, spend_report
from ondine_dagster.reporting.markdown import preview


@dg.asset(group_name="tickets")
def support_tickets() -> pd.DataFrame:
    """Tickets in order of arrival."""
    return pd.DataFrame({"body": [f"Ticket {number}: it does not work." for number in range(5_000)]})


PROMPT = "Which team should look at this ticket?\nTicket: {body}"
OUTPUT = {"team": {"type": "string", "enum": ["billing", "delivery", "product"]}, "urgency": int}
ARGUMENTS: dict[str, Any] = {
    "prompt": PROMPT,
    "output": OUTPUT,
    "group_name": "tickets",
    "resource_key": "tickets_llm",
}


@llm_asset(**ARGUMENTS)
def ticket_labels(support_tickets: pd.DataFrame) -> pd.DataFrame:
    """Team and urgency of every ticket."""
    return support_tickets


def tickets_of(context: dg.AssetExecutionContext) -> pd.DataFrame:
    """The number of tickets in the run's tag `rows`; the model has no valid answer to about every 19th."""
    problems = ["It is unreadable." if number % 19 == 1 else "It does not work." for number in range(100)]
    bodies = [f"Ticket {number}: {problem}" for number, problem in enumerate(problems)]
    return pd.DataFrame({"body": bodies[: int(context.run.tags.get("rows", "40"))]})


@llm_asset(**ARGUMENTS, failed_rows=True, checks=[ErrorRateCheck(max_rate=0.01)])
def ticket_teams(context: dg.AssetExecutionContext) -> pd.DataFrame:
    """Team and urgency of the day's tickets."""
    return tickets_of(context)


@llm_asset(**ARGUMENTS, on_row_error="raise")
def strict_ticket_teams(context: dg.AssetExecutionContext) -> pd.DataFrame:
    """The same, but a row without an answer fails the step."""
    return tickets_of(context)


@llm_asset(**ARGUMENTS | {"resource_key": "nightly_llm"}, tier="batch")
def nightly_teams() -> pd.DataFrame:
    """Team and urgency of the day's tickets, labelled by batch jobs."""
    return pd.DataFrame({"body": [f"Ticket {number}: It does not work." for number in range(600)]})


@dg.asset(group_name="tickets")
def answers_with_links() -> dg.MaterializeResult[None]:
    """A preview of answers that contain links."""
    answers = [
        "See https://evil.example/a",
        "www.evil.example",
        "mail to me@evil.example",
        "[here](http://evil.example)",
    ]
    table = pd.DataFrame({"answer": answers})
    return dg.MaterializeResult(metadata={"ondine/preview": dg.MetadataValue.md(preview(table, ["answer"]))})


DATA = Path(os.environ["TEST_DATA"])
PHOTOS = DATA / "photos"


@llm_asset(
    prompt=Prompt("What is in this picture?\n{photo:image}", media=MediaOptions(root=PHOTOS)),
    output={"product": {"type": "string", "enum": ["ball", "bowl", "lamp", "mug"]}, "colour": "string"},
    group_name="photos",
    resource_key="tickets_llm",
)
def photo_labels() -> pd.DataFrame:
    """Product and colour of every picture."""
    return pd.DataFrame({"photo": sorted(file.name for file in PHOTOS.glob("*.png"))})


@llm_asset(**ARGUMENTS, retry_failed_rows=["invalid"], checks=[ErrorRateCheck(max_rate=0.5)])
def first_tickets() -> pd.DataFrame:
    """Team and urgency of a few tickets: two without text, one without a valid answer, one refused."""
    bodies = [f"Ticket {number}: It does not work." for number in range(200, 206)]
    odd = [None, " ", "Ticket 206: It is unreadable.", "Ticket 207: It is refused."]
    return pd.DataFrame({"body": [*odd, *bodies]})


@llm_asset(
    prompt="What is the sentiment of this review?\nReview: {review}",
    output={"sentiment": {"type": "string", "enum": ["positive", "negative", "neutral"]}},
    partitions_def=dg.DailyPartitionsDefinition("2026-01-05", end_date="2026-01-10"),
    partition_by="date",
    batch_size=4,
    resource_key="tickets_llm",
    group_name="reviews",
)
def daily_sentiment() -> pd.DataFrame:
    """Sentiment of a day's reviews."""
    return pd.read_csv(DATA / "reviews.csv", keep_default_na=False)[["date", "review"]]


tickets_llm = LLMResource(
    model="openai_compatible/labels",
    base_url=os.environ["TEST_BASE_URL"],
    input_cost_per_1k_tokens=0.00015,
    output_cost_per_1k_tokens=0.0006,
    max_concurrency=8,
    progress_every_s=1.0,
)
nightly_llm = LLMResource(
    model="openai/gpt-4o-mini",
    api_key="key",
    base_url=os.environ["TEST_JOBS_URL"],
    max_output_tokens=50,
    batch_wait_s=1,
)
llm_spend = spend_report(resource_key="tickets_llm", group_name="tickets")


@dg.definitions
def tickets() -> dg.Definitions:
    return dg.Definitions(
        assets=[
            *(support_tickets, ticket_labels, ticket_teams, strict_ticket_teams, nightly_teams, answers_with_links),
            *(photo_labels, first_tickets, daily_sentiment, llm_spend),
        ],
        sensors=[
            batch_sensor(
                "nightly_teams",
                resource_keys="nightly_llm",
                minimum_interval_seconds=5,
                default_status=dg.DefaultSensorStatus.RUNNING,
            )
        ],
        resources={"tickets_llm": tickets_llm, "nightly_llm": nightly_llm},
    )


def fill(*rows: int) -> None:
    """Materialize `ticket_teams` once for each number of rows, and once each asset that the tests only display."""
    given: dict[str, Any] = {"resources": {"tickets_llm": tickets_llm}, "raise_on_error": False}
    full_refresh = {"ops": {"ticket_teams": {"config": {"full_refresh": True}}}}
    with dg.DagsterInstance.get() as instance:
        for number in rows:
            tags = {"rows": str(number)}
            dg.materialize([ticket_teams], **given, instance=instance, tags=tags, run_config=full_refresh)
        for asset in (strict_ticket_teams, llm_spend, photo_labels, answers_with_links):
            dg.materialize([asset], **given, instance=instance)
