from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import pytest

from ondine_core import FatalError, Reply, TransientError
from ondine_core.providers import connect
from ondine_core.providers.azure import connect_azure
from ondine_core.types.protocols import ChatModel
from tests.support.asking import one_call
from tests.support.azure_provider import CALL, AzureProvider, Credential, Token, calls, spec


def test_token_is_fetched_again_before_it_expires() -> None:
    """A run outlives many tokens, and no call ever shows one that has expired."""
    credential = Credential(lifetime_s=2.0)
    with AzureProvider(credential.accepts) as provider:
        calls(connect_azure(spec(provider), "small", credential=credential), 30, pause_s=0.1)
    assert provider.refused == []
    assert 2 <= len(credential.given) <= 5
    assert credential.scopes == {"https://cognitiveservices.azure.com/.default"}


def test_one_token_is_fetched_for_all_calls() -> None:
    """However many calls begin at once, one token is fetched, and all of them wait for it."""
    credential = Credential(delay_s=0.1)

    async def main(model: ChatModel) -> None:
        await asyncio.gather(*(model(CALL) for _ in range(50)))
        await model.aclose()

    with AzureProvider(credential.accepts) as provider:
        asyncio.run(main(connect_azure(spec(provider), "small", credential=credential)))
    assert len(credential.given) == 1
    assert provider.books.answered == 50


@dataclass
class Gated(Credential):
    """Gives the first token at once and every other when the gate is opened."""

    def __post_init__(self) -> None:
        self.asked, self.gate = threading.Event(), threading.Event()

    def get_token(self, *scopes: str) -> Token:
        """The next token."""
        if self.given:
            self.asked.set()
            assert self.gate.wait(10)
        return super().get_token(*scopes)


def test_nobody_waits_for_a_new_token_while_the_old_one_is_good() -> None:
    """Ahead of time one fetch runs beside the calls; it may fail while there is time for another."""
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


def test_everybody_waits_for_a_new_token_once_the_old_one_is_not_good() -> None:
    """After a pause that outlived the token, no call goes out with it."""
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
    """As azure-core calls it."""


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (ClientAuthenticationError("no identity here"), FatalError, "no identity here.*settings client_id.*az login"),
        (ImportError("no cryptography"), FatalError, "cryptography"),
        (OSError("no route"), TransientError, "no route"),
    ],
)
def test_token_that_is_not_given_says_why(failure: Exception, kind: type[Exception], message: str) -> None:
    """Without an identity no call can succeed; when its service is out of reach, a later one may. Neither costs."""
    with AzureProvider() as provider, pytest.raises(kind, match=message) as caught:
        one_call(connect_azure(spec(provider), "small", credential=Credential(failures=[failure])), call=CALL)
    assert not getattr(caught.value, "cost_unknown", False)
    assert provider.books.requests == []


def test_every_call_has_an_error_of_its_own() -> None:
    """Calls that waited for the same token fail apart, since whoever retries one counts on its error."""
    credential = Credential(delay_s=0.1, failures=[OSError("no route")])

    async def main(model: ChatModel) -> list[BaseException | Reply]:
        came = await asyncio.gather(model(CALL), model(CALL), return_exceptions=True)
        await model.aclose()
        return came

    one, other = asyncio.run(main(connect_azure(spec(), "small", credential=credential)))
    assert type(one) is type(other) is TransientError
    assert one is not other


def test_token_that_takes_too_long_is_a_time_out_at_no_cost() -> None:
    """Waiting for a token ends with the time of the call; it never left."""
    credential = Credential(delay_s=0.4)
    with pytest.raises(TransientError, match=r"no token within 0\.1 s") as caught:
        one_call(connect_azure(spec(timeout_s=0.1), "small", credential=credential), call=CALL)
    assert (caught.value.cost_unknown, caught.value.kind) == (False, "overloaded")


def test_real_credential_says_that_there_is_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """azure-identity itself is used when nothing else is given, and where it finds nobody the error says so."""
    pytest.importorskip("azure.identity", reason="the extra 'azure' is not installed")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "AzurePowerShellCredential")
    with pytest.raises(FatalError, match="gave no token for the managed identity"):
        one_call(connect(spec(timeout_s=30, settings={"managed_identity": True, "client_id": "1234"})), call=CALL)
