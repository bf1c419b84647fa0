"""What holds for every client, whoever it speaks to and by whatever library."""

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
from ondine_core.providers.finish_reasons import ending_of
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
    leftovers,
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
    """How a call ends whose provider has a fault, and how many requests it made."""
    with client.provider(fault=fault) as provider, pytest.raises(ProviderError) as caught:
        client.ask(provider, **spec)
    return caught.value, len(provider.books.requests)


def test_a_reply_that_is_nested_without_end_is_lost() -> None:
    """It may be billed, and it is no crash of the run."""
    nested = b'{"choices":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    failed, requests = fail(WIRE, status(200, nested))
    assert isinstance(failed, TransientError)
    assert failed.cost_unknown
    assert requests == 1


# -- answers -------------------------------------------------------------------------------------------------------


@every_client
def test_answer_comes_with_usage_and_the_providers_name_for_the_call(client: Client) -> None:
    """A reply says what it used, cached input among it, what the provider calls the call, and how long it took."""
    with client.provider(cached_tokens=3) as provider:
        reply = client.ask(provider, max_output_tokens=50)
        books = provider.books
    assert orjson.loads(reply.text) == {"answer": WORDS}
    assert reply.usage == Usage(books.input_tokens, 3, books.output_tokens)
    assert (ending_of(reply.finish_reason), reply.request_id, reply.hold_off_s) == ("whole", "req-1", 0.0)
    assert 0 < reply.latency_s < 10


@every_client
def test_schema_reaches_the_provider(client: Client) -> None:
    """Whatever the dialect calls it, the provider is told which fields an answer has."""
    with client.provider() as provider:
        client.ask(provider)
        client.ask(provider, Call((Message("user", "Repeat: x"),)))
    held, free = (orjson.dumps({**asked.body, "messages": []}) for asked in provider.books.requests)
    assert b'"required":["answer"]' in held
    assert b"required" not in free


@every_client
def test_mapping_with_any_keys_is_asked_for_in_words(client: Client) -> None:
    """Strict mode, Anthropic's format and litellm would close the object, so that it could only come back empty."""
    schema = compile_schema(create_model("Counts", answer=(dict[str, int], ...))).json_schema
    assert schema is not None
    with client.provider() as provider:
        client.ask(provider, Call((Message("user", "Repeat: x"),), schema))
    asked = orjson.dumps(provider.books.requests[0].body)
    assert schema in asked.replace(b"\\", b"")
    assert asked.count(b"required") == 1


@every_client
def test_settings_of_the_specification_arrive(client: Client) -> None:
    """Temperature, bound on output tokens and further parameters are sent."""
    with client.provider() as provider:
        client.ask(provider, temperature=0.25, max_output_tokens=77, params={"top_p": 0.5})
    body = provider.books.requests[0].body
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.25, 0.5, 77)


@every_client
def test_cost_of_a_reply_follows_from_its_usage(client: Client) -> None:
    """The price file and the usage of a reply give its cost, cached input at its own price."""
    price = find_price(client.priced_as)
    assert price is not None
    with client.provider(cached_tokens=3) as provider:
        usage = client.ask(provider).usage
    paid = (usage.input_tokens - 3) * price.input + 3 * price.cached_input + usage.output_tokens * price.output
    assert price.cost(usage) == paid > Decimal(0)


@every_client
def test_cut_answer_is_marked_as_cut(client: Client) -> None:
    """A reply that the bound on output tokens cut is never taken for a whole one."""
    with client.provider(fault=truncated) as provider:
        assert ending_of(client.ask(provider).finish_reason) == "cut"


@every_client
def test_answer_without_text_is_an_empty_one(client: Client) -> None:
    """A reply without text is a reply with empty text, for the schema to refuse."""
    with client.provider(fault=empty) as provider:
        assert client.ask(provider).text == ""


@every_client
@pytest.mark.parametrize("fault", [refusal, filtered])
def test_declined_answer_is_refused_and_paid_for(client: Client, fault: Fault) -> None:
    """A model that declines, or a content filter, refuses this request and no other; what was billed is told."""
    failure, _ = fail(client, fault)
    assert isinstance(failure, RefusedError)
    assert failure.usage is not None
    assert failure.usage.input_tokens > 0


# -- failures ------------------------------------------------------------------------------------------------------


@every_client
@pytest.mark.parametrize("code", STATUSES)
def test_status_decides_what_a_failure_means(client: Client, code: int) -> None:
    """Every status means the same from every client; a call that was turned away is made once and cost nothing."""
    failure, requests = fail(client, status(code, headers={"Retry-After": "7", "Location": "http://127.0.0.1:9/"}))
    kind = getattr(failure, "kind", None)
    assert (type(failure), kind) == STATUSES[code]
    assert str(code) in str(failure)
    assert not getattr(failure, "cost_unknown", False)
    assert getattr(failure, "retry_after_s", 7.0) == 7.0
    assert requests == 1


@every_client
@lost_reply
def test_reply_that_was_not_seen_may_have_been_billed(client: Client, fault: Fault) -> None:
    """A call that left and whose reply was not seen whole is made once, and its cost is unknown."""
    failure, requests = fail(client, fault, timeout_s=0.5)
    assert isinstance(failure, TransientError)
    assert failure.cost_unknown
    assert failure.kind == ("overloaded" if "timeout_s" in str(failure) else "broken")
    assert requests == 1


@every_client
@pytest.mark.parametrize("last_words", [b"", b"550 mailbox unavailable\r\n\r\n"], ids=["reset", "no HTTP"])
def test_broken_connection_sends_no_call_twice(client: Client, last_words: bytes) -> None:
    """A call that left may have been billed, so no library underneath sends it again; no error holds the key."""
    with resetting(last_words) as (address, requests), pytest.raises(TransientError) as caught:
        one_call(client.connect(f"{address}/v1" if client.provider is WIRE.provider else address), call=CALL)
    assert caught.value.cost_unknown
    assert len(requests) == 1
    assert not any(KEY in repr(link) for link in chain(caught.value))


@every_client
def test_nobody_there_costs_nothing(client: Client) -> None:
    """When nobody listens the call may be made again and surely was not billed."""
    with client.provider() as provider:
        address = client.address(provider)
    with pytest.raises(TransientError, match="Cannot connect") as caught:
        one_call(client.connect(address), call=CALL)
    assert not caught.value.cost_unknown


# -- life and death ------------------------------------------------------------------------------------------------


@every_client
def test_cancelled_call_lets_go_of_the_provider(client: Client) -> None:
    """Cancelling a call closes its connection and leaves nothing running, and the next call works."""

    async def main() -> tuple[set[str], Reply]:
        model = client.connect(client.address(provider))
        call = asyncio.create_task(model(CALL))
        await asyncio.to_thread(provider.books.wait_for, lambda books: books.in_flight == 1)
        call.cancel()
        await asyncio.to_thread(provider.books.wait_for, lambda books: books.client_gone == 1)
        await asyncio.wait({call})
        left, reply = leftovers(), await model(CALL)
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
    """A model can be closed at any time, more than once, and is opened again by a call."""

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
def test_neither_key_nor_prompt_shows_anywhere(
    client: Client, fault: Fault | None, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """No repr, error, cause of an error, log record at any level, or output shows the key or the prompt."""
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
