from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.providers.model_data import model_facts
from ondine_core.providers.pricing import FREE, Price, find_entry, find_price, find_sent_name
from ondine_core.types.values import ModelSpec, Usage

PRICE = Price(Decimal("0.15e-6"), Decimal("0.6e-6"), Decimal("0.075e-6"))


def test_a_listed_model_has_its_price() -> None:
    """The exact decimals of the list, cached input included."""
    assert find_price("openai/gpt-4o-mini") == PRICE


def test_cached_input_without_a_price_costs_as_fresh_input() -> None:
    """Where the list names no price for cached input, none is made up."""
    price = find_price("openai/gpt-4")
    assert price is not None
    assert price.cached_input == price.input > 0


@pytest.mark.parametrize(
    "model", ["llama_cpp/model.gguf", "llama_cpp//tmp/m.gguf", "mlx/any", "scripted/ScriptedModel"]
)
def test_a_model_in_this_process_is_free(model: str) -> None:
    """Its cost is a known zero."""
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
    """It is neither free nor priced like a namesake elsewhere."""
    assert find_price(model) is None


@pytest.mark.parametrize(
    ("model", "is_free"),
    [
        ("ollama/llama3.1", True),
        ("lemonade/gpt-oss-20b-mxfp4-GGUF", True),
        ("opencode_go/beam-free", True),
        ("ollama/gpt-oss:20b-cloud", False),
        ("sagemaker/meta-textgeneration-llama-2-7b-f", False),
        ("vertex_ai/meta/llama-3.1-70b-instruct-maas", False),
        ("cohere/command-a-plus-05-2026", False),
        ("together_ai/together/Tev1-4B-experimental", False),
    ],
)
def test_a_listed_zero_is_a_price_only_where_models_are_free(model: str, *, is_free: bool) -> None:
    """On servers of one's own and under names that say so; elsewhere the list has 0 for what it does not know."""
    assert (find_entry(model) or {})["output_cost_per_token"] == 0
    assert find_price(model) == (FREE if is_free else None)


def test_a_model_priced_otherwise_than_by_token_has_no_price() -> None:
    """A list entry without a price per token, such as an image model's, is not free."""
    assert find_price("openai/dall-e-3") is None


def test_list_entry_has_window_and_reply_length() -> None:
    """Other modules read them from the same entry as the prices."""
    assert (find_entry("openai/gpt-4o-mini") or {})["max_input_tokens"] == 128_000
    assert find_entry("openai/no-such-model") is None


@pytest.mark.parametrize(
    ("model", "listed"),
    [
        ("bedrock/anthropic.claude-sonnet-4-6", "anthropic.claude-sonnet-4-6"),
        ("bedrock/us.anthropic.claude-sonnet-4-6", "us.anthropic.claude-sonnet-4-6"),
        ("bedrock/converse/us.anthropic.claude-sonnet-4-6", "us.anthropic.claude-sonnet-4-6"),
        ("bedrock/invoke/anthropic.claude-sonnet-4-6", "anthropic.claude-sonnet-4-6"),
        ("vertex_ai/gemini-2.5-pro", "gemini-2.5-pro"),
        ("cohere/command-a-03-2025", "command-a-03-2025"),
    ],
)
def test_a_model_is_found_under_each_name_that_the_list_has_for_its_provider(model: str, listed: str) -> None:
    """The list says `bedrock_converse` or `vertex_ai-language-models` where a model's name says its provider.

    An API of the provider that the name says is no part of the listed name, but of the name that is sent.
    """
    assert find_entry(model) is model_facts()[listed]
    assert find_sent_name(ModelSpec(model)) == model.partition("/")[2]
    assert find_price(model) is not None
    assert find_entry(f"openai/{listed}") is None


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        ("anthropic/claude-opus-latest", None),
        ("openai/gpt-sol-latest", None),
        ("xai/grok-latest", None),
        ("azure/gpt-sol-latest", "gpt-sol-latest"),
        ("openai/claude-opus-latest", "claude-opus-latest"),
        ("openai/gpt-4o-mini", "gpt-4o-mini"),
    ],
)
def test_litellms_name_for_the_latest_model_stands_for_that_model(model: str, sent: str | None) -> None:
    """Its facts are that model's, and a request names that model: the provider does not know the other name.

    A deployment of Azure has the name that its user gave it.
    """
    provider, _, name = model.partition("/")
    alias = model_facts().get(model, model_facts().get(name, {})).get("alias_of", "")
    target = alias.removeprefix(f"{provider}/")
    assert find_sent_name(ModelSpec(model)) == (target if sent is None else sent)
    assert find_sent_name(ModelSpec(model, base_url="http://127.0.0.1:1/v1")) == name
    if sent is None:
        assert find_price(model) == find_price(f"{provider}/{target}") is not None


