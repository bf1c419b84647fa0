from __future__ import annotations

from typing import Any

import pytest

from ondine_core import Failure, ModelSpec, Options, Policy, Report, RetryPolicy, enrich_sync
from ondine_core.batching.strategy import find_strategy
from ondine_core.providers.finish_reasons import FinishKind, finish_kind
from tests.support.provider import Altered, Provider, ReceivedRequest, status

HALF = "The kettle boils fast but the lid came lo"
# Each by the reference or the source of the provider beside it.
REASONS: list[tuple[str, FinishKind]] = [
    ("stop", "whole"),  # OpenAI
    ("eos", "whole"),  # Together
    ("eos_token", "whole"),  # Text Generation Inference
    ("stop_sequence", "whole"),  # Text Generation Inference, Anthropic
    ("end_turn", "whole"),  # Anthropic, Bedrock, xAI
    ("COMPLETE", "whole"),  # Cohere
    ("STOP", "whole"),  # Gemini
    ("length", "cut"),  # OpenAI
    ("max_tokens", "cut"),  # Anthropic, Bedrock
    ("MAX_TOKENS", "cut"),  # Gemini, Cohere
    ("model_length", "cut"),  # Mistral
    ("model_context_window_exceeded", "cut"),  # Anthropic, z.ai
    ("pause_turn", "cut"),  # Anthropic
    ("ERROR_LIMIT", "cut"),  # Cohere
    ("time_limit", "cut"),  # Watsonx
    ("an_unknown_reason", "cut"),
    ("", "cut"),
    ("tool_calls", "tool"),  # OpenAI
    ("function_call", "tool"),  # OpenAI, before tools
    ("MALFORMED_FUNCTION_CALL", "tool"),  # Gemini
    ("error", "broken"),  # OpenRouter, Mistral
    ("abort", "broken"),  # vLLM, SGLang
    ("insufficient_system_resource", "broken"),  # DeepSeek
    ("timeout", "broken"),  # Cohere
    ("network_error", "broken"),  # z.ai
    ("content_filter", "refused"),  # OpenAI, Azure
    ("refusal", "refused"),  # Anthropic
    ("SAFETY", "refused"),  # Gemini
    ("RECITATION", "refused"),  # Gemini
    ("PROHIBITED_CONTENT", "refused"),  # Gemini
    ("content_filter: PROHIBITED_CONTENT", "refused"),  # Gemini by OpenAI's dialect
    ("content_filter: A_NEW_REASON", "refused"),
    ("function_call_filter: MALFORMED_FUNCTION_CALL", "tool"),  # Gemini by OpenAI's dialect
    ("guardrail_intervened", "refused"),  # Bedrock
    ("sensitive", "refused"),  # z.ai
]


def enriched(provider: Provider, rows: list[str], output: Any = "summary", **policy: Any) -> Report:
    return enrich_sync(
        [{"text": row} for row in rows],
        prompt="Summarise: {text}",
        output=output,
        model=ModelSpec("openai_compatible/m", base_url=provider.base_url),
        options=Options(store=":memory:", policy=Policy(retry=RetryPolicy(first_wait_s=0.0), **policy)),
    )


def failed(report: Report) -> list[str]:
    return [outcome.reason for outcome in report.outcomes if isinstance(outcome, Failure)]


@pytest.mark.parametrize(("reason", "ending"), REASONS)
def test_finish_reasons_are_classified(reason: str, ending: FinishKind) -> None:
    """Only known reasons of a complete reply count as whole; an unknown one counts as truncated."""
    assert finish_kind(reason) == ending


@pytest.mark.parametrize(("reason", "ending"), REASONS)
def test_row_outcome_follows_the_finish_reason(reason: str, ending: FinishKind) -> None:
    """The text if the reply is whole, else a failure of the kind that the reason means."""
    with Provider(lambda _: HALF, fault=lambda _: Altered(choice={"finish_reason": reason})) as provider:
        report = enriched(provider, ["a"])
    expected = {"cut": "truncated", "tool": "invalid", "broken": "unreachable", "refused": "refused"}
    if ending == "whole":
        assert report.column("summary") == [HALF]
    else:
        assert (report.column("summary"), failed(report)) == ([None], [expected[ending]])


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        ({"finish_reason": None}, False),  # in OpenAI's schema: not finished yet
        ({"finish_reason": ""}, False),  # what SGLang and Ollama wrote for null
        ({"finish_reason": "stop", "native_finish_reason": "MAX_TOKENS"}, False),
        ({"finish_reason": "stop", "native_finish_reason": "SAFETY"}, False),
        ({"finish_reason": "stop", "native_finish_reason": "completed"}, True),
        ({"finish_reason": "stop", "native_finish_reason": "a word of the upstream's own"}, True),
        ({"finish_reason": "length", "native_finish_reason": "stop"}, False),
        ({"finish_reason": "tool_calls"}, False),
    ],
)
def test_upstream_finish_reason_takes_precedence(choice: dict[str, Any], kept: bool) -> None:
    """A reason that a router mapped to "stop" is read as its upstream sent it; null means incomplete."""
    with Provider(lambda _: HALF, fault=lambda _: Altered(choice=choice)) as provider:
        report = enriched(provider, ["a"])
    assert (report.column("summary") == [HALF]) is kept


def test_unknown_finish_reason_is_not_taken_for_the_bound_on_output() -> None:
    """The failure has the server's word and no advice that does not help."""
    altered = Altered(choice={"finish_reason": "an_unknown_reason"})
    with Provider(lambda _: HALF, fault=lambda _: altered) as provider:
        (error,) = enriched(provider, ["a"]).errors()
    assert (
        error == "truncated: the reply ended for an unknown reason (finish_reason 'an_unknown_reason'): it may be cut"
    )


def test_missing_finish_reason_field_means_whole() -> None:
    """A server without the field says nothing about the reply."""
    body = {"choices": [{"message": {"content": "hello"}}]}
    with Provider(fault=status(200, body)) as provider:
        assert enriched(provider, ["a"]).column("summary") == ["hello"]


def test_unoffered_tool_call_fails_the_row_once() -> None:
    """Content null with a tool that was not offered fails the row, without a repeated call."""
    altered = Altered(choice={"finish_reason": "tool_calls"}, message={"content": None})
    with Provider(fault=lambda _: altered) as provider:
        report = enriched(provider, ["a"])
    assert (failed(report), len(provider.ledger.requests)) == (["invalid"], 1)


@pytest.mark.parametrize("strategy", ["json", "jsonl", "csv", "xml"])
@pytest.mark.parametrize("reason", ["length", "max_tokens", "model_length", "made_up"])
def test_truncated_batch_is_asked_again_in_smaller_calls(strategy: str, reason: str) -> None:
    """Nothing of its text is used, not even records that look complete."""
    halves = {
        "json": '{"answers":[{"id":1,"answer":"half a sen',
        "jsonl": '{"id":1,"answer":"half"}\n{"id":2,"ans',
        "csv": '"id","answer"\n1,"half"\n2,ha',
        "xml": '<items><item id="1"><answer>half</answer></item></items>',
    }

    def answer(prompt: str) -> str:
        return "whole" if prompt.startswith("Summarise") else halves[strategy]

    def cut(asked: ReceivedRequest) -> Altered:
        return Altered(choice={"finish_reason": "stop" if asked.prompt.startswith("Summarise") else reason})

    with Provider(answer, fault=cut) as provider:
        report = enriched(provider, ["a", "b"], batch_size=2, strategy=find_strategy(strategy))
    assert (report.column("summary"), len(provider.ledger.requests)) == (["whole", "whole"], 3)
