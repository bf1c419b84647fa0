"""LiteLLM's proxy in front of our provider: requests, answers, bills and refusals through it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal

import pytest

from ondine_core import (
    Failure,
    FatalError,
    ModelSpec,
    Options,
    Policy,
    Price,
    Progress,
    Report,
    RetryPolicy,
    Usage,
    enrich_sync,
)
from tests.support.asking import echo_each, options
from tests.support.litellm_proxy import (
    FIVE_CALLS_KEY,
    MASTER_KEY,
    LiteLLMProxy,
    install_litellm_proxy,
    run_litellm_proxy,
)
from tests.support.provider import Effect, Fault, Ledger, Provider, ReceivedRequest, error, first, slow, status

pytestmark = pytest.mark.slow

GPT_4O_MINI = Price(Decimal("0.15e-6"), Decimal("0.60e-6"), Decimal("0.075e-6"))
"""The models that the proxy assumes."""
TOO_LONG = error(
    400, "This model's maximum context length is 4096 tokens, but 5000 were given.", "context_length_exceeded"
)
FAULTS: Mapping[str, Fault] = {
    "limited once": first(1, status(429, headers={"Retry-After": "1"})),
    "limited twice": first(2, status(429, headers={"Retry-After": "1"})),
    "filtered": error(400, "The prompt was filtered by the content management policy.", "content_filter"),
    "too long": TOO_LONG,
    "out of credit": error(429, "You exceeded your current quota, check your plan.", "insufficient_quota"),
    "never in time": slow(1.5),
    "takes a second": slow(1.0),
}


def fault_of(asked: ReceivedRequest) -> Effect:
    """The fault whose name is in the prompt."""
    return next((fault(asked) for name, fault in FAULTS.items() if name in asked.prompt), None)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Provider]:
    """The provider behind the proxy."""
    with Provider(echo_each, fault=fault_of) as provider:
        yield provider


@pytest.fixture(scope="module")
def proxy(upstream: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteLLMProxy]:
    """The proxy."""
    program = install_litellm_proxy(tmp_path_factory.mktemp("litellm") / "venv")
    with run_litellm_proxy(program, tmp_path_factory.mktemp("proxy"), upstream.base_url) as proxy:
        yield proxy


def ask(model: ModelSpec, texts: list[str], chosen: Options | None = None) -> Report:
    return enrich_sync(
        {"text": texts}, prompt="Repeat: {text}", output={"answer": "string"}, model=model, options=chosen or options()
    )


def arrivals(ledger: Ledger, part: str) -> list[float]:
    """When each request that contains `part` reached the provider."""
    return [asked.arrived_at for asked in ledger.requests if part in asked.prompt]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_rows_get_their_own_answers_and_the_providers_bill(
    proxy: LiteLLMProxy, upstream: Provider, batch_size: int
) -> None:
    """For single rows and batches; tokens and cost equal the provider's ledger."""
    ledger, texts = upstream.ledger, [f"{batch_size} a call, row {number}" for number in range(24)]
    sent, received, calls = ledger.input_tokens, ledger.output_tokens, len(ledger.requests)
    report = ask(proxy.model("small"), texts, options(batch_size=batch_size))
    usage = report.spend.usage
    assert report.column("answer") == texts
    assert report.spend.calls == len(ledger.requests) - calls == 24 / batch_size
    assert (usage.input_tokens, usage.output_tokens) == (ledger.input_tokens - sent, ledger.output_tokens - received)
    assert report.spend.usd is not None
    assert abs(report.spend.usd - GPT_4O_MINI.cost(usage)) < Decimal("1e-9")
    assert report.spend.at_most_calls == 0


def test_schema_reaches_the_provider(proxy: LiteLLMProxy, upstream: Provider) -> None:
    """The proxy forwards the strict schema."""
    ask(proxy.model("small"), ["held to a schema"])
    form = upstream.ledger.requests[-1].body["response_format"]
    assert (form["type"], form["json_schema"]["strict"]) == ("json_schema", True)
    assert set(form["json_schema"]["schema"]["properties"]) == {"answer"}


