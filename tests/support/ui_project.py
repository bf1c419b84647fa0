"""An asset that takes its time, for looking at a run while it goes on; its provider's address is in the environment."""

import os

import dagster as dg
import pandas as pd

from ondine_dagster import LLMResource, llm_asset
from ondine_dagster.markdown import preview


@dg.asset(group_name="tickets")
def support_tickets() -> pd.DataFrame:
    """Tickets, as they came in."""
    return pd.DataFrame({"body": [f"Ticket {number}: it does not work." for number in range(5_000)]})


@llm_asset(
    prompt="Which team should look at this ticket?\nTicket: {body}",
    output={"team": {"type": "string", "enum": ["billing", "delivery", "product"]}, "urgency": int},
    group_name="tickets",
)
def ticket_labels(support_tickets: pd.DataFrame) -> pd.DataFrame:
    """Team and urgency of every ticket."""
    return support_tickets


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


defs = dg.Definitions(
    assets=[support_tickets, ticket_labels, answers_with_links],
    resources={
        "llm": LLMResource(
            model="openai_compatible/labels",
            base_url=os.environ.get("TEST_BASE_URL", "http://127.0.0.1:9/v1"),
            input_cost_per_1k_tokens=0.00015,
            output_cost_per_1k_tokens=0.0006,
            max_concurrency=8,
            progress_every_s=1.0,
        )
    },
)
