"""Anthropic's messages API: requests, and how replies are interpreted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from ondine_core import Call, ConfigError, FatalError, ModelSpec, RefusedError, Reply, TransientError, Usage
from ondine_core.prompts.output_schema import compile_schema
from ondine_core.providers import connect
from ondine_core.providers.anthropic_http import message_reply
from ondine_core.providers.openai_servers import find_address
from ondine_core.types.values import Message
from tests.support.anthropic_provider import AnthropicProvider, failing
from tests.support.asking import one_call
from tests.support.clients import CALL, WORDS
from tests.support.provider import Fault, ReceivedRequest, status

OLD, CLAUDE, ADAPTIVE = "anthropic/claude-3-haiku", "anthropic/claude-sonnet-4-5", "anthropic/claude-sonnet-5"
ALWAYS_THINKS = "anthropic/claude-opus-5-5"
KEY = "sk-ant-1234567890"
EXAMPLES = Call(
    (
        Message("system", "Be brief."),
        Message("user", "Repeat: a"),
        Message("assistant", '{"answer": "a"}'),
        Message("user", f"Repeat: {WORDS}"),
    ),
    CALL.json_schema,
)


def asked(
    fault: Fault | None = None, call: Call = CALL, model: str = CLAUDE, **spec: Any
) -> tuple[Reply, list[ReceivedRequest]]:
    """A reply, and the requests it took."""
    with AnthropicProvider(fault=fault) as provider:
        given = {"api_key": KEY, "base_url": provider.address, **spec}
        return one_call(connect(ModelSpec(model, **given)), call=call), provider.ledger.requests


def body(call: Call = CALL, model: str = CLAUDE, **spec: Any) -> Mapping[str, Any]:
    """The only request that a call took."""
    _, (request,) = asked(None, call, model, **spec)
    return request.body


def reply_of(*content: Mapping[str, Any], stop_reason: str = "end_turn", **usage: Any) -> Fault:
    """A reply with this content."""
    usage = {"input_tokens": 3, "output_tokens": 2, **usage}
    message = {"id": "msg-1", "type": "message", "role": "assistant", "model": "m", "content": list(content)}
    return status(200, {**message, "stop_reason": stop_reason, "stop_sequence": None, "usage": usage})


def text(words: str) -> Mapping[str, Any]:
    return {"type": "text", "text": words}


THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "x"}


# -- requests ------------------------------------------------------------------------------------------------------


def test_system_text_and_examples_are_blocks_and_the_schema_is_the_output_format() -> None:
    """Each part is where Anthropic looks for it, and a closed object has all of its fields."""
    sent = body(EXAMPLES, max_output_tokens=70)
    assert sent["system"] == [{"type": "text", "text": "Be brief."}]
    assert [(turn["role"], turn["content"]) for turn in sent["messages"]] == [
        ("user", [{"type": "text", "text": "Repeat: a"}]),
        ("assistant", [{"type": "text", "text": '{"answer": "a"}'}]),
        ("user", f"Repeat: {WORDS}"),
    ]
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    assert sent["output_config"] == {
        "format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}
    }
    assert set(sent) == {"model", "max_tokens", "system", "messages", "output_config"}


@pytest.mark.parametrize(
    ("spec", "mark"),
    [({}, {"type": "ephemeral"}), ({"prompt_cache": "1h"}, {"type": "ephemeral", "ttl": "1h"})],
    ids=["5m", "1h"],
)
def test_last_fixed_block_carries_the_breakpoint_of_the_cache(spec: Mapping[str, Any], mark: Mapping[str, str]) -> None:
    """The breakpoint is on the examples, else on the system text; never on a row, nor without `cache_prefix`."""
    shown = body(replace(EXAMPLES, cache_prefix=True), **spec)
    assert shown["messages"][1]["content"] == [{"type": "text", "text": '{"answer": "a"}', "cache_control": mark}]
    assert orjson.dumps(shown).count(b"cache_control") == 1
    plain = body(replace(CALL, cache_prefix=True), **spec)
    assert plain["system"] == [{"type": "text", "text": "Be brief.", "cache_control": mark}]
    assert orjson.dumps(plain).count(b"cache_control") == 1
    bare = body(Call((Message("user", "Repeat: x"),), cache_prefix=True), **spec)
    assert b"cache_control" not in orjson.dumps([bare, body(EXAMPLES, **spec)])


def test_schema_in_the_prompt_is_in_the_cached_part() -> None:
    """It is the same in all calls, so it is before the breakpoint, also without a system text."""
    call = Call((Message("user", "Repeat: x"),), CALL.json_schema, cache_prefix=True)
    (block,) = body(call, settings={"structured_output": "words"})["system"]
    assert block["cache_control"] == {"type": "ephemeral"}
    assert '"required":["answer"]' in block["text"]


def test_bounds_unknown_to_the_format_are_in_descriptions() -> None:
    """The format has no keyword for a number's range, so the description states it."""
    schema = compile_schema({"score": {"type": "integer", "minimum": 1, "maximum": 5}}).json_schema
    sent = body(Call((Message("user", "Repeat: 3"),), schema))
    assert sent["output_config"]["format"]["schema"]["properties"]["score"] == {
        "type": "integer",
        "description": "(maximum: 5, minimum: 1)",
    }


