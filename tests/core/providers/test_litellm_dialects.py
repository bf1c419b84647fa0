"""Dialects that litellm sends in other ways: hooks see the same of each."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

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


# -- locations of Vertex AI ----------------------------------------------------------------------------------------


class VertexProvider(AnyProvider):
    """Gives tokens as well."""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return web.json_response({"access_token": "t", "expires_in": 3600, "token_type": "Bearer"})
        return await super()._handle(request)


def google_account(address: str) -> str:
    """A service account whose tokens are from `address`."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = {"type": "service_account", "project_id": "shop", "client_email": "a@shop", "private_key": pem}
    return json.dumps({**account, "token_uri": f"{address}/token"})


@pytest.mark.parametrize("variable", [None, "VERTEX_LOCATION", "GOOGLE_CLOUD_LOCATION", "CLOUD_ML_REGION"])
def test_vertex_is_asked_at_the_location_of_other_packages(
    variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Google's and Anthropic's packages have variables that litellm does not read: it would ask in the USA."""
    pytest.importorskip("google.auth")
    import_litellm()
    for name in ("VERTEXAI_LOCATION", "VERTEX_LOCATION", "GOOGLE_CLOUD_LOCATION", "CLOUD_ML_REGION"):
        monkeypatch.delenv(name, raising=False)
    settings: dict[str, str] = {"vertex_project": "shop"}
    if variable is None:
        settings["vertex_location"] = "europe-west1"
    else:
        monkeypatch.setenv(variable, "europe-west1")
    with VertexProvider(GEMINI) as provider:
        address = provider.base_url.removesuffix("/v1")
        settings["vertex_credentials"] = google_account(address)
        spec = ModelSpec("vertex_ai/gemini-2.5-flash", base_url=address, settings=settings)
        one_call(connect_litellm(spec, "gemini-2.5-flash"), call=CALL)
    ((request, _),) = provider.seen
    assert "/locations/europe-west1/" in request.path


def test_location_that_litellm_would_replace_is_refused() -> None:
    """It would call the model elsewhere, and say so in its log only, which is off."""
    import_litellm()
    litellm = importlib.import_module("litellm")
    model, regions = next(
        (name, facts["supported_regions"])
        for name, facts in litellm.model_cost.items()
        if name.startswith("vertex_ai/") and facts.get("supported_regions") and facts.get("mode") == "chat"
    )
    spec = ModelSpec(model, settings={"vertex_location": "europe-nowhere1"})
    with pytest.raises(FatalError, match=f"'europe-nowhere1': litellm would call '{model}' in '{regions[0]}' instead"):
        one_call(connect_litellm(spec, model.partition("/")[2]), call=CALL)
