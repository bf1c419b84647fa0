from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.pricing import FREE, Price, find_price
from ondine_core.values import Usage

PRICE = Price(Decimal("0.15e-6"), Decimal("0.6e-6"), Decimal("0.075e-6"))


def test_a_listed_model_has_its_price() -> None:
    """Prices are the exact decimals of the list, cached input included."""
    assert find_price("openai/gpt-4o-mini") == PRICE


def test_without_a_cached_price_cached_input_costs_as_much() -> None:
    """Where the list names no price for cached input, none is made up."""
    price = find_price("openai/gpt-4")
    assert price is not None
    assert price.cached_input == price.input > 0


@pytest.mark.parametrize(
    "model", ["llama_cpp/model.gguf", "llama_cpp//tmp/m.gguf", "mlx/any", "scripted/ScriptedModel"]
)
def test_a_model_in_this_process_is_free(model: str) -> None:
    """Local models cost nothing, and that is known."""
    assert find_price(model) == FREE
    assert FREE.cost(Usage(10**9, 10**8, 10**9)) == 0


@pytest.mark.parametrize(
    "model",
    [
        "openai/no-such-model",
        "groq/gpt-4o-mini",
        "hosted_vllm/gpt-4o-mini",
        "openai_compatible/gpt-4o-mini",
        "openai/",
        "",
    ],
)
def test_an_unknown_model_has_no_price(model: str) -> None:
    """An unknown model is not free, nor does it cost what a namesake costs elsewhere."""
    assert find_price(model) is None


def test_a_model_priced_otherwise_than_by_token_has_no_price() -> None:
    """A list entry that names no price per token, such as a picture's, is not taken for free."""
    assert find_price("openai/dall-e-3") is None


TOKENS = st.integers(0, 10**9)
USAGES = st.builds(
    lambda fresh, cached, output, reasoning: Usage(fresh + cached, cached, output + reasoning, reasoning),
    *[TOKENS] * 4,
)


def test_cost_of_a_call() -> None:
    """Fresh input, cached input and output are each paid at their own price; reasoning is output."""
    assert PRICE.cost(Usage(1_000_000, 400_000, 100_000, 50_000)) == Decimal("0.09") + Decimal("0.03") + Decimal("0.06")


@given(USAGES, USAGES)
def test_cost_adds_up(one: Usage, other: Usage) -> None:
    """The cost of a run is to the last digit the sum of its calls', and never negative."""
    assert PRICE.cost(one + other) == PRICE.cost(one) + PRICE.cost(other)
    assert PRICE.cost(one) >= 0


@given(USAGES)
def test_the_cache_only_saves(usage: Usage) -> None:
    """Input from a cache never costs more than fresh input."""
    assert PRICE.cost(usage) <= PRICE.cost(Usage(usage.input_tokens, 0, usage.output_tokens))
