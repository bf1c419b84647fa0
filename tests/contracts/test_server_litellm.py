"""LiteLLM's proxy, with a provider of ours behind it: what is asked, answered, billed and refused through it."""

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
from tests.support.provider import Asked, Books, Effect, Fault, Provider, error, first, slow, status

pytestmark = pytest.mark.slow

GPT_4O_MINI = Price(Decimal("0.15e-6"), Decimal("0.60e-6"), Decimal("0.075e-6"))
"""What the proxy takes its models for."""
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


def befall(asked: Asked) -> Effect:
    """The fault whose name is in the prompt."""
    return next((fault(asked) for name, fault in FAULTS.items() if name in asked.prompt), None)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Provider]:
    """The provider behind the proxy."""
    with Provider(echo_each, fault=befall) as provider:
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


def arrivals(books: Books, part: str) -> list[float]:
    """When each request that holds `part` reached the provider."""
    return [asked.arrived_at for asked in books.requests if part in asked.prompt]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_rows_get_their_own_answers_and_the_provider_s_bill(
    proxy: LiteLLMProxy, upstream: Provider, batch_size: int
) -> None:
    """Alone and in batches each row gets its own answer; tokens and money are those of the provider's books."""
    books, texts = upstream.books, [f"{batch_size} a call, row {number}" for number in range(24)]
    sent, received, calls = books.input_tokens, books.output_tokens, len(books.requests)
    report = ask(proxy.model("small"), texts, options(batch_size=batch_size))
    usage = report.spend.usage
    assert report.column("answer") == texts
    assert report.spend.calls == len(books.requests) - calls == 24 / batch_size
    assert (usage.input_tokens, usage.output_tokens) == (books.input_tokens - sent, books.output_tokens - received)
    assert report.spend.usd is not None
    assert abs(report.spend.usd - GPT_4O_MINI.cost(usage)) < Decimal("1e-9")
    assert report.spend.at_most_calls == 0


def test_schema_reaches_the_provider(proxy: LiteLLMProxy, upstream: Provider) -> None:
    """The proxy passes the strict schema on, so the provider holds its model to it."""
    ask(proxy.model("small"), ["held to a schema"])
    form = upstream.books.requests[-1].body["response_format"]
    assert (form["type"], form["json_schema"]["strict"]) == ("json_schema", True)
    assert set(form["json_schema"]["schema"]["properties"]) == {"answer"}


@pytest.mark.parametrize(
    ("name", "key", "advice"),
    [("small", "sk-of-a-stranger", "api_key"), ("large", MASTER_KEY, "model")],
    ids=["key", "model"],
)
def test_what_nobody_is_answered_for_is_told_at_once(
    proxy: LiteLLMProxy, upstream: Provider, name: str, key: str, advice: str
) -> None:
    """A wrong key or an unknown model stops the run with what to check; no request reaches the provider."""
    calls = len(upstream.books.requests)
    with pytest.raises(FatalError, match=f"check .*{advice}") as caught:
        ask(proxy.model(name, key), [f"row {number}" for number in range(200)], options(max_concurrency=1))
    assert caught.value.fault == "account"
    assert len(upstream.books.requests) == calls


def test_wait_of_the_provider_is_waited_for(proxy: LiteLLMProxy, upstream: Provider) -> None:
    """The proxy passes a `Retry-After` of its provider on; the call is made again after it, and only once."""
    report = ask(proxy.model("small"), ["limited once"])
    refused_at, again_at = arrivals(upstream.books, "limited once")
    assert report.column("answer") == ["limited once"]
    assert again_at - refused_at >= 1


def test_wait_of_the_proxy_is_waited_for(proxy: LiteLLMProxy, upstream: Provider) -> None:
    """A proxy whose deployments all rest says for how long; the provider is not asked meanwhile."""
    report = ask(proxy.model("pair"), ["limited twice"])
    times = arrivals(upstream.books, "limited twice")
    assert report.column("answer") == ["limited twice"]
    assert len(times) == 3
    assert times[2] - times[1] >= 1


def test_refused_rows_fail_alone(proxy: LiteLLMProxy) -> None:
    """A content filter and a window behind the proxy cost their row only, also in a batch of others."""
    texts = ["one", "filtered", "two", "too long", "three", "four"]
    report = ask(proxy.model("small"), texts, options(batch_size=3))
    assert report.column("answer") == ["one", None, "two", None, "three", "four"]
    assert {outcome.reason for outcome in report.outcomes if isinstance(outcome, Failure)} == {"refused"}


def test_credit_that_ends_behind_the_proxy_stops_the_run(proxy: LiteLLMProxy, upstream: Provider) -> None:
    """It is no rate limit: nobody waits for it."""
    with pytest.raises(FatalError, match="credit") as caught:
        ask(proxy.model("small"), ["out of credit"])
    assert caught.value.fault == "account"
    assert len(arrivals(upstream.books, "out of credit")) == 1


def test_provider_that_is_too_slow_for_the_proxy_is_charged(proxy: LiteLLMProxy, upstream: Provider) -> None:
    """The proxy gives up, the provider bills all the same: each such call counts with the most that it can cost."""
    model = proxy.model("hasty", max_output_tokens=50)
    books = upstream.books
    sent, received = books.input_tokens, books.output_tokens
    chosen = Options(store=":memory:", price=GPT_4O_MINI, policy=Policy(retry=RetryPolicy(max_lost=2)))
    report = ask(model, ["never in time"], chosen)
    billed = GPT_4O_MINI.cost(Usage(books.input_tokens - sent, 0, books.output_tokens - received))
    assert report.column("answer") == [None]
    assert (report.spend.calls, report.spend.unknown) == (2, 2)
    assert report.spend.unknown_usd is not None
    assert report.spend.unknown_usd >= billed > 0


@pytest.mark.parametrize("limited", [("small", FIVE_CALLS_KEY), ("five", MASTER_KEY)], ids=["key", "deployment"])
def test_limits_on_calls_at_once_are_found_and_used(proxy: LiteLLMProxy, limited: tuple[str, str]) -> None:
    """Refusals that ask to wait for a minute do not stop a run: rows go on being answered before the minute is over.

    The exact bound (0.7 of what five at once can do, after 10 s) is held on the virtual clock.
    """
    name, key = limited
    texts, in_time = [f"{name} with 64 in flight, {number} takes a second" for number in range(40)], [0]

    def report_progress(now: Progress) -> None:
        if now.elapsed_s < 55:
            in_time.append(now.rows_done)

    chosen = Options(store=":memory:", policy=Policy(max_concurrency=64), on_progress=report_progress)
    report = ask(proxy.model(name, key), texts, chosen)
    assert report.column("answer") == texts
    # Five answers are all that comes before the first refusal is heard.
    assert max(in_time) >= 15