@pytest.mark.parametrize(
    ("model", "given", "sent"),
    [(CLAUDE, 77, 77), (CLAUDE, None, 64_000), (ADAPTIVE, None, 128_000), ("anthropic/claude-of-tomorrow", None, 4096)],
)
def test_bound_on_output_tokens_is_always_sent(model: str, given: int | None, sent: int) -> None:
    """The API requires it: the user's, else the model's maximum, else what every model allows."""
    assert body(model=model, max_output_tokens=given)["max_tokens"] == sent


def test_model_without_output_format_is_asked_by_a_tool() -> None:
    """A model that refuses the format is asked by a tool, and the answer is the tool's input."""
    reply, (refused, taken) = asked(model=OLD)
    assert "output_config" in refused.body
    assert taken.body["tools"][0]["input_schema"]["required"] == ["answer"]
    assert taken.body["tool_choice"] == {"type": "tool", "name": "answer", "disable_parallel_tool_use": True}
    assert orjson.loads(reply.text) == {"answer": WORDS}
    assert reply.finish_reason == "end_turn"


def test_schema_is_in_the_prompt_if_format_and_tool_are_refused() -> None:
    """A gateway may support neither; each is refused once, at no cost."""

    def refuse(request: ReceivedRequest) -> Any:
        parts = {"output_config": "output_config: Extra inputs are not permitted", "tools": "tools are not supported"}
        wrong = next((words for name, words in parts.items() if name in request.body), None)
        return failing(400, "invalid_request_error", wrong)(request) if wrong else None

    reply, requests = asked(refuse)
    assert [sorted({"output_config", "tools"} & request.body.keys()) for request in requests] == [
        ["output_config"],
        ["tools"],
        [],
    ]
    assert '"required":["answer"]' in requests[-1].body["system"][0]["text"]
    assert orjson.loads(reply.text) == {"answer": WORDS}


def test_server_that_ignores_the_format_gets_the_schema_in_the_prompt() -> None:
    """A server that replies with plain text in spite of the format is sent the schema as text."""
    with AnthropicProvider(fault=reply_of(text("Well, hello"))) as provider:
        model = connect(ModelSpec(CLAUDE, api_key=KEY, base_url=provider.address))
        one_call(model, call=CALL)
        one_call(model, call=CALL)
    first, second = (request.body for request in provider.ledger.requests)
    assert "output_config" in first
    assert "output_config" not in second


def test_refused_row_does_not_change_the_request_form() -> None:
    """A refusal of the content is passed on; later calls send the schema as before."""
    with pytest.raises(RefusedError) as caught:
        asked(failing(400, "invalid_request_error", "Output blocked by content filtering policy; see the schema"))
    assert caught.value.fault == "row"


@pytest.mark.parametrize("path", ["", "/v1", "/v1/", "/v1/messages"])
def test_base_url_works_with_and_without_the_version(path: str) -> None:
    """With or without the version, one address is meant."""
    with AnthropicProvider() as provider:
        spec = ModelSpec(CLAUDE, api_key=KEY, base_url=provider.address + path)
        assert one_call(connect(spec), call=CALL).finish_reason == "end_turn"


