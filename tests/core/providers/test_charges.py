"""The cost of a reply for every way in which servers report usage and cost, against the provider's own bill."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondine_core import Price, enrich_sync
from ondine_core.api import answer
from ondine_core.engine.cost_tracker import CostTracker
from ondine_core.engine.options import Options
from ondine_core.engine.policy import Policy
from ondine_core.errors import BudgetExhaustedError, ConfigError
from ondine_core.prompts.task import compile_task
from ondine_core.providers.charges import Charge, check_usage, decide_charge
from ondine_core.providers.openai_http import chat_reply
from ondine_core.providers.pricing import find_price, find_unpriced_part
from ondine_core.providers.usage import stated_usd_in, stated_usd_of, usage_of
from ondine_core.types.clock import Clock
from ondine_core.types.values import Call, Message, ModelSpec, Reply, Usage
from tests.core.limits.test_budget import WatchedStore
from tests.support.asking import ask, options, texts
from tests.support.provider import Canned, Provider, ReceivedRequest
from tests.support.virtual_clock import run_virtually

Json = Mapping[str, Any]


# -- the law: bill <= charged <= reserved ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What a provider really counted for a call, which replies report in different ways."""

    fresh: int
    read: int
    written: int
    plain: int
    thought: int

    @property
    def sent(self) -> int:
        return self.fresh + self.read + self.written

    @property
    def received(self) -> int:
        return self.plain + self.thought

    def bill(self, price: Price) -> Decimal:
        """The provider's bill: the price tier of the prompt's length, each kind of token at its price, and the fee."""
        tier = price
        for length, dearer in sorted(price.beyond, key=lambda one: one[0]):
            tier = dearer if self.sent > length else tier
        written = tier.input if tier.cache_write is None else tier.cache_write
        thought = tier.output if tier.reasoning is None else tier.reasoning
        parts = (
            (self.fresh, tier.input),
            (self.read, tier.cached_input),
            (self.written, written),
            (self.plain, tier.output),
            (self.thought, thought),
        )
        return tier.per_request + sum((count * usd for count, usd in parts), Decimal(0))


def openai(truth: Truth) -> dict[str, Any]:
    return {
        "prompt_tokens": truth.sent,
        "completion_tokens": truth.received,
        "total_tokens": truth.sent + truth.received,
        "prompt_tokens_details": {"cached_tokens": truth.read, "cache_write_tokens": truth.written},
        "completion_tokens_details": {"reasoning_tokens": truth.thought},
    }


def anthropic(truth: Truth) -> dict[str, Any]:
    return {
        "input_tokens": truth.fresh,
        "cache_read_input_tokens": truth.read,
        "cache_creation_input_tokens": truth.written,
        "output_tokens": truth.received,
        "output_tokens_details": {"reasoning_tokens": truth.thought},
    }


def without(usage: Json, *names: str) -> dict[str, Any]:
    return {name: value for name, value in usage.items() if name not in names}


def each(usage: Json, change: Callable[[int], Any]) -> dict[str, Any]:
    return {name: change(value) if isinstance(value, int) else each(value, change) for name, value in usage.items()}


