from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ondine_core import Call, ConfigError, ModelSpec
from ondine_core.providers import connect
from ondine_core.providers.model_data import model_facts
from ondine_core.providers.openai_servers import SERVERS
from ondine_core.types.values import Message
from tests.support.asking import one_call
from tests.support.provider import Provider, first, status

KEY = "sk-from-the-environment"


@pytest.mark.parametrize("model", ["gpt-4o-mini", "nobody/gpt-4o-mini", "openai/", "/gpt-4o-mini", ""])
def test_unknown_provider_is_named_with_the_valid_ones(model: str) -> None:
    """A model name without a known provider is refused; the message lists the valid ones."""
    with pytest.raises(ConfigError, match="openai_compatible") as caught:
        connect(ModelSpec(model))
    assert repr(model) in str(caught.value)
    assert "groq" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_output_tokens": -1}, "max_output_tokens=-1 must be a whole number of at least 1"),
        ({"max_output_tokens": 0}, "max_output_tokens=0 must be"),
        ({"max_output_tokens": 1.5}, "max_output_tokens=1.5 must be"),
        ({"timeout_s": 0}, "timeout_s=0 must be a number of seconds, more than 0"),
        ({"timeout_s": "60"}, "timeout_s='60' must be"),
        ({"temperature": float("nan")}, "temperature=nan must be a number of 0 or more"),
        ({"prompt_cache": True}, "prompt_cache=True is not one of 'auto', 'off', '1h'"),
        ({"api_key": 5}, "api_key is a int; it must be a text"),
        ({"params": ["seed"]}, "params is a list; it must be a mapping"),
    ],
)
def test_field_that_is_not_valid_is_refused(fields: dict[str, Any], message: str) -> None:
    """A negative bound on output, which some servers take for none, would make a cap hold too little."""
    with pytest.raises(ConfigError, match=message):
        connect(ModelSpec("openai/m", **{"api_key": KEY, **fields}))


@pytest.mark.parametrize("model", ["openai/m", "azure/m", "anthropic/m", "mlx/a/b", "llama_cpp/gemma-3-270m"])
@pytest.mark.parametrize(
    ("name", "decided_by"),
    [
        ("n", "one reply a prompt"),
        ("max_tokens", "max_output_tokens"),
        ("timeout", "timeout_s"),
        ("system", "the prompt"),
        ("serviceTier", "tier"),
    ],
)
def test_reserved_parameters_are_refused(model: str, name: str, decided_by: str) -> None:
    """Parameters that would undo the cap or the parsing of replies are refused; the message says what to set."""
    with pytest.raises(ConfigError, match=f"'{name}' of '{model}' is not yours to set; it follows from {decided_by}"):
        connect(ModelSpec(model, api_key=KEY, params={name: 3}))


@pytest.mark.parametrize("model", ["openai/m", "azure/m", "anthropic/m", "bedrock/m"])
@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("api_key", "set api_key"),
        ("api_base", "set base_url"),
        ("organization", r"set settings extra_headers \(OpenAI-Organization\)"),
        ("betas", r"set settings extra_headers \(anthropic-beta\)"),
        ("num_retries", "leave it out"),
    ],
)
def test_arguments_of_other_packages_are_no_parameters(model: str, name: str, advice: str) -> None:
    """They would have no effect, and a key would be sent as a field of each request."""
    with pytest.raises(ConfigError, match=f"'{name}' of '{model}' is not a field of the request; {advice}"):
        connect(ModelSpec(model, api_key=KEY, params={name: "x"}))


def test_gateway_may_have_a_field_that_is_an_argument_elsewhere() -> None:
    """As LiteLLM's proxy does, which takes the provider's key in the body."""
    params = {"extra_body": {"api_key": "sk-of-the-provider"}, "metadata": {"tags": ["team-a"]}}
    with Provider() as provider:
        one_call(connect(ModelSpec("litellm_proxy/m", KEY, provider.base_url, params=params)))
    (asked,) = provider.ledger.requests
    assert asked.body["api_key"] == "sk-of-the-provider"
    assert asked.body["metadata"] == {"tags": ["team-a"]}


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
    """A required key that is missing or empty is an error that names its variable."""
    if value is not None:
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=variable):
        connect(ModelSpec(model))


