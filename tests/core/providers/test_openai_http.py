from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import Any

import orjson
import pytest

from ondine_core import Call, ConfigError, ModelSpec, Reply, Usage
from ondine_core.errors import FatalError
from ondine_core.prompts.output_schema import compile_schema
from ondine_core.providers import connect
from ondine_core.providers.openai_http import chat_reply
from ondine_core.types.values import Message
from tests.support.asking import one_call, one_call_to
from tests.support.provider import (
    Fault,
    Provider,
    empty,
    slow,
    status,
    truncated,
)

KEY = "sk-1234567890-secret"
TEXT = "Repeat: the customer's confidential words"


def ask(base_url: str, call: Call | None = None, **settings: Any) -> Reply:
    return one_call_to(base_url, TEXT, call, api_key=KEY, **settings)


def ask_model(model: str, provider: Provider, **spec: Any) -> Reply:
    return one_call(connect(ModelSpec(model, KEY, provider.base_url, **spec)))


# -- requests ------------------------------------------------------------------------------------------------------


def test_request_has_what_was_configured() -> None:
    """Model, messages, settings and further parameters as configured; the key as a bearer token."""
    call = Call((Message("system", "Be brief."), Message("user", "Repeat: ünï 🙂")))
    with Provider() as provider:
        reply = ask(
            provider.base_url, call, temperature=0.2, max_output_tokens=50, params={"top_p": 0.9, "stop": ["\n"]}
        )
    (asked,) = provider.ledger.requests
    assert asked.body == {
        "model": "small",
        "temperature": 0.2,
        "max_tokens": 50,
        "top_p": 0.9,
        "stop": ["\n"],
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Repeat: ünï 🙂"}],
    }
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    assert asked.headers["Content-Type"] == "application/json"
    assert orjson.loads(reply.text) == {"answer": "ünï 🙂"}


def test_extra_body_is_merged_into_the_request() -> None:
    """As OpenAI's package does; `extra_body` itself is never sent."""
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "top_k": 20}
    with Provider() as provider:
        ask(provider.base_url, params={"top_p": 0.9, "extra_body": extra})
    body = provider.ledger.requests[0].body
    assert {name: body[name] for name in body if name not in ("model", "messages")} == {"top_p": 0.9, **extra}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"extra_body": {"max_tokens": 9}}, "max_output_tokens"),
        ({"extra_body": {"model": "other"}}, "follows from model"),
        ({"extra_body": {"n": 2}}, "one reply a prompt"),
        ({"top_p": 0.1, "extra_body": {"top_p": 0.2}}, "set twice"),
        ({"extra_body": ["top_p"]}, "not a mapping"),
    ],
)
def test_conflicting_extra_body_is_refused(params: dict[str, Any], message: str) -> None:
    """A field that is reserved or given twice is an error when the model is connected."""
    with pytest.raises(ConfigError, match=message):
        connect(ModelSpec("openai_compatible/m", base_url="http://127.0.0.1:9/v1", params=params))


def test_request_omits_unset_fields() -> None:
    """A field that was not configured is absent, not null."""
    with Provider() as provider:
        ask(provider.base_url)
    assert set(provider.ledger.requests[0].body) == {"model", "messages"}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("openai_compatible/gpt-5-mini", "max_completion_tokens"),
        ("openai_compatible/eu-gpt-5.1", "max_completion_tokens"),
        ("openai_compatible/openai/o3-mini", "max_completion_tokens"),
        ("openai/o1", "max_completion_tokens"),
        ("openrouter/openai/gpt-5", "max_completion_tokens"),
        ("openai/gpt-4o-mini", "max_tokens"),
        ("hosted_vllm/openai/gpt-oss-120b", "max_tokens"),
        ("hosted_vllm/AIDC-AI/Marco-o1", "max_tokens"),
        ("openai_compatible/llama-3", "max_tokens"),
    ],
)
def test_output_bound_has_the_field_name_of_the_model_family(model: str, name: str) -> None:
    """`max_completion_tokens` for OpenAI's reasoning models at any address, else `max_tokens`."""
    with Provider() as provider:
        ask_model(model, provider, max_output_tokens=9)
    body = provider.ledger.requests[0].body
    assert {key: value for key, value in body.items() if key.startswith("max_")} == {name: 9}


