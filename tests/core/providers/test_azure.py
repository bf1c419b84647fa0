from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from ondine_core import ConfigError, FatalError, ModelSpec, RefusedError
from ondine_core.providers import connect
from ondine_core.providers.azure import connect_azure
from tests.support.asking import one_call
from tests.support.azure_provider import API_VERSION, CALL, KEY, AzureProvider, Credential, spec
from tests.support.provider import error, status

VARIABLES = "ENDPOINT API_KEY AD_TOKEN API_VERSION REGION".split()


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(f"AZURE_OPENAI_{name}", raising=False)


def shown(key: str) -> Callable[[str], bool]:
    return lambda value: value == key


# -- addresses -----------------------------------------------------------------------------------------------------


def test_deployment_and_version_are_in_the_address_and_not_in_the_body() -> None:
    """The call goes to the deployment's own address, with an api version that is not a preview."""
    with AzureProvider(shown(KEY)) as provider:
        one_call(connect(spec(provider, api_key=KEY, max_output_tokens=9, temperature=0.5)), call=CALL)
    (asked,) = provider.ledger.requests
    assert asked.headers["api-key"] == KEY
    assert "Authorization" not in asked.headers
    assert asked.body == {
        "temperature": 0.5,
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Repeat: hello"}],
    }


@pytest.mark.parametrize("tail", ["", "/", "/openai", "/openai/v1/"])
def test_endpoint_may_be_copied_from_the_portal(tail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint, key and version may come from the usual variables; a suffix that the portal adds is removed."""
    with AzureProvider(shown(KEY), versions=("2025-01-01",)) as provider:
        for name, value in [("ENDPOINT", provider.address + tail), ("API_KEY", KEY), ("API_VERSION", "2025-01-01")]:
            monkeypatch.setenv(f"AZURE_OPENAI_{name}", value)
        reply = one_call(connect(ModelSpec("azure/small")), call=CALL)
    assert reply.text == '{"answer":"hello"}'


@pytest.mark.parametrize(
    "names",
    [
        ("AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY", "OPENAI_API_VERSION"),
        ("AZURE_API_BASE", "AZURE_API_KEY", "AZURE_API_VERSION"),
    ],
)
def test_variables_of_other_packages_are_read(names: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of OpenAI's and of litellm; an older version of the API would reply otherwise."""
    with AzureProvider(shown(KEY), versions=("2025-01-01",)) as provider:
        for name, value in zip(names, (provider.address, KEY, "2025-01-01"), strict=True):
            monkeypatch.setenv(name, value)
        assert one_call(connect(ModelSpec("azure/small")), call=CALL).text == '{"answer":"hello"}'


def test_version_of_the_settings_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting has precedence over the variable."""
    monkeypatch.setenv("AZURE_OPENAI_API_VERSION", "2025-01-01")
    with AzureProvider() as provider:
        one_call(connect(spec(provider, api_key=KEY, settings={"api_version": API_VERSION})), call=CALL)
    assert len(provider.ledger.requests) == 1


class UndatedProvider(AzureProvider):
    """A provider at the address of version v1."""

    path = "/openai/{deployment}/chat/completions"


def test_version_v1_names_the_deployment_in_the_body() -> None:
    """As OpenAI does."""
    with UndatedProvider(deployment="v1", versions=("v1",)) as provider:
        chosen = spec(provider, api_key=KEY, settings={"api_version": "v1"}, max_output_tokens=9)
        one_call(connect(chosen), call=CALL)
    body = provider.ledger.requests[0].body
    assert (body["model"], body["max_completion_tokens"]) == ("small", 9)


@pytest.mark.parametrize(
    ("deployment", "base_model", "bound"),
    [
        ("small", None, "max_tokens"),
        ("small", "gpt-4o-mini", "max_tokens"),
        ("small", "gpt-5-mini", "max_completion_tokens"),
        ("small", "o3-mini", "max_completion_tokens"),
        ("my-gpt5", None, "max_completion_tokens"),
        ("my-gpt5", "gpt-4.1", "max_tokens"),
        ("demo1", None, "max_tokens"),
    ],
)
def test_output_bound_has_the_field_name_of_the_deployed_model(
    deployment: str, base_model: str | None, bound: str
) -> None:
    """The deployed model decides the field; if it is not configured, the deployment's name does."""
    settings = {"base_model": base_model} if base_model else {}
    with AzureProvider(deployment=deployment) as provider:
        chosen = ModelSpec(f"azure/{deployment}", KEY, provider.address, max_output_tokens=9, settings=settings)
        one_call(connect(chosen), call=CALL)
    assert provider.ledger.requests[0].body[bound] == 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_url": None}, "AZURE_OPENAI_ENDPOINT"),
        ({"base_url": "my-resource"}, "is not an address"),
        ({"settings": {"api_verson": "x"}}, "Did you mean 'api_version'"),
        ({"settings": {"region": "eastus"}}, "give those, too"),
        ({"settings": {"regions": {"eastus": "http://127.0.0.1:9"}}}, "not with base_url"),
        ({"base_url": None, "settings": {"regions": {}}}, "regions maps names to endpoints"),
        ({"base_url": None, "settings": {"regions": {"a": "b"}}}, r"regions\['a'\]='b' is not an address"),
        ({"base_url": None, "settings": {"regions": {"a": "http://x"}, "region": "b"}}, "not one of the regions: 'a'"),
    ],
)
def test_wrong_definition_is_refused_with_the_remedy(fields: dict[str, Any], message: str) -> None:
    """A definition that cannot work is refused before any call; the message says what to write."""
    with pytest.raises(ConfigError, match=message):
        connect(spec(**{"api_key": KEY, **fields}))


