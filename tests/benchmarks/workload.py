"""The workload of every client: rows, the prompt, the output schema, and the check of an answer.

It depends only on the standard library, so that it adds nothing to a client's start-up time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

__all__ = ["PROMPT", "SCHEMA", "SENTIMENTS", "Workload", "answer_to", "is_right", "review"]

SENTIMENTS = ("positive", "negative", "neutral")
PROMPT = "Classify this product review.\nReview: {review}"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"sentiment": {"type": "string", "enum": list(SENTIMENTS)}, "topic": {"type": "string"}},
    "required": ["sentiment", "topic"],
    "additionalProperties": False,
}
_TEXT = "It came on time and the box was whole, but the lid sits loose and the handle gets hot after a minute; no. "


_NUMBER = re.compile(r"#(\d+)")
_ANSWER_WITHOUT_ROW = {"name": "Jason", "age": 25}
"""Some clients test a model before they begin: data-designer accepts any answer, curator asks for names and ages."""


@dataclass(frozen=True)
class Workload:
    """One run of one client.

    Args:
        base_url: The provider's address, up to `/v1`.
        rows: Number of rows.
        concurrency: Maximum number of calls in flight.
        batch_size: Rows a call, for clients that support it.
        store: File for the answers, for clients that store any; empty keeps them in memory.
        requests_per_s: The limit configured for the client, if any.
        first: Number of the first row.
    """

    base_url: str
    rows: int
    concurrency: int = 256
    batch_size: int = 1
    store: str = ""
    requests_per_s: float | None = None
    first: int = 0

    @property
    def reviews(self) -> list[str]:
        """The texts of the rows, each different."""
        return [review(number) for number in range(self.first, self.first + self.rows)]


def review(number: int) -> str:
    """The text of a row, about 30 tokens."""
    return f"{_TEXT}#{number}"


def answer_to(text: str) -> dict[str, Any]:
    """The provider's answer to a text with the number of its row, possibly with instructions around it."""
    numbers = _NUMBER.findall(text)
    if not numbers:
        return _ANSWER_WITHOUT_ROW
    return {"sentiment": SENTIMENTS[int(numbers[-1]) % len(SENTIMENTS)], "topic": f"row {numbers[-1]}"}


def is_right(number: int, answer: Any) -> bool:
    """Whether `answer` belongs to row `number`."""
    return bool(answer == answer_to(f"#{number}"))