SHAPES: Mapping[str, Callable[[Truth], Any]] = {
    "as OpenAI writes it": openai,
    "as Anthropic writes it": anthropic,
    "alone in a list": lambda truth: [openai(truth)],
    "as texts": lambda truth: each(openai(truth), str),
    "as floats": lambda truth: each(openai(truth), float),
    "a total that was left at 0": lambda truth: openai(truth) | {"total_tokens": 0},
    "without a total": lambda truth: without(openai(truth), "total_tokens"),
    "reasoning apart, as xAI counts it": lambda truth: openai(truth) | {"completion_tokens": truth.plain},
    "reasoning left out of all but the total": lambda truth: (
        without(openai(truth), "completion_tokens_details") | {"completion_tokens": truth.plain}
    ),
    "the cache apart": lambda truth: openai(truth) | {"prompt_tokens": truth.fresh},
    "absent": lambda _: None,
    "empty": lambda _: {},
    "a text": lambda _: "unknown",
    "a list of two": lambda truth: [openai(truth), openai(truth)],
    "zeros": lambda truth: each(openai(truth), lambda _: 0),
    "nulls": lambda truth: each(openai(truth), lambda _: None),
    "negative": lambda truth: each(openai(truth), lambda count: -count - 1),
    "not numbers": lambda truth: each(openai(truth), lambda _: float("nan")),
    "infinite": lambda truth: each(openai(truth), lambda _: float("inf")),
    "booleans": lambda truth: each(openai(truth), bool),
    "fractions": lambda truth: each(openai(truth), lambda count: count + 0.5),
    "beyond belief": lambda truth: each(openai(truth), lambda count: 10**15 + count),
    "beyond 64 bits": lambda truth: each(openai(truth), lambda count: 2**70 + count),
    "the prompt alone": lambda truth: {"prompt_tokens": truth.sent},
    "the reply alone": lambda truth: {"completion_tokens": truth.received, "total_tokens": truth.sent + truth.received},
    "no prompt": lambda truth: openai(truth) | {"prompt_tokens": 0},
    "no reply": lambda truth: openai(truth) | {"completion_tokens": None},
    "a total less than its parts": lambda truth: openai(truth) | {"total_tokens": max(0, truth.sent - 1)},
    "a total that is none": lambda truth: openai(truth) | {"total_tokens": "many"},
    "more reasoning than reply": lambda truth: (
        without(openai(truth), "total_tokens") | {"completion_tokens": max(0, truth.thought - 1)}
    ),
    "details that are none": lambda truth: (
        openai(truth) | {"prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": [1]}}
    ),
}
"""Ways in which servers, gateways and proxies report usage, observed and possible."""
EXACT = ("as OpenAI writes it", "as Anthropic writes it", "alone in a list", "as texts", "as floats", "without a total")

RATES = st.decimals(0, "0.001", places=9)
FLAT = st.tuples(RATES, RATES, RATES, RATES | st.none(), RATES | st.none(), RATES).map(
    lambda rates: Price(rates[0], rates[1], min(rates[0], rates[2]), rates[3], (), rates[4], rates[5])
)
PRICES = st.builds(
    lambda price, beyond: replace(price, beyond=tuple(beyond)),
    FLAT,
    st.lists(st.tuples(st.integers(1, 400), FLAT), max_size=2),
)
MAX_OUTPUT = 300
CALL = Call((Message("user", "x" * 400),))
TRUTHS = st.builds(Truth, st.integers(1, 200), *[st.integers(0, 100)] * 2, st.integers(1, 150), st.integers(0, 150))


def charge_of(completion: Json, price: Price) -> tuple[Charge, Decimal]:
    """The engine's charge for a completion, and what was reserved for it."""
    bound = CostTracker(price, MAX_OUTPUT).bound(CALL)
    assert bound is not None
    reply = chat_reply({"choices": [{"message": {"content": "fine"}}], **completion})
    return decide_charge(check_usage(reply.usage, reply.text), reply.stated_usd, price, bound), bound


@settings(max_examples=400)
@given(TRUTHS, PRICES, st.sampled_from(sorted(SHAPES)))
def test_solvent_by_the_providers_bill(truth: Truth, price: Price, shape: str) -> None:
    """For every way to report usage the charge is between the bill and the reservation, and exact where it can be."""
    charge, bound = charge_of({"usage": SHAPES[shape](truth)}, price)
    assert charge.usd is not None
    assert truth.bill(price) <= charge.usd <= bound
    if shape in EXACT:
        assert charge == Charge(truth.bill(price))
    if charge.usd > truth.bill(price) and "details" not in shape:
        assert charge.at_most, "a figure that may be too large says so"


@settings(max_examples=100)
@given(TRUTHS, PRICES, st.sampled_from(sorted(SHAPES)), st.decimals("0.000001", "0.5", places=10), st.integers(0, 4))
def test_stated_cost_is_the_charge(truth: Truth, price: Price, shape: str, usd: Decimal, way: int) -> None:
    """As stated by OpenRouter, xAI, Perplexity or DeepInfra, also with the user's own key, whatever the tokens say."""
    stated = (
        {"cost": float(usd), "is_byok": False, "cost_details": {"upstream_inference_cost": float(usd)}},
        {"cost_in_usd_ticks": int(usd * 10**10)},
        {"cost": {"input_tokens_cost": 0.0, "total_cost": float(usd)}},
        {"estimated_cost": str(usd)},
        {"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": float(usd)}},
    )[way]
    usage = SHAPES[shape](truth)
    charge, _ = charge_of({"usage": {**(usage if isinstance(usage, dict) else {}), **stated}}, price)
    assert charge == Charge(usd)


