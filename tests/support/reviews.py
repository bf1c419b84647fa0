"""An output model with fields of many types, and a valid reply."""

import datetime as dt
import enum

from pydantic import BaseModel, Field

from ondine_core.prompts.output_schema import Invalid, OutputSchema


class Mood(enum.Enum):
    """The mood of a review."""

    GOOD = "good"
    BAD = "bad"


class Part(BaseModel):
    """A part of a review."""

    name: str
    mood: Mood | None


class Review(BaseModel):
    """The content of a review."""

    mood: Mood
    topic: str | None = Field(alias="theTopic", description="what it is about")
    parts: list[Part]
    day: dt.date
    stars: int = Field(default=3, ge=1, le=5)


REPLY = {"mood": "good", "theTopic": None, "parts": [{"name": "x", "mood": "bad"}], "day": "2026-01-02", "stars": 4}


def refusal(schema: OutputSchema, text: str) -> str:
    """The reason for which `text` is not an answer."""
    outcome = schema.parse(text)
    assert isinstance(outcome, Invalid), outcome
    return outcome.reason
