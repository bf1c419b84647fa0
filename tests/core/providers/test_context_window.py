from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.prompts.output_schema import compile_schema
from ondine_core.providers.context_window import (
    CallCapacity,
    estimate_answer_tokens,
    estimate_tokens,
    get_context_limit,
    get_output_limit,
    learn_answer_tokens,
    suggest_batch_size,
    validate_batch_size,
)
from ondine_core.types.values import ModelSpec

# -- the model's limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("openai/gpt-4o-mini", 128_000),
        ("openai/gpt-4", 8_192),
        ("azure/gpt-4o-mini", 128_000),
        ("gemini/gemini-gemma-2-9b-it", 8_192),  # an old entry, with one figure for window and reply
        ("openai/no-such-model", None),
        ("hosted_vllm/gpt-4o-mini", None),
        ("llama_cpp/model.gguf", None),
        ("", None),
    ],
)
def test_the_window_of_a_model(model: str, tokens: int | None) -> None:
    """A listed model has its window; an unlisted one, or a namesake elsewhere, has no known window."""
    assert get_context_limit(model) == tokens


@pytest.mark.parametrize(
    ("model", "allowed", "tokens"),
    [
        ("openai/gpt-4o-mini", None, 16_384),
        ("openai/gpt-4o-mini", 500, 500),
        ("openai/gpt-4o-mini", 99_999, 16_384),
        ("test/m", 500, 500),
        ("test/m", None, None),
    ],
)
def test_the_bound_on_a_reply(model: str, allowed: int | None, tokens: int | None) -> None:
    """Both the model's bound and the user's hold."""
    assert get_output_limit(ModelSpec(model, max_output_tokens=allowed)) == tokens


# -- estimates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("word", 2), ("größe", 4), ("\ud800", 2)])
def test_estimate_is_one_token_for_two_bytes(text: str, tokens: int) -> None:
    """A text has half as many tokens as bytes in UTF-8, rounded up, also with a lone surrogate."""
    assert estimate_tokens(text) == tokens


@given(st.text(), st.text())
def test_longer_texts_have_more_tokens(one: str, other: str) -> None:
    """The parts of a text are never estimated at less than the whole."""
    assert estimate_tokens(one) <= estimate_tokens(one + other) <= estimate_tokens(one) + estimate_tokens(other)


def answer_tokens(output: Any, **settings: Any) -> int:
    return estimate_answer_tokens(compile_schema(output).json_schema, **settings)


def test_a_choice_is_as_long_as_its_longest_option() -> None:
    """The estimate for a closed schema covers every possible answer."""
    output = {"mood": {"enum": ["good", "somewhat mixed"]}, "sure": bool, "stars": int, "day": {"enum": [None, "Mon"]}}
    longest = {"id": 100, "mood": "somewhat mixed", "sure": False, "stars": 12345, "day": "Mon"}
    assert answer_tokens(output, count=len) == len(json.dumps(longest, separators=(",", ":")))


@pytest.mark.parametrize(
    ("shorter", "longer"),
    [
        ({"a": bool}, {"a": str}),
        ({"a": {"type": "string", "maxLength": 10}}, {"a": str}),
        ({"a": str}, {"a": str, "b": str}),
        ({"a": str}, {"a": list[str]}),
        ({"a": {"type": "array", "items": {"type": "string"}, "maxItems": 1}}, {"a": list[str]}),
        ({"a": {"type": "string", "format": "date"}}, {"a": {"type": "string", "format": "date-time"}}),
        ({"a": str}, {"a": {"type": "object", "properties": {"b": "string", "c": "number"}}}),
        ({"a": str}, "free text"),
    ],
)
def test_larger_schemas_have_longer_answers(shorter: Any, longer: Any) -> None:
    """The estimate grows with the fields; making a field optional changes nothing."""
    assert answer_tokens(shorter) < answer_tokens(longer)


def test_nullable_value_is_estimated_as_present() -> None:
    """What may be null is estimated as if it never were."""
    assert answer_tokens({"a": {"type": "string", "nullable": True}}) == answer_tokens({"a": str})


# -- what fits -----------------------------------------------------------------------------------------------------

LIMITS = st.none() | st.integers(1, 5_000)
ROOMS = st.builds(CallCapacity, LIMITS, LIMITS, st.integers(0, 300), st.integers(1, 100), st.integers(0, 500))


@given(ROOMS, st.integers(0, 100), st.integers(1, 300))
def test_suggested_size_is_the_largest_that_fits(capacity: CallCapacity, row_tokens: int, most: int) -> None:
    """As many rows as fit window and reply, at most the requested number, and at least one."""
    size = suggest_batch_size(capacity, row_tokens, most)
    assert 1 <= size <= most
    assert size == 1 or capacity.fits(size, size * row_tokens)
    assert size == most or not capacity.fits(size + 1, (size + 1) * row_tokens)


@given(ROOMS, st.integers(0, 100), st.integers(1, 300))
def test_advice_is_given_when_a_size_does_not_fit(capacity: CallCapacity, row_tokens: int, size: int) -> None:
    """There is advice if and only if fewer rows fit, and it says how many."""
    fitting = suggest_batch_size(capacity, row_tokens, size)
    advice = validate_batch_size(size, capacity, row_tokens)
    assert (advice is None) == (fitting == size)
    assert advice is None or f"about {fitting} rows" in advice


def test_advice_names_the_exceeded_limit() -> None:
    """It says which limit the size exceeds and the size to expect."""
    assert validate_batch_size(200, CallCapacity(output_tokens=4_096, answer_tokens=80)) == (
        "batch_size=200 exceeds the size of one reply (max_output_tokens=4096), at 80 tokens an answer; "
        "calls will carry about 51 rows."
    )
    assert validate_batch_size(20, CallCapacity(8_192, None, 192, 100), 700) == (
        "batch_size=20 exceeds the model's window of 8192 tokens, of which 192 go to instructions, "
        "at 100 tokens an answer and 700 a row; calls will carry about 10 rows."
    )


def test_without_known_limits_every_size_fits() -> None:
    """The provider decides then."""
    assert CallCapacity().fits(10**6, 10**9)
    assert suggest_batch_size(CallCapacity(), 10**6) == 100
    assert validate_batch_size(10**6, CallCapacity(), 10**6) is None


# -- learning ------------------------------------------------------------------------------------------------------


@given(ROOMS, st.integers(1, 50), st.integers(1, 10_000), st.booleans())
def test_longer_answer_raises_the_estimate_at_once(
    capacity: CallCapacity, rows: int, output_tokens: int, cut: bool
) -> None:
    """After a reply at least as many tokens are expected as its answers had; after a truncated one twice as many."""
    learnt = learn_answer_tokens(capacity, rows, output_tokens, cut=cut)
    assert learnt.answer_tokens * rows >= output_tokens * (1 + cut)
    assert capacity.answer_tokens - learnt.answer_tokens <= capacity.answer_tokens / 8


def test_shorter_answers_lower_the_estimate_gradually() -> None:
    """One long answer is remembered for a while, not for ever."""
    capacity = CallCapacity(answer_tokens=400)
    for _ in range(100):
        capacity = learn_answer_tokens(capacity, 10, 200)
    assert 25 <= capacity.answer_tokens <= 32


def test_reply_without_usage_does_not_change_the_estimate() -> None:
    """It does not count as a reply of length 0."""
    assert learn_answer_tokens(CallCapacity(answer_tokens=40), 10, 0) == CallCapacity(answer_tokens=40)