# -- credentials ---------------------------------------------------------------------------------------------------


def test_missing_credentials_name_all_three_ways() -> None:
    """Without identity, token and key the error describes all three."""
    with pytest.raises(ConfigError) as caught:
        connect(spec())
    for way in ("managed_identity=true", "client_id", "AZURE_OPENAI_AD_TOKEN", "api_key", "AZURE_OPENAI_API_KEY"):
        assert way in str(caught.value)


def test_identity_goes_before_token_and_token_before_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first of identity, token and key is used, and one that is given before one of the environment."""
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "key-of-the-environment")
    with AzureProvider() as provider:
        one_call(connect(spec(provider)), call=CALL)
        monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "token-of-the-environment\n")
        one_call(connect(spec(provider)), call=CALL)
        one_call(connect(spec(provider, api_key=KEY)), call=CALL)
        with_token = spec(provider, api_key=KEY, settings={"ad_token": "token-given"})
        one_call(connect(with_token), call=CALL)
        one_call(connect_azure(with_token, "small", credential=Credential()), call=CALL)
    sent = [(asked.headers.get("api-key"), asked.headers.get("Authorization")) for asked in provider.ledger.requests]
    assert sent == [
        ("key-of-the-environment", None),
        (None, "Bearer token-of-the-environment"),
        (KEY, None),
        (None, "Bearer token-given"),
        (None, "Bearer token"),
    ]


@pytest.mark.parametrize("name", ["azure.identity", "azure"])
def test_missing_package_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Managed identity without azure-identity is refused at once, with the install command."""
    for module in [module for module in sys.modules if module.partition(".")[0] == "azure"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)  # how Python marks a module that cannot be imported
    with pytest.raises(ConfigError, match=r"pip install 'ondine-dagster\[azure\]'"):
        connect(spec(settings={"managed_identity": True}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"managed_identity": "yes"}, "neither true nor false"), ({"client_id": "1234"}, "set managed_identity")],
)
def test_incomplete_managed_identity_is_refused(settings: dict[str, Any], message: str) -> None:
    """A managed-identity setting that would be ignored, or is not a boolean, is an error."""
    with pytest.raises(ConfigError, match=message):
        connect(spec(api_key=KEY, settings=settings))


@pytest.mark.parametrize(
    ("settings", "credential", "code", "advice"),
    [
        ({}, None, 401, "check api_key or AZURE_OPENAI_API_KEY"),
        ({}, None, 403, "network rules"),
        ({"ad_token": "t"}, None, 401, "has expired .* 'Cognitive Services OpenAI User'"),
        ({"ad_token": "t"}, None, 403, "'Cognitive Services OpenAI User'"),
        ({}, Credential(), 401, "the identity lacks the role 'Cognitive Services OpenAI User'"),
        ({}, Credential(), 403, "the identity lacks the role 'Cognitive Services OpenAI User'"),
        ({}, None, 404, "there is no deployment 'small' at this endpoint, or no api version '2024-10-21'"),
    ],
)
def test_refused_credentials_say_what_is_missing(
    settings: dict[str, Any], credential: Credential | None, code: int, advice: str
) -> None:
    """The remedy in the error fits the kind of credentials used."""
    with AzureProvider(fault=status(code)) as provider, pytest.raises(FatalError, match=advice):
        one_call(
            connect_azure(spec(provider, api_key=KEY, settings=settings), "small", credential=credential), call=CALL
        )


def test_filtered_prompt_refuses_one_row() -> None:
    """Azure's content filter refuses that request only."""
    filtered = error(400, "The response was filtered due to the content management policy.", "content_filter")
    with AzureProvider(fault=filtered) as provider, pytest.raises(RefusedError, match="content_filter"):
        one_call(connect(spec(provider, api_key=KEY)), call=CALL)