class Gateway:
    """A model whose completions report usage in each of several ways in turn."""

    max_concurrency: int | None = 8
    max_batch_size: int | None = None

    def __init__(self, replies: list[tuple[Truth, str, str]], price: Price, takes_s: list[float]) -> None:
        self._replies, self._price, self._takes_s = replies, price, takes_s
        self.calls, self.billed = 0, Decimal(0)

    async def __call__(self, call: Call) -> Reply:  # noqa: ARG002
        truth, shape, finish_reason = self._replies[self.calls % len(self._replies)]
        takes_s = self._takes_s[self.calls % len(self._takes_s)]
        self.calls += 1
        self.billed += truth.bill(self._price)
        await Clock().sleep(takes_s)
        choice = {"message": {"content": '{"answer": "fine"}'}, "finish_reason": finish_reason}
        return chat_reply({"choices": [choice], "usage": SHAPES[shape](truth)})

    async def aclose(self) -> None:
        """Nothing to close."""


QUESTION = compile_task("Say: {text}", {"answer": str}, ModelSpec("test/gateway", max_output_tokens=MAX_OUTPUT))
SMALL = st.builds(
    Truth, st.integers(1, 20), st.integers(0, 2), st.integers(0, 2), st.integers(1, 150), st.integers(0, 150)
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(SMALL, st.sampled_from(sorted(SHAPES)), st.sampled_from(["stop", "length"])), min_size=1, max_size=6
    ),
    PRICES,
    st.decimals("0.01", "1", places=4),
    st.integers(1, 40),
    st.lists(st.floats(0, 3), min_size=1, max_size=5),
)
def test_bill_is_within_the_charge_and_the_cap_at_every_instant(
    replies: list[tuple[Truth, str, str]], price: Price, cap: Decimal, rows: int, takes_s: list[float]
) -> None:
    """With eight workers and any usage and finish, bill <= charged <= cap."""
    model, store = Gateway(replies, price, takes_s), WatchedStore()

    async def main(clock: Clock) -> None:
        policy = Policy(max_concurrency=8, max_repairs=1)
        chosen = Options(store=store, policy=policy, clock=clock, price=price, max_cost_usd=cap)
        with suppress(BudgetExhaustedError):
            await answer({"text": [f"{number:02d}" for number in range(rows)]}, QUESTION, chosen, model)

    run_virtually(main)
    assert max(store.most_charged.values(), default=Decimal(0)) <= cap
    for charged, settled in store.charged:
        assert model.billed <= settled == charged


