from __future__ import annotations

from typing import Any

import pytest

from ondine_core import Failure, ModelSpec, Options, Policy, Report, enrich_sync
from tests.support.batches import ids_in
from tests.support.provider import Altered, Effect, Provider, ReceivedRequest, status

SENTENCE = "The kettle is fine and so is the lid, and I have more to say of it. "


def enriched(provider: Provider, rows: list[str], model: str, **policy: Any) -> Report:
    return enrich_sync(
        {"text": rows},
        prompt="Label: {text}",
        output="label",
        model=ModelSpec(model, base_url=provider.base_url),
        options=Options(store=":memory:", policy=Policy(**policy)),
    )


def reporting(tokens: int, cached: int = 0) -> Any:
    body = {
        "choices": [{"message": {"content": "no refund"}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": tokens,
            "completion_tokens": 5,
            "total_tokens": tokens + 5,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }
    return status(200, body)


@pytest.mark.parametrize(
    ("model", "tokens", "cached", "kept"),
    [
        ("ollama/llama3.2", 4096, 0, False),  # Ollama at its default window
        ("ollama/llama3.2", 3900, 0, False),  # a part of the window is kept for the reply
        ("lm_studio/qwen3", 2048, 0, False),
        ("openai_compatible/m", 4096, 0, False),  # the same behind a gateway: exactly a window
        ("openai_compatible/m", 8192, 0, False),
        ("ollama/llama3.2", 9100, 0, True),  # another tokenizer
        ("ollama/llama3.2", 7000, 0, True),
        ("openai_compatible/m", 20, 0, True),  # a server that counts wrongly
        ("ollama/llama3.2", 0, 0, True),  # or nothing at all
        ("openai_compatible/m", 600, 8400, True),  # or its cache apart
    ],
)
def test_prompt_truncated_by_the_server_fails(model: str, tokens: int, cached: int, kept: bool) -> None:
    """An answer to part of a prompt fails as truncated, once, with advice; other token counts do not."""
    with Provider(fault=reporting(tokens, cached)) as provider:
        report = enriched(provider, ["REFUND please. " + SENTENCE * 500], model)
    assert len(provider.ledger.requests) == 1
    if kept:
        assert report.column("label") == ["no refund"]
    else:
        (failure,) = report.outcomes
        assert isinstance(failure, Failure)
        assert (failure.reason, "num_ctx" in failure.detail) == ("truncated", True)


def test_row_beyond_a_known_window_is_not_asked() -> None:
    """A row that cannot fit fails before its call, with the figures; the others are asked."""
    with Provider(lambda _: "fine") as provider:
        report = enriched(
            provider, [SENTENCE * 500, "short", SENTENCE * 100], "openai_compatible/m", context_window=4096
        )
    failure = report.outcomes[0]
    assert isinstance(failure, Failure)
    assert (failure.reason, "4,096" in failure.detail) == ("prompt", True)
    assert (report.column("label")[1:], len(provider.ledger.requests)) == (["fine", "fine"], 2)


def test_batch_truncated_by_the_server_is_halved() -> None:
    """Its rows get their answers from smaller calls that fit."""

    def cut(asked: ReceivedRequest) -> Effect:
        tokens = sum(len(message["content"]) for message in asked.messages) // 4
        return reporting(2048)(asked) if tokens > 2048 else Altered()

    def answer(prompt: str) -> Any:
        return {"answers": [{"id": number, "answer": "a"} for number in ids_in(prompt)]}

    with Provider(answer, fault=cut) as provider:
        report = enriched(provider, [f"{n} " + SENTENCE * 40 for n in range(4)], "ollama/llama3.2", batch_size=4)
    assert report.column("label") == ["a"] * 4
    assert len(provider.ledger.requests) == 3
