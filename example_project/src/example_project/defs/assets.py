"""Reviews by day, their sentiment, and its agreement with human labels."""

import json
from pathlib import Path
from typing import Literal

import dagster as dg
import pandas as pd
from pydantic import BaseModel, Field

from ondine_dagster import Prompt, llm_asset

PROJECT = Path(__file__).parents[1]
OUTPUT = Path(__file__).parents[3] / "output"

days = dg.DailyPartitionsDefinition(start_date="2026-01-05", end_date="2026-01-10")


class Sentiment(BaseModel):
    """The output: one column for each field."""

    sentiment: Literal["positive", "negative", "neutral"] = Field(description="what the reviewer makes of the product")


@dg.asset(partitions_def=days, group_name="shop")
def reviews(context: dg.AssetExecutionContext) -> pd.DataFrame:
    """The product reviews of a day, with a label that a person gave."""
    table = pd.read_csv(PROJECT / "data" / "reviews.csv", keep_default_na=False)
    return table[table["date"] == context.partition_key].reset_index(drop=True)


PROMPT = Prompt(
    file=PROJECT / "prompts" / "sentiment.md",
    examples=json.loads((PROJECT / "prompts" / "sentiment_examples.json").read_text(encoding="utf-8")),
)


@llm_asset(
    prompt=PROMPT,
    output=Sentiment,
    partitions_def=days,
    group_name="shop",
    pool="llm",
)
def review_sentiment(reviews: pd.DataFrame) -> pd.DataFrame:
    """The sentiment of every review that is not empty."""
    return reviews[reviews["review"].str.strip() != ""]


@dg.asset(
    partitions_def=days, group_name="shop", check_specs=[dg.AssetCheckSpec("agreement", asset="sentiment_report")]
)
def sentiment_report(context: dg.AssetExecutionContext, review_sentiment: pd.DataFrame) -> dg.MaterializeResult:
    """The agreement of the model with human labels, compared with always guessing the most frequent label."""
    from example_project.plot import draw  # matplotlib is slow to import, and only this step needs it

    labels, guesses = review_sentiment["label"], review_sentiment["sentiment"]
    agreement = float((labels == guesses).mean())
    majority = float(labels.value_counts(normalize=True).iloc[0])
    confusion = pd.crosstab(labels, guesses.fillna("no answer"), rownames=["label"], colnames=["model"])
    file = OUTPUT / f"sentiment-{context.partition_key}.png"
    picture = draw(confusion, f"{context.partition_key}: {agreement:.0%} agreement", file)
    return dg.MaterializeResult(
        metadata={
            "agreement": agreement,
            "majority_share": majority,
            "rows": len(labels),
            "plot": dg.MetadataValue.md(f"![Labels and answers](data:image/png;base64,{picture})"),
            "file": dg.MetadataValue.path(file),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="agreement",
                passed=agreement > majority,
                description=f"{agreement:.0%} agreement; always guessing the most frequent label gives {majority:.0%}.",
                metadata={"agreement": agreement, "majority_share": majority},
            )
        ],
    )
