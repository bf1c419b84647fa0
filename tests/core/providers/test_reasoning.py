from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core import ConfigError, Failure, ModelSpec, Options, Policy, Report, enrich_sync
from ondine_core.prompts.task import cache_key, compile_task
from ondine_core.providers import connect
from ondine_core.providers.reply_text import strip_reasoning
from tests.support.asking import one_call_to
from tests.support.batches import ids_in
from tests.support.provider import Altered, Provider, status

MOOD = {"mood": {"type": "string", "enum": ["good", "bad"]}}
SCORE = re.compile(r"(?P<score>\d+)/10")
THOUGHTS = 'The user wants {"mood": "bad"}? Perhaps 3/10, or 7/10.'
WRAPPED = {
    "think": f"<think>\n{THOUGHTS}\n</think>\n\n",
    "empty": "<think>\n\n</think>\n\n",
    "thinking": f"<thinking>{THOUGHTS}</thinking>",
    "reasoning": f"<reasoning>\n{THOUGHTS}\n</reasoning>\n",
    "thought": f"<thought>{THOUGHTS}</thought>",
    "capitals and an attribute": f'<Think effort="low">{THOUGHTS}</Think>\n',
    "unopened": f"{THOUGHTS}\n</think>\n\n",
    "unopened, answer right behind": f"{THOUGHTS}</think>",
    "two blocks": f"<think>{THOUGHTS}</think>\n<think>{THOUGHTS}</think>\n",
    "brackets": f"[THINK]{THOUGHTS}[/THINK]",
    "special tokens": f"<|START_THINKING|>{THOUGHTS}<|END_THINKING|>",
    "channels": f"<|channel|>analysis<|message|>{THOUGHTS}<|end|><|start|>assistant<|channel|>final<|message|>",
    "channels, constrained": f"<|channel|>analysis<|message|>{THOUGHTS}<|channel|>final <|constrain|>json<|message|>",
    "channels without their tokens": f"analysis{THOUGHTS}assistantfinal",
}
every_wrapping = pytest.mark.parametrize("thoughts", WRAPPED.values(), ids=WRAPPED)


def enriched(provider: Provider, output: Any, rows: int = 1, **policy: Any) -> Report:
    return enrich_sync(
        [{"text": f"t{number}"} for number in range(rows)],
        prompt="Judge: {text}",
        output=output,
        model=ModelSpec("hosted_vllm/qwen3", base_url=provider.base_url),
        options=Options(store=":memory:", policy=Policy(**policy)),
    )


def failures(report: Report) -> list[Failure]:
    return [outcome for outcome in report.outcomes if isinstance(outcome, Failure)]


@every_wrapping
@pytest.mark.parametrize(
    ("output", "answer", "expected"),
    [(MOOD, '{"mood": "good"}', "good"), ("label", "A fine kettle.", "A fine kettle."), (SCORE, "9/10", "9")],
    ids=["object", "free text", "regular expression"],
)
def test_reasoning_before_an_answer_is_removed(thoughts: str, output: Any, answer: str, expected: str) -> None:
    """A row gets the reply after the reasoning, from one call."""
    with Provider(lambda _: thoughts + answer) as provider:
        report = enriched(provider, output)
    (column,) = report.columns
    assert (report.column(column), len(provider.ledger.requests)) == ([expected], 1)


@every_wrapping
def test_reasoning_before_a_batch_reply_is_removed(thoughts: str) -> None:
    """Also within a code fence."""

    def answer(prompt: str) -> str:
        moods = zip(ids_in(prompt), ("good", "bad"), strict=True)
        answers = [{"id": number, "mood": mood} for number, mood in moods]
        return f"{thoughts}```json\n{json.dumps({'answers': answers})}\n```"

    with Provider(answer) as provider:
        report = enriched(provider, MOOD, 2, batch_size=2)
    assert (report.column("mood"), len(provider.ledger.requests)) == (["good", "bad"], 1)


