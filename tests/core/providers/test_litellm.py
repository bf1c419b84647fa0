from __future__ import annotations

import asyncio
import importlib
import logging
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from typing import Any

import orjson
import pytest

from ondine_core import (
    Call,
    ChatModel,
    ConfigError,
    FatalError,
    ModelSpec,
    ProviderError,
    RefusedError,
    Reply,
    TransientError,
    Usage,
)
from ondine_core.providers import connect
from ondine_core.providers.http_hooks import Watch, cause_of, request_id
from ondine_core.providers.litellm import check_release, connect_litellm
from ondine_core.providers.openai_servers import SERVERS
from ondine_core.types.values import Message
from tests.support.anthropic_provider import AnthropicProvider
from tests.support.asking import one_call
from tests.support.clients import CALL, WORDS, import_litellm
from tests.support.provider import Fault, Provider, first, slow, status

CLAUDE, OLD_CLAUDE = "anthropic/claude-sonnet-4-5", "anthropic/claude-3-haiku-20240307"
KEY = "sk-ant-1234567890"


def by_litellm(spec: ModelSpec) -> ChatModel:
    """The model through litellm, also where there is a client of our own."""
    return connect_litellm(spec, spec.model.partition("/")[2])


def ask_claude(fault: Fault | None = None, call: Call = CALL, model: str = CLAUDE, **spec: Any) -> tuple[Reply, Any]:
    """A reply, and the body of the request that led to it."""
    import_litellm()
    with AnthropicProvider(fault=fault) as provider:
        given = {"api_key": KEY, "base_url": provider.address, **spec}
        reply = one_call(by_litellm(ModelSpec(model, **given)), call=call)
    return reply, provider.ledger.requests[0]


def message_body(usage: Mapping[str, int]) -> dict[str, Any]:
    """Anthropic's message of one word."""
    return {
        "id": "msg-1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "usage": usage,
    }


# -- checks before litellm is imported -----------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["1.82.7", "1.82.8", "1.107.0"])
def test_compromised_release_is_refused(release: str) -> None:
    """A release published with malicious code is never imported; the error says what to do."""
    with pytest.raises(ConfigError, match=rf"litellm '{release}' is a compromised release: pip install"):
        check_release(release)


def test_other_releases_are_accepted() -> None:
    """Every release that is not known to be compromised is accepted."""
    check_release("1.106.2")


