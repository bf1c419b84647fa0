"""Price tiers: requests, costs, and the behaviour when a tier has no capacity."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any, get_args

import pytest

from ondine_core import BudgetExhaustedError, ConfigError, ModelSpec, Options, Policy, TransientError, enrich_sync
from ondine_core.api import answer
from ondine_core.engine.report import Report
from ondine_core.prompts.task import cache_key, compile_task
from ondine_core.providers import connect
from ondine_core.providers.jobs import connect_jobs
from ondine_core.providers.pricing import find_entry, find_price
from ondine_core.providers.tiers import billed_tier, check_tier, find_tier_prices, find_tiers, tier_fields
from ondine_core.types.clock import Clock
from ondine_core.types.values import Call, Reply, Tier, Usage
from tests.support.asking import QUICK, echo_each, texts
from tests.support.meter import Meter, rates_of
from tests.support.provider import Provider, error, first
from tests.support.unreliable import MemoryStore
from tests.support.virtual_clock import run_virtually

MODEL = "openai/gpt-5-mini"
ENTRY = find_entry(MODEL) or {}
RATES = {"default": rates_of(ENTRY), "flex": rates_of(ENTRY, "flex"), "priority": rates_of(ENTRY, "priority")}
ROWS = 12
PROMPT = "Repeat: {text}"


def spec_for(provider: Provider, tier: Tier, **changes: Any) -> ModelSpec:
    return ModelSpec(MODEL, "k", provider.base_url, max_output_tokens=64, tier=tier, **changes)


def ask(provider: Provider, tier: Tier, options: Options, rows: int = ROWS) -> Report:
    return enrich_sync(
        texts(rows), prompt=PROMPT, output={"answer": "string"}, model=spec_for(provider, tier), options=options
    )


# -- available tiers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "tiers"),
    [
        (MODEL, ("standard", "flex", "priority", "batch")),
        ("openai/gpt-4o-mini", ("standard", "priority", "batch")),
        ("openai/a-model-of-tomorrow", ("standard", "flex", "priority", "batch")),
        ("azure/gpt-4.1", ("standard", "priority", "batch")),
        ("gemini/gemini-2.5-flash", ("standard", "flex", "priority", "batch")),
        ("groq/openai/gpt-oss-120b", ("standard", "flex", "priority", "batch")),
        ("anthropic/claude-sonnet-4-5", ("standard", "priority", "batch")),
        ("mistral/mistral-small-latest", ("standard", "batch")),
        ("together_ai/any", ("standard", "batch")),
        ("xai/grok-4", ("standard",)),
        ("openai_compatible/m", ("standard",)),
        ("llama_cpp/gemma-3-270m", ("standard",)),
    ],
)
def test_tiers_of_a_model(model: str, tiers: tuple[Tier, ...]) -> None:
    """From the price list where it has them, else the table of providers; an unknown model may have all."""
    assert find_tiers(ModelSpec(model)) == tiers


def test_unavailable_tier_is_an_error_with_the_available_ones() -> None:
    """Before any call; also for an unknown tier."""
    with pytest.raises(ConfigError, match=r"tier='flex'.*gpt-4o-mini.*it has 'standard', 'priority'"):
        connect(ModelSpec("openai/gpt-4o-mini", "k", tier="flex"))
    with pytest.raises(ConfigError, match="tier='cheap' is not one of 'standard', 'flex', 'priority'"):
        connect(ModelSpec(MODEL, "k", tier="cheap"))  # type: ignore[arg-type]


def test_batch_tier_without_a_batch_api_is_an_error() -> None:
    """It names the providers with one, before any call."""
    for refuse in (check_tier, connect_jobs):
        with pytest.raises(ConfigError, match=r"tier='batch': 'xai/grok-4'.*openai, azure, gemini, groq, anthropic"):
            refuse(ModelSpec("xai/grok-4", "k", tier="batch"))


def test_service_tier_in_params_is_an_error() -> None:
    """In params it would be part of every key and priced at the standard rate; the error names the field `tier`."""
    with pytest.raises(ConfigError, match=r"'service_tier'.*it follows from tier"):
        connect(ModelSpec(MODEL, "k", params={"service_tier": "flex"}))


def test_tier_is_not_part_of_the_key() -> None:
    """Changing it asks nothing again."""
    tasks = [compile_task(PROMPT, "answer", ModelSpec(MODEL, tier=tier)) for tier in get_args(Tier)]
    assert len({cache_key(task)("x") for task in tasks}) == 1


@pytest.mark.parametrize(
    ("model", "tier", "word"),
    [(MODEL, "flex", "flex"), ("groq/m", "priority", "performance"), ("anthropic/m", "priority", "auto")],
)
def test_tier_is_requested_in_the_providers_terms(model: str, tier: Tier, word: str) -> None:
    """The standard tier sends no field, and the batch tier uses jobs."""
    assert tier_fields(ModelSpec(model), tier) == {"service_tier": word}
    assert tier_fields(ModelSpec(model), "standard") == tier_fields(ModelSpec(model), "batch") == {}


def test_tier_is_read_from_the_reply() -> None:
    """Without a name it is the tier that was asked for; an unknown name stays unknown."""
    assert billed_tier(None, "flex") == billed_tier("auto", "flex") == billed_tier("Flex", "standard") == "flex"
    assert billed_tier("default", "flex") == billed_tier("on_demand", "flex") == "standard"
    assert billed_tier("performance", "standard") == "priority"
    assert billed_tier(None, "batch") == billed_tier("batch", "standard") == "batch"
    assert billed_tier("hyperspeed", "flex") is None


# -- prices --------------------------------------------------------------------------------------------------------


def test_each_tier_has_its_own_prices() -> None:
    """For input, output and cached input, long prompts included."""
    flex = find_price(MODEL, tier="flex")
    assert flex is not None
    assert (flex.input, flex.output) == (Decimal("1.25e-7"), Decimal("0.000001"))
    assert flex.cached_input == Decimal("1.25e-8")
    long = find_price("openai/gpt-5.6", tier="priority")
    assert long is not None
    ((length, beyond),) = long.beyond
    assert (length, beyond.input, beyond.cache_write_price) == (272_000, Decimal("0.000016"), Decimal("0.00002"))


def test_a_tier_with_a_figure_missing_is_never_priced_too_low() -> None:
    """Without an output price there is no tier; a missing cached price is not the cheaper one."""
    assert find_price("openai/gpt-5-nano", tier="priority") is None
    for name in ("azure/gpt-5.4", "gemini/gemini-2.5-flash", "openai/gpt-5.6"):
        for tier in ("flex", "priority", "batch"):
            plain, other = find_price(name), find_price(name, tier=tier)
            assert plain is not None
            assert other is not None
            assert other.cached_input >= min(plain.cached_input, plain.cached_input * other.input / plain.input)


def test_batch_price_is_listed_or_documented_half() -> None:
    """At Anthropic half of cache prices, too; of others both discounts are used only if listed."""
    listed, claude, unlisted = (
        find_tier_prices(ModelSpec(name, prompt_cache="1h"))["batch"]
        for name in ("openai/gpt-4.1", "anthropic/claude-sonnet-4-5", "groq/openai/gpt-oss-120b")
    )
    assert (listed.input, listed.output, listed.cached_input) == (Decimal("1e-6"), Decimal("4e-6"), Decimal("1e-6"))
    assert (claude.input, claude.cached_input, claude.cache_write_price) == (
        Decimal("1.5e-6"),
        Decimal("1.5e-7"),
        Decimal("1.875e-6"),
    )
    assert claude.cache_write_1h_price == Decimal("3e-6")
    assert (unlisted.input, unlisted.output, unlisted.cached_input) == (
        Decimal("7.5e-8"),
        Decimal("3e-7"),
        Decimal("7.5e-8"),
    )


def test_hour_in_the_cache_costs_more_for_a_long_prompt_at_every_tier() -> None:
    """In a batch job it is half of the standard price for a prompt of that length, where the list leaves it out."""
    prices = find_tier_prices(ModelSpec("anthropic/claude-haiku-5-5", prompt_cache="1h"))
    usage = Usage(150_000, 0, 0, 0, 100_000, cache_write_1h_tokens=100_000)
    assert prices["batch"].cost(usage) == prices["standard"].cost(usage) / 2


@pytest.mark.parametrize(
    ("model", "spec", "dearer"),
    [
        ("openai/gpt-5.6", {}, "1"),
        ("openai/gpt-5.6", {"base_url": "https://eu.api.openai.com/v1"}, "1.1"),
        ("openai/gpt-4.1", {"base_url": "https://eu.api.openai.com/v1"}, "1"),
        ("openai/gpt-4.1", {"base_url": "https://gov.api.openai.com/v1"}, "1.1"),
        ("vertex_ai/claude-sonnet-5", {"settings": {"vertex_location": "europe-west1"}}, "1.1"),
        ("vertex_ai/claude-sonnet-5", {"settings": {"vertex_location": "global"}}, "1"),
        ("vertex_ai/claude-sonnet-5", {}, "1.1"),
        ("vertex_ai/gemini-2.5-pro", {"settings": {"vertex_location": "europe-west1"}}, "1"),
        ("anthropic/claude-sonnet-5", {"base_url": "https://eu.api.openai.com/v1"}, "1"),
    ],
)
def test_regional_endpoint_costs_what_the_list_adds_for_it(
    model: str, spec: dict[str, Any], dearer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tokens, of long prompts too, at every tier; without a location litellm asks Vertex AI in a region."""
    for name in ("VERTEXAI_LOCATION", "VERTEX_LOCATION", "GOOGLE_CLOUD_LOCATION", "CLOUD_ML_REGION"):
        monkeypatch.delenv(name, raising=False)
    usage = Usage(400_000, 1000, 500, 100, 2000)
    for tier, price in find_tier_prices(ModelSpec(model, **spec)).items():
        listed = find_price(model, tier=tier) or find_price(model)
        assert listed is not None
        assert price.cost(usage) == listed.cost(usage) * Decimal(dearer)


