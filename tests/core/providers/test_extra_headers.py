"""Further headers: of gateways, organizations and betas."""

from __future__ import annotations

from typing import Any

import pytest

from ondine_core import Call, ConfigError, FatalError, ModelSpec
from ondine_core.providers import connect
from ondine_core.providers.openai_servers import find_access
from ondine_core.types.values import Message
from tests.support.anthropic_provider import AnthropicProvider
from tests.support.asking import one_call
from tests.support.azure_provider import AzureProvider
from tests.support.provider import Provider, error

KEY = "sk-1234567890"
GATEWAY_KEY = "the gateway's own 0123456789"
EXTRA = {"X-Team": "data", "Ocp-Apim-Subscription-Key": GATEWAY_KEY}
CALL = Call((Message("user", "Repeat: hello"),))
SERVERS: dict[str, type[Provider]] = {
    "openai/small": Provider,
    "openai_compatible/small": Provider,
    "azure/small": AzureProvider,
    "anthropic/claude-haiku-4-5": AnthropicProvider,
}


def spec_for(model: str, provider: Provider, **fields: Any) -> ModelSpec:
    address = provider.base_url if SERVERS[model] is Provider else provider.base_url.removesuffix("/v1")
    return ModelSpec(model, base_url=address, **{"api_key": KEY, "settings": {"extra_headers": EXTRA}, **fields})


def headers_of(provider: Provider) -> dict[str, str]:
    (request,) = provider.ledger.requests
    return {name.lower(): value for name, value in request.headers.items()}


@pytest.mark.parametrize("model", SERVERS)
def test_headers_of_the_settings_are_in_each_request(model: str) -> None:
    """Beside the key."""
    with SERVERS[model]() as provider:
        one_call(connect(spec_for(model, provider)), call=CALL)
    headers = headers_of(provider)
    assert headers["x-team"] == "data"
    assert headers["ocp-apim-subscription-key"] == GATEWAY_KEY
    assert KEY in "".join(headers.get(name, "") for name in ("authorization", "api-key", "x-api-key"))


@pytest.mark.parametrize("model", SERVERS)
def test_key_in_a_further_header_is_masked(model: str) -> None:
    """A gateway that repeats it does not put it into a log; other headers may be quoted."""
    message = f"The header ocp-apim-subscription-key: {GATEWAY_KEY} of team data is not valid."
    with (
        SERVERS[model](fault=error(401, message)) as provider,
        pytest.raises(FatalError, match="of team data") as caught,
    ):
        one_call(connect(spec_for(model, provider)), call=CALL)
    assert "0123456789" not in str(caught.value)


@pytest.mark.parametrize("model", SERVERS)
def test_header_may_be_the_only_key(model: str) -> None:
    """A gateway of one's own may have the provider's key."""
    with SERVERS[model]() as provider:
        one_call(connect(spec_for(model, provider, api_key=None)), call=CALL)
    assert not {"authorization", "api-key", "x-api-key"} & headers_of(provider).keys()