# -- key and headers -----------------------------------------------------------------------------------------------


def test_key_and_version_are_headers_of_each_request() -> None:
    """The key is in Anthropic's own header, and the API version is one that accepts a temperature."""
    _, (request,) = asked(settings={"extra_headers": {"anthropic-beta": "x-2026"}})
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert headers["x-api-key"] == KEY
    assert (headers["anthropic-version"], headers["anthropic-beta"]) == ("2023-06-01", "x-2026")
    assert "authorization" not in headers
    _, (request,) = asked(settings={"api_version": "2026-10-21"})
    assert {name.lower(): value for name, value in request.headers.items()}["anthropic-version"] == "2026-10-21"


def test_further_header_replaces_one_of_any_case() -> None:
    """A header that is sent twice would be two versions, or two types of content."""
    extra = {"Anthropic-Version": "2026-10-21", "CONTENT-TYPE": "application/json; charset=utf-8"}
    _, (request,) = asked(settings={"extra_headers": extra})
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert len(headers) == len(request.headers)
    assert headers["anthropic-version"] == extra["Anthropic-Version"]
    assert headers["content-type"] == extra["CONTENT-TYPE"]


@pytest.mark.parametrize(
    ("variable", "header", "value"),
    [("ANTHROPIC_API_KEY", "x-api-key", KEY), ("ANTHROPIC_AUTH_TOKEN", "Authorization", f"Bearer {KEY}")],
)
def test_key_of_the_environment_goes_to_the_provider_only(
    variable: str, header: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes to the address that the same environment names, and never to a configured base_url."""
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, KEY)
    with AnthropicProvider() as provider:
        one_call(connect(ModelSpec(CLAUDE, base_url=provider.address)), call=CALL)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.address)
        one_call(connect(ModelSpec(CLAUDE)), call=CALL)
    elsewhere, there = (request.headers for request in provider.ledger.requests)
    assert KEY not in str(elsewhere)
    assert {name.lower(): sent for name, sent in there.items()}[header.lower()] == value


def test_server_address_is_known_before_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces and metrics name the server."""
    for name in ("ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert find_address(ModelSpec(CLAUDE)) == "https://api.anthropic.com/v1/messages"
    assert find_address(ModelSpec(CLAUDE, base_url="http://h:1/v1")) == "http://h:1/v1/messages"


# -- parameters ----------------------------------------------------------------------------------------------------


def test_parameters_arrive_under_the_names_of_this_api() -> None:
    """Parameters that other APIs name differently are renamed; the rest is sent as it is."""
    params = {"stop": "END", "user": "u-1", "top_k": 5, "extra_body": {"container": "c-1"}}
    sent = body(temperature=0.5, params=params)
    assert (sent["stop_sequences"], sent["metadata"], sent["top_k"]) == (["END"], {"user_id": "u-1"}, 5)
    assert (sent["temperature"], sent["container"]) == (0.5, "c-1")
    assert "stop" not in sent


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"params": {"seed": 7}}, "has no 'seed': it cannot repeat a reply. Remove it, or .* drop_params=true"),
        ({"params": {"logit_bias": {"50": 1}}}, "has no 'logit_bias'. Remove it"),
        ({"model": ADAPTIVE, "temperature": 0.0}, "temperature=0.0: .* does not take it"),
        ({"model": ADAPTIVE, "params": {"top_p": 0.5}}, "top_p=0.5: .* does not take it"),
        ({"temperature": 0.5, "params": {"reasoning_effort": "low"}}, "takes 1 only while it thinks"),
        ({"params": {"reasoning_effort": "huge"}}, "'huge' .* is not one of 'none', 'minimal', 'low'"),
        ({"params": {"reasoning_effort": "low", "thinking": {"type": "adaptive"}}}, "say the same"),
        ({"params": {"reasoning_effort": "low"}, "max_output_tokens": 500}, "up to 1,024 tokens, which max_output"),
        ({"model": "anthropic/claude-sonnet-4-6", "params": {"reasoning_effort": "xhigh"}}, "has no such effort"),
        ({"model": ALWAYS_THINKS, "params": {"reasoning_effort": "none"}}, "always thinks"),
        ({"settings": {"structured_output": "json_object"}}, "is not one of 'json_schema', 'tool', 'words'"),
        ({"settings": {"drop_parms": True}}, "Did you mean 'drop_params'"),
        ({"settings": {"api_version": "a\nb"}}, "api_version has a line end"),
        ({"base_url": "my-server"}, "is not an address"),
        ({"api_key": "a\nb"}, "api_key has a line end"),
    ],
)
def test_definition_that_can_never_succeed_is_refused(spec: dict[str, Any], message: str) -> None:
    """Before any call, with what to do instead."""
    with pytest.raises(ConfigError, match=message):
        connect(ModelSpec(**{"model": CLAUDE, "api_key": KEY, **spec}))


