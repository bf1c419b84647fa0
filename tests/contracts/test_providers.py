"""The contract of every client, whatever provider it asks and whatever library it uses."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from decimal import Decimal
from typing import Any

import orjson
import pytest
from pydantic import create_model

from ondine_core import (
    Call,
    ModelSpec,
    ProviderError,
    RefusedError,
    Reply,
    TransientError,
    Usage,
)
from ondine_core.prompts.output_schema import compile_schema
from ondine_core.providers.finish_reasons import finish_kind
from ondine_core.providers.pricing import find_price
from ondine_core.types.values import Message
from tests.support.asking import one_call
from tests.support.clients import (
    CALL,
    CLIENTS,
    KEY,
    LOST,
    STATUSES,
    WIRE,
    WORDS,
    Client,
    chain,
    left_open,
    other_tasks,
    resetting,
)
from tests.support.provider import (
    Fault,
    cut,
    empty,
    error,
    filtered,
    first,
    garbage,
    refusal,
    slow,
    status,
    truncated,
)

every_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
lost_reply = pytest.mark.parametrize("fault", LOST.values(), ids=LOST)


def fail(client: Client, fault: Fault, **spec: Any) -> tuple[ProviderError, int]:
    """The error of a call to a provider with a fault, and the number of requests made."""
    with client.provider(fault=fault) as provider, pytest.raises(ProviderError) as caught:
        client.ask(provider, **spec)
    return caught.value, len(provider.ledger.requests)


def test_endlessly_nested_reply_is_lost() -> None:
    """It may be billed, and does not crash the run."""
    nested = b'{"choices":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    failed, requests = fail(WIRE, status(200, nested))
    assert isinstance(failed, TransientError)
    assert failed.cost_unknown
    assert requests == 1


# -- answers -------------------------------------------------------------------------------------------------------


@every_client
def test_reply_has_usage_request_id_and_latency(client: Client) -> None:
    """Cached input is part of the usage."""
    with client.provider(cached_tokens=3) as provider:
        reply = client.ask(provider, max_output_tokens=50)
        ledger = provider.ledger
    assert orjson.loads(reply.text) == {"answer": WORDS}
    assert reply.usage == Usage(ledger.input_tokens, 3, ledger.output_tokens)
    assert (finish_kind(reply.finish_reason), reply.request_id, reply.hold_off_s) == ("whole", "req-1", 0.0)
    assert 0 < reply.latency_s < 10


@every_client
def test_model_works_in_each_event_loop(client: Client) -> None:
    """Also if the first loop ended before the client was ready, and in two loops at once."""
    with left_open(), client.provider() as provider:
        model = client.connect(client.address(provider))
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(model(CALL), 0))

        async def ask() -> list[Reply]:
            return await asyncio.wait_for(asyncio.gather(model(CALL), model(CALL)), 20)

        async def ask_in_two_loops() -> list[Reply]:
            here, there = await asyncio.gather(ask(), asyncio.to_thread(asyncio.run, ask()))
            await model.aclose()
            return here + there

        replies = asyncio.run(ask()) + asyncio.run(ask()) + asyncio.run(ask_in_two_loops())
    assert [orjson.loads(reply.text) for reply in replies] == 8 * [{"answer": WORDS}]


@every_client
def test_schema_reaches_the_provider(client: Client) -> None:
    """In the dialect's own form it lists the fields of an answer."""
    with client.provider() as provider:
        client.ask(provider)
        client.ask(provider, Call((Message("user", "Repeat: x"),)))
    held, free = (orjson.dumps({**asked.body, "messages": []}) for asked in provider.ledger.requests)
    assert b'"required":["answer"]' in held
    assert b"required" not in free


@every_client
def test_mapping_with_any_keys_is_put_into_the_prompt(client: Client) -> None:
    """Strict mode, Anthropic's format and litellm would close the object, so replies would be empty."""
    schema = compile_schema(create_model("Counts", answer=(dict[str, int], ...))).json_schema
    assert schema is not None
    with client.provider() as provider:
        client.ask(provider, Call((Message("user", "Repeat: x"),), schema))
    asked = orjson.dumps(provider.ledger.requests[0].body)
    assert schema in asked.replace(b"\\", b"")
    assert asked.count(b"required") == 1


@every_client
def test_settings_of_the_spec_are_sent(client: Client) -> None:
    """Temperature, output bound and further parameters."""
    with client.provider() as provider:
        client.ask(provider, temperature=0.25, max_output_tokens=77, params={"top_p": 0.5})
    body = provider.ledger.requests[0].body
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.25, 0.5, 77)


@every_client
def test_cost_of_a_reply_follows_from_its_usage(client: Client) -> None:
    """By the price file, with cached input at its own price."""
    price = find_price(client.priced_as)
    assert price is not None
    with client.provider(cached_tokens=3) as provider:
        usage = client.ask(provider).usage
    paid = (usage.input_tokens - 3) * price.input + 3 * price.cached_input + usage.output_tokens * price.output
    assert price.cost(usage) == paid > Decimal(0)


@every_client
def test_truncated_reply_is_marked(client: Client) -> None:
    """A reply cut by the output bound never counts as whole."""
    with client.provider(fault=truncated) as provider:
        assert finish_kind(client.ask(provider).finish_reason) == "cut"


@every_client
def test_reply_without_text_has_an_empty_text(client: Client) -> None:
    """The schema then refuses it."""
    with client.provider(fault=empty) as provider:
        assert client.ask(provider).text == ""