@pytest.mark.parametrize(
    ("model", "variable"),
    [
        ("anthropic/claude", "ANTHROPIC_API_KEY"),
        ("gemini/flash", "GEMINI_API_KEY"),
        ("cohere/command", "COHERE_API_KEY"),
    ],
)
def test_missing_key_names_the_variable(model: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing key is an error that names its variable, before the seconds of importing litellm."""
    with pytest.raises(ConfigError, match=variable):
        connect(ModelSpec(model))
    monkeypatch.setenv(variable, KEY)
    assert KEY not in repr(connect(ModelSpec(model)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"settings": {"structured_output": "json_object"}}, "is not one of 'json_schema', 'words'"),
        ({"settings": {"drop_parms": True}}, "Did you mean 'drop_params'"),
        ({"settings": {"aws_region_name": "us-east-1"}}, "knows no 'aws_region_name'"),
        ({"params": {"fallbacks": []}}, "'fallbacks' .* is not yours to set"),
        ({"settings": {"organization": "org-1"}}, "knows no 'organization'"),
        ({"base_url": "my-server"}, "is not an address"),
    ],
)
def test_wrong_definition_is_refused(spec: dict[str, Any], message: str) -> None:
    """A definition that cannot work, or would undo a guarantee, is refused before any call."""
    with pytest.raises(ConfigError, match=message):
        by_litellm(ModelSpec(CLAUDE, api_key=KEY, **spec))


@pytest.mark.parametrize(("model", "field"), [("bedrock/claude", "requestMetadata"), ("vertex_ai/gemini", "labels")])
def test_tags_that_litellm_would_leave_out_are_refused(model: str, field: str) -> None:
    """Without them another team would pay."""
    with pytest.raises(ConfigError, match=f"does not send 'metadata' to '{model}'; set the API's field '{field}'"):
        connect(ModelSpec(model, params={"metadata": {"team": "shop"}}))
    connect(ModelSpec(model, params={field: {"team": "shop"}}))


def test_settings_are_those_of_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that are not a key are settings of the providers that use them."""
    for name in ("AWS_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    connect(ModelSpec("bedrock/claude", settings={"aws_region_name": "us-east-1", "aws_profile_name": "p"}))
    connect(ModelSpec("vertex_ai/gemini", settings={"vertex_project": "p", "vertex_location": "l"}))
    with pytest.raises(ConfigError, match="aws_profile_name needs aws_region_name"):  # it would ask in us-west-2
        connect(ModelSpec("bedrock/claude", settings={"aws_profile_name": "p"}))
    with pytest.raises(ConfigError, match=r"valid are .*aws_region_name"):
        connect(ModelSpec("bedrock/claude", settings={"aws_regoin_name": "us-east-1"}))


# -- requests ------------------------------------------------------------------------------------------------------


def test_request_has_the_form_of_the_dialect() -> None:
    """Instructions, schema, output bound and the dialect's own parameters are where Anthropic expects them."""
    _, asked = ask_claude(temperature=0.5, max_output_tokens=70, params={"top_k": 5, "stop": ["END"]})
    body = asked.body
    assert asked.headers["x-api-key"] == KEY
    assert body["system"] == [{"type": "text", "text": "Be brief."}]
    assert body["output_format"]["schema"]["required"] == ["answer"]
    assert (body["temperature"], body["max_tokens"], body["top_k"]) == (0.5, 70, 5)
    assert body["stop_sequences"] == ["END"]
    assert "stream" not in body


def test_model_without_structured_output_is_asked_by_a_tool() -> None:
    """Where litellm makes a tool of the schema, the answer is the tool's input."""
    reply, asked = ask_claude(model=OLD_CLAUDE)
    assert asked.body["tools"][0]["input_schema"]["required"] == ["answer"]
    assert orjson.loads(reply.text) == {"answer": WORDS}


def test_setting_puts_the_schema_into_the_prompt() -> None:
    """Instead of structured output the schema can be sent as text."""
    _, asked = ask_claude(settings={"structured_output": "words"})
    assert "output_format" not in asked.body
    assert '"required":["answer"]' in asked.body["system"][0]["text"]


def test_unsupported_parameter_is_an_error_unless_drop_params() -> None:
    """Nothing configured is dropped silently: the error names it, and dropping is an option."""
    with pytest.raises(FatalError, match=r"logit_bias.* settings drop_params=true"):
        ask_claude(params={"logit_bias": {"50": 1}})
    _, asked = ask_claude(params={"logit_bias": {"50": 1}}, settings={"drop_params": True})
    assert "logit_bias" not in asked.body


def test_key_of_the_environment_stays_away_from_other_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider's key from the environment is never sent to a configured base_url."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", KEY)
    _, asked = ask_claude(api_key=None)
    assert KEY not in str(asked.headers)


def test_key_of_the_environment_goes_to_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call without a configured key uses the environment's, at the address that the same environment names."""
    import_litellm()
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with AnthropicProvider() as provider:
        monkeypatch.setenv("ANTHROPIC_API_BASE", provider.address)
        one_call(by_litellm(ModelSpec(CLAUDE)), call=CALL)
    assert provider.ledger.requests[0].headers["x-api-key"] == KEY


def test_key_of_the_environment_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that only litellm reads is masked in provider messages, in any form."""
    import_litellm()
    monkeypatch.setenv("ANTHROPIC_API_KEY", "form/less.key")
    with AnthropicProvider(fault=status(401, {"error": {"message": "bad form/less.key"}})) as provider:
        monkeypatch.setenv("ANTHROPIC_API_BASE", provider.address)
        with pytest.raises(FatalError, match=r"bad \*\*\*") as caught:
            one_call(by_litellm(ModelSpec(CLAUDE)), call=CALL)
    assert "form/less.key" not in str(caught.value)


# -- replies -------------------------------------------------------------------------------------------------------


def test_cache_tokens_are_counted_separately() -> None:
    """Input that Anthropic read from or wrote to its cache has its own prices."""
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 5,
        "cache_creation_input_tokens": 7,
        "output_tokens": 3,
    }
    reply, _ = ask_claude(status(200, message_body(usage)))
    assert reply.usage == Usage(
        input_tokens=22, cached_input_tokens=5, output_tokens=3, reasoning_tokens=0, cache_write_tokens=7
    )


def test_anthropics_rate_limit_headers_delay_the_next_call() -> None:
    """Its own header names, with dates, say what is left and until when."""
    reset = (datetime.now(UTC) + timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    limits = {
        "anthropic-ratelimit-requests-limit": "4",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": reset,
    }
    reply, _ = ask_claude(status(200, message_body({"input_tokens": 3, "output_tokens": 1}), limits))
    assert 13 <= reply.hold_off_s <= 15
    assert reply.request_id == "msg-1"


def test_request_id_made_up_by_litellm_is_dropped() -> None:
    """If the provider sent none there is none."""
    body = {"choices": [{"message": {"content": "hello"}}]}
    with Provider(fault=status(200, body)) as provider:
        import_litellm()
        spec = ModelSpec("openai/small", base_url=provider.base_url, api_key=KEY)
        assert one_call(connect_litellm(spec, "small")).request_id is None
    assert request_id(Watch()) is None


# -- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "7"}, {"Retry-After": formatdate(time.time() + 3600, usegmt=True)}]
)
def test_retry_after_is_read_from_the_response_itself(headers: dict[str, str]) -> None:
    """It survives litellm's mapping of errors."""
    with pytest.raises(TransientError) as caught:
        ask_claude(status(429, headers=headers))
    assert (caught.value.retry_after_s or 0) >= 7


def test_error_bodies_are_classified_as_for_other_clients() -> None:
    """Waits, credit and filters named only in a body survive litellm's mapping of errors."""

    def failed(code: int, kind: str, message: str) -> ProviderError:
        body = {"type": "error", "error": {"type": kind, "message": message}}
        with pytest.raises(ProviderError) as caught:
            ask_claude(status(code, body))
        return caught.value

    limited = failed(429, "rate_limit_error", "Please try again in 42s.")
    assert isinstance(limited, TransientError)
    assert limited.retry_after_s == 42
    broke = failed(400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API.")
    assert isinstance(broke, FatalError)
    assert "no credit" in str(broke)
    filtered = failed(400, "invalid_request_error", "Output blocked by content filtering policy")
    assert isinstance(filtered, RefusedError)
    assert filtered.fault == "row"


def test_missing_identity_stops_the_run_with_litellms_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error does not claim that a key was wrong."""
    import_litellm()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(FatalError, match=r"litellm failed \(\w+\): .*(credentials|boto3)"):
        one_call(connect(ModelSpec("bedrock/anthropic.claude", settings={"aws_region_name": "us-east-1"})), call=CALL)


def test_unlisted_model_of_a_known_provider_is_asked() -> None:
    """The provider decides whether it exists."""
    reply, asked = ask_claude(model="anthropic/claude-of-tomorrow")
    assert asked.body["model"] == "claude-of-tomorrow"
    assert orjson.loads(reply.text) == {"answer": WORDS}


def test_cause_of_an_error_is_found_in_any_chain() -> None:
    """The HTTP client's error is found behind any wrapping, and a cycle of causes ends."""
    reset, renamed, again = ConnectionResetError("reset"), RuntimeError("renamed"), RuntimeError("again")
    again.__context__, renamed.__cause__ = renamed, reset
    assert cause_of(again) is reset
    reset.__context__ = again
    assert cause_of(again) is reset
    timed_out = TimeoutError()
    timed_out.__cause__ = asyncio.CancelledError()
    assert cause_of(timed_out) is timed_out


# -- side effects --------------------------------------------------------------------------------------------------


def test_litellm_stays_silent_whatever_the_levels(caplog: pytest.LogCaptureFixture) -> None:
    """With every logger turned on, neither litellm nor the packages under it write a record."""
    import_litellm()
    caplog.set_level(logging.DEBUG)
    ask_claude()
    with pytest.raises(TransientError):
        ask_claude(status(500))
    chatty = {record.name for record in caplog.records if record.name.partition(".")[0] in ("LiteLLM", "openai")}
    assert chatty == set()


def test_importing_reads_no_env_file_and_fetches_no_prices() -> None:
    """Before its import litellm is configured to leave environment and network alone."""
    import_litellm()
    assert os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    assert os.environ["LITELLM_MODE"] == "PRODUCTION"


def test_model_serves_concurrent_calls_and_successive_event_loops() -> None:
    """Fifty concurrent calls get their own answers, and a closed model works in another event loop."""
    import_litellm()

    async def main(model: Any) -> list[str]:
        calls = [Call((Message("user", f"Repeat: {number}"),)) for number in range(50)]
        replies = await asyncio.gather(*map(model, calls))
        await model.aclose()
        return [reply.text for reply in replies]

    with AnthropicProvider() as provider:
        model = by_litellm(ModelSpec(CLAUDE, api_key=KEY, base_url=provider.address))
        for _ in range(2):
            assert asyncio.run(main(model)) == [f'{{"answer":"{number}"}}' for number in range(50)]


def test_time_out_is_for_the_whole_call() -> None:
    """It counts from the call to the last byte, and does not affect the next call."""
    import_litellm()

    async def main(model: Any) -> Reply:
        with pytest.raises(TransientError, match="raise timeout_s"):
            await model(CALL)
        reply: Reply = await model(CALL)
        await model.aclose()
        return reply

    with AnthropicProvider(fault=first(1, slow(30))) as provider:
        spec = ModelSpec(CLAUDE, api_key=KEY, base_url=provider.address, timeout_s=0.5)
        assert asyncio.run(main(by_litellm(spec))).finish_reason == "stop"


@pytest.mark.filterwarnings("ignore:Items? .* using the `ReadOnly` qualifier")  # litellm 1.108 and later, in pydantic
def test_addresses_are_those_of_litellm() -> None:
    """Our addresses of providers equal those of the installed litellm."""
    import_litellm()
    litellm = importlib.import_module("litellm")
    # litellm uses DeepSeek's preview address, another name of Together's, and Ollama's own dialect.
    apart = ("deepseek", "together_ai", "ollama")
    for provider, server in SERVERS.items():
        found = litellm.get_llm_provider(f"{provider}/m", api_key="k")[3] if server.needs_key else None
        if found is not None and provider not in apart:
            assert found == server.base_url