def test_drop_params_leaves_out_unsupported_parameters() -> None:
    """A temperature of 1, the only one that such a model allows, is not an error."""
    sent = body(model=ADAPTIVE, temperature=0.2, params={"seed": 7}, settings={"drop_params": True})
    assert not {"temperature", "seed"} & sent.keys()
    assert "temperature" not in body(model=ADAPTIVE, temperature=1.0)


@pytest.mark.parametrize(
    ("model", "effort", "thinking", "level"),
    [
        (CLAUDE, "minimal", {"type": "enabled", "budget_tokens": 1024}, None),
        (CLAUDE, "high", {"type": "enabled", "budget_tokens": 4096}, None),
        (CLAUDE, "none", {"type": "disabled"}, None),
        (ADAPTIVE, "minimal", {"type": "adaptive"}, "low"),
        (ADAPTIVE, "xhigh", {"type": "adaptive"}, "xhigh"),
        ("anthropic/claude-of-tomorrow", "max", {"type": "adaptive"}, "max"),
    ],
)
def test_effort_is_sent_in_the_form_of_the_model(
    model: str, effort: str, thinking: Mapping[str, Any], level: str | None
) -> None:
    """As a token budget, or as an effort beside the output format; the amounts are those of litellm."""
    sent = body(model=model, params={"reasoning_effort": effort})
    assert sent["thinking"] == thinking
    assert sent["output_config"].get("effort") == level
    assert sent["output_config"]["format"]["type"] == "json_schema"
    assert "reasoning_effort" not in sent


def test_thinking_model_gets_the_schema_in_the_prompt_instead_of_a_tool() -> None:
    """The API refuses thinking with a forced tool, so without the output format the schema is in the prompt."""
    sent = body(params={"reasoning_effort": "low"}, settings={"structured_output": "tool"})
    assert "tools" not in sent
    assert '"required":["answer"]' in sent["system"][0]["text"]


# -- replies -------------------------------------------------------------------------------------------------------


def test_usage_has_cache_and_thinking_tokens() -> None:
    """Tokens read from the cache, written to it (by lifetime), and of thinking are separate."""
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 5,
        "cache_creation_input_tokens": 7,
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
        "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 6},
    }
    reply, _ = asked(reply_of(text('{"answer": "x"}'), **usage))
    assert reply.usage == Usage(22, 5, 9, 6, 7, cache_write_1h_tokens=4)
    assert (reply.text, reply.model, reply.request_id) == ('{"answer": "x"}', "m", "msg-1")


def test_thinking_is_not_part_of_the_text() -> None:
    """A reply with nothing but thinking is reported as such."""
    reply, _ = asked(reply_of(THOUGHT, text("a"), text("b")))
    assert (reply.text, reply.reasoning_only) == ("ab", False)
    reply, _ = asked(reply_of({"type": "redacted_thinking", "data": "x"}, stop_reason="max_tokens"))
    assert (reply.text, reply.reasoning_only, reply.finish_reason) == ("", True, "max_tokens")


@pytest.mark.parametrize("reason", ["max_tokens", "pause_turn", "model_context_window_exceeded", "tool_use"])
def test_stop_reason_is_passed_on(reason: str) -> None:
    """Unchanged, so that the table of finish reasons decides what it means."""
    reply, _ = asked(reply_of(text("half"), stop_reason=reason))
    assert reply.finish_reason == reason


