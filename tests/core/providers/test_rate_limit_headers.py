from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from itertools import pairwise
from math import isfinite

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ondine_core import Call, ModelSpec, TransientError
from ondine_core.providers import connect
from ondine_core.providers.rate_limit_headers import hold_off_s, retry_after_s
from ondine_core.types.values import Message
from tests.support.asking import ask, one_call_to, options, texts
from tests.support.provider import Provider, after, rate_limited, status, while_set, with_headers

NOON = 1_700_000_000.0
LEFT, RESET, LIMIT = (f"x-ratelimit-{what}-requests" for what in ("remaining", "reset", "limit"))
TOKENS_LEFT, TOKENS_RESET, TOKENS_LIMIT = (f"x-ratelimit-{what}-tokens" for what in ("remaining", "reset", "limit"))

# -- remaining limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0),
        ("1s", 1.0),
        ("20ms", 0.02),
        ("1h2m3s", 3723.0),
        ("1m30.5s", 90.5),
        ("7.66s", 7.66),
        ("1d", 86400.0),
        ("2", 2.0),
        ("0.25", 0.25),
        ("0s", 0.0),
        (f"{NOON + 7:.0f}", 7.0),
        (f"{NOON * 1000 + 7000:.0f}", 7.0),
        ("2023-11-14T22:13:27Z", 7.0),
    ],
)
@pytest.mark.parametrize("limit", ["requests", "requests-minute", "tokens", "tokens-minute", "tokens-per-minute"])
def test_a_reset_is_read_in_every_form(text: str, seconds: float, limit: str) -> None:
    """Durations as OpenAI and Groq write them, plain seconds, and times."""
    headers = {f"x-ratelimit-remaining-{limit}": "0", f"x-ratelimit-reset-{limit}": text}
    assert hold_off_s(headers, 1, now=NOON) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {LEFT: "0"},
        {RESET: "2s"},
        {LEFT: "", RESET: "2s"},
        {LEFT: "none", RESET: "2s"},
        {LEFT: "nan", RESET: "2s"},
        {LEFT: "0", RESET: "soon"},
        {LEFT: "0", RESET: "2 s"},
        {LEFT: "0", RESET: "-2"},
        {LEFT: "0", RESET: "inf"},
        {LEFT: "0", RESET: "2s and a bit"},
        {LEFT: "0", RESET: "2026-01-01T00:00:00Z"},
        {LEFT: "0", RESET: "9999999"},
        {LEFT: "1", RESET: "2s"},
        {TOKENS_LEFT: "10", TOKENS_RESET: "6s"},
    ],
    ids=str,
)
def test_missing_or_malformed_headers_cause_no_wait(headers: Mapping[str, str]) -> None:
    """Neither do complete ones while enough is left."""
    assert hold_off_s(headers, 10) == 0


def test_wait_is_only_for_the_share_that_the_next_call_needs() -> None:
    """Limits refill evenly: of 60 calls a minute the next is available after a second."""
    assert hold_off_s({LEFT: "0", RESET: "60s", LIMIT: "60"}, 1) == pytest.approx(1)
    assert hold_off_s({TOKENS_LEFT: "0", TOKENS_RESET: "1m", TOKENS_LIMIT: "6000"}, 500) == pytest.approx(5)
    assert hold_off_s({TOKENS_LEFT: "400", TOKENS_RESET: "56s", TOKENS_LIMIT: "6000"}, 500) == pytest.approx(1)


def test_a_call_larger_than_the_limit_waits_until_it_is_full() -> None:
    """More than the whole limit is never available."""
    assert hold_off_s({TOKENS_LEFT: "0", TOKENS_RESET: "6s", TOKENS_LIMIT: "100"}, 500) == 6


def test_the_scarcer_of_calls_and_tokens_decides() -> None:
    """A call needs both."""
    assert hold_off_s({LEFT: "0", RESET: "1s", TOKENS_LEFT: "0", TOKENS_RESET: "3s"}, 10) == 3
    assert hold_off_s({LEFT: "0", RESET: "4s", TOKENS_LEFT: "0", TOKENS_RESET: "3s"}, 10) == 4
    assert hold_off_s({LEFT: "0", RESET: "4s", TOKENS_LEFT: "10", TOKENS_RESET: "3s"}, 10) == 4


NUMBERS = st.integers(0, 10**6)


@given(NUMBERS, NUMBERS, st.floats(0, 1e5), NUMBERS, NUMBERS)
def test_wait_never_exceeds_the_reset(left: int, limit: int, reset: float, few: int, more: int) -> None:
    """It is between 0 and the reset, and not shorter for a larger call."""
    headers = {TOKENS_LEFT: str(left), TOKENS_RESET: f"{reset:f}s", TOKENS_LIMIT: str(limit)}
    short, long = (hold_off_s(headers, few), hold_off_s(headers, few + more))
    assert 0 <= short <= long <= reset + 1e-5


HEADERS = st.text(st.characters(max_codepoint=300), max_size=30) | st.from_regex(
    r"\A[-+]?[0-9_.]*(e[0-9]{1,3}|inf|nan)?[dhms, ]*[A-Z]{0,3}\Z"
)


