"""Assets to look at in the UI: slow, with failed rows, by batch jobs, a spend report, and a step that fails.

The providers' addresses are in the environment.
"""

import os

import dagster as dg
import pandas as pd

from ondine_dagster import ErrorRateCheck, LLMResource, batch_sensor, llm_asset, spend_report
from ondine_dagster.reporting.markdown import preview


@dg.asset(group_name="tickets")
def support_tickets() -> pd.DataFrame:
    """Tickets, as they came in."""
    return pd.DataFrame({"body": [f"Ticket {number}: it does not work." for number in range(5_000)]})


PROMPT = "Which team should look at this ticket?\nTicket: {body}"
OUTPUT = {"team": {"type": "string", "enum": ["billing", "delivery", "product"]}, "urgency": int}


@llm_asset(prompt=PROMPT, output=OUTPUT, group_name="tickets")
def ticket_labels(support_tickets: pd.DataFrame) -> pd.DataFrame:
    """Team and urgency of every ticket."""
    return support_tickets


def tickets_of(context: dg.AssetExecutionContext) -> pd.DataFrame:
    """As many tickets as the run's tag says; the model has no valid answer about every 19th."""
    said = ["It is unreadable." if number % 19 == 1 else "It does not work." for number in range(100)]
    bodies = [f"Ticket {number}: {what}" for number, what in enumerate(said)]
    return pd.DataFrame({"body": bodies[: int(context.run.tags.get("rows", "40"))]})


@llm_asset(prompt=PROMPT, output=OUTPUT, group_name="tickets", failed_rows=True, checks=[ErrorRateCheck(max_rate=0.01)])
def ticket_teams(context: dg.AssetExecutionContext) -> pd.DataFrame:
    """Team and urgency of the tickets of the day."""
    return tickets_of(context)


@llm_asset(prompt=PROMPT, output=OUTPUT, group_name="tickets", on_row_error="raise")
def strict_ticket_teams(context: dg.AssetExecutionContext) -> pd.DataFrame:
    """The same, but a row without an answer fails the step."""
    return tickets_of(context)


@llm_asset(prompt=PROMPT, output=OUTPUT, group_name="tickets", tier="batch", resource_key="nightly_llm")
def nightly_teams() -> pd.DataFrame:
    """Team and urgency of the tickets of the day, by batch jobs."""
    return pd.DataFrame({"body": [f"Ticket {number}: It does not work." for number in range(600)]})


@dg.asset(group_name="tickets")
def answers_with_links() -> dg.MaterializeResult[None]:
    """A preview of answers that would like to be clicked."""
    answers = [
        "See https://evil.example/a",
        "www.evil.example",
        "mail to me@evil.example",
        "[here](http://evil.example)",
    ]
    table = pd.DataFrame({"answer": answers})
    return dg.MaterializeResult(metadata={"ondine/preview": dg.MetadataValue.md(preview(table, ["answer"]))})


llm = LLMResource(
    model="openai_compatible/labels",
    base_url=os.environ.get("TEST_BASE_URL", "http://127.0.0.1:9/v1"),
    input_cost_per_1k_tokens=0.00015,
    output_cost_per_1k_tokens=0.0006,
    max_concurrency=8,
    progress_every_s=1.0,
)
nightly_llm = LLMResource(
    model="openai/gpt-4o-mini",
    api_key="key",
    base_url=os.environ.get("TEST_JOBS_URL", "http://127.0.0.1:9/v1"),
    max_output_tokens=50,
    batch_wait_s=1,
)
llm_spend = spend_report(group_name="tickets")
defs = dg.Definitions(
    assets=[
        *(support_tickets, ticket_labels, ticket_teams, strict_ticket_teams, nightly_teams, answers_with_links),
        llm_spend,
    ],
    sensors=[
        batch_sensor(
            "nightly_teams",
            resource_keys="nightly_llm",
            minimum_interval_seconds=1,
            default_status=dg.DefaultSensorStatus.RUNNING,
        )
    ],
    resources={"llm": llm, "nightly_llm": nightly_llm},
)


def fill(*rows: int) -> None:
    """Materialize `ticket_teams` once for each number of rows, then the spend report, and the asset that fails."""
    full_refresh = {"ops": {"ticket_teams": {"config": {"full_refresh": True}}}}
    with dg.DagsterInstance.get() as instance:
        for number in rows:
            tags = {"rows": str(number)}
            dg.materialize(
                [ticket_teams], resources={"llm": llm}, instance=instance, tags=tags, run_config=full_refresh
            )
        dg.materialize([strict_ticket_teams], resources={"llm": llm}, instance=instance, raise_on_error=False)
        dg.materialize([llm_spend], resources={"llm": llm}, instance=instance)