def test_openais_own_address_gets_max_completion_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """At api.openai.com every model accepts it; a proxy named by variable is used."""
    with Provider() as provider:
        monkeypatch.setenv("http_proxy", provider.base_url.removesuffix("/v1").replace("//", "//me:word@"))
        one_call(connect(ModelSpec("openai/m", KEY, "http://api.openai.com/v1", max_output_tokens=9)))
    (asked,) = provider.ledger.requests
    assert (asked.headers["Host"], asked.body["max_completion_tokens"]) == ("api.openai.com", 9)
    assert asked.headers["Proxy-Authorization"] == f"Basic {b64encode(b'me:word').decode()}"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_setting_chooses_the_field_of_the_output_bound(field: str) -> None:
    """Whatever the model's name suggests; the bound itself stays known."""
    with Provider() as provider:
        ask_model("openai/gpt-5", provider, max_output_tokens=9, settings={"token_limit_field": field})
    assert provider.ledger.requests[0].body[field] == 9


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"params": {"max_completion_tokens": 5}}, r"max_output_tokens \(settings token_limit_field"),
        ({"params": {"max_tokens": 5}}, r"max_output_tokens \(settings token_limit_field"),
        ({"settings": {"token_limit_field": "n_predict"}}, "'max_tokens', 'max_completion_tokens'"),
    ],
)
def test_output_bound_in_params_is_refused(spec: dict[str, Any], message: str) -> None:
    """A cap could not use it there; the error names the right field."""
    with pytest.raises(ConfigError, match=message):
        connect(ModelSpec("openai/gpt-5", KEY, "http://127.0.0.1:9/v1", **spec))


@pytest.mark.parametrize(
    ("model", "spec", "is_taken"),
    [
        ("openai/gpt-5", {"temperature": 0.2}, False),
        ("openrouter/openai/gpt-5-mini", {"temperature": 0.2}, False),
        ("openai_compatible/o3", {"params": {"temperature": 0}}, False),
        ("openai/gpt-5.1", {"temperature": 0.2, "params": {"reasoning_effort": "high"}}, False),
        ("openai/gpt-5.1", {"temperature": 0.2}, True),
        ("openai/gpt-5", {"temperature": 1.0}, True),
        ("openai/gpt-5-chat-latest", {"temperature": 0.2}, True),
        ("openai/gpt-4o", {"temperature": 0.2}, True),
        ("hosted_vllm/gpt-oss-20b", {"temperature": 0.2}, True),
    ],
)
def test_temperature_that_a_family_never_accepts_is_refused(model: str, spec: dict[str, Any], is_taken: bool) -> None:
    """Reasoning models that sample at 1 only are not asked ten thousand times in vain."""
    made = ModelSpec(model, KEY, "http://127.0.0.1:9/v1", **spec)
    if is_taken:
        assert connect(made)
    else:
        with pytest.raises(ConfigError, match="leave it out"):
            connect(made)


def test_schema_is_sent_strict_with_unsupported_constraints_in_descriptions() -> None:
    """Lengths move to descriptions; patterns, ranges and names stay."""
    schema = compile_schema(
        {
            "code": {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 5},
            "score": {"type": "integer", "minimum": 1, "maximum": 5},
            "maxLength": {"type": "string", "description": "a column that is called like a keyword"},
        }
    )
    with Provider() as provider:
        ask(provider.base_url, Call((Message("user", "Repeat: hello"),), schema.json_schema))
    sent = provider.ledger.requests[0].body["response_format"]
    assert (sent["type"], sent["json_schema"]["strict"]) == ("json_schema", True)
    assert sent["json_schema"]["schema"] == {
        "type": "object",
        "properties": {
            "code": {"type": "string", "pattern": "^[a-z]+$", "description": "(minLength: 2, maxLength: 5)"},
            "score": {"type": "integer", "minimum": 1, "maximum": 5},
            "maxLength": {"type": "string", "description": "a column that is called like a keyword"},
        },
        "required": ["code", "score", "maxLength"],
        "additionalProperties": False,
    }


# -- replies -------------------------------------------------------------------------------------------------------


