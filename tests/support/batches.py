"""A task with output columns of every scalar type, batches of rows, and replies that follow the instructions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from ondine_core.batching.strategy import STRATEGIES, BatchStrategy
from ondine_core.prompts.output_schema import Output
from ondine_core.prompts.task import Task, compile_task
from ondine_core.prompts.template import Prompt
from ondine_core.types.values import Batch, Item, ModelSpec

OUTPUT: Mapping[str, Any] = {
    "mood": {"type": "string"},
    "stars": {"type": "integer", "nullable": True},
    "sure": {"type": "boolean"},
    "score": {"type": "number"},
}
EXAMPLE = ({"review": "Fine, 'really' <b>"}, {"mood": "good", "stars": 3, "sure": True, "score": 0.5})
PROMPT = Prompt("Classify.\nReview: {review}", system="Be brief.", examples=[EXAMPLE])

every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def task(prompt: str | Prompt = PROMPT, output: Output = OUTPUT) -> Task:
    """A task for a model without known limits or prices."""
    return compile_task(prompt, output, ModelSpec("test/model"))


QUESTION = task()


def batch(asked: Task, texts: list[str], **options: Any) -> Batch:
    """One row for each text, in the column `review`."""
    rows = [{"review": text} for text in texts]
    items = [Item(bytes([n]), asked.prompt.render(row), asked.prompt.fields(row)) for n, row in enumerate(rows)]
    return Batch(tuple(items), **options)


def ids_in(prompt: str) -> list[int]:
    """The ids of a batch's rows, as a provider reads them in JSON."""
    return [int(number) for number in re.findall(r'"id":(\d+)', prompt)]


def reply_with(strategy: BatchStrategy, answers: Mapping[int, Mapping[str, Any]]) -> str:
    """The reply of a model that follows the instructions."""
    form = strategy.encode.args[0]
    text = form.write([{"id": number, **answer} for number, answer in answers.items()])
    return f'{{"answers":{text}}}' if form.name == "json" else text