# -- observed forms of usage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # xAI: reasoning tokens are outside completion_tokens and inside total_tokens.
        (
            {
                "prompt_tokens": 32,
                "completion_tokens": 9,
                "total_tokens": 1041,
                "completion_tokens_details": {"reasoning_tokens": 1000},
            },
            Usage(32, 0, 1009, 1000),
        ),
        # A gateway before Gemini that maps candidates only and drops reasoning tokens.
        ({"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623}, Usage(20, 0, 603, 0, 0, 405)),
        # LiteLLM's proxy, of a provider that gives no total.
        ({"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 0}, Usage(20, 0, 198)),
        # Another one, of a reply that is nothing but reasoning.
        (
            {
                "prompt_tokens": 21,
                "completion_tokens": 0,
                "total_tokens": 81,
                "completion_tokens_details": {"reasoning_tokens": 60},
            },
            Usage(21, 0, 60, 60),
        ),
        # DeepSeek's names for the cache.
        (
            {"prompt_tokens": 9, "completion_tokens": 2, "prompt_cache_hit_tokens": 5, "prompt_cache_miss_tokens": 4},
            Usage(9, 5, 2),
        ),
        # litellm's proxy gives both names; its prompt_tokens include the cache.
        (
            {"prompt_tokens": 30, "completion_tokens": 2, "total_tokens": 32, "cache_creation_input_tokens": 20},
            Usage(30, 0, 2, 0, 20),
        ),
        # Anthropic: what was cached is counted apart, by how long it is kept; thinking is within the output.
        (
            {
                "input_tokens": 4,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 30,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
                "output_tokens": 9,
                "output_tokens_details": {"thinking_tokens": 5},
                "service_tier": "standard",
            },
            Usage(134, 100, 9, 5, 30, cache_write_1h_tokens=20),
        ),
        # A server that has both dialects and fills one.
        ({"prompt_tokens": 30, "input_tokens": 0, "completion_tokens": 2, "output_tokens": 0}, Usage(30, 0, 2)),
    ],
)
def test_usage_is_read_in_the_ways_of_many_servers(usage: Json, expected: Usage) -> None:
    """Tokens that the figures prove are counted, under any known name."""
    assert usage_of({"usage": usage}) == expected


def test_groqs_usage_is_read_from_its_own_field() -> None:
    """`x_groq` is read if the usual field is empty."""
    assert usage_of({"x_groq": {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}}) == Usage(3, 0, 2)


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        ({"cost": 0.95, "cost_details": {"upstream_inference_cost": 19}}, "19.95"),  # OpenRouter, before it had a flag
        ({"cost": 0.003, "cost_details": {"upstream_inference_cost": 0.003}}, "0.003"),
        ({"cost": 0.003, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.004}}, "0.003"),
        ({"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, "0.021"),
        ({"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, None),
        ({"cost": -1}, None),
        ({"cost": float("nan")}, None),
        ({"cost": 1e308}, None),
        ({"cost": "1e999999999"}, None),
        ({"cost": True}, None),
        ({"cost": [0.1]}, None),
        ({"cost": {"total_cost": "0.006"}}, "0.006"),
        ({"cost_in_usd_ticks": 37756000}, "0.0037756"),
        ({"cost_in_usd_ticks": 10**5000}, None),
        ({"cost": -1, "estimated_cost": 0.25}, "0.25"),
        ({}, None),
    ],
)
def test_plausible_stated_cost_is_read(usage: Json, usd: str | None) -> None:
    """In USD, with the cost of the user's own key; an impossible cost is ignored."""
    assert stated_usd_of({"usage": usage}) == (None if usd is None else Decimal(usd))


@pytest.mark.parametrize(("header", "usd"), [("0.0125", Decimal("0.0125")), ("0.0", None), ("None", None), ("", None)])
def test_cost_header_of_litellms_proxy_is_read(header: str, usd: Decimal | None) -> None:
    """The proxy writes 0 for a model without a known price; that is ignored."""
    assert stated_usd_in({"x-litellm-response-cost": header}) == usd


# -- whole runs ------------------------------------------------------------------------------------------------------

PRICE = Price(Decimal("0.001"), Decimal("0.002"), Decimal("0.001"))


def writing(usage: Any, **headers: str) -> Callable[[ReceivedRequest], Canned]:
    """A reply with this usage."""

    def fault(asked: ReceivedRequest) -> Canned:
        text = asked.prompt.rpartition(": ")[2]
        message = {"role": "assistant", "content": json.dumps({"answer": text})}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage})
        return Canned(200, body.encode(), {"Content-Type": "application/json", **headers})

    return fault


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"prompt_tokens": 10**15, "completion_tokens": 1, "total_tokens": 10**15 + 1},
        {"prompt_tokens": 2**63, "completion_tokens": 2**63, "total_tokens": 2**64},
        {"prompt_tokens": 10**400, "completion_tokens": 1},
        {"prompt_tokens": -5, "completion_tokens": -5, "total_tokens": -10},
        {"prompt_tokens": float("nan"), "completion_tokens": float("inf")},
        {"prompt_tokens": {"text": 5}, "completion_tokens": [1]},
        {"prompt_tokens": 5, "completion_tokens": 5, "cost": 1e308, "prompt_tokens_details": "none"},
        "free",
        [],
    ],
)
def test_odd_usage_figures_lose_no_answer(usage: Any, tmp_path: Any) -> None:
    """Every row is answered by one call, even with figures beyond 64 bits; the cost is known or an upper bound."""
    with Provider(fault=writing(usage)) as provider:
        chosen = replace(options(tmp_path / "answers.db"), price=PRICE)
        report = ask(provider, texts(5), chosen, max_output_tokens=50)
        calls = len(provider.ledger.requests)
    assert report.column("answer") == [f"row {number}" for number in range(5)]
    assert calls == 5
    spend = report.spend
    assert spend.usd is not None
    assert 0 < spend.usd == report.audit.answered.usd
    assert spend.at_most_calls == report.audit.answered.at_most_calls in (0, 5)
    assert ("at most" in str(spend)) == (spend.at_most_calls > 0)


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, {"prompt_tokens": 5}]
)
def test_unbounded_cost_is_unknown_not_zero(usage: Any) -> None:
    """Without a price, and without a longest reply."""
    with Provider(fault=writing(usage)) as provider:
        unpriced = ask(provider, texts(2))
        endless = ask(provider, texts(2), replace(options(), price=PRICE))
    for report in (unpriced, endless):
        assert report.spend.usd is None
        assert report.audit.answered.usd is None
        assert str(report.spend) == "of unknown cost"