@pytest.mark.parametrize(
    "model", ["openai/gpt-5-pro", "perplexity/anthropic/claude-fable-5", "xai/grok-4.20-multi-agent"]
)
def test_model_without_chat_completions_is_refused_except_behind_a_gateway(model: str) -> None:
    """A model that has the Responses API only is an error at definition, unless another server offers it."""
    with pytest.raises(ConfigError, match=f"'{model}' by its Responses API only"):
        connect(ModelSpec(model, api_key=KEY))
    connect(ModelSpec(model, api_key=KEY, base_url="http://127.0.0.1:4000/v1"))


@pytest.mark.parametrize(
    "place", [{"base_url": "https://mine.openai.azure.com"}, {"regions": {"eu": "https://e.azure.com"}}]
)
def test_deployment_without_chat_completions_is_refused_except_behind_a_gateway(place: dict[str, Any]) -> None:
    """By the model that is deployed."""
    settings = {"base_model": "gpt-5-pro", **({"regions": place["regions"]} if "regions" in place else {})}
    with pytest.raises(ConfigError, match="Azure offers 'azure/gpt-5-pro' by its Responses API only"):
        connect(ModelSpec("azure/mine", KEY, place.get("base_url"), settings=settings))
    connect(ModelSpec("azure/mine", KEY, place.get("base_url"), settings={**settings, "base_model": "gpt-4o"}))
    connect(ModelSpec("azure/mine", KEY, "https://gateway.azure-api.net", settings={"base_model": "gpt-5-pro"}))


@pytest.mark.parametrize(
    ("model", "effort", "why"),
    [
        ("openai/gpt-5-mini", "none", "does not take this effort."),
        ("openai/gpt-6-luna", "minimal", "does not take this effort."),
        ("azure/gpt-chat-latest", "low", "does not take this effort; it takes 'medium'."),
        ("mistral/mistral-medium-latest", "medium", "does not take this effort; it takes 'none', 'high'."),
    ],
)
def test_effort_that_the_model_does_not_take_is_refused_except_behind_a_gateway(
    model: str, effort: str, why: str
) -> None:
    """By the price list, with the efforts that it names."""
    own = "https://mine.openai.azure.com" if model.startswith("azure") else None
    for given in ({"reasoning_effort": effort}, {"params": {"reasoning_effort": effort}}):
        with pytest.raises(ConfigError, match=f"reasoning_effort='{effort}': by the price list, '{model}' {why}"):
            connect(ModelSpec(model, KEY, own, **given))
    connect(ModelSpec(model, KEY, own))
    connect(ModelSpec(model, KEY, "https://gateway.azure-api.net", reasoning_effort=effort))


@pytest.mark.parametrize("model", ["hosted_vllm/qwen", "openai_compatible/qwen"])
def test_missing_base_url_is_an_error(model: str) -> None:
    """For providers without an address of their own; the message says so."""
    with pytest.raises(ConfigError, match="base_url"):
        connect(ModelSpec(model))


