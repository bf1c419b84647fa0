"""A user's Dagster project in one file, materialized twice, with pandas but without pyarrow."""

from pathlib import Path

import dagster as dg
import pandas as pd

from ondine_dagster import ScriptedModel, build_llm_asset, llm_asset, spend_report


@dg.asset
def reviews() -> pd.DataFrame:
    """Three rows, two of them equal."""
    return pd.DataFrame({"review": ["I love it", "It broke", "I love it"]})


@llm_asset(prompt="Which mood?\nReview: {review}", output={"mood": str}, batch_size=2)
def moods(reviews: pd.DataFrame) -> pd.DataFrame:
    """The mood of every review."""
    return reviews


lengths = build_llm_asset(name="lengths", upstream="moods", prompt="How long is {review}?", output={"length": int})

with dg.DagsterInstance.local_temp(str(Path.cwd())) as instance:
    llm = ScriptedModel(lambda text: {"length": 9} if "long" in text else {"mood": "good" if "love" in text else "bad"})
    for calls in (4, 4):  # the second time nothing is asked
        result = dg.materialize([reviews, moods, lengths], resources={"llm": llm}, instance=instance)
        table = result.output_for_node("lengths")
        assert list(table["mood"]) == ["good", "bad", "good"]
        assert list(table["length"]) == [9, 9, 9]
        assert len(llm.calls) == calls
    spent = dg.materialize([spend_report()], resources={"llm": llm}, instance=instance).output_for_node("llm_spend")
    assert sorted(spent["asset"]) == ["lengths", "moods"]
    assert all(str(day).startswith("20") for day in spent["day"])
