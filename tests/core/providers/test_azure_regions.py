from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ondine_core import FatalError, ModelSpec, Reply, TransientError
from ondine_core.providers import connect
from ondine_core.types.protocols import ChatModel
from tests.support.asking import one_call
from tests.support.azure_provider import CALL, KEY, AzureProvider, calls
from tests.support.provider import first, slow, status


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_OPENAI_REGION", raising=False)


def in_regions(*providers: AzureProvider, **fields: Any) -> ChatModel:
    regions = {f"region{number}": provider.address for number, provider in enumerate(providers, 1)}
    settings = {"regions": regions, **fields.pop("settings", {})}
    return connect(ModelSpec("azure/small", api_key=KEY, settings=settings, **{"timeout_s": 10.0, **fields}))


@pytest.mark.parametrize("code", [408, 429, 500, 503])
def test_call_refused_by_a_region_goes_to_the_next(code: int) -> None:
    """An overloaded region is skipped for as long as it asks; no call is lost or delayed."""
    with AzureProvider(fault=status(code, headers={"Retry-After": "60"})) as busy, AzureProvider() as idle:
        replies = calls(in_regions(busy, idle), 5)
    assert len(replies) == 5
    assert (len(busy.ledger.requests), len(idle.ledger.requests)) == (1, 5)


def test_traffic_returns_when_the_region_takes_calls_again() -> None:
    """The preferred region is used again once its pause is over."""
    busy = first(1, status(429, headers={"Retry-After-Ms": "100"}))
    with AzureProvider(fault=busy) as preferred, AzureProvider() as other:
        calls(in_regions(preferred, other), 4, pause_s=0.1)
    assert len(preferred.ledger.requests) >= 3
    assert len(other.ledger.requests) >= 1


def test_unreachable_region_is_skipped() -> None:
    """The next region is asked at once."""
    with AzureProvider() as gone:
        pass
    with AzureProvider() as there:
        calls(in_regions(gone, there), 3)
    assert len(there.ledger.requests) == 3


def test_chosen_region_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The region is chosen by setting, else by variable, else it is the first."""
    with AzureProvider() as one, AzureProvider() as two:
        calls(in_regions(one, two), 1)
        monkeypatch.setenv("AZURE_OPENAI_REGION", "region2")
        calls(in_regions(one, two), 2)
        calls(in_regions(one, two, settings={"region": "region1"}), 4)
    assert (len(one.ledger.requests), len(two.ledger.requests)) == (5, 2)


def test_call_that_may_have_been_billed_is_not_moved() -> None:
    """After a time-out the engine retries, and the retry goes to the other region."""
    with AzureProvider(fault=slow(5)) as hanging, AzureProvider() as other:
        model = in_regions(hanging, other, timeout_s=0.3)

        async def main() -> Reply:
            with pytest.raises(TransientError) as caught:
                await model(CALL)
            assert caught.value.cost_unknown
            assert other.ledger.requests == []
            reply = await model(CALL)
            await model.aclose()
            return reply

        assert asyncio.run(main()).text == '{"answer":"hello"}'


def test_all_regions_busy_waits_for_the_first_to_be_free() -> None:
    """The call fails at no cost, with the shortest of the pauses that the regions ask for."""
    faults = [status(429, headers={"Retry-After": seconds}) for seconds in ("30", "7")]
    with (
        AzureProvider(fault=faults[0]) as one,
        AzureProvider(fault=faults[1]) as two,
        pytest.raises(TransientError) as caught,
    ):
        one_call(in_regions(one, two), call=CALL)
    assert (caught.value.retry_after_s, caught.value.kind, caught.value.cost_unknown) == (7.0, "limited", False)


def test_misconfigured_region_stops_the_run_with_its_name() -> None:
    """A region that lacks the deployment is an error, not a reason to use another one for ever."""
    with (
        AzureProvider(fault=status(429)) as busy,
        AzureProvider(deployment="other") as wrong,
        pytest.raises(FatalError, match=r"Region 'region2': .*there is no deployment 'small'"),
    ):
        one_call(in_regions(busy, wrong), call=CALL)


def test_region_at_its_limit_delays_no_call_while_another_is_free() -> None:
    """Its pause applies to the region, not to the run."""
    used_up = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "60s",
    }
    body = {"choices": [{"message": {"content": "hello"}}]}
    with AzureProvider(fault=status(200, body, used_up)) as full, AzureProvider() as free:
        replies = calls(in_regions(full, free), 3)
        alone = calls(in_regions(full), 1)
    assert [reply.hold_off_s for reply in replies] == [0.0, 0.0, 0.0]
    assert (len(full.ledger.requests), len(free.ledger.requests)) == (2, 2)
    assert alone[0].hold_off_s > 0
