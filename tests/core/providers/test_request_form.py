"""Requests are adapted to what a server refuses, once for each model; the refusals are those of real servers."""

from __future__ import annotations

from typing import Any

import pytest

from ondine_core import Failure, FatalError, ModelSpec, Options, Policy, Prompt, Report, enrich_sync
from tests.support.asking import QUICK
from tests.support.batches import ids_in
from tests.support.provider import (
    Altered,
    Canned,
    Effect,
    Fault,
    Provider,
    ReceivedRequest,
    empty,
    first,
    matching,
    status,
    truncated,
)

MOOD = {"mood": {"type": "string", "enum": ["good", "bad"]}}


def good(prompt: str) -> Any:
    """The answer to one row, or to each of a batch."""
    ids = ids_in(prompt)
    return {"answers": [{"id": number, "mood": "good"} for number in ids]} if ids else {"mood": "good"}


def enriched(provider: Provider, rows: int = 8, model: str = "openai_compatible/m", **policy: Any) -> Report:
    return enrich_sync(
        {"text": [f"row {number}" for number in range(rows)]},
        prompt=Prompt("Judge: {text}", system="Be fair.", examples=[({"text": "old"}, {"mood": "bad"})]),
        output=MOOD,
        model=ModelSpec(model, base_url=provider.base_url, max_output_tokens=50),
        options=Options(store=":memory:", policy=Policy(retry=QUICK, max_concurrency=4, **policy)),
    )


def refusing(predicate: Any, refusal: Fault) -> tuple[Fault, list[ReceivedRequest]]:
    """A server that refuses requests matching `predicate`, and the requests it refused."""
    refused: list[ReceivedRequest] = []

    def fault(asked: ReceivedRequest) -> Effect:
        if not predicate(asked):
            return None
        refused.append(asked)
        return refusal(asked)

    return fault, refused