@given(HEADERS, HEADERS, HEADERS, st.integers(0, 10**9))
def test_any_header_value_gives_a_number(left: str, reset: str, limit: str, tokens: int) -> None:
    """For any header values the answer is kept, and the wait is a number."""
    kinds = (LEFT, RESET, LIMIT), (TOKENS_LEFT, TOKENS_RESET, TOKENS_LIMIT)
    for names in kinds:
        seconds = hold_off_s(dict(zip(names, (left, reset, limit), strict=True)), tokens)
        assert seconds >= 0
        assert isfinite(seconds)


DATES = st.from_regex(
    r"\A(Mon|Xyz)?,? ?[0-9]{1,3} (Jan|Feb|Dec) [0-9]{1,5} [0-9]{1,3}:[0-9]{2}:[0-9]{2} ?(GMT|[-+]\d+)?\Z"
)


@example("0 Jan 0 0:3000000000", "")
@example("0 Jan 0 0:0 -3000000000000", "")
@given(HEADERS | DATES, HEADERS | DATES)
def test_any_retry_after_is_none_or_not_negative(seconds: str, milliseconds: str) -> None:
    """A pause that is asked for is a number that is not negative, or none."""
    for headers in ({"retry-after": seconds}, {"retry-after-ms": milliseconds, "retry-after": seconds}):
        asked = retry_after_s(headers, NOON)
        assert asked is None or (asked >= 0 and isfinite(asked))


def test_litellm_proxy_headers_are_read_as_the_providers_limits() -> None:
    """The proxy repeats what is left without a prefix, and the reset only with one."""
    behind = {f"llm_provider-{LEFT}": "0", f"llm_provider-{RESET}": "2s", f"llm_provider-{LIMIT}": "10"}
    assert hold_off_s({LEFT: "0", LIMIT: "10", **behind}, 1) == pytest.approx(0.2)
    assert hold_off_s({LEFT: "5", RESET: "60s", LIMIT: "10", **behind}, 1) == pytest.approx(0.2)
    assert hold_off_s({LEFT: "0", RESET: "60s", LIMIT: "10", **behind}, 1) == pytest.approx(6)


# -- over HTTP -----------------------------------------------------------------------------------------------------


def test_reply_has_the_wait_of_the_next_call() -> None:
    """From headers in any spelling."""
    with Provider(fault=with_headers({LEFT: "0", RESET: "2s"})) as provider:
        assert one_call_to(provider.base_url).hold_off_s == 2
    with Provider(fault=with_headers({LEFT.title(): "0", RESET.upper(): "120ms"})) as provider:
        assert one_call_to(provider.base_url).hold_off_s == pytest.approx(0.12)
    with Provider(fault=with_headers({LEFT: "59", RESET: "1s", LIMIT: "60"})) as provider:
        assert one_call_to(provider.base_url).hold_off_s == 0


def test_next_call_is_expected_to_need_as_many_tokens() -> None:
    """A second call like this one, of about 40 tokens, must fit into what is left."""
    left = {TOKENS_LIMIT: "1000", TOKENS_RESET: "10s"}
    text = "Repeat: " + "word " * 30
    with Provider(fault=with_headers({**left, TOKENS_LEFT: "0"})) as provider:
        reply = one_call_to(provider.base_url, text)
    used = reply.usage.input_tokens + reply.usage.output_tokens
    assert used > 40
    assert reply.hold_off_s == pytest.approx(10 * used / 1000)
    with Provider(fault=with_headers({**left, TOKENS_LEFT: str(used)})) as provider:
        assert one_call_to(provider.base_url, text).hold_off_s == 0


def test_a_run_waits_when_a_reply_says_that_nothing_is_left() -> None:
    """The whole run pauses after one such reply, and no call is refused."""
    with Provider(fault=after(3, with_headers({LEFT: "0", RESET: "300ms"}))) as provider:
        report = ask(provider, texts(12), options(max_concurrency=1))
    arrived = [asked.arrived_at for asked in provider.ledger.requests]
    assert report.failures == {}
    assert all(later - earlier >= 0.28 for earlier, later in pairwise(arrived[3:]))
    assert provider.ledger.max_requests_in(0.28) == 4


# -- the simulated provider ---------------------------------------------------------------------------------------


def statuses(provider: Provider, count: int) -> list[float | None]:
    """Ask sequentially: the wait of each refusal, -1 for an answer."""

    async def main() -> list[float | None]:
        model = connect(ModelSpec("openai_compatible/m", base_url=provider.base_url))
        waits_s: list[float | None] = []
        for number in range(count):
            try:
                await model(Call((Message("user", f"Repeat: {number}"),)))
                waits_s.append(-1.0)
            except TransientError as error:
                waits_s.append(error.retry_after_s)
        await model.aclose()
        return waits_s

    return asyncio.run(main())


def test_the_simulated_limit_counts_over_a_window() -> None:
    """It admits a number of calls in each window, refuses the rest, and names the wait."""
    with Provider(fault=rate_limited(3, 60.0, retry_after_s=7)) as provider:
        assert statuses(provider, 5) == [-1, -1, -1, 7, 7]
    assert provider.ledger.max_requests_in(60) == 5
    with Provider(fault=rate_limited(1, 60.0)) as provider:
        assert statuses(provider, 2) == [-1, None]


def test_the_simulated_outage_has_a_switch() -> None:
    """The simulated provider fails for as long as the switch is set."""
    down = threading.Event()
    with Provider(fault=while_set(down, status(503))) as provider:
        assert statuses(provider, 1) == [-1]
        down.set()
        assert statuses(provider, 2) == [None, None]
        down.clear()
        assert statuses(provider, 1) == [-1]