def test_zero_price_is_a_known_cost_of_zero() -> None:
    """A self-hosted server without usage costs exactly 0."""
    free = Price(Decimal(0), Decimal(0), Decimal(0))
    with Provider(fault=writing(None)) as provider:
        report = ask(provider, texts(2), replace(options(), price=free, max_cost_usd=1))
    assert (report.spend.usd, report.spend.at_most_calls) == (0, 0)


def test_stated_cost_needs_no_list_price() -> None:
    """With a cost in body or header, the run's cost is known although no list has the model."""
    for fault in (
        writing({"prompt_tokens": 5, "completion_tokens": 2, "cost": 0.0125}),
        writing({"prompt_tokens": 5, "completion_tokens": 2}, **{"x-litellm-response-cost": "0.0125"}),
    ):
        with Provider(fault=fault) as provider:
            report = ask(provider, texts(4))
        assert (report.spend.usd, report.spend.at_most_calls) == (Decimal("0.05"), 0)


def test_provider_that_exceeds_its_bound_raises_the_reservation() -> None:
    """If reasoning exceeds max_output_tokens, later calls reserve more, and only the first overruns the cap."""
    usage = {
        "prompt_tokens": 20,
        "completion_tokens": 5,
        "total_tokens": 5025,
        "completion_tokens_details": {"reasoning_tokens": 5000},
    }
    each = 20 * PRICE.input + 5005 * PRICE.output
    with Provider(fault=writing(usage)) as provider:
        chosen = replace(options(max_concurrency=1), price=PRICE, max_cost_usd=Decimal(45))
        with pytest.raises(BudgetExhaustedError):
            ask(provider, texts(50), chosen, max_output_tokens=50)
        calls = len(provider.ledger.requests)
    assert calls * each <= 45 < (calls + 1) * each


def test_one_hour_cache_writes_are_part_of_all_cache_writes() -> None:
    """A higher 1-hour count is impossible: the possible part is kept, and the usage is marked incomplete."""
    usage = Usage(50, 0, 5, 0, 10, cache_write_1h_tokens=20)
    assert check_usage(usage, "x") == replace(usage, cache_write_1h_tokens=10, is_complete=False)
    assert check_usage(replace(usage, cache_write_1h_tokens=-1), "x").cache_write_1h_tokens == 0
    possible = replace(usage, cache_write_1h_tokens=10)
    assert check_usage(possible, "x") is possible
    assert (possible + possible).cache_write_1h_tokens == 20


def test_usage_of_a_user_defined_model_is_checked() -> None:
    """A `ChatModel` may return anything."""

    class Odd:
        max_concurrency: int | None = 1
        max_batch_size: int | None = None

        def __init__(self, usage: Any) -> None:
            self._usage = usage

        async def __call__(self, call: Call) -> Reply:  # noqa: ARG002
            return Reply('{"answer": "x"}', self._usage)

        async def aclose(self) -> None:
            """Nothing to close."""

    for usage in (Usage(), Usage(-5, 0, -5), Usage(2**70, 0, 1), Usage(5, 9, 1), Usage(5, 0, 1, 9), None):

        async def main(clock: Clock, usage: Any = usage) -> None:
            store = WatchedStore()
            chosen = Options(store=store, price=PRICE, max_cost_usd=10, clock=clock)
            report = await answer({"text": ["a"]}, QUESTION, chosen, Odd(usage))
            bound = CostTracker(PRICE, MAX_OUTPUT).bound(CALL)
            assert report.column("answer") == ["x"]
            assert bound is not None
            assert report.spend.usd is not None
            assert 0 < report.spend.usd <= bound
            assert report.spend.at_most_calls == 1

        run_virtually(main)


