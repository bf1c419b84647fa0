"""The same prompt and the same fault through litellm and through our own client."""

from __future__ import annotations

from typing import Any

import pytest

from ondine_core import ProviderError
from tests.support.clients import BY_LITELLM, LOST, STATUSES, WIRE, Client
from tests.support.provider import Fault, empty, error, filtered, refusal, status, truncated

litellm_client = pytest.mark.parametrize("client", BY_LITELLM, ids=lambda client: client.name)


def traits(failure: ProviderError) -> dict[str, Any]:
    names = ("kind", "retry_after_s", "cost_unknown", "times_lost", "usage", "is_certain")
    return {"type": type(failure), "text": str(failure)} | {name: getattr(failure, name, None) for name in names}


BODY = {
    "id": "from-body",
    "choices": [{"message": {"role": "assistant", "content": '{"answer": "x"}'}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 70,
        "completion_tokens": 30,
        "total_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 50},
        "completion_tokens_details": {"reasoning_tokens": 20},
    },
}
LIMITS = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-requests": "60s",
}


@litellm_client
@pytest.mark.parametrize("fault", [None, truncated, empty, status(200, BODY), status(200, BODY, LIMITS)])
def test_same_prompt_gives_the_same_reply(client: Client, fault: Fault | None) -> None:
    """The replies are equal except for their latency."""
    with client.provider(fault=fault, cached_tokens=2) as provider:
        ours, theirs = (asked.ask(provider, temperature=0.5) for asked in (WIRE, client))
    first, second = provider.ledger.requests[-2:]
    assert first.messages == second.messages
    assert ours.text == theirs.text
    assert [ours.usage, ours.finish_reason, ours.hold_off_s] == [theirs.usage, theirs.finish_reason, theirs.hold_off_s]
    assert (ours.request_id or "").partition("-")[0] == (theirs.request_id or "").partition("-")[0]


@litellm_client
@pytest.mark.parametrize(
    "fault",
    [
        *(status(code, headers={"Retry-After": "7"}) for code in STATUSES),
        *LOST.values(),
        refusal,
        filtered,
        error(429, "You exceeded your quota", "insufficient_quota"),
        error(400, "The field top_q is not known"),
        status(200, {"error": {"message": "busy", "code": 429}}),
        status(200, []),
        status(500, b"<html>"),
    ],
    ids=[*map(str, STATUSES), *LOST, *"refusal filtered quota quoted hidden list html".split()],
)
def test_same_fault_gives_the_same_error(client: Client, fault: Fault) -> None:
    """The errors have the same type, text and consequences."""
    with client.provider(fault=fault) as provider:
        failures = []
        for asked in (WIRE, client):
            with pytest.raises(ProviderError) as caught:
                asked.ask(provider, timeout_s=0.5)
            failures.append(traits(caught.value))
    assert failures[0] == failures[1]
