"""A table of reviews, an asset that labels them, and helpers that materialize it and read the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import dagster as dg
import pandas as pd
from pydantic import BaseModel

from ondine_core.providers.scripted import ScriptedModel
from ondine_dagster import llm_asset
from tests.support import instances

PROMPT = "Classify this review.\nReview: {review}"


class Mood(BaseModel):
    """The output for a review: a closed set, a nullable closed set, a boolean and free text."""

    mood: Literal["good", "bad"]
    topic: Literal["price", "quality"] | None
    angry: bool
    summary: str | None


def answer(prompt: str) -> Any:
    """The answer for a review by its words: `good`, `price`, `angry` and so on; `junk` gives an invalid one."""
    text = prompt.rpartition("Review: ")[2]
    if "junk" in text:
        return "nonsense"
    topic = next((topic for topic in ("price", "quality") if topic in text), None)
    mood = "good" if "good" in text else "bad"
    return {"mood": mood, "topic": topic, "angry": "angry" in text, "summary": text if "long" in text else None}


def moods_of(*texts: str, **options: Any) -> dg.AssetsDefinition:
    """An asset `moods` about reviews with these texts."""

    @llm_asset(**{"prompt": PROMPT, "output": Mood, "name": "moods", **options})
    def moods():  # noqa: ANN202
        return pd.DataFrame({"review": list(texts)})

    return moods


def run(*assets: Any, llm: Any = None, **options: Any) -> dg.ExecuteInProcessResult:
    """Materialize assets; a failed step does not raise."""
    resources = {"llm": llm or ScriptedModel(answer)}
    return instances.materialize(list(assets), resources=resources, raise_on_error=False, **options)


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    """The results of checks by name."""
    return {one.check_name: one for one in result.get_asset_check_evaluations()}


def values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as plain values; a table becomes a list of dictionaries."""
    plain = {}
    for name, entry in metadata.items():
        records = getattr(entry, "records", None)
        plain[name] = getattr(entry, "value", entry) if records is None else [dict(record.data) for record in records]
    return plain


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    """The metadata of the materialization of `asset`."""
    events = result.get_asset_materialization_events()
    (made,) = [event.materialization for event in events if event.asset_key == dg.AssetKey.from_user_string(asset)]
    return values(made.metadata)