@pytest.mark.parametrize(("model", "own_address"), [("openai/m", True), ("openai/m", False), ("groq/m", True)])
def test_organization_of_the_environment_goes_to_openai_only(
    model: str, own_address: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with OpenAI's package, it decides who pays; the settings override it."""
    variables = {"OPENAI_ORG_ID": "org-1", "OPENAI_PROJECT_ID": "proj-1", "GROQ_API_KEY": KEY, "OPENAI_API_KEY": KEY}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with Provider() as provider:
        for name in ("OPENAI_BASE_URL", "GROQ_API_BASE"):
            monkeypatch.setenv(name, provider.base_url)
        address = None if own_address else provider.base_url
        settings = {"extra_headers": {"OpenAI-Project": "proj-2"}}
        one_call(connect(ModelSpec(model, base_url=address, settings=settings)), call=CALL)
    headers = headers_of(provider)
    assert headers.get("openai-organization") == ("org-1" if own_address and model == "openai/m" else None)
    assert headers["openai-project"] == "proj-2"


@pytest.mark.parametrize(
    ("base_url", "is_openais"),
    [
        ("https://eu.api.openai.com/v1", True),
        ("https://api.openai.com/v1", True),
        ("http://api.openai.com/v1", False),
        ("https://evil-api.openai.com.example/v1", False),
        ("https://evil-api.openai.com/v1", False),
    ],
)
def test_regional_address_gets_key_and_organization_of_the_environment(
    base_url: str, is_openais: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the provider's usual address does; `OPENAI_ORGANIZATION` is what litellm reads."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORGANIZATION", "org-1")
    access = find_access(ModelSpec("openai/small", base_url=base_url), "small")
    assert (access.api_key, dict(access.headers)) == (
        (KEY, {"openai-organization": "org-1"}) if is_openais else (None, {})
    )


with_custom_headers = pytest.mark.parametrize(
    ("model", "prefix"), [("openai/small", "OPENAI"), ("anthropic/claude-haiku-4-5", "ANTHROPIC")]
)


@with_custom_headers
def test_headers_of_the_environment_go_to_the_provider_only(
    model: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the provider's package, in lines; the settings override them."""
    monkeypatch.setenv(f"{prefix}_CUSTOM_HEADERS", "X-Team: shop\nX-Cost: a:b\nno header")
    monkeypatch.setenv(f"{prefix}_API_KEY", KEY)
    settings = {"extra_headers": {"x-team": "data"}}
    with SERVERS[model]() as provider:
        one_call(connect(spec_for(model, provider, settings=settings)), call=CALL)
        monkeypatch.setenv(f"{prefix}_BASE_URL", provider.base_url)
        one_call(connect(ModelSpec(model, settings=settings)), call=CALL)
    elsewhere, there = (
        {name.lower(): text for name, text in asked.headers.items()} for asked in provider.ledger.requests
    )
    assert (elsewhere["x-team"], elsewhere.get("x-cost")) == ("data", None)
    assert (there["x-team"], there["x-cost"]) == ("data", "a:b")


@with_custom_headers
def test_wrong_header_of_the_environment_is_refused(model: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the variable."""
    monkeypatch.setenv(f"{prefix}_API_KEY", KEY)
    monkeypatch.setenv(f"{prefix}_CUSTOM_HEADERS", "X-Request-Id: mine")
    with pytest.raises(
        ConfigError, match=f"{prefix}_CUSTOM_HEADERS: the header 'x-request-id' differs from call to call"
    ):
        connect(ModelSpec(model))


def test_key_variables_have_the_order_of_googles_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another order would let another account pay; litellm has the same."""
    monkeypatch.setenv("GEMINI_API_KEY", "gemini")
    monkeypatch.setenv("GOOGLE_API_KEY", "google")
    assert find_access(ModelSpec("gemini/gemini-2.5-flash"), "gemini-2.5-flash").api_key == "google"


@pytest.mark.parametrize("model", ["openai/small", "anthropic/claude-haiku-4-5"])
def test_refusal_without_a_key_says_why_none_was_sent(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's and Anthropic's packages would have sent the environment's to any address."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with (
        SERVERS[model](fault=error(401, "No key.")) as provider,
        pytest.raises(FatalError, match="no api_key was sent, since one in the environment"),
    ):
        one_call(connect(spec_for(model, provider, api_key=None, settings={})), call=CALL)


def test_authorization_is_free_without_a_key() -> None:
    """As for a server behind basic authentication."""
    basic = {"extra_headers": {"Authorization": "Basic dXNlcjpwYXNz"}}
    with Provider() as provider:
        one_call(connect(spec_for("openai/small", provider, api_key=None, settings=basic)), call=CALL)
    assert headers_of(provider)["authorization"] == "Basic dXNlcjpwYXNz"


@pytest.mark.parametrize("model", [*SERVERS, "gemini/gemini-2.5-flash"])
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("x", "extra_headers is a str; it must be a mapping of names to texts"),
        ({"x-team": 5}, r"extra_headers\['x-team'\] is a int; it must be a text"),
        ({"x": "a\nb"}, "has a line end"),
        ({"x: y": "a"}, "'x: y' is not the name of a header"),
        ({"X-Request-Id": "mine"}, "'x-request-id' differs from call to call"),
        ({"Content-Length": "3"}, "'content-length' differs from call to call"),
        ({"Transfer-Encoding": "x"}, "'transfer-encoding' differs from call to call"),
    ],
)
def test_header_that_cannot_be_sent_is_refused(model: str, extra: Any, message: str) -> None:
    """When the model is connected."""
    with pytest.raises(ConfigError, match=message):
        connect(ModelSpec(model, KEY, "http://127.0.0.1:9", settings={"extra_headers": extra}))


@pytest.mark.parametrize(
    ("model", "header"),
    [
        ("openai/small", "Authorization"),
        ("azure/small", "Api-Key"),
        ("anthropic/claude-haiku-4-5", "X-API-Key"),
    ],
)
def test_second_key_is_refused(model: str, header: str) -> None:
    """The header of the key is the key's."""
    with pytest.raises(ConfigError, match=f"the header '{header.lower()}' has the key; set api_key instead"):
        connect(ModelSpec(model, KEY, "http://127.0.0.1:9", settings={"extra_headers": {header: "another"}}))


@pytest.mark.parametrize("model", SERVERS)
def test_headers_in_params_are_refused(model: str) -> None:
    """OpenAI's package has them there; here params are fields of the body."""
    with pytest.raises(ConfigError, match=r"'extra_headers' .* it follows from settings extra_headers"):
        connect(ModelSpec(model, KEY, "http://127.0.0.1:9", params={"extra_headers": EXTRA}))
