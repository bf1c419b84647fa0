"""Classification of refusals: `refusals.jsonl` has one response a line, with its sender and its meaning.

The bodies are those that the providers document, or that their users report in public issue threads, shortened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from ondine_core import Call, FatalError, ModelSpec, ProviderError, RefusedError, TransientError
from ondine_core.errors import InvalidReplyError
from ondine_core.providers import connect
from ondine_core.types.values import Message
from tests.support.provider import Canned, Effect, Provider, ReceivedRequest

LINES = Path(__file__).with_name("refusals.jsonl").read_text(encoding="utf-8").splitlines()
CASES: list[dict[str, Any]] = [orjson.loads(line) for line in LINES]


def meaning(error: ProviderError) -> str:
    match error:
        case InvalidReplyError():
            return "reply"
        case TransientError():
            return "lost" if error.cost_unknown else error.kind
        case FatalError() | RefusedError():
            return error.fault
    return type(error).__name__


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[int, ProviderError]]:
    """The outcome of each case, asked of one server by its number."""

    def fault(asked: ReceivedRequest) -> Effect:
        case = CASES[int(asked.prompt)]
        body = case["text"].encode() if "text" in case else orjson.dumps(case["body"])
        return Canned(case["status"], body, case.get("headers", {}))

    async def ask_all() -> dict[int, ProviderError]:
        model = connect(ModelSpec("openai_compatible/m", base_url=provider.base_url, api_key="k-1"))
        found: dict[int, ProviderError] = {}
        for number in range(len(CASES)):
            try:
                await model(Call((Message("user", str(number)),)))
            except ProviderError as error:
                found[number] = error
        await model.aclose()
        return found

    with Provider(fault=fault) as provider:
        yield asyncio.run(ask_all())


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{case['sent_by']}-{case['status']}" for case in CASES])
def test_refusal_is_classified_by_what_is_at_fault(number: int, outcomes: dict[int, ProviderError]) -> None:
    """By status, codes and message; the user reads the message, and what to do if something helps."""
    case, error = CASES[number], outcomes[number]
    assert meaning(error) == case["means"], str(error)
    assert case.get("shows", "") in str(error)
    assert str(case["status"]) in str(error)