@pytest.mark.parametrize(
    "text",
    [
        "<think>no end",
        "<thinking>no end",
        "[THINK]no end",
        "<|channel|>analysis<|message|>no end",
        "<think>only thoughts</think>\n",
        "only thoughts\n</think>",
    ],
)
@pytest.mark.parametrize("output", ["label", SCORE], ids=["free text", "regular expression"])
def test_reasoning_without_an_answer_is_truncated(text: str, output: Any) -> None:
    """Reasoning that does not end, or has no reply after it, never becomes an answer and is not repeated."""
    with Provider(lambda _: text.replace("no end", "3/10")) as provider:
        report = enriched(provider, output)
    (failure,) = failures(report)
    assert (failure.reason, len(provider.ledger.requests)) == ("truncated", 1)
    assert "lower reasoning_effort" in failure.detail


@pytest.mark.parametrize(
    "answer",
    [
        "Close it with `</think>` at the end.",
        "The tag </think> closes what <think> opens.",
        "It says:\n<think>hm</think>\nand no more.",
        'The text "</think>" is a tag.',
        "First <thinking> then </thinking>\nis said.",
        "analysis of the final report",
    ],
)
def test_reasoning_marks_within_an_answer_stay(answer: str) -> None:
    """Only the beginning of a reply is searched for them."""
    assert strip_reasoning(answer) == answer
    assert strip_reasoning(f"<think>hm</think>{answer}") == answer


def test_closing_mark_from_the_row_is_not_reasoning() -> None:
    """A reply may repeat a lone closing mark of its row."""
    reply = "User: hm\n</think>\nBot: yes"
    assert strip_reasoning(reply, asked=f"Translate: {reply}") == reply
    assert strip_reasoning(reply) == "\nBot: yes"


@given(st.text(alphabet="ab <>/{}\"'\n", max_size=40), st.text(alphabet="ab {}\"'\n", min_size=1, max_size=40))
def test_text_after_a_reasoning_block_is_unchanged(thoughts: str, answer: str) -> None:
    """For any reasoning without the closing mark; without marks nothing changes."""
    assert strip_reasoning(answer) == answer
    assert strip_reasoning(f"<think>{thoughts}</think>{answer}") == (answer if answer.strip() else None)


@pytest.mark.parametrize(
    "content",
    [
        [
            {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
            {"type": "text", "text": "good"},
        ],  # Mistral
        [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "good"}],
        [{"text": "go"}, {"type": "output_text", "text": "od"}],
    ],
)
def test_reasoning_parts_are_not_in_the_text(content: list[dict[str, Any]]) -> None:
    """Content given in parts is the text of its text parts."""
    with Provider(fault=lambda _: Altered(message={"content": content})) as provider:
        assert enriched(provider, "label").column("label") == ["good"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("content", [None, "", "  "])
def test_answer_only_in_the_reasoning_is_a_failure(field: str, content: str | None) -> None:
    """JSON that a server puts into the reasoning alone is not an answer; the failure says so, after one call."""
    altered = Altered(message={"content": content, field: '{"mood": "good"}'})
    with Provider(fault=lambda _: altered) as provider:
        (failure,) = failures(enriched(provider, MOOD))
    assert (failure.reason, len(provider.ledger.requests)) == ("invalid", 1)
    assert "reasoning_content" in failure.detail


@pytest.mark.parametrize(
    ("message", "usage"),
    [
        ({"content": "", "reasoning_content": "Hm"}, {}),
        ({"content": None}, {"completion_tokens_details": {"reasoning_tokens": 40}}),
        ({"content": "<think>Hm, wait"}, {}),
    ],
    ids=["field", "count", "text"],
)
def test_reply_truncated_while_reasoning_says_so(message: Mapping[str, Any], usage: Mapping[str, Any]) -> None:
    """The output bound includes reasoning; the row's failure says to change it."""
    counts = {"prompt_tokens": 9, "completion_tokens": 40, **usage}
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "length"}
    with Provider(fault=status(200, {"choices": [choice], "usage": counts})) as provider:
        (failure,) = failures(enriched(provider, "label"))
    assert failure.reason == "truncated"
    assert "was cut by the provider while the model was thinking; raise max_output_tokens, or lower" in failure.detail


