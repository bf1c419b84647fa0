from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
import traceback
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from ondine_core import (
    Call,
    ConfigError,
    FatalError,
    ModelSpec,
    Options,
    Policy,
    ProviderError,
    RefusedError,
    Reply,
    RetryPolicy,
    TransientError,
    enrich_sync,
)
from ondine_core.providers import connect
from ondine_core.providers.http import HttpModel
from ondine_core.providers.http_client import Endpoint
from ondine_core.providers.openai_http import chat_reply
from ondine_core.types.values import Message
from tests.support.asking import one_call, one_call_to
from tests.support.provider import (
    Fault,
    Provider,
    cut,
    cut_body,
    error,
    filtered,
    garbage,
    refusal,
    slow,
    slow_body,
    status,
)
from tests.support.raw_server import Connection, RawServer, completion

KEY = "sk-1234567890-secret"
NOON = 1_700_000_000
TEXT = "Repeat: the customer's confidential words"


def failure(fault: Fault, **settings: Any) -> ProviderError:
    with Provider(fault=fault) as provider, pytest.raises(ProviderError) as caught:
        one_call_to(provider.base_url, TEXT, **{"api_key": KEY, **settings})
    return caught.value


BARE_CHOICE = {"index": 0, "finish_reason": "content_filter: PROHIBITED_CONTENT"}  # of Gemini, without a message


@pytest.mark.parametrize("fault", [refusal, filtered, status(200, {"choices": [BARE_CHOICE]})])
def test_declined_answer_is_refused(fault: Fault) -> None:
    """A reply declined by the model or a content filter refuses this request only."""
    assert isinstance(failure(fault), RefusedError)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (301, FatalError),
        (400, RefusedError),
        (401, FatalError),
        (402, FatalError),
        (403, FatalError),
        (404, FatalError),
        (405, FatalError),
        (408, TransientError),
        (409, TransientError),
        (413, RefusedError),
        (422, RefusedError),
        (429, TransientError),
        (500, TransientError),
        (502, TransientError),
        (503, TransientError),
        (529, TransientError),
    ],
)
@pytest.mark.parametrize("body", [None, b"", b"<html>", b"[]", b'{"error":null}', b'{"error":"plain"}'])
def test_status_decides_the_kind_of_failure(code: int, kind: type[ProviderError], body: bytes | None) -> None:
    """Every status is fatal, refused or transient, whatever its body; a refused call costs nothing."""
    raised = failure(status(code, body))
    assert type(raised) is kind
    assert str(code) in str(raised)
    assert not getattr(raised, "cost_unknown", False)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (429, "limited"),
        (408, "overloaded"),
        (503, "overloaded"),
        (504, "overloaded"),
        (529, "overloaded"),
        (409, "broken"),
        (425, "broken"),
        (500, "broken"),
        (502, "broken"),
        (520, "broken"),
    ],
)
def test_status_gives_the_cause(code: int, kind: str) -> None:
    """A rate limit, lack of capacity and other causes are distinguished, since they are handled differently."""
    raised = failure(status(code))
    assert isinstance(raised, TransientError)
    assert raised.kind == kind


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (slow(30), "overloaded"),
        (slow_body(30), "overloaded"),
        (cut, "broken"),
        (cut_body, "broken"),
        (garbage, "broken"),
        (status(200, {"error": {"message": "slow down", "code": 429}}), "limited"),
        (status(200, {"error": {"message": "no capacity", "code": 503}}), "overloaded"),
    ],
    ids=["no reply", "half a reply", "cut", "cut in half", "garbage", "429 in 200", "503 in 200"],
)
def test_lost_call_gives_the_cause(fault: Fault, kind: str) -> None:
    """Silence counts as overload, a broken connection or reply as a failure."""
    raised = failure(fault, timeout_s=0.3)
    assert isinstance(raised, TransientError)
    assert raised.kind == kind


def test_redirection_is_not_followed() -> None:
    """Key and prompt are not sent to the target; the error says to check the address."""
    with Provider() as elsewhere:
        raised = failure(status(307, headers={"Location": f"{elsewhere.base_url}/chat/completions"}))
    assert isinstance(raised, FatalError)
    assert "base_url" in str(raised)
    assert elsewhere.ledger.requests == []