@pytest.mark.parametrize(
    ("name", "key", "advice"),
    [("small", "sk-of-a-stranger", "api_key"), ("large", MASTER_KEY, "model")],
    ids=["key", "model"],
)
def test_wrong_key_or_model_stops_the_run_at_once(
    proxy: LiteLLMProxy, upstream: Provider, name: str, key: str, advice: str
) -> None:
    """The error says what to check; no request reaches the provider."""
    calls = len(upstream.ledger.requests)
    with pytest.raises(FatalError, match=f"check .*{advice}") as caught:
        ask(proxy.model(name, key), [f"row {number}" for number in range(200)], options(max_concurrency=1))
    assert caught.value.fault == "account"
    assert len(upstream.ledger.requests) == calls


def test_retry_after_of_the_provider_is_kept(proxy: LiteLLMProxy, upstream: Provider) -> None:
    """The proxy forwards it; the call is retried once, after the wait."""
    report = ask(proxy.model("small"), ["limited once"])
    refused_at, again_at = arrivals(upstream.ledger, "limited once")
    assert report.column("answer") == ["limited once"]
    assert again_at - refused_at >= 1


def test_cool_down_of_the_proxy_is_kept(proxy: LiteLLMProxy, upstream: Provider) -> None:
    """If all its deployments rest, the proxy says for how long; the provider is not asked meanwhile."""
    report = ask(proxy.model("pair"), ["limited twice"])
    times = arrivals(upstream.ledger, "limited twice")
    assert report.column("answer") == ["limited twice"]
    assert len(times) == 3
    assert times[2] - times[1] >= 1


def test_refused_rows_fail_alone(proxy: LiteLLMProxy) -> None:
    """A content filter or window limit behind the proxy fails its row only, also in a batch."""
    texts = ["one", "filtered", "two", "too long", "three", "four"]
    report = ask(proxy.model("small"), texts, options(batch_size=3))
    assert report.column("answer") == ["one", None, "two", None, "three", "four"]
    assert {outcome.reason for outcome in report.outcomes if isinstance(outcome, Failure)} == {"refused"}


def test_exhausted_credit_behind_the_proxy_stops_the_run(proxy: LiteLLMProxy, upstream: Provider) -> None:
    """It is not a rate limit, so no call waits."""
    with pytest.raises(FatalError, match="credit") as caught:
        ask(proxy.model("small"), ["out of credit"])
    assert caught.value.fault == "account"
    assert len(arrivals(upstream.ledger, "out of credit")) == 1


def test_time_out_of_the_proxy_is_charged_at_worst_case(proxy: LiteLLMProxy, upstream: Provider) -> None:
    """The provider bills such a call, so each counts at its worst-case cost."""
    model = proxy.model("hasty", max_output_tokens=50)
    ledger = upstream.ledger
    sent, received = ledger.input_tokens, ledger.output_tokens
    chosen = Options(store=":memory:", price=GPT_4O_MINI, policy=Policy(retry=RetryPolicy(max_lost=2)))
    report = ask(model, ["never in time"], chosen)
    billed = GPT_4O_MINI.cost(Usage(ledger.input_tokens - sent, 0, ledger.output_tokens - received))
    assert report.column("answer") == [None]
    assert (report.spend.calls, report.spend.unknown) == (2, 2)
    assert report.spend.unknown_usd is not None
    assert report.spend.unknown_usd >= billed > 0


@pytest.mark.parametrize("limited", [("small", FIVE_CALLS_KEY), ("five", MASTER_KEY)], ids=["key", "deployment"])
def test_concurrency_limit_is_found_and_used(proxy: LiteLLMProxy, limited: tuple[str, str]) -> None:
    """Refusals with Retry-After 60 do not stop a run: rows are answered before the minute is over.

    The exact bound (0.7 of five concurrent calls, after 10 s) is tested on the virtual clock.
    """
    name, key = limited
    texts, in_time = [f"{name} with 64 in flight, {number} takes a second" for number in range(40)], [0]

    def report_progress(now: Progress) -> None:
        if now.elapsed_s < 55:
            in_time.append(now.rows_done)

    chosen = Options(store=":memory:", policy=Policy(max_concurrency=64), on_progress=report_progress)
    report = ask(proxy.model(name, key), texts, chosen)
    assert report.column("answer") == texts
    # Only five answers come before the first refusal.
    assert max(in_time) >= 15