# -- prices of requests and searches ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "params", "fee"),
    [
        ("perplexity/pplx-70b-online", {}, "0.005"),
        ("perplexity/sonar", {}, "0.012"),
        ("perplexity/sonar", {"web_search_options": {"search_context_size": "low"}}, "0.005"),
        ("openai/gpt-4o-search-preview", {}, "0.025"),
        ("openai/gpt-4o-mini", {}, "0"),
        ("gemini/gemini-2.5-flash", {}, "0"),
    ],
)
def test_request_fee_is_in_the_price(model: str, params: Json, fee: str) -> None:
    """For models priced by request or search; the dearest search size unless one is chosen."""
    price = find_price(model, params)
    assert price is not None
    assert price.per_request == Decimal(fee)
    assert price.cost(Usage()) == Decimal(fee)
    assert price.at_most(0, 0) == Decimal(fee)


@pytest.mark.parametrize(
    ("model", "params", "complaint"),
    [
        ("perplexity/sonar-deep-research", {}, "citation_cost_per_token"),
        ("openai/gpt-4o", {"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ("xai/grok-4.3", {"search_parameters": {"mode": "on"}}, "search_parameters"),
        ("openai/gpt-4o", {"tools": [{"type": "web_search_preview"}]}, "tools"),
        ("gemini/gemini-2.5-flash", {"tools": [{"googleSearch": {}}]}, "tools"),
        ("openai/gpt-4o", {"extra_body": {"web_search_options": {"x": 1}}}, "web_search_options"),
        ("anthropic/claude-sonnet-4-5", {"inference_geo": "us"}, "inference_geo='us'"),
        ("bedrock/claude-haiku-latest", {"performanceConfig": {"latency": "optimized"}}, "performanceConfig"),
        ("anthropic/claude-sonnet-4-5", {"cache_control": {"type": "ephemeral", "ttl": "1h"}}, "cache_control"),
        ("openrouter/openai/gpt-4o:online", {}, ":online"),
        ("azure/model-router", {}, "router"),
        ("azure_ai/model_router/gpt-5-mini", {}, "router"),
    ],
)
def test_cap_on_an_unpriced_request_part_is_refused(model: str, params: Json, complaint: str) -> None:
    """Before the first call, with the part that has no price and what to do; without a cap the cost is unknown."""
    spec = ModelSpec(model, api_key="k", params=params, max_output_tokens=50)
    assert complaint in str(find_unpriced_part(spec))
    task = compile_task("Say: {text}", {"answer": str}, spec)

    async def main(clock: Clock) -> None:
        chosen = Options(max_cost_usd=1, clock=clock, store=WatchedStore())
        with pytest.raises(ConfigError, match=r"cannot bound a call of .*input_cost_per_1k_tokens"):
            await answer({"text": ["a"]}, task, chosen, Gateway([], PRICE, []))

    run_virtually(main)


@pytest.mark.parametrize("max_output_tokens", [None, 10_000])
def test_cap_below_the_longest_reply_says_what_lowers_the_bound(max_output_tokens: int | None) -> None:
    """Many models can write replies that no usual cap could pay; a bound on them can be set, and changes no key."""
    with Provider() as provider:
        spec = ModelSpec("openai/gpt-4o-mini", base_url=provider.base_url, max_output_tokens=max_output_tokens)
        with pytest.raises(BudgetExhaustedError) as caught:
            enrich_sync(
                texts(1),
                prompt="Say: {text}",
                output={"answer": str},
                model=spec,
                options=Options(store=":memory:", max_cost_usd=0.005),
            )
    advice = "at its longest reply, 16,384 tokens; a lower max_output_tokens reserves less"
    assert (advice in str(caught.value)) is (max_output_tokens is None)


def test_tools_that_the_caller_runs_cost_tokens_only() -> None:
    """A function tool is not charged as a search."""
    tools = [{"type": "function", "function": {"name": "search_orders", "parameters": {}}}]
    assert find_unpriced_part(ModelSpec("openai/gpt-4o", params={"tools": tools})) is None


@pytest.mark.parametrize("usd", [Decimal("-0.001"), Decimal("NaN"), Decimal("Infinity"), 0.15, "0.15"])
@pytest.mark.parametrize("name", ["input", "reasoning", "per_request"])
def test_price_must_be_finite_and_not_negative(name: str, usd: Any) -> None:
    """The error names the field and its value."""
    with pytest.raises(ConfigError, match=f"{name}='{usd}' of a price must be a Decimal of USD"):
        replace(PRICE, **{name: usd})