@pytest.mark.parametrize("field", ["code", "type"])
def test_no_credit_is_fatal_although_it_is_a_429(field: str) -> None:
    """A 429 for an exhausted account is fatal, since waiting does not help."""
    raised = failure(status(429, {"error": {"message": "You exceeded your quota", field: "insufficient_quota"}}))
    assert isinstance(raised, FatalError)
    assert "credit" in str(raised)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": f"{NOON + 42}"}, 42.0),
        ({"Retry-After": "999999999"}, None),
        ({"Retry-After": formatdate(NOON + 10**9, usegmt=True)}, None),
        ({"Retry-After-Ms": "250", "Retry-After": "9"}, 0.25),
        ({"Retry-After": formatdate(NOON + 42, usegmt=True)}, 42.0),
        ({"Retry-After": formatdate(NOON - 42, usegmt=True)}, 0.0),
        ({"Retry-After": "soon"}, None),
        # LiteLLM's proxy forwards the provider's headers under this prefix.
        ({"llm_provider-retry-after": "7"}, 7.0),
        ({"llm_provider-retry-after-ms": "250", "llm_provider-retry-after": "9"}, 0.25),
        ({"llm_provider-retry-after": formatdate(NOON + 42, usegmt=True)}, 42.0),
        ({"llm_provider-retry-after": "9", "Retry-After": "7"}, 7.0),
        ({"llm_provider-retry-after": "9", "Retry-After": "soon"}, 9.0),
        # Without Retry-After, the reset of the limits.
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m3s"}, 63.0),
        ({"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "1m3s"}, None),
        ({"Retry-After": "1 Jan 2024 0:9999999999"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_understood_in_every_form(headers: dict[str, str], expected: float | None) -> None:
    """It is read as seconds, milliseconds or a date; an invalid value is not a pause."""
    with Provider(fault=status(429, headers=headers)) as provider:
        endpoint = Endpoint(f"{provider.base_url}/chat/completions", 5)
        model = HttpModel(endpoint, lambda _: b'{"messages":[{"role":"user","content":""}]}', chat_reply, wall=now)
        with pytest.raises(TransientError) as caught:
            one_call(model, call=Call(()))
    assert caught.value.retry_after_s == expected


def now() -> float:
    return NOON


def test_refused_connection_costs_nothing() -> None:
    """The call may be retried and was certainly not billed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(TransientError, match=rf"127\.0\.0\.1:{port}") as caught:
        one_call_to(f"http://127.0.0.1:{port}/v1")
    assert not caught.value.cost_unknown
    assert caught.value.kind == "broken"


@pytest.mark.parametrize(
    "fault",
    [cut, cut_body, slow(30), slow_body(30), garbage, status(200, {"error": {"message": "odd"}}), status(202, [])],
)
def test_call_without_a_seen_reply_has_an_unknown_cost(fault: Fault) -> None:
    """A call that was sent without a complete reply may be retried, and may have been billed."""
    raised = failure(fault, timeout_s=0.3)
    assert isinstance(raised, TransientError)
    assert raised.cost_unknown


@pytest.mark.parametrize(("code", "kind"), [(429, TransientError), (400, RefusedError), (401, FatalError)])
def test_error_object_under_status_200_is_that_error(code: int, kind: type[ProviderError]) -> None:
    """An error object with status 200 counts as the error it names."""
    assert type(failure(status(200, {"error": {"message": "no", "code": code}}))) is kind


OK = {"choices": [{"message": {"content": "hello"}}]}


@pytest.mark.parametrize(
    "fault", [status(201, OK), status(203, OK), status(200, OK, {"Content-Security-Policy": "x" * 30_000})]
)
def test_reply_with_another_success_status_or_a_long_header_is_read(fault: Fault) -> None:
    """As servers of others and gateways send them."""
    with Provider(fault=fault) as provider:
        assert one_call_to(provider.base_url).text == "hello"


@pytest.mark.parametrize(
    "fault",
    [
        status(200, {"choices": [{"message": {"content": [{"type": "text", "text": "hello"}]}}]}),
        status(200, {**OK, "usage": {"prompt_tokens": "7", "completion_tokens": 1}}),
        status(200, {**OK, "id": {"a": 1}}),
        status(429, {"error": {"message": "busy", "code": {"a": 1}}}),
    ],
    ids=["content in parts", "tokens as text", "id as object", "code as object"],
)
def test_any_json_reply_is_a_reply_or_a_provider_error(fault: Fault) -> None:
    """For any JSON the result is a well-formed reply or a provider error."""
    with Provider(fault=fault) as provider:
        try:
            reply = one_call_to(provider.base_url)
        except ProviderError:
            return
    assert isinstance(reply.text, str)
    assert isinstance(reply.usage.input_tokens, int)
    assert isinstance(reply.request_id, str | None)


def test_key_with_a_line_end_works() -> None:
    """A key read from a file is used without its line end."""
    with Provider() as provider:
        one_call_to(provider.base_url, api_key=f"{KEY}\n")
    assert provider.ledger.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def test_netrc_does_not_replace_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry in the user's .netrc neither breaks the call nor replaces the key."""
    (tmp_path / "netrc").write_text("default login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Provider() as provider:
        one_call_to(provider.base_url, api_key=KEY)
    assert provider.ledger.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def test_large_request_has_the_headers_of_a_small_one() -> None:
    """A request that is sent piece by piece differs from one that is sent at once in its length only."""
    with Provider() as provider:
        for text in ("x", "x" * 2**18):
            one_call_to(provider.base_url, text, api_key=KEY)
    own = {"Content-Length", "X-Request-Id"}
    small, large = (
        {name.title(): value for name, value in request.headers.items() if name.title() not in own}
        for request in provider.ledger.requests
    )
    assert small == large
    assert small.keys() >= {"Authorization", "Content-Type", "Host", "User-Agent"}


# -- secrets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [400, 401, 429, 500])
def test_message_that_quotes_the_prompt_is_masked(code: int) -> None:
    """Part of a prompt that a provider repeats appears in no error."""
    raised = failure(error(code, "Invalid content: 'customer's confidential words' was flagged", "bad_input"))
    assert "confidential" not in str(raised)
    assert "bad_input" in str(raised)


def test_message_that_quotes_nothing_is_passed_on() -> None:
    """A message that repeats nothing of the prompt is shown to the user."""
    assert "The field top_q is not known" in str(failure(error(400, "The field top_q is not known.")))


@pytest.mark.parametrize("key", ["tok_of/any+form", "sk-proj-*****************abcd", "key-abcdef123"])
def test_keys_in_messages_are_masked(key: str) -> None:
    """A key that the provider quotes, even half masked, is masked in the error."""
    response = error(401, f"Incorrect API key provided: {key}. Find yours online", "invalid_api_key")
    raised = failure(response, api_key="tok_of/any+form")
    assert key not in str(raised)
    assert "Incorrect API key provided" in str(raised)


def test_time_for_a_token_leaves_less_to_connect() -> None:
    """`timeout_s` bounds both."""

    async def wait_for_token() -> dict[str, str]:
        await asyncio.sleep(1.8)
        return {}

    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes no part in a TLS handshake
        endpoint = Endpoint(f"https://127.0.0.1:{silent.getsockname()[1]}/v1", 2.0, wait_for_token)
        model = HttpModel(endpoint, lambda _: b"{}", chat_reply)
        began = time.monotonic()
        with pytest.raises(TransientError, match="Cannot connect"):
            one_call(model)
        assert time.monotonic() - began < 3.0


@pytest.mark.parametrize(
    ("content_type", "charset"),
    [
        ("application/json", "utf-8"),
        ("application/json; charset=UTF-8", "utf-8"),
        ("application/json;charset=ISO-8859-1", "latin-1"),
        ("application/json;charset=ISO-8859-1", "utf-8"),  # as servers that do not know their own charset say
        ('application/json; Charset="windows-1252"', "cp1252"),
        ("application/json; charset=GB18030", "gb18030"),
        ("application/json; charset=utf-16", "utf-16"),
    ],
)
def test_reply_in_another_charset_is_read(content_type: str, charset: str) -> None:
    """JSON is UTF-8; what is not is decoded as its Content-Type says."""
    text = "Crème brûlée à Besançon"
    body = completion("TEXT").decode().replace("TEXT", text).encode(charset)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head.encode() + body)

    with RawServer(script) as server:
        assert one_call_to(server.base_url).text == text


@pytest.mark.parametrize(
    ("content_type", "charset"),
    [
        ("application/json", "utf-8"),
        ("application/json;charset=ISO-8859-1", "latin-1"),
        ("text/plain; charset=windows-1252", "cp1252"),
        ("text/plain; charset=iso-made-up", "utf-8"),
    ],
)
def test_error_in_another_charset_is_read(content_type: str, charset: str) -> None:
    """As a reply is: by the charset that its Content-Type declares, if it is not UTF-8."""
    text = "Mod\u00e8le retir\u00e9"
    body = (json.dumps({"error": {"message": text}}, ensure_ascii=False) if "json" in content_type else text).encode(
        charset
    )
    head = f"HTTP/1.1 404 Not Found\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head.encode() + body)

    with RawServer(script) as server, pytest.raises(FatalError, match=text):
        one_call_to(server.base_url)


@pytest.mark.parametrize("fault", [error(401, f"Bad key {KEY}"), error(500), cut, garbage, slow(30)])
def test_the_key_is_in_no_repr_and_no_traceback(fault: Fault) -> None:
    """Neither a specification, a model, nor an error with its causes shows the key."""
    spec = ModelSpec("openai_compatible/m", api_key=KEY, base_url="http://127.0.0.1:9/v1")
    raised = failure(fault, timeout_s=0.2)
    shown = [repr(spec), repr(connect(spec)), repr(raised), *traceback.format_exception(raised)]
    assert not any(KEY in text for text in shown)


def test_key_is_masked_before_a_message_is_shortened() -> None:
    """No beginning of the key remains at the cut."""
    assert "sk-12" not in str(failure(error(401, "bad " * 73 + KEY)))


def test_short_value_of_a_row_is_not_quoted() -> None:
    """A short value of the row that a provider repeats is masked, too."""
    with Provider(fault=error(400, "Unsupported name 'Ann Li'")) as provider, pytest.raises(RefusedError) as caught:
        one_call_to(provider.base_url, "Who is this?\nAnn Li")
    assert "Ann Li" not in str(caught.value)


def test_password_in_the_address_is_in_no_repr() -> None:
    """Credentials in base_url are shown neither by the specification nor by the error that refuses them."""
    spec = ModelSpec("openai_compatible/m", base_url="http://me:hunter2@127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="use api_key") as refused:
        connect(spec)
    assert "hunter2" not in repr(spec) + str(refused.value)


@pytest.mark.parametrize(
    "address",
    ["localhost:8000/v1", "http://", "ftp://x/v1", "http://x:port/v1", "http://x/v1\n", "http://x/v1 ", "http://x..y"],
)
def test_base_url_that_is_no_address_is_refused(address: str) -> None:
    """It is a configuration error, not an outage to wait for."""
    with pytest.raises(ConfigError, match="is not an address"):
        connect(ModelSpec("openai_compatible/m", base_url=address))


@pytest.mark.parametrize("model", ["openai_compatible/m", "anthropic/claude-haiku-4-5"])
@pytest.mark.parametrize("end", ["?key=hunter2", "#v1"])
def test_base_url_with_a_query_is_refused(model: str, end: str) -> None:
    """The path of the API would become a part of it; the query is not shown, as it may hold a key."""
    with pytest.raises(ConfigError, match=r"has a query or a fragment.* write 'http://x/v1'") as refused:
        connect(ModelSpec(model, base_url=f"http://x/v1{end}"))
    assert "hunter2" not in str(refused.value)


def test_timed_out_calls_have_a_bound_of_attempts() -> None:
    """Attempts that may have been billed unseen are bounded by the policy; the reason says what to raise."""
    with Provider(fault=slow(5)) as provider:
        spec = ModelSpec("openai_compatible/m", base_url=provider.base_url, timeout_s=0.1)
        policy = Policy(retry=RetryPolicy(first_wait_s=0.001, max_lost=3))
        report = enrich_sync([{"a": 1}], prompt="{a}", output="b", model=spec, options=Options(policy=policy))
        calls = len(provider.ledger.requests)
    assert (calls, report.spend.unknown) == (3, 3)
    assert "raise timeout_s" in report.errors()[0]


@pytest.mark.parametrize("text", ["hello", "hello" * 200_000], ids=["small", "large"])
def test_reply_received_while_the_event_loop_was_blocked_is_taken(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that blocks the loop, or a paused process, for longer than the time-out loses no reply that is here.

    This holds for a reply that comes through a proxy, too.
    """

    async def ask_and_block(provider: Provider) -> list[Reply]:
        async with contextlib.AsyncExitStack() as stack:
            asking = []
            for url in (provider.base_url, "http://example.test/v1"):
                spec = ModelSpec("openai_compatible/m", base_url=url, timeout_s=0.2)
                model = await stack.enter_async_context(contextlib.aclosing(connect(spec)))
                asking.append(asyncio.create_task(model(Call((Message("user", f"Repeat: {text}"),)))))
            await asyncio.to_thread(provider.ledger.wait_for, lambda ledger: len(ledger.requests) == len(asking))
            time.sleep(0.25)  # noqa: ASYNC251  (it blocks the event loop)
            return await asyncio.gather(*asking)

    with Provider(latency_s=0.05) as provider:
        monkeypatch.setenv("http_proxy", provider.base_url.removesuffix("/v1"))
        assert all(text in reply.text for reply in asyncio.run(ask_and_block(provider)))