def test_reply_carries_usage_request_id_and_latency() -> None:
    """A reply says what it used, what the provider calls it, and how long it took."""
    with Provider(cached_tokens=4, latency_s=0.05) as provider:
        reply = ask(provider.base_url)
    answer = '{"answer":"the customer\'s confidential words"}'
    assert reply.text == answer
    assert reply.usage == Usage(len(TEXT) // 4, 4, len(answer) // 4)
    assert (reply.request_id, reply.finish_reason) == ("req-1", "stop")
    assert 0.05 <= reply.latency_s < 10


@pytest.mark.parametrize(
    ("headers", "request_id"), [({"X-Request-ID": "from-header"}, "from-header"), ({}, "from-body")]
)
def test_request_id_header_takes_precedence_over_the_body(headers: dict[str, str], request_id: str) -> None:
    """Without the header it is the id of the completion."""
    body = {"id": "from-body", "choices": [{"message": {"content": "hello"}}]}
    with Provider(fault=status(200, body, headers)) as provider:
        assert ask(provider.base_url).request_id == request_id


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, Usage(is_complete=False)),
        ({"prompt_tokens": 7, "completion_tokens": 3}, Usage(7, 0, 3)),
        ({"prompt_tokens": 7, "completion_tokens": None, "prompt_tokens_details": None}, Usage(7, is_complete=False)),
        (
            {
                "prompt_tokens": 7,
                "completion_tokens": 30,
                "prompt_tokens_details": {"cached_tokens": 5},
                "completion_tokens_details": {"reasoning_tokens": 20},
            },
            Usage(7, 5, 30, 20),
        ),
    ],
)
def test_partial_usage_is_read(usage: object, expected: Usage) -> None:
    """Cached and reasoning tokens are separate; a missing count is not 0."""
    assert chat_reply({"choices": [{"message": {"content": "x"}}], "usage": usage}).usage == expected


@pytest.mark.parametrize(("fault", "finish_reason", "text"), [(truncated, "length", None), (empty, "stop", "")])
def test_finish_reason_is_passed_on(fault: Fault, finish_reason: str, text: str | None) -> None:
    """A truncated reply is marked, and a reply without text has an empty text."""
    with Provider(fault=fault) as provider:
        reply = ask(provider.base_url)
    assert reply.finish_reason == finish_reason
    assert text is None or reply.text == text


# -- connections ---------------------------------------------------------------------------------------------------


def connections_of_100_calls(at_once: int) -> int:
    """The number of connections that a hundred calls use, `at_once` concurrently."""

    async def main(base_url: str) -> None:
        model, turn = connect(ModelSpec("openai_compatible/m", base_url=base_url)), asyncio.Semaphore(at_once)

        async def one(number: int) -> None:
            async with turn:
                await model(Call((Message("user", f"Repeat: {number}"),)))

        await asyncio.gather(*map(one, range(100)))
        await model.aclose()

    with Provider() as provider:
        asyncio.run(main(provider.base_url))
    assert len(provider.ledger.requests) == 100
    return len({asked.client_port for asked in provider.ledger.requests})


def test_connections_are_shared_by_calls() -> None:
    """Five concurrent calls have at most two connections each: one in use, one resting."""
    assert connections_of_100_calls(5) <= 10


def test_connections_to_a_quick_server_do_not_rest() -> None:
    """Concurrent calls have one each if the server answers within milliseconds; a busy machine may need more."""
    assert any(connections_of_100_calls(2) <= 2 for _ in range(10))


def test_cancelled_call_closes_its_connection() -> None:
    """So a provider that watches it stops working."""

    async def main(provider: Provider) -> None:
        model = connect(ModelSpec("openai_compatible/m", base_url=provider.base_url))
        call = asyncio.create_task(model(Call((Message("user", TEXT),))))
        await asyncio.to_thread(provider.ledger.wait_for, lambda ledger: ledger.in_flight == 1)
        call.cancel()
        await asyncio.to_thread(provider.ledger.wait_for, lambda ledger: ledger.client_gone == 1)
        await model.aclose()

    with Provider(fault=slow(30)) as provider:
        asyncio.run(main(provider))
    assert provider.ledger.answered == 0


@pytest.mark.parametrize("end", ["", "/", "/chat/completions", "/chat/completions/"])
def test_address_of_the_api_may_be_whole(end: str) -> None:
    """Some servers document it with the path of chat completions."""
    with Provider() as provider:
        ask(f"{provider.base_url}{end}")
    assert len(provider.ledger.requests) == 1


@pytest.mark.parametrize(("below", "hinted"), [("", True), ("/api", True), ("/v1/other", False)])
def test_404_without_v1_suggests_the_address(below: str, hinted: bool) -> None:
    """Most servers answer below /v1 only; the error names the address to try."""
    with Provider() as provider:
        root = provider.base_url.removesuffix("/v1")
        with pytest.raises(FatalError) as caught:
            ask(f"{root}{below}/")
    assert "there is no such model or address; check model and base_url" in str(caught.value)
    assert (f"base_url has no /v1, so try base_url='{root}{below}/v1'" in str(caught.value)) == hinted
