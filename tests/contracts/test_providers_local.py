"""The contract of every model that runs in this process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from ondine_core import Call, ChatModel, FatalError, ModelSpec, ProviderError, TransientError
from ondine_core.providers import connect
from ondine_core.providers.pricing import FREE, find_price
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.types.values import Message
from tests.support.asking import one_call
from tests.support.clients import CALL, SCHEMA, WORDS, left_open


@pytest.fixture(scope="module", params=["scripted", "mlx", "llama_cpp"])
def local(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a model that runs in this process."""
    if request.param == "mlx":
        pytest.importorskip("mlx_lm", reason="the extra 'mlx' is not installed")
        from tests.support.tiny_mlx import write_tiny_model

        return f"mlx/{write_tiny_model(tmp_path_factory.mktemp('mlx') / 'tiny')}"
    if request.param == "llama_cpp":
        pytest.importorskip("xllamacpp", reason="the extra 'local' is not installed")
        return "llama_cpp/gemma-3-270m"
    return "scripted/ScriptedModel"


def open_local(model: str, **spec: Any) -> ChatModel:
    if model.startswith("scripted"):
        return ScriptedModel({"": {"answer": WORDS}}, latency_s=0.1)
    return connect(ModelSpec(model, **{"max_output_tokens": 40, "timeout_s": 120.0, **spec}))


def test_local_model_answers_at_no_cost(local: str) -> None:
    """It answers, counts its tokens, and costs nothing."""
    reply = one_call(open_local(local), call=CALL)
    assert reply.usage.input_tokens > 0
    assert reply.usage.output_tokens > 0
    assert reply.latency_s > 0
    assert find_price(local) == FREE
    assert FREE.cost(reply.usage) == 0


def test_local_model_works_in_each_event_loop(local: str) -> None:
    """Also if the first loop ended before the model was loaded."""
    model = open_local(local)

    async def ask() -> int:
        return (await asyncio.wait_for(model(CALL), 120)).usage.output_tokens

    with left_open():
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(model(CALL), 0))
        assert min(asyncio.run(ask()), asyncio.run(ask())) > 0
        one_call(model, call=CALL)


def test_local_model_keeps_to_a_schema(local: str) -> None:
    """A complete reply is JSON with the required fields."""
    reply = one_call(open_local(local, max_output_tokens=400), call=Call((Message("user", "Say hello."),), SCHEMA))
    if reply.finish_reason != "length":
        assert set(orjson.loads(reply.text)) == {"answer"}


def test_local_model_reports_truncation(local: str) -> None:
    """At the bound on output tokens."""
    if local.startswith("scripted"):
        pytest.skip("a script is never cut")
    reply = one_call(open_local(local, max_output_tokens=3), call=CALL)
    assert (reply.finish_reason, reply.usage.output_tokens) == ("length", 3)


def test_local_model_can_be_cancelled_and_closed_twice(local: str) -> None:
    """A cancelled call ends at once; the model can be closed twice, and answers again."""

    async def main() -> float:
        loop, model = asyncio.get_running_loop(), open_local(local, max_output_tokens=500)
        await model(CALL)
        call = asyncio.create_task(model(Call((Message("user", "Once upon a time"),))))
        await asyncio.wait({call}, timeout=0.2)
        started = loop.time()
        call.cancel()
        await asyncio.wait({call})
        took_s = loop.time() - started
        await model.aclose()
        await model.aclose()
        return took_s

    assert asyncio.run(main()) < 2
    assert one_call(open_local(local), call=CALL).usage.output_tokens > 0


@pytest.mark.parametrize("failure", [TransientError("busy", retry_after_s=7, kind="limited"), FatalError("key")])
def test_scripted_model_raises_scripted_failures(failure: ProviderError) -> None:
    """It raises what a provider would, so a test of failures runs the real pipeline."""
    with pytest.raises(type(failure)) as caught:
        one_call(ScriptedModel({"": "x"}, faults=[failure]), call=CALL)
    assert caught.value is failure


@pytest.mark.parametrize("model", ["llama_cpp/{}/none.gguf", "mlx/{}/none", "azure/small", "anthropic/claude"])
def test_missing_model_is_refused_when_connected(model: str, tmp_path: Path) -> None:
    """With its name."""
    name = model.format(tmp_path)
    with pytest.raises(ValueError, match="model=") as caught:
        connect(ModelSpec(name))
    assert repr(name) in str(caught.value)