@pytest.mark.parametrize(
    ("model", "variable"),
    [("openai/m", "OPENAI_API_KEY"), ("groq/m", "GROQ_API_KEY"), ("openai_compatible/m", "OPENAI_API_KEY")],
)
def test_key_of_the_environment_stays_away_from_other_addresses(
    model: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider's key from the environment is never sent to a configured base_url."""
    monkeypatch.setenv(variable, KEY)
    with Provider() as provider:
        one_call(connect(ModelSpec(model, base_url=provider.base_url)))
    (asked,) = provider.ledger.requests
    assert "Authorization" not in asked.headers
    assert KEY not in str(asked)


def test_explicit_key_is_sent_to_the_explicit_base_url() -> None:
    """A key given together with a base_url is sent there."""
    with Provider() as provider:
        one_call(connect(ModelSpec("openai/m", api_key="sk-given", base_url=provider.base_url)))
    assert provider.ledger.requests[0].headers["Authorization"] == "Bearer sk-given"


def test_name_may_contain_slashes() -> None:
    """Only the first slash separates the provider; the rest is the model's name as the server knows it."""
    with Provider() as provider:
        one_call(connect(ModelSpec("openai_compatible/meta-llama/Llama-3", base_url=provider.base_url)))
    assert provider.ledger.requests[0].body["model"] == "meta-llama/Llama-3"


# -- servers that speak OpenAI's dialect ---------------------------------------------------------------------------


@pytest.mark.parametrize("provider", [name for name, server in SERVERS.items() if server.needs_key])
def test_any_key_variable_of_a_provider_suffices(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable that litellm knows for a provider is enough; without one the error names all."""
    with pytest.raises(ConfigError) as caught:
        connect(ModelSpec(f"{provider}/m"))
    for variable in SERVERS[provider].keys:
        assert variable in str(caught.value)
        with monkeypatch.context() as alone:
            alone.setenv(variable, KEY)
            assert KEY not in repr(connect(ModelSpec(f"{provider}/m")))


@pytest.mark.parametrize("provider", [name for name, server in SERVERS.items() if server.addresses])
def test_environment_address_gets_the_environment_key(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that the environment names gets the key that the environment holds for it."""
    server = SERVERS[provider]
    with Provider() as standing_in:
        monkeypatch.setenv(server.addresses[0], standing_in.base_url)
        monkeypatch.setenv(server.keys[0], KEY)
        one_call(connect(ModelSpec(f"{provider}/m")))
    assert standing_in.ledger.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def test_ollama_address_may_omit_v1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ollama's own variable has the address without /v1."""
    with Provider() as provider:
        monkeypatch.setenv("OLLAMA_API_BASE", provider.base_url.removesuffix("/v1"))
        one_call(connect(ModelSpec("ollama/m")))
    assert len(provider.ledger.requests) == 1


# -- structured output ---------------------------------------------------------------------------------------------

SCHEMA = b'{"type":"object","properties":{"a":{"type":"string"}}}'
HELD = Call((Message("system", "Be brief."), Message("user", "Repeat: x")), SCHEMA)


def sent(model: str, monkeypatch: pytest.MonkeyPatch, call: Call = HELD, **settings: Any) -> Mapping[str, Any]:
    """The request that a call becomes."""
    with Provider() as provider:
        server = SERVERS[model.partition("/")[0]]
        for variable in (*server.addresses, *server.keys):
            monkeypatch.setenv(variable, provider.base_url if variable in server.addresses else KEY)
        one_call(connect(ModelSpec(model, settings=settings)), call=call)
    return provider.ledger.requests[0].body


def test_litellms_name_for_the_latest_model_is_sent_as_the_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider knows the model and not the alias."""
    assert sent("openai/gpt-sol-latest", monkeypatch)["model"] == model_facts()["gpt-sol-latest"]["alias_of"]


def test_gemini_is_asked_by_its_openai_compatible_address() -> None:
    """With the bare model name and a bearer token; a schema that it refuses is put into the prompt."""
    refused = [
        {"error": {"code": 400, "message": "Request contains an invalid argument.", "status": "INVALID_ARGUMENT"}}
    ]
    assert SERVERS["gemini"].base_url == "https://generativelanguage.googleapis.com/v1beta/openai"
    schema = b'{"type":"object","properties":{"grade":{"type":"integer","enum":[1,2]}}}'
    call = Call(HELD.messages, schema)
    with Provider(fault=first(1, status(400, refused))) as provider:
        model = connect(ModelSpec("gemini/gemini-2.5-flash", api_key=KEY, base_url=provider.base_url))
        one_call(model, call=call)
    structured, plain = (request.body for request in provider.ledger.requests)
    assert structured["model"] == "gemini-2.5-flash"
    assert structured["response_format"]["json_schema"]["schema"]["properties"]["grade"] == {
        "type": "integer",
        "description": "(enum: [1,2])",
    }
    assert "response_format" not in plain
    assert '"enum":[1,2]' in plain["messages"][0]["content"]
    assert provider.ledger.requests[0].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("model", "settings", "kind"),
    [
        ("openai/gpt-4o-mini", {}, "json_schema"),
        ("openai/unheard-of", {}, "json_schema"),
        ("groq/openai/gpt-oss-20b", {}, "json_schema"),
        ("groq/llama-3.3-70b-versatile", {}, "json_object"),
        ("groq/llama-3.3-70b-versatile", {"structured_output": "json_schema"}, "json_schema"),
        ("deepseek/deepseek-chat", {}, "json_object"),
        ("openai/m", {"structured_output": "words"}, None),
    ],
)
def test_schema_is_sent_in_the_form_that_the_server_supports(
    model: str, settings: dict[str, Any], kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without structured output gets it in the fixed beginning of the prompt."""
    body = sent(model, monkeypatch, **settings)
    assert body.get("response_format", {}).get("type") == kind
    in_prompt = SCHEMA.decode() in body["messages"][0]["content"]
    assert in_prompt == (kind != "json_schema")
    assert body["messages"][0]["content"].startswith("Be brief.")
    assert body["messages"][1:] == [{"role": "user", "content": "Repeat: x"}]


def test_call_without_a_schema_has_no_format_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free text stays free; with a schema the instruction is added even without a system message."""
    free = sent("deepseek/m", monkeypatch, Call((Message("user", "Repeat: x"),)))
    held = sent("deepseek/m", monkeypatch, Call((Message("user", "Repeat: x"),), HELD.json_schema))
    assert free["messages"] == [{"role": "user", "content": "Repeat: x"}]
    assert "response_format" not in free
    assert [message["role"] for message in held["messages"]] == ["system", "user"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structured_output": "xml"}, "'xml' is not one of 'json_schema', 'json_object', 'words'"),
        ({"structured_ouput": "words"}, "Did you mean 'structured_output'"),
        ({"api_version": "1"}, "knows no 'api_version'; valid are extra_headers, structured_output"),
    ],
)
def test_unknown_setting_is_refused_with_the_valid_ones(settings: dict[str, Any], message: str) -> None:
    """An unknown setting is an error, not ignored."""
    with pytest.raises(ConfigError, match=message):
        connect(ModelSpec("openai/m", api_key=KEY, settings=settings))


# -- other providers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("opnai/gpt-4o-mini", "'openai/gpt-4o-mini'"),
        ("antropic/claude", "'anthropic/claude'"),
        ("bedrok/claude", "'bedrock/claude'"),
        ("gpt-4o-mini", "'openai/gpt-4o-mini'"),
        ("claude-sonnet-4-5", "'anthropic/claude-sonnet-4-5'"),
    ],
)
def test_misspelt_provider_gets_a_suggestion(model: str, meant: str) -> None:
    """A misspelt provider, or a known model without one, is an error that says what to write."""
    with pytest.raises(ConfigError, match="Did you mean") as caught:
        connect(ModelSpec(model))
    assert meant in str(caught.value)


def test_connecting_imports_nothing_heavy() -> None:
    """Connecting through litellm and listing its providers do not import it, which takes seconds."""
    code = """
import sys
from ondine_core import ModelSpec
from ondine_core.providers import connect
for model in ("anthropic/claude", "bedrock/claude", "gemini/flash", "cohere/command", "vertex_ai/gemini"):
    connect(ModelSpec(model, api_key="k"))
try:
    connect(ModelSpec("nobody/m"))
except ValueError:
    pass
print(*{name.partition(".")[0] for name in sys.modules})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"litellm", "openai", "httpx", "mlx", "azure"} & set(run.stdout.split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_version": "1"}, "knows no 'api_version'; valid are parallel, threads"),
        ({"threads": 0}, r"settings\['threads'\]=0 .* is not a whole number above 0"),
        ({"parallel": 2.0}, r"settings\['parallel'\]=2.0 .* is not a whole number above 0"),
        ({"parallel": True}, r"settings\['parallel'\]=True .* is not a whole number above 0"),
    ],
)
def test_llama_cpp_refuses_settings_that_it_cannot_use(settings: dict[str, Any], message: str) -> None:
    """Settings of other providers are errors, and counts must be whole numbers."""
    with pytest.raises(ConfigError, match=message):
        connect(ModelSpec("llama_cpp/gemma-3-270m", settings=settings))


def test_llama_cpp_reports_its_parallel_calls_as_max_concurrency(tmp_path: Path) -> None:
    """Eight by default, fewer if each needs much memory, or the user's number."""
    pytest.importorskip("xllamacpp", reason="the extra 'local' is not installed")
    small, large = tmp_path / "small.gguf", tmp_path / "large.gguf"
    small.write_bytes(b"GGUF")
    with large.open("wb") as file:
        file.write(b"GGUF")
        file.truncate(3 << 30)  # a sparse file
    assert connect(ModelSpec(f"llama_cpp/{small}")).max_concurrency == 8
    assert connect(ModelSpec(f"llama_cpp/{large}")).max_concurrency == 4
    assert connect(ModelSpec(f"llama_cpp/{large}", settings={"parallel": 3})).max_concurrency == 3


def test_missing_llama_cpp_file_is_named(tmp_path: Path) -> None:
    """A missing model file is refused at once, with its path."""
    pytest.importorskip("xllamacpp", reason="the extra 'local' is not installed")
    missing = tmp_path / "missing.gguf"
    with pytest.raises(ConfigError, match="there is no file") as caught:
        connect(ModelSpec(f"llama_cpp/{missing}"))
    assert str(missing) in str(caught.value)