def error(code: int, message: str, **more: Any) -> Fault:
    return status(code, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": code, **more}})


# Each as the named server sends it, by reports of its users.
NO_SYSTEM: dict[str, Fault] = {
    "vLLM with Gemma": error(400, "System role not supported"),
    "vLLM, older": status(
        400,
        {
            "object": "error",
            "message": "Conversation roles must alternate user/assistant/user/assistant/...",
            "type": "BadRequestError",
            "code": 400,
        },
    ),
    "llama.cpp": status(500, {"error": {"code": 500, "message": "System role not supported", "type": "server_error"}}),
    "llama.cpp with Devstral": status(
        500, {"error": {"code": 500, "message": "Only user, assistant and tool roles are supported, got system."}}
    ),
    "TGI": status(
        422,
        {"error": "Template error: Conversation roles must alternate", "error_type": "template_error"},
    ),
    "Gemini with Gemma": error(400, "Developer instruction is not enabled for models/gemma-3-27b-it"),
    "a gateway": error(400, "This model does not support system messages."),
}
NO_SCHEMA: dict[str, Fault] = {
    "OpenAI": error(
        400,
        "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
        param="response_format",
    ),
    "Groq": error(400, "This model does not support response format `json_schema`."),
    "DeepSeek": error(400, "This response_format type is unavailable now"),
    "vLLM": error(400, "The provided JSON schema contains features not supported by xgrammar."),
    "OpenAI, of the schema itself": error(400, "Invalid schema for response_format 'answer': In context=(), no."),
}


@pytest.mark.parametrize("refusal", NO_SYSTEM.values(), ids=NO_SYSTEM)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_system_message_is_merged_if_the_role_is_refused(refusal: Fault, batch_size: int) -> None:
    """Every row is answered; only calls in flight at the first refusal are refused."""
    has_system, refused = refusing(lambda asked: asked.messages[0]["role"] == "system", refusal)
    with Provider(good, fault=has_system) as provider:
        report = enriched(provider, batch_size=batch_size)
    assert report.column("mood") == ["good"] * 8
    assert 1 <= len(refused) <= 4
    taken = [asked for asked in provider.ledger.requests if asked not in refused]
    assert len(taken) == 8 // batch_size
    assert all(asked.messages[0]["content"].startswith("Be fair.\n\n") for asked in taken)
    assert all([message["role"] for message in asked.messages] == ["user", "assistant", "user"] for asked in taken)


@pytest.mark.parametrize("refusal", NO_SCHEMA.values(), ids=NO_SCHEMA)
def test_refused_schema_is_put_into_the_prompt(refusal: Fault) -> None:
    """Replies are validated by the parser."""
    has_schema, refused = refusing(lambda asked: "response_format" in asked.body, refusal)
    with Provider(lambda _: {"mood": "good"}, fault=has_schema) as provider:
        report = enriched(provider)
    assert report.column("mood") == ["good"] * 8
    assert 1 <= len(refused) <= 4
    assert '"enum":["good","bad"]' in provider.ledger.requests[-1].messages[0]["content"]


@pytest.mark.parametrize(
    ("model", "refused_name", "message"),
    [
        (
            "openai_compatible/company-model",
            "max_tokens",
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'.",
        ),
        ("openai_compatible/gpt-5", "max_completion_tokens", "Unrecognized request argument: max_completion_tokens"),
        ("openai_compatible/gpt-5", "max_completion_tokens", "unknown field max_completion_tokens"),
    ],
)
def test_refused_output_bound_field_is_renamed(model: str, refused_name: str, message: str) -> None:
    """Whatever a deployment is called, its replies stay bounded."""
    has_name, refused = refusing(lambda asked: refused_name in asked.body, error(400, message, param=refused_name))
    with Provider(lambda _: {"mood": "good"}, fault=has_name) as provider:
        report = enriched(provider, model=model)
    assert (report.column("mood"), 1 <= len(refused) <= 4) == (["good"] * 8, True)
    last = provider.ledger.requests[-1].body
    assert [last[name] for name in last if name.startswith("max_")] == [50]


def test_server_without_any_of_these_features_is_served() -> None:
    """The refusals are handled one after another: system role, schema, name of the bound."""

    def fault(asked: ReceivedRequest) -> Effect:
        if "max_tokens" in asked.body:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")(asked)
        if "response_format" in asked.body:
            return error(400, "response_format is not supported")(asked)
        return NO_SYSTEM["vLLM with Gemma"](asked) if asked.messages[0]["role"] == "system" else None

    with Provider(lambda _: {"mood": "good"}, fault=fault) as provider:
        report = enriched(provider, rows=1)
    assert (report.column("mood"), len(provider.ledger.requests)) == (["good"], 4)


@pytest.mark.parametrize(
    "fault",
    [
        error(400, "The max_tokens value 50 is too large"),
        error(400, "Please reduce the length of the messages; max_tokens is 50."),
        error(400, "The input was blocked."),
    ],
)
def test_unrelated_refusal_is_not_retried_in_another_form(fault: Fault) -> None:
    """It is the row's failure."""
    with Provider(fault=fault) as provider:
        report = enriched(provider, rows=1)
    assert [isinstance(outcome, Failure) for outcome in report.outcomes] == [True]
    assert len(provider.ledger.requests) == 1


def test_persistent_refusal_ends_after_each_form_was_tried_once() -> None:
    """A server that always refuses is not asked without end."""
    calls = 0

    def fault(asked: ReceivedRequest) -> Canned:
        nonlocal calls
        calls += 1
        effect = NO_SYSTEM["vLLM with Gemma"](asked)
        assert isinstance(effect, Canned)
        return effect

    with Provider(fault=fault) as provider, pytest.raises(FatalError, match="System role not supported"):
        enriched(provider, rows=1)
    assert calls == 2


def test_ignored_schema_is_put_into_the_prompt() -> None:
    """If a server replies to a schema with plain text, few calls are repeated and no row is lost."""

    def talk(asked: ReceivedRequest) -> Effect:
        return Altered(message={"content": "It is good, I think."}) if "response_format" in asked.body else None

    with Provider(good, fault=talk) as provider:
        report = enriched(provider, rows=40)
    in_prompt = [asked for asked in provider.ledger.requests if "response_format" not in asked.body]
    assert report.column("mood") == ["good"] * 40
    assert len(provider.ledger.requests) - len(in_prompt) <= 4
    assert all('"enum":["good","bad"]' in asked.messages[0]["content"] for asked in in_prompt)


@pytest.mark.parametrize("fault", [truncated, empty], ids=["cut", "empty"])
def test_only_complete_non_json_text_counts_as_ignored_schema(fault: Fault) -> None:
    """Truncated or empty replies do not."""
    with Provider(good, fault=first(1, fault)) as provider:
        enriched(provider, rows=4)
    assert all("response_format" in asked.body for asked in provider.ledger.requests)


def test_server_that_used_a_schema_once_keeps_getting_it() -> None:
    """A later reply in plain text does not change the form."""
    with Provider(good, fault=matching("row 7", lambda _: Altered(message={"content": "It is good."}))) as provider:
        report = enriched(provider, rows=12, max_repairs=1)
    assert sum(isinstance(outcome, Failure) for outcome in report.outcomes) == 1
    assert all("response_format" in asked.body for asked in provider.ledger.requests)