@every_client
@pytest.mark.parametrize("fault", [refusal, filtered])
def test_declined_reply_is_refused_and_billed(client: Client, fault: Fault) -> None:
    """A refusal by the model or a content filter is of this request only; the billed amount is reported."""
    failure, _ = fail(client, fault)
    assert isinstance(failure, RefusedError)
    assert failure.usage is not None
    assert failure.usage.input_tokens > 0


# -- failures ------------------------------------------------------------------------------------------------------


@every_client
@pytest.mark.parametrize("code", STATUSES)
def test_status_decides_what_a_failure_means(client: Client, code: int) -> None:
    """Every status has the same meaning for every client; a refused call is sent once and costs nothing."""
    failure, requests = fail(client, status(code, headers={"Retry-After": "7", "Location": "http://127.0.0.1:9/"}))
    kind = getattr(failure, "kind", None)
    assert (type(failure), kind) == STATUSES[code]
    assert str(code) in str(failure)
    assert not getattr(failure, "cost_unknown", False)
    assert getattr(failure, "retry_after_s", 7.0) == 7.0
    assert requests == 1


@every_client
def test_refusal_whose_body_cannot_be_decompressed_costs_nothing(client: Client) -> None:
    """Its status and its headers are known."""
    failure, _ = fail(client, status(429, b"\x8b", headers={"Content-Encoding": "br", "Retry-After": "7"}))
    assert isinstance(failure, TransientError)
    assert (failure.kind, failure.cost_unknown, failure.retry_after_s) == ("limited", False, 7.0)


@every_client
@lost_reply
def test_call_without_a_complete_reply_has_an_unknown_cost(client: Client, fault: Fault) -> None:
    """It is sent once."""
    failure, requests = fail(client, fault, timeout_s=0.5)
    assert isinstance(failure, TransientError)
    assert failure.cost_unknown
    assert failure.kind == ("overloaded" if "timeout_s" in str(failure) else "broken")
    assert requests == 1


@every_client
@pytest.mark.parametrize("last_bytes", [b"", b"550 mailbox unavailable\r\n\r\n"], ids=["reset", "no HTTP"])
def test_broken_connection_sends_no_call_twice(client: Client, last_bytes: bytes) -> None:
    """The call may have been billed, so no library resends it; no error has the key."""
    with resetting(last_bytes) as (address, requests), pytest.raises(TransientError) as caught:
        one_call(client.connect(f"{address}/v1" if client.provider is WIRE.provider else address), call=CALL)
    assert caught.value.cost_unknown
    assert len(requests) == 1
    assert not any(KEY in repr(link) for link in chain(caught.value))


@every_client
def test_refused_connection_costs_nothing(client: Client) -> None:
    """The call may be retried and was certainly not billed."""
    with client.provider() as provider:
        address = client.address(provider)
    with pytest.raises(TransientError, match="Cannot connect") as caught:
        one_call(client.connect(address), call=CALL)
    assert not caught.value.cost_unknown


# -- cancel and close ----------------------------------------------------------------------------------------------


@every_client
def test_cancelled_call_closes_its_connection(client: Client) -> None:
    """Nothing is left running, and the next call works."""

    async def main() -> tuple[set[str], Reply]:
        model = client.connect(client.address(provider))
        call = asyncio.create_task(model(CALL))
        await asyncio.to_thread(provider.ledger.wait_for, lambda ledger: ledger.in_flight == 1)
        call.cancel()
        await asyncio.to_thread(provider.ledger.wait_for, lambda ledger: ledger.client_gone == 1)
        await asyncio.wait({call})
        left, reply = other_tasks(), await model(CALL)
        await model.aclose()
        return left, reply

    before = threading.active_count()
    with client.provider(fault=first(1, slow(30))) as provider:
        left, reply = asyncio.run(main())
    assert orjson.loads(reply.text) == {"answer": WORDS}
    assert left == set()
    assert threading.active_count() <= before


@every_client
def test_closing_twice_or_before_the_first_call_is_harmless(client: Client) -> None:
    """A closed model is opened again by a call."""

    async def main() -> Reply:
        model = client.connect(client.address(provider))
        await model.aclose()
        await model(CALL)
        await model.aclose()
        await model.aclose()
        reply = await model(CALL)
        await model.aclose()
        return reply

    with client.provider() as provider:
        assert orjson.loads(asyncio.run(main()).text) == {"answer": WORDS}


@every_client
@pytest.mark.parametrize(
    "fault",
    [None, error(401, f"Bad key {KEY}"), error(400, f"No: {WORDS}"), error(429, KEY), cut, garbage, slow(30)],
    ids=["answer", "401", "400", "429", "cut", "garbage", "slow"],
)
def test_neither_key_nor_prompt_is_shown_anywhere(
    client: Client, fault: Fault | None, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """In no repr, error, cause, log record of any level, or output."""
    caplog.set_level(logging.DEBUG)
    with client.provider(fault=fault) as provider:
        model = client.connect(client.address(provider), timeout_s=0.5)
        shown = [repr(model), str(model), repr(ModelSpec(client.model, api_key=KEY, settings={"ad_token": KEY}))]
        try:
            one_call(model, call=CALL)
        except ProviderError as failure:
            shown += traceback.format_exception(failure)
            shown += [text for link in chain(failure) for text in (repr(link), str(link), repr(vars(link)))]
    shown += [record.getMessage() + str(record.exc_text) for record in caplog.records] + list(capfd.readouterr())
    assert KEY not in "\n".join(shown)
    assert "confidential" not in "\n".join(shown)
