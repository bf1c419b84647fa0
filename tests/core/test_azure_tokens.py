from __future__ import annotations

import asyncio
import time

import pytest

from ondine_core import FatalError, Reply, TransientError
from ondine_core.providers import connect
from ondine_core.providers.azure import connect_azure
from ondine_core.values import ChatModel
from tests.support.asking import one_call
from tests.support.azure_provider import CALL, AzureProvider, Credential, calls, spec


def test_token_is_fetched_again_before_it_expires() -> None:
    """A run outlives many tokens, and no call ever shows one that has expired."""
    credential = Credential(lifetime_s=0.5)
    with AzureProvider(credential.accepts) as provider:
        calls(connect_azure(spec(provider), "small", credential=credential), 40, pause_s=0.05)
    assert provider.refused == []
    assert 4 <= len(credential.given) <= 9
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


def test_nobody_waits_for_a_new_token_while_the_old_one_is_good() -> None:
    """A slow fetch ahead of time delays no call, and one that fails does no harm while there is time for another."""
    credential = Credential(lifetime_s=1.0, delay_s=0.1)
    with AzureProvider(credential.accepts) as provider:
        model = connect_azure(spec(provider), "small", credential=credential)

        async def main() -> list[float]:
            await model(CALL)
            credential.failures.append(OSError("no route"))
            took = []
            for _ in range(20):
                started = time.perf_counter()
                await model(CALL)
                took.append(time.perf_counter() - started)
                await asyncio.sleep(0.05)
            await model.aclose()
            return took

        took = asyncio.run(main())
    assert provider.refused == []
    assert len(credential.given) >= 2
    assert max(took) < 0.1


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
