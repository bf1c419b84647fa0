"""Prompt caches: what is sent to the provider, when calls wait for one another, and the saving."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import orjson
import pytest

from ondine_core import ModelSpec, Options, Policy, Prompt, enrich_sync
from ondine_core.api import answer
from ondine_core.batching.strategy import ONE_PER_CALL
from ondine_core.engine.cached_prefix import CachedPrefixes, PrefixState, decide
from ondine_core.engine.report import Report
from ondine_core.prompts.task import cache_key, compile_task
from ondine_core.prompts.template import compile_prompt, explain_uncacheable
from ondine_core.providers.anthropic_request import message_body
from ondine_core.providers.http_client import Endpoint
from ondine_core.providers.openai_http import OpenAIModel
from ondine_core.providers.pricing import find_entry
from ondine_core.providers.prompt_cache import cache_key_field, find_cache_rule, prefix_id, prefix_of
from ondine_core.providers.request_form import PLAIN_FORM
from ondine_core.providers.tiers import find_tier_prices
from ondine_core.types.clock import Clock
from ondine_core.types.values import Batch, Call, Item, PromptCache, Reply, Tier, Usage
from tests.support.anthropic_provider import AnthropicProvider
from tests.support.asking import echo_each, one_call, texts
from tests.support.meter import Cache, Meter, rates_of
from tests.support.provider import Effect, Provider, ReceivedRequest, echo, error
from tests.support.unreliable import MemoryStore
from tests.support.virtual_clock import run_virtually

MODEL, CLAUDE = "openai/gpt-5-mini", "anthropic/claude-sonnet-4-5"
ENTRY = find_entry(MODEL) or {}
RATES = {"default": rates_of(ENTRY), "flex": rates_of(ENTRY, "flex"), "priority": rates_of(ENTRY, "priority")}
LONG = "one two six ten " * 300
"""1,200 tokens, by every way of counting."""
PROMPT = Prompt("Repeat: {text}", system=LONG)
OUTPUT = {"answer": "string"}


# -- data of providers ---------------------------------------------------------------------------------------------


def test_cache_data_of_providers() -> None:
    """The price list overrides the table's minimum of tokens; for servers of the user's own nothing is known."""
    assert find_cache_rule(ModelSpec(MODEL)) is not None
    haiku, sonnet = (find_cache_rule(ModelSpec(f"anthropic/claude-{name}-4-5")) for name in ("haiku", "sonnet"))
    assert haiku is not None
    assert sonnet is not None
    assert (haiku.min_tokens, sonnet.min_tokens, sonnet.life_s) == (4096, 1024, 300)
    hour = find_cache_rule(ModelSpec(CLAUDE, prompt_cache="1h"))
    assert hour is not None
    assert hour.life_s == 3600
    assert find_cache_rule(ModelSpec(CLAUDE, prompt_cache="off")) is None
    assert find_cache_rule(ModelSpec("openai_compatible/m")) is None


def test_prompt_cache_is_not_part_of_the_key() -> None:
    """Turning it on or off asks nothing again."""
    kinds: tuple[PromptCache, ...] = ("auto", "off", "1h")
    tasks = [compile_task(PROMPT, OUTPUT, ModelSpec(MODEL, prompt_cache=kind)) for kind in kinds]
    assert len({cache_key(task)("x") for task in tasks}) == 1


def test_one_hour_cache_writes_have_their_own_price() -> None:
    """It is reserved only where it is asked for, and charged by the tokens that the reply says were written."""
    plain, hour = (find_tier_prices(ModelSpec(CLAUDE, prompt_cache=kind))["standard"] for kind in ("auto", "1h"))
    usage = Usage(2000, 500, 10, cache_write_tokens=1200, cache_write_1h_tokens=1000)
    assert hour.cost(usage) == Decimal("0.000003") * 300 + Decimal("3e-7") * 500 + Decimal("0.00000375") * 200 + (
        Decimal("0.000006") * 1000 + Decimal("0.000015") * 10
    )
    assert plain.at_most(100, 0) == Decimal("0.000375")
    assert hour.at_most(100, 0) == Decimal("0.0006")


# -- the common prefix of calls ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "lead", "rest"),
    [
        ("Label {a} and {b} now", "Label ", " and  now"),
        ("{a} last", "", " last"),
        (Prompt("Label {{ a }}{% if b %} of {{ b }}{% endif %}.", syntax="jinja2"), "Label ", "."),
        ("Twice {{}} {a}", "Twice {} ", ""),
    ],
)
def test_text_before_the_first_column_is_the_common_prefix(prompt: str | Prompt, lead: str, rest: str) -> None:
    """In both syntaxes; the text after it is known, too."""
    compiled = compile_prompt(prompt, lambda _: "")
    assert (compiled.lead, compiled.rest) == (lead, rest)
    rendered = compiled.render(dict.fromkeys(compiled.columns, "x"))
    assert rendered.startswith(lead)


def call_of(text: str, spec: ModelSpec | None = None, prompt: str | Prompt = PROMPT) -> Call:
    task = compile_task(prompt, OUTPUT, spec or ModelSpec(MODEL))
    return ONE_PER_CALL.encode(Batch((Item(b"", text),)), task)


def test_calls_about_different_rows_have_one_prefix() -> None:
    """The system message, the schema and the text before the first column; another prompt has another."""
    one, other = call_of("Repeat: a"), call_of("Repeat: b")
    assert prefix_of(one).start == "Repeat: "
    assert prefix_id(prefix_of(one)) == prefix_id(prefix_of(other))
    assert prefix_id(prefix_of(call_of("Say: a", prompt="Say: {text}"))) != prefix_id(prefix_of(one))


def test_prompt_with_instructions_last_gets_advice() -> None:
    """The advice says how many tokens a row it costs and what to move; there is none where it is little."""
    advice = explain_uncacheable(compile_prompt("{review}\n" + LONG, lambda _: ""))
    assert advice is not None
    assert "About 1,201 tokens" in advice
    assert "Move {review} to the end" in advice
    assert explain_uncacheable(compile_prompt(LONG + "{review}", lambda _: "")) is None
    assert explain_uncacheable(compile_prompt("{review}\nWhich mood?", lambda _: "")) is None


# -- what is sent to the provider ----------------------------------------------------------------------------------


def test_breakpoint_ends_the_fixed_part_for_claude() -> None:
    """Before the row, also within one message, whose text stays the same; only where it is to be cached."""
    call = replace(call_of("Repeat: a row"), cache_prefix=True)
    mark = {"type": "ephemeral"}
    body = orjson.loads(message_body({}, call, "json_schema", mark))
    assert "cache_control" not in body["system"][0]
    (message,) = body["messages"]
    assert message["content"][0] == {"type": "text", "text": "Repeat: ", "cache_control": mark}
    assert "".join(block["text"] for block in message["content"]) == "Repeat: a row"
    bare = replace(call, fixed_chars=0)
    assert orjson.loads(message_body({}, bare, "json_schema", mark))["system"][0]["cache_control"] == mark
    unshared = replace(call, cache_prefix=False)
    assert b"cache_control" not in message_body({}, unshared, "json_schema", mark)


@pytest.mark.parametrize(("host", "has_key"), [("api.openai.com", True), ("other.example", False)])
def test_openai_calls_with_one_prefix_share_a_cache_key(host: str, *, has_key: bool) -> None:
    """The key is the same for all rows; it is not sent to servers that may refuse the field."""
    with Provider(echo) as provider:
        port = int(provider.base_url.rpartition(":")[2].removesuffix("/v1"))

        def resolve(_host: str, _port: Any, *rest: Any, **named: Any) -> Any:
            return socket.getaddrinfo("127.0.0.1", port, *rest, **named)

        for text in ("Repeat: a", "Repeat: b"):
            endpoint = Endpoint(f"http://{host}:{port}/v1/chat/completions", 60, resolve=resolve)
            model = OpenAIModel(endpoint, ModelSpec(MODEL), {"model": "m"}, PLAIN_FORM)
            one_call(model, call=replace(call_of(text), cache_prefix=True))
        keys = {asked.body.get("prompt_cache_key") for asked in provider.ledger.requests}
    assert keys == ({prefix_id(prefix_of(call_of("Repeat: c")))} if has_key else {None})
    assert (cache_key_field(host) is not None) == has_key


# -- one call first, then the others -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (PrefixState(), "lead"),
        (PrefixState(is_led=True), "wait"),
        (PrefixState(cached_until=11), "go"),
        (PrefixState(cached_until=10), "lead"),
        (PrefixState(cached_until=10, is_led=True), "wait"),
    ],
)
def test_one_call_goes_first_until_the_prefix_is_cached(state: PrefixState, step: str) -> None:
    """One call leaves while the prefix is not in the cache; then all do."""
    assert decide(state, 10.0) == step


def test_calls_wait_for_the_first_answer_and_after_a_long_pause_again() -> None:
    """If the first call fails, another goes first."""

    async def main(clock: Clock) -> list[tuple[float, int, bool]]:
        prefixes, prefix = CachedPrefixes(300.0, clock.elapsed), prefix_of(call_of("Repeat: a"))
        left: list[tuple[float, int, bool]] = []

        async def call(number: int, *, answered: bool) -> None:
            leads = await prefixes.enter(prefix)
            left.append((clock.elapsed(), number, leads))
            await clock.sleep(2)
            if answered:
                prefixes.answered(prefix)
            if leads:
                prefixes.leave(prefix)

        await asyncio.gather(call(0, answered=False), *(call(number, answered=True) for number in range(1, 4)))
        await clock.sleep(299)
        await call(4, answered=True)
        await clock.sleep(301)
        await asyncio.gather(*(call(number, answered=True) for number in (5, 6)))
        return left

    assert run_virtually(main) == [
        (0, 0, True),
        (2, 1, True),
        (4, 2, False),
        (4, 3, False),
        (305, 4, False),
        (608, 5, True),
        (610, 6, False),
    ]


class MeteredModel:
    """A model that answers after a while and bills like a provider with a prompt cache."""

    max_concurrency = None
    max_batch_size = None

    def __init__(self, meter: Meter, *, marks: bool) -> None:
        self._meter, self._marks = meter, marks
        self.in_flight = self.peak = 0

    async def __call__(self, call: Call) -> Reply:
        schema = (call.json_schema or b"").decode()
        *before, last = [message.content for message in call.messages]
        prompt = schema + "".join(before) + last
        fixed = len(schema) + sum(map(len, before)) + call.fixed_chars
        text = json.dumps(echo_each(last))
        marked = fixed if self._marks and call.cache_prefix else None
        used, tier = self._meter.bill(prompt, text, {"standard": "default"}.get(call.tier, call.tier), marked)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        await asyncio.sleep(0.7)
        self.in_flight -= 1
        self._meter.keep(prompt, marked)
        details = used["prompt_tokens_details"]
        usage = Usage(
            used["prompt_tokens"],
            details["cached_tokens"],
            used["completion_tokens"],
            cache_write_tokens=details.get("cache_write_tokens", 0),
        )
        return Reply(text, usage, tier=tier)

    async def aclose(self) -> None:
        """Nothing to close."""


def run_metered(model: str, *, cached: bool, tier: Tier = "standard", batch_size: int = 1) -> tuple[Report, Meter, int]:
    is_claude = model == CLAUDE
    rates = {"default": rates_of(find_entry(model) or {})} if is_claude else RATES
    models: list[MeteredModel] = []
    meters: list[Meter] = []

    async def main(clock: Clock) -> Report:
        cache = Cache(step=1 if is_claude else 128, is_marked=is_claude) if cached else None
        meter = Meter(rates, cache, now=clock.elapsed)
        asked = MeteredModel(meter, marks=is_claude)
        meters.append(meter)
        models.append(asked)
        spec = ModelSpec(model, max_output_tokens=500, tier=tier)
        policy = Policy(max_concurrency=256, batch_size=batch_size)
        options = Options(store=MemoryStore(), policy=policy, clock=clock)
        return await answer(texts(2000), compile_task(PROMPT, OUTPUT, spec), options, asked)

    report = run_virtually(main)
    assert report.progress.rows_failed == 0
    assert report.progress.spend.usd == meters[0].usd
    return report, meters[0], models[0].peak


@pytest.mark.parametrize("model", [MODEL, CLAUDE])
def test_long_prefix_is_read_from_the_cache_after_the_first_call(model: str) -> None:
    """For 2,000 rows with 256 in flight all of it is read, and the bill is at most a quarter."""
    report, meter, peak = run_metered(model, cached=True)
    _, plain, _ = run_metered(model, cached=False)
    assert meter.read_tokens == meter.cacheable_tokens > 0
    assert meter.usd <= plain.usd / 4
    assert peak > 100
    saved = report.progress.spend.cache_saved_usd
    assert saved == plain.usd - meter.usd


def test_savings_of_tier_cache_and_batches_multiply() -> None:
    """At flex 0.13 of the bill without a cache at the standard tier; with twenty rows a call 0.05."""
    _, plain, _ = run_metered(MODEL, cached=False)
    _, flex, _ = run_metered(MODEL, cached=True, tier="flex")
    assert flex.usd <= plain.usd * Decimal("0.13")
    _, batched, _ = run_metered(MODEL, cached=True, tier="flex", batch_size=20)
    assert batched.usd <= plain.usd * Decimal("0.05")
    assert batched.read_tokens >= 0.98 * batched.cacheable_tokens > 0


# -- the bill ------------------------------------------------------------------------------------------------------


def no_flex(after: int) -> Callable[[ReceivedRequest], Effect]:
    """No capacity at the flex tier after this many calls."""
    seen: list[ReceivedRequest] = []

    def fault(asked: ReceivedRequest) -> Effect:
        seen.append(asked)
        is_flex = asked.body.get("service_tier") == "flex"
        return (
            error(429, "Resource unavailable", "resource_unavailable")(asked) if is_flex and len(seen) > after else None
        )

    return fault


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("prompt_cache", ["auto", "off", "1h"])
@pytest.mark.parametrize(
    ("tier", "reply", "fallback"),
    [
        ("standard", "as asked", False),
        ("flex", "as asked", False),
        ("flex", "downgraded", False),
        ("flex", "as asked", True),
        ("flex", "downgraded", True),
        ("priority", "as asked", False),
        ("priority", "downgraded", False),
    ],
)
def test_cost_of_a_run_equals_the_bill_of_the_provider(
    tier: Tier, reply: str, prompt_cache: PromptCache, batch_size: int, *, fallback: bool
) -> None:
    """To the last digit, with every combination of tier, reply, fallback, cache and batch size, within a cap."""

    def answered_at(asked: str, number: int) -> str:
        return "default" if reply == "downgraded" and number % 2 else asked

    meter = Meter(RATES, Cache(), answered_at)
    with Provider(echo_each, meter=meter, fault=no_flex(2) if fallback else None) as provider:
        spec = ModelSpec(MODEL, "k", provider.base_url, max_output_tokens=64, tier=tier, prompt_cache=prompt_cache)
        policy = Policy(max_concurrency=4, batch_size=batch_size, tier_wait_timeout_s=0, tier_fallback=True)
        cap = Decimal("0.05")
        options = Options(policy=policy, max_cost_usd=cap)
        report = enrich_sync(texts(12), prompt=PROMPT, output=OUTPUT, model=spec, options=options)
    spend = report.progress.spend
    assert report.progress.rows_failed == 0
    assert 0 < meter.usd == spend.usd <= cap
    assert not spend.at_most_calls
    assert spend.usage.cached_input_tokens == meter.read_tokens > 0
    if fallback:
        assert meter.by_tier["default"] > 0
    # The cache of this provider is automatic: with it off, calls merely do not wait for one another.
    if prompt_cache != "off" and not fallback:
        assert meter.read_tokens == meter.cacheable_tokens


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("prompt_cache", ["auto", "off", "1h"])
@pytest.mark.parametrize(
    ("tier", "answered_at"), [("standard", "standard"), ("priority", "standard"), ("priority", "priority")]
)
def test_cost_of_a_run_equals_the_bill_of_anthropic(
    tier: Tier, answered_at: str, prompt_cache: PromptCache, batch_size: int
) -> None:
    """Cache writes for five minutes or an hour have their own prices; both tiers cost the same."""
    entry = find_entry(CLAUDE) or {}
    rates = rates_of(entry)
    if prompt_cache == "1h":
        rates = replace(rates, write=Decimal(repr(entry["cache_creation_input_token_cost_above_1hr"])))
    meter = Meter({"standard": rates, "priority": rates}, Cache(step=1, is_marked=True), lambda *_: answered_at)
    with AnthropicProvider(echo_each, meter=meter) as provider:
        spec = ModelSpec(CLAUDE, "k", provider.address, max_output_tokens=256, tier=tier, prompt_cache=prompt_cache)
        policy = Policy(max_concurrency=4, batch_size=batch_size)
        options = Options(policy=policy, max_cost_usd=Decimal("0.5"))
        report = enrich_sync(texts(12), prompt=PROMPT, output=OUTPUT, model=spec, options=options)
    spend = report.progress.spend
    assert report.progress.rows_failed == 0
    assert spend.usage.cached_input_tokens == meter.read_tokens == meter.cacheable_tokens
    assert spend.usage.cache_write_tokens == meter.written_tokens
    assert (meter.written_tokens > 0) == (prompt_cache != "off")
    assert spend.usd == meter.usd > 0
    assert not spend.at_most_calls


def test_batches_split_into_single_rows_are_cached() -> None:
    """If a reply has no room for four answers most calls carry one row, with a prefix of their own."""
    rates = rates_of(find_entry(CLAUDE) or {})
    meter = Meter({"standard": rates}, Cache(step=1, is_marked=True), lambda *_: "standard")
    with AnthropicProvider(echo_each, meter=meter) as provider:
        spec = ModelSpec(CLAUDE, "k", provider.address, max_output_tokens=32)
        options = Options(policy=Policy(max_concurrency=1, batch_size=4))
        report = enrich_sync(texts(40), prompt=PROMPT, output=OUTPUT, model=spec, options=options)
    assert report.progress.rows_failed == 0
    assert report.progress.spend.usd == meter.usd
    assert meter.calls > 20
    assert meter.read_tokens >= 0.7 * meter.input_tokens