def test_reply_truncated_in_its_answer_does_not_mention_reasoning() -> None:
    """Finished reasoning did not cause the truncation."""
    choice = {"message": {"content": "<think>Hm</think>half", "reasoning_content": "Hm"}, "finish_reason": "length"}
    usage = {"prompt_tokens": 9, "completion_tokens": 40, "completion_tokens_details": {"reasoning_tokens": 30}}
    with Provider(fault=status(200, {"choices": [choice], "usage": usage})) as provider:
        (failure,) = failures(enriched(provider, "label"))
    assert failure.detail == "the reply was cut by the provider; raise max_output_tokens"


# -- reasoning effort ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["openai/gpt-5-mini", "anthropic/claude-sonnet-4-5", "openai_compatible/m"])
def test_effort_field_has_the_key_of_effort_in_params(model: str) -> None:
    """Answers stored with it in params are found, and another effort asks again."""

    def key(**spec: Any) -> bytes:
        return cache_key(compile_task("Rate: {text}", {"label": "string"}, ModelSpec(model, **spec)))("Rate: x")

    assert key(reasoning_effort="low") == key(params={"reasoning_effort": "low"})
    assert len({key(), key(reasoning_effort="low"), key(reasoning_effort="high")}) == 3
    assert key(params={"seed": 1}, reasoning_effort="low") == key(params={"reasoning_effort": "low", "seed": 1})
    assert key(prompt_cache="1h") == key()


def test_effort_is_sent_and_is_set_once() -> None:
    """As OpenAI's request field; a second value in params is an error."""
    with Provider() as provider:
        one_call_to(provider.base_url, reasoning_effort="low")
    assert provider.ledger.requests[0].body["reasoning_effort"] == "low"
    for params in ({"reasoning_effort": "high"}, {"extra_body": {"reasoning_effort": "high"}}):
        with pytest.raises(ConfigError, match="is set twice"):
            one_call_to("http://127.0.0.1:9/v1", reasoning_effort="low", params=params)
    with pytest.raises(ConfigError, match="which take 1 only"):
        connect(ModelSpec("openai/gpt-5.1", api_key="k", temperature=0.2, reasoning_effort="high"))


@pytest.mark.parametrize(
    ("model", "spec", "is_refused"),
    [
        ("openai/gpt-5.5", {}, True),
        ("openai/gpt-5.6-luna", {}, True),
        ("openai/gpt-6.1-terra", {}, True),
        ("openai/gpt-6-luna", {"reasoning_effort": "none"}, False),
        ("openai/gpt-6-luna", {"temperature": 1}, False),
        ("openai/gpt-6-luna", {"base_url": "http://127.0.0.1:9/v1"}, False),
        ("openrouter/openai/gpt-5.5", {}, False),
        ("openai/gpt-5.4", {}, False),
        ("openai/gpt-5.1", {}, False),
        ("openai/gpt-5.3-chat-latest", {}, False),
        ("openai/gpt-5-mini", {"reasoning_effort": "none"}, True),
    ],
)
def test_temperature_is_refused_where_a_model_reasons_by_default(
    model: str, spec: dict[str, Any], is_refused: bool
) -> None:
    """From GPT-5.5 on the default effort is not none, so every call with another temperature would be refused."""
    given = ModelSpec(model, api_key="k", **{"temperature": 0.2, **spec})
    if is_refused:
        with pytest.raises(ConfigError, match="which take 1 only"):
            connect(given)
    else:
        connect(given)
