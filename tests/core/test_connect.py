from __future__ import annotations

from pathlib import Path

import pytest

from ondine_core import ConfigError, ModelSpec
from ondine_core.providers import connect
from tests.support.asking import one_call
from tests.support.provider import Provider

KEY = "sk-from-the-environment"


@pytest.mark.parametrize("model", ["gpt-4o-mini", "nobody/gpt-4o-mini", "openai/", "/gpt-4o-mini", ""])
def test_unknown_provider_is_named_with_the_valid_ones(model: str) -> None:
    """A model name that is not provider/name of a known provider is refused, and the message lists what is valid."""
    with pytest.raises(ConfigError, match="openai_compatible") as caught:
        connect(ModelSpec(model))
    assert repr(model) in str(caught.value)
    assert "groq" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "variable"),
    [
        ("openai/gpt-4o-mini", "OPENAI_API_KEY"),
        ("groq/llama-3.3-70b-versatile", "GROQ_API_KEY"),
        ("together_ai/some/model", "TOGETHERAI_API_KEY"),
    ],
)
@pytest.mark.parametrize("value", [None, ""])
def test_missing_key_names_the_variable(
    model: str, variable: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that needs a key and has none, or an empty one, is refused with the name of the variable to set."""
    if value is not None:
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=variable):
        connect(ModelSpec(model))


@pytest.mark.parametrize("model", ["hosted_vllm/qwen", "openai_compatible/qwen"])
def test_missing_address_is_asked_for(model: str) -> None:
    """A provider without an address of its own is refused without base_url, and the message says so."""
    with pytest.raises(ConfigError, match="base_url"):
        connect(ModelSpec(model))


@pytest.mark.parametrize(
    ("model", "variable"),
    [("openai/m", "OPENAI_API_KEY"), ("groq/m", "GROQ_API_KEY"), ("openai_compatible/m", "OPENAI_API_KEY")],
)
def test_key_of_the_environment_stays_away_from_other_addresses(
    model: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider's own key from the environment is never sent to a base_url that the user configured."""
    monkeypatch.setenv(variable, KEY)
    with Provider() as provider:
        one_call(connect(ModelSpec(model, base_url=provider.base_url)))
    (asked,) = provider.books.requests
    assert "Authorization" not in asked.headers
    assert KEY not in str(asked)


def test_key_that_was_given_goes_to_the_address_that_was_given() -> None:
    """A key given together with a base_url is sent there."""
    with Provider() as provider:
        one_call(connect(ModelSpec("openai/m", api_key="sk-given", base_url=provider.base_url)))
    assert provider.books.requests[0].headers["Authorization"] == "Bearer sk-given"


def test_name_may_contain_slashes() -> None:
    """Only the first slash separates the provider; the rest is the model's name as the server knows it."""
    with Provider() as provider:
        one_call(connect(ModelSpec("openai_compatible/meta-llama/Llama-3", base_url=provider.base_url)))
    assert provider.books.requests[0].body["model"] == "meta-llama/Llama-3"


def test_llama_cpp_without_the_file_says_which(tmp_path: Path) -> None:
    """A llama.cpp model file that is not there is refused at once, with its path."""
    pytest.importorskip("xllamacpp", reason="the extra 'local' is not installed")
    missing = tmp_path / "missing.gguf"
    with pytest.raises(ConfigError, match="there is no file") as caught:
        connect(ModelSpec(f"llama_cpp/{missing}"))
    assert str(missing) in str(caught.value)