@pytest.mark.parametrize("variable", ["VERTEXAI_LOCATION", "VERTEX_LOCATION"])
def test_global_location_of_the_environment_costs_the_list_price(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By both variables that litellm reads."""
    regional = find_tier_prices(ModelSpec("vertex_ai/gemini-3.5-flash"))["standard"]
    monkeypatch.setenv(variable, "global")
    assert find_tier_prices(ModelSpec("vertex_ai/gemini-3.5-flash"))["standard"].input < regional.input


def test_regional_address_of_the_environment_costs_more_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does in `base_url`."""
    plain = find_tier_prices(ModelSpec("openai/gpt-5.6"))["standard"]
    monkeypatch.setenv("OPENAI_BASE_URL", "https://us.api.openai.com/v1")
    assert find_tier_prices(ModelSpec("openai/gpt-5.6"))["standard"].input == plain.input * Decimal("1.1")


def test_undocumented_discount_is_not_applied() -> None:
    """Mistral and Together do not document the amount, so the list price is the bound; others have none."""
    prices = find_tier_prices(ModelSpec("mistral/mistral-small-latest"))
    assert prices["batch"] == prices["standard"]
    assert "batch" not in find_tier_prices(ModelSpec("together_ai/of-tomorrow"))
    assert "batch" not in find_tier_prices(ModelSpec("bedrock/amazon.nova-lite-v1:0"))


def test_groq_has_flex_at_the_price_of_the_standard_tier() -> None:
    """It has no list price for contracted capacity."""
    prices = find_tier_prices(ModelSpec("groq/openai/gpt-oss-120b"))
    assert prices["flex"] == prices["standard"]
    assert "priority" not in prices


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("reply", ["as asked", "downgraded", "now and then"])
@pytest.mark.parametrize("tier", ["standard", "flex", "priority"])
def test_cost_of_a_run_at_any_tier_equals_the_bill(tier: Tier, reply: str, batch_size: int) -> None:
    """To the last digit, by the tier that each reply names, with a cap for one call at a time."""

    def answered_at(asked: str, number: int) -> str:
        return "default" if reply == "downgraded" or (reply == "now and then" and number % 3) else asked

    meter = Meter(RATES, answered_at=answered_at)
    with Provider(echo_each, meter=meter) as provider:
        options = Options(policy=Policy(batch_size=batch_size, max_concurrency=4), max_cost_usd=Decimal("0.05"))
        report = ask(provider, tier, options)
        bodies = [asked.body for asked in provider.ledger.requests]
    assert report.progress.rows_failed == 0
    assert report.progress.spend.usd == meter.usd > 0
    assert not report.progress.spend.at_most_calls
    assert {body.get("service_tier", "standard") for body in bodies} == {tier}


@pytest.mark.parametrize("tier", ["standard", "flex", "priority"])
def test_a_cap_holds_at_every_tier(tier: Tier) -> None:
    """Calls are reserved at the dearest tier that may answer, here standard instead of flex."""
    meter = Meter(RATES, answered_at=lambda asked, number: "default" if number % 2 else asked)
    cap = Decimal("0.0008")
    with Provider(echo_each, meter=meter) as provider, pytest.raises(BudgetExhaustedError):
        ask(provider, tier, Options(max_cost_usd=cap, policy=Policy(max_concurrency=4)), rows=100)
    assert 0 < meter.usd <= cap


def test_a_reply_of_an_unknown_tier_is_charged_at_its_bound() -> None:
    """The charge is not zero, and is reported as an upper bound."""
    meter = Meter({**RATES, "hyperspeed": RATES["priority"]}, answered_at=lambda *_: "hyperspeed")
    with Provider(echo_each, meter=meter) as provider:
        report = ask(provider, "priority", Options(), rows=3)
    spend = report.progress.spend
    assert spend.usd is not None
    assert spend.usd >= meter.usd
    assert spend.at_most_calls == 3


def test_changing_the_tier_asks_nothing_again(tmp_path: Any) -> None:
    """Answers of one tier are reused at every other."""
    with Provider(echo_each, meter=Meter(RATES)) as provider:
        for tier in ("flex", "standard", "priority"):
            report = ask(provider, tier, Options(store=tmp_path / "answers.db"))
            assert report.progress.rows_failed == 0
        assert len(provider.ledger.requests) == ROWS


def test_flex_calls_have_a_longer_default_time_out() -> None:
    """Unless the user sets it."""
    assert ModelSpec(MODEL).max_call_s == 60
    assert ModelSpec(MODEL, tier="flex").max_call_s == 900
    assert ModelSpec(MODEL, tier="batch").max_call_s == 60
    assert ModelSpec(MODEL, tier="flex", timeout_s=5).max_call_s == 5


# -- no capacity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [(429, "resource_unavailable"), (498, "capacity_exceeded"), (498, None)])
def test_lack_of_capacity_does_not_count_as_an_attempt(status: int, code: str | None) -> None:
    """OpenAI sends 429 with a code, Groq 498: the call waits, at no cost."""
    meter = Meter(RATES)
    with Provider(echo_each, meter=meter, fault=first(4, error(status, "Resource unavailable", code))) as provider:
        report = ask(provider, "flex", Options(policy=Policy(max_concurrency=4, retry=replace(QUICK, max_attempts=1))))
    assert report.progress.rows_failed == 0
    assert report.progress.spend.usd == meter.usd
    assert {outcome.attempts for outcome in report.outcomes} == {1}


class FlexModel:
    """A model whose flex tier has no capacity for some time; it records its answers and their tiers."""

    max_concurrency = None
    max_batch_size = None

    def __init__(self, clock: Clock, has_capacity: Callable[[float], bool]) -> None:
        self._clock, self._has_capacity = clock, has_capacity
        self.answered: list[tuple[str, Tier]] = []

    async def __call__(self, call: Call) -> Reply:
        await asyncio.sleep(0.5)
        if call.tier == "flex" and not self._has_capacity(self._clock.elapsed()):
            raise TransientError("No capacity.", kind="overloaded", cause="capacity")
        text = call.messages[-1].content
        self.answered.append((text, call.tier))
        return Reply('{"answer": "x"}', Usage(100, 0, 10), tier=call.tier)

    async def aclose(self) -> None:
        """Nothing to close."""


def run_at_flex(
    has_capacity: Callable[[float], bool], rows: int = 200, **policy: Any
) -> tuple[Report | Exception, FlexModel, list[str]]:
    warnings: list[str] = []
    models: list[FlexModel] = []

    async def main(clock: Clock) -> Report | Exception:
        model = FlexModel(clock, has_capacity)
        models.append(model)
        task = compile_task(PROMPT, {"answer": "string"}, ModelSpec(MODEL, tier="flex", max_output_tokens=64))
        options = Options(
            policy=Policy(**policy), clock=clock, store=MemoryStore(), on_warning=warnings.append, max_cost_usd=1
        )
        try:
            return await answer(texts(rows), task, options, model)
        except TransientError as failed:
            return failed

    return run_virtually(main), models[0], warnings


def test_an_outage_of_the_flex_tier_of_half_a_minute_is_waited_out() -> None:
    """No row is lost or paid twice, and all are answered at flex."""
    report, model, warnings = run_at_flex(lambda now: not 3 < now < 33)
    assert isinstance(report, Report)
    assert report.progress.rows_failed == 0
    assert {tier for _, tier in model.answered} == {"flex"}
    assert len(model.answered) == len({text for text, _ in model.answered}) == 200
    price = find_price(MODEL, tier="flex")
    assert price is not None
    assert report.progress.spend.usd == 200 * price.cost(Usage(100, 0, 10))
    assert not warnings


def test_tier_fallback_uses_the_standard_tier() -> None:
    """After `tier_wait_timeout_s` the rest is asked at the standard price, with a warning."""
    report, model, warnings = run_at_flex(lambda now: now < 3, tier_wait_timeout_s=60, tier_fallback=True)
    assert isinstance(report, Report)
    assert report.progress.rows_failed == 0
    assert len(model.answered) == len({text for text, _ in model.answered}) == 200
    tiers = [tier for _, tier in model.answered]
    assert 0 < tiers.count("flex") < 200
    prices = {tier: find_price(MODEL, tier=tier) for tier in ("flex", "standard")}
    expected = sum(price.cost(Usage(100, 0, 10)) for tier in tiers if (price := prices[tier]))
    assert report.progress.spend.usd == expected
    assert 60 <= report.progress.elapsed_s < 120
    (message,) = warnings
    assert "no capacity at the tier 'flex' for 60 s" in message


def test_run_without_tier_fallback_ends_and_keeps_its_answers() -> None:
    """The error says what to do; no call was made at a dearer tier."""
    failed, model, warnings = run_at_flex(lambda now: now < 3, tier_wait_timeout_s=60)
    assert isinstance(failed, TransientError)
    assert "tier_fallback=True" in str(failed)
    assert {tier for _, tier in model.answered} == {"flex"}
    assert not warnings


def test_user_price_applies_at_every_tier() -> None:
    """A configured price is a contract."""
    price = find_price("openai/gpt-4o")
    assert price is not None
    with Provider(echo_each, meter=Meter(RATES)) as provider:
        report = ask(provider, "flex", replace(Options(), price=price), rows=2)
        spend = report.progress.spend
    assert spend.usd == price.cost(spend.usage)
