from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass

import pytest

from ondine_core import FatalError, Reply, TransientError
from ondine_core.providers import connect
from ondine_core.providers.azure import connect_azure
from ondine_core.types.protocols import ChatModel
from tests.support.asking import one_call
from tests.support.azure_provider import CALL, AzureProvider, Credential, Token, calls, spec
from tests.support.provider import slow


def test_token_is_fetched_again_before_it_expires() -> None:
    """A run longer than a token's life never sends an expired token."""
    credential = Credential(lifetime_s=2.0)
    with AzureProvider(credential.accepts) as provider:
        calls(connect_azure(spec(provider), "small", credential=credential), 30, pause_s=0.1)
    assert provider.refused == []
    assert 2 <= len(credential.given) <= 5
    assert credential.scopes == {"https://cognitiveservices.azure.com/.default"}


def test_one_token_is_fetched_for_all_calls() -> None:
    """Concurrent first calls wait for the same fetch."""
    credential = Credential(delay_s=0.1)

    async def main(model: ChatModel) -> None:
        await asyncio.gather(*(model(CALL) for _ in range(50)))
        await model.aclose()

    with AzureProvider(credential.accepts) as provider:
        asyncio.run(main(connect_azure(spec(provider), "small", credential=credential)))
    assert len(credential.given) == 1
    assert provider.ledger.answered == 50


@dataclass
class Gated(Credential):
    """Gives the first token at once, and each later one when the event is set."""

    def __post_init__(self) -> None:
        self.asked, self.gate = threading.Event(), threading.Event()

    def get_token(self, *scopes: str) -> Token:
        """The next token."""
        if self.given:
            self.asked.set()
            assert self.gate.wait(10)
        return super().get_token(*scopes)


def test_refresh_runs_in_the_background_while_the_token_is_valid() -> None:
    """Calls do not wait for it, and it may fail while there is time for another."""
    clock = [1_000_000.0]
    credential = Gated(lifetime_s=3600.0, now=lambda: clock[0])

    async def main(model: ChatModel) -> None:
        await model(CALL)
        clock[0] += 3299
        await model(CALL)
        assert not credential.asked.is_set()
        clock[0] += 2
        credential.failures.append(OSError("no route"))
        await asyncio.gather(*(model(CALL) for _ in range(5)))
        assert await asyncio.to_thread(credential.asked.wait, 10)
        assert len(credential.given) == 1
        credential.gate.set()
        while len(credential.given) == 1:
            await model(CALL)
        await model(CALL)
        await model.aclose()

    with AzureProvider(credential.accepts) as provider:
        asyncio.run(main(connect_azure(spec(provider), "small", credential=credential, now=lambda: clock[0])))
    assert provider.refused == []
    assert credential.failures == []
    assert len(credential.given) == 2


def test_calls_wait_for_a_new_token_once_the_old_one_expired() -> None:
    """After a pause longer than the token's life no call is sent with it."""
    clock = [1_000_000.0]
    credential = Credential(lifetime_s=3600.0, now=lambda: clock[0])

    async def main(model: ChatModel) -> None:
        await model(CALL)
        clock[0] += 3601
        await asyncio.gather(*(model(CALL) for _ in range(5)))
        await model.aclose()

    with AzureProvider(credential.accepts) as provider:
        asyncio.run(main(connect_azure(spec(provider), "small", credential=credential, now=lambda: clock[0])))
    assert provider.refused == []
    assert len(credential.given) == 2


class ClientAuthenticationError(Exception):
    """As azure-core names it."""


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (ClientAuthenticationError("no identity here"), FatalError, "no identity here.*settings client_id.*az login"),
        (ImportError("no cryptography"), FatalError, "cryptography"),
        (OSError("no route"), TransientError, "no route"),
    ],
)
def test_refused_token_gives_the_reason(failure: Exception, kind: type[Exception], message: str) -> None:
    """The error is fatal without an identity, transient if the token service is unreachable; neither costs anything."""
    with AzureProvider() as provider, pytest.raises(kind, match=message) as caught:
        one_call(connect_azure(spec(provider), "small", credential=Credential(failures=[failure])), call=CALL)
    assert not getattr(caught.value, "cost_unknown", False)
    assert provider.ledger.requests == []


def test_calls_waiting_for_one_token_have_separate_errors() -> None:
    """The retry code changes the error of its call, so they must not share one."""
    credential = Credential(delay_s=0.1, failures=[OSError("no route")])

    async def main(model: ChatModel) -> list[BaseException | Reply]:
        outcomes = await asyncio.gather(model(CALL), model(CALL), return_exceptions=True)
        await model.aclose()
        return outcomes

    one, other = asyncio.run(main(connect_azure(spec(), "small", credential=credential)))
    assert type(one) is type(other) is TransientError
    assert one is not other


def test_slow_token_is_a_time_out_at_no_cost() -> None:
    """The wait for a token counts towards the call's time-out; the call was not sent."""
    credential = Credential(delay_s=0.4)
    with pytest.raises(TransientError, match=r"no token within 0\.1 s") as caught:
        one_call(connect_azure(spec(timeout_s=0.1), "small", credential=credential), call=CALL)
    assert (caught.value.cost_unknown, caught.value.kind) == (False, "overloaded")


def test_azure_identity_without_an_identity_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """azure-identity is used by default, and the error says that it found no identity."""
    pytest.importorskip("azure.identity", reason="the extra 'azure' is not installed")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "AzurePowerShellCredential")
    with pytest.raises(FatalError, match="gave no token for the managed identity"):
        one_call(connect(spec(timeout_s=30, settings={"managed_identity": True, "client_id": "1234"})), call=CALL)


def test_waiting_for_a_token_is_part_of_the_time_of_a_call() -> None:
    """A call ends after `timeout_s`, whatever it waited for."""
    credential = Credential(delay_s=1.5)
    with AzureProvider(credential.accepts, fault=slow(30)) as provider:
        model = connect_azure(spec(provider, timeout_s=2.0), "small", credential=credential)
        began = time.monotonic()
        with pytest.raises(TransientError, match="did not reply within 2 s"):
            one_call(model, call=CALL)
    assert time.monotonic() - began < 3.2