# -- long prompts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "longest", "prices"),
    [
        ("gemini/gemini-2.5-pro", 200_000, ("1.25", "10", "0.125", "2.5", "15", "0.25")),
        ("openai/gpt-5.4", 272_000, ("2.5", "15", "0.25", "5", "22.5", "0.5")),
        ("dashscope/qwen-flash", 256_000, ("0.05", "0.4", "0.05", "0.25", "2", "0.25")),
        ("xai/grok-4.3", 199_999, ("1.25", "2.5", "0.2", "2.5", "5", "0.4")),
    ],
)
def test_long_prompt_price_applies_to_the_whole_call(model: str, longest: int, prices: tuple[str, ...]) -> None:
    """Beyond the listed length prompt, cached prompt and reply all cost more."""
    price = find_price(model)
    assert price is not None
    million = [Decimal(text) for text in prices]
    for tokens, (paid, answered, cached) in ((longest, million[:3]), (longest + 1, million[3:])):
        usage = Usage(tokens, 1000, 500)
        expected = (tokens - 1000) * paid + 1000 * cached + 500 * answered
        assert price.cost(usage) == expected / 1_000_000


def test_reasoning_tokens_have_their_listed_price() -> None:
    """They are part of the reply's tokens."""
    price = find_price("dashscope/qwen-turbo")
    assert price is not None
    assert price.cost(Usage(0, 0, 1_000_000, 400_000)) == Decimal("0.6") * Decimal("0.2") + Decimal("0.2")


def test_longest_exceeded_length_decides_the_price() -> None:
    """In any order of the list's entries."""
    one, two, three = (Price(Decimal(usd), Decimal(0), Decimal(0)) for usd in (1, 2, 3))
    price = Price(Decimal(1), Decimal(0), Decimal(0), beyond=((200, three), (100, two)))
    for tokens, expected in ((100, one), (101, two), (200, two), (201, three)):
        assert price.cost(Usage(tokens)) == expected.cost(Usage(tokens))


USD = st.decimals(0, "0.001", places=9)
FLAT = st.builds(Price, USD, USD, USD, USD | st.none(), cache_write=USD | st.none())
PRICES = st.builds(
    lambda price, beyond: replace(price, beyond=tuple(beyond)),
    FLAT,
    st.lists(st.tuples(st.integers(1, 2000), FLAT), max_size=3),
)


@given(PRICES, st.integers(0, 3000), st.integers(0, 3000), st.data())
def test_no_shorter_call_costs_more_than_the_bound(price: Price, sent: int, received: int, data: st.DataObject) -> None:
    """A bound on tokens bounds the cost, even if a longer prompt, the cache or reasoning costs more."""
    bound = price.at_most(sent, received)
    shorter, reply = data.draw(st.integers(0, sent)), data.draw(st.integers(0, received))
    cached, thinking = data.draw(st.integers(0, shorter)), data.draw(st.integers(0, reply))
    usage = Usage(shorter, cached, reply, thinking, data.draw(st.integers(0, shorter - cached)))
    assert price.cost(usage) <= bound
    assert price.at_most(shorter, reply) <= bound


def test_cache_writes_have_their_listed_price() -> None:
    """Without a listed price they cost as fresh input."""
    million = Usage(1_000_000, cache_write_tokens=1_000_000)
    dear, plain = find_price("anthropic/claude-sonnet-4-5"), find_price("openai/gpt-4o-mini")
    assert dear is not None
    assert plain is not None
    assert dear.cost(million) == Decimal("3.75")
    assert plain.cost(million) == Decimal("0.15")


# -- sums ----------------------------------------------------------------------------------------------------------

TOKENS = st.integers(0, 10**9)
USAGES = st.builds(
    lambda fresh, cached, output, reasoning: Usage(fresh + cached, cached, output + reasoning, reasoning),
    *[TOKENS] * 4,
)


def test_cost_of_a_call() -> None:
    """Fresh input, cached input and output each have their price; reasoning is output."""
    assert PRICE.cost(Usage(1_000_000, 400_000, 100_000, 50_000)) == Decimal("0.09") + Decimal("0.03") + Decimal("0.06")


@given(USAGES, USAGES)
def test_cost_adds_up(one: Usage, other: Usage) -> None:
    """Without length-dependent prices the cost of a run is exactly the sum of its calls'; never negative."""
    assert PRICE.cost(one + other) == PRICE.cost(one) + PRICE.cost(other)
    assert PRICE.cost(one) >= 0


@given(USAGES)
def test_cached_input_never_costs_more_than_fresh_input(usage: Usage) -> None:
    """Input from a cache never costs more than fresh input."""
    assert PRICE.cost(usage) <= PRICE.cost(Usage(usage.input_tokens, 0, usage.output_tokens))


def test_tokens_of_unknown_kind_count_at_the_dearer_price() -> None:
    """The charge is the dearer of both prices, the proven cost the cheaper."""
    long = Price(Decimal(3), Decimal(3), Decimal(3), per_request=Decimal(5))
    price = Price(Decimal(1), Decimal(2), Decimal(1), beyond=((1, long),))
    usage = Usage(1, output_tokens=2, unexplained_tokens=1)
    assert price.cost(usage) == 5 + 3 * 3
    assert price.proven(usage) == 1 + 2 + 1
