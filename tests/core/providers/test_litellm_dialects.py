"""Dialects that litellm sends in other ways: hooks see the same of each."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web

from ondine_core import FatalError, ModelSpec, RefusedError, Reply, TransientError, Usage
from ondine_core.providers.litellm import connect_litellm
from tests.support.asking import one_call
from tests.support.clients import CALL, WORDS, import_litellm
from tests.support.provider import Provider

ANSWER = json.dumps({"answer": WORDS})
AWS = {
    "aws_region_name": "us-east-1",
    "aws_access_key_id": "AKIA0000",
    "aws_secret_access_key": "sentinel-secret-of-aws",
}
CONVERSE = {
    "output": {"message": {"role": "assistant", "content": [{"text": ANSWER}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 20, "outputTokens": 9, "totalTokens": 34, "cacheReadInputTokens": 5},
}
GEMINI = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": ANSWER}]}, "finishReason": "STOP"}],
    "usageMetadata": {
        "promptTokenCount": 25,
        "cachedContentTokenCount": 5,
        "candidatesTokenCount": 9,
        "thoughtsTokenCount": 6,
        "totalTokenCount": 40,
    },
    "responseId": "gemini-1",
}
COHERE = {
    "id": "cohere-1",
    "finish_reason": "COMPLETE",
    "message": {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
    "usage": {"billed_units": {}, "tokens": {"input_tokens": 25, "output_tokens": 9}},
}


class AnyProvider(Provider):
    """Gives the same reply at every address, and keeps the requests."""

    path = "/{tail:.*}"

    def __init__(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__()
        self._reply, self.seen = (body, status, headers), list[tuple[web.Request, Any]]()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body, status, headers = self._reply
        self.seen.append((request, await request.json()))
        return web.json_response(body, status=status, headers=headers)


DIALECTS: dict[str, tuple[dict[str, Any], dict[str, Any], Usage]] = {
    "bedrock/anthropic.claude-3-haiku-20240307-v1:0": (CONVERSE, {"settings": AWS}, Usage(25, 5, 9)),
    "gemini/gemini-2.5-flash": (GEMINI, {"api_key": "k"}, Usage(25, 5, 15, 6)),
    "cohere/command-a-03-2025": (COHERE, {"api_key": "k"}, Usage(25, 0, 9)),
}
every_dialect = pytest.mark.parametrize("model", DIALECTS)
# Pydantic warns about types in litellm's module for Cohere, once, when the first call imports it.
pytestmark = pytest.mark.filterwarnings("ignore:Items? .* on TypedDict class")


def ask(model: str, provider: Provider) -> Reply:
    import_litellm()
    address = provider.base_url.removesuffix("/v1")
    spec = ModelSpec(model, base_url=address, timeout_s=20, **DIALECTS[model][1])
    return one_call(connect_litellm(spec, model.partition("/")[2]), call=CALL)


@every_dialect
def test_answer_and_usage_are_read(model: str) -> None:
    """Text, tokens, cached tokens and reasoning have the same names for every dialect."""
    body, _, usage = DIALECTS[model]
    with AnyProvider(body) as provider:
        reply = ask(model, provider)
    assert json.loads(reply.text) == {"answer": WORDS}
    assert (reply.usage, reply.finish_reason) == (usage, "stop")
    assert len(provider.seen) == 1


@every_dialect
@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, RefusedError), (403, FatalError), (404, FatalError), (429, TransientError), (503, TransientError)],
)
def test_status_decides_in_every_dialect(model: str, status: int, kind: type[Exception]) -> None:
    """The mapping by litellm has no effect, nothing is sent twice, and no secret is in the error."""
    with AnyProvider({"message": "no"}, status, {"Retry-After": "7"}) as provider, pytest.raises(kind) as caught:
        ask(model, provider)
    assert type(caught.value) is kind
    assert getattr(caught.value, "retry_after_s", 7.0) == 7.0
    assert len(provider.seen) == 1
    assert "sentinel" not in str(caught.value)