def test_refusal_has_its_category_and_cost() -> None:
    """A declined reply is billed; its explanation, which may quote the row, is not repeated."""
    details = {"type": "refusal", "category": "bio", "explanation": WORDS}
    usage = {"input_tokens": 30, "output_tokens": 1}
    message = {"content": [], "stop_reason": "refusal", "stop_details": details, "usage": usage}
    with pytest.raises(RefusedError, match=r"declined to answer .*'bio'") as caught:
        asked(status(200, message))
    assert caught.value.usage == Usage(30, 0, 1)
    assert WORDS not in str(caught.value)


def test_rate_limit_headers_delay_the_next_call() -> None:
    """The limit that is short decides: 2 of 100 output tokens are left, and all return within a minute."""
    asked_at = datetime.now(UTC)
    reset = (asked_at + timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    limits = {
        "anthropic-ratelimit-requests-remaining": "50",
        "anthropic-ratelimit-output-tokens-limit": "100",
        "anthropic-ratelimit-output-tokens-remaining": "2",
        "anthropic-ratelimit-output-tokens-reset": reset,
    }
    usage = {"input_tokens": 500, "output_tokens": 51}
    message = {"content": [text("x")], "stop_reason": "end_turn", "usage": usage}
    reply, _ = asked(status(200, message, {**limits, "request-id": "req_7"}))
    took_s = (datetime.now(UTC) - asked_at).total_seconds()
    assert 29 - took_s <= reply.hold_off_s <= 30
    assert reply.request_id == "req_7"
    reply, _ = asked(status(200, message, {**limits, "anthropic-ratelimit-output-tokens-reset": "soon"}))
    assert reply.hold_off_s == 0


@pytest.mark.parametrize(
    ("fault", "kind", "wait_s"),
    [
        (failing(529, "overloaded_error", "Overloaded"), "overloaded", None),
        (failing(500, "api_error", "Internal server error"), "broken", None),
        (failing(429, "rate_limit_error", "Please try again in 42s."), "limited", 42),
    ],
)
def test_transient_errors_are_recognized_by_body(fault: Fault, kind: str, wait_s: float | None) -> None:
    """The body decides, as for every other client."""
    with pytest.raises(TransientError) as caught:
        asked(fault)
    assert (caught.value.kind, caught.value.retry_after_s, caught.value.cost_unknown) == (kind, wait_s, False)


def test_spend_limit_is_no_rate_limit() -> None:
    """It has the status of a rate limit, but waiting does not help."""
    with pytest.raises(FatalError, match="no credit"):
        asked(failing(429, "rate_limit_error", "Limit reached.", error_code="contract_spend_limit_reached"))


@pytest.mark.parametrize("field", ["id", "model", "service_tier", "content", "stop_reason", "stop_details", "usage"])
@pytest.mark.parametrize(
    "value", [None, True, 7, "x", [], {}, [7], ["x"], {"x": 7}, [{"type": "text", "text": 7}]], ids=str
)
def test_field_of_another_type_is_unreadable_or_left_out(field: str, value: Any) -> None:
    """The client counts the first as a lost reply; the second is a reply whose texts are texts."""
    message = {"content": [text("x")], "stop_reason": "end_turn", "usage": {"service_tier": "standard"}, field: value}
    with suppress(LookupError, TypeError, AttributeError, ValueError):
        reply = message_reply(message)
        assert all(isinstance(part, str | None) for part in (reply.request_id, reply.model, reply.tier))
        assert isinstance(reply.text, str)


# -- what a step loads ---------------------------------------------------------------------------------------------

_ASK = """
import sys
from ondine_core import ModelSpec, Options, enrich_sync
model = ModelSpec("anthropic/claude-sonnet-4-5", api_key="k", base_url=sys.argv[1])
enrich_sync(
    {"text": ["a", "b"]}, prompt="Repeat: {text}", output={"answer": "string"}, model=model,
    options=Options(store=":memory:"),
)
print(*(name for name in ("litellm", "openai", "httpx", "anthropic") if name in sys.modules))
"""


def test_step_with_claude_does_not_import_litellm() -> None:
    """Neither litellm, whose import takes seconds, nor another client library is loaded."""
    with AnthropicProvider() as provider:
        ran = subprocess.run(
            [sys.executable, "-c", _ASK, provider.address], capture_output=True, text=True, check=True, timeout=60
        )
        assert provider.ledger.answered == 2
    assert ran.stdout.strip() == ""
