"""The table of servers that speak OpenAI's dialect: addresses, and the variables with keys and addresses.

Addresses and variables are litellm's, so what is set for litellm also works here. The table has only providers that
take an ordinary chat-completions request; the others are called through litellm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args
from urllib.parse import urlsplit

from ondine_core.errors import ConfigError
from ondine_core.providers.anthropic_request import find_anthropic_address
from ondine_core.providers.pricing import find_entry
from ondine_core.providers.request_form import RequestForm, Structure, check_temperature, limit_field_of
from ondine_core.providers.settings import (
    api_key_of,
    check_header,
    check_root,
    check_settings,
    environment_headers,
    extra_headers,
    first_set,
    is_own_address,
    setting_of,
)
from ondine_core.providers.strict_schema import ALL, SchemaSubset
from ondine_core.types.values import ModelSpec

_SETTINGS = ("extra_headers", "structured_output", "token_limit_field")


@dataclass(frozen=True, slots=True)
class Server:
    """A provider's OpenAI-compatible API.

    Args:
        base_url: Its address, up to and including `/v1` or its equivalent; `None` if each user has a different one.
        keys: Variables that may hold a key, by precedence.
        addresses: Variables that may hold another address.
        structure: How its models are held to a schema; `None` if the price list says it for each model.
        needs_key: Whether it requires a key.
        subset: The part of JSON schema that its strict mode supports.
        headers: Further headers, and the variables that may hold the value of each.
        custom_headers: The variable that may hold any further headers, a line each.
    """

    base_url: str | None
    keys: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    structure: Structure | None = "json_schema"
    needs_key: bool = True
    subset: SchemaSubset = ALL
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    custom_headers: str | None = None


_TOGETHER = ("TOGETHER_API_KEY", "TOGETHER_AI_API_KEY", "TOGETHERAI_API_KEY", "TOGETHER_AI_TOKEN")
_FIREWORKS = ("FIREWORKS_API_KEY", "FIREWORKS_AI_API_KEY", "FIREWORKSAI_API_KEY", "FIREWORKS_AI_TOKEN")

# Variables of OpenAI's package, and of litellm: for a key of several organizations, they decide which of them pays.
_OPENAI_HEADERS = {
    "openai-organization": ("OPENAI_ORG_ID", "OPENAI_ORGANIZATION"),
    "openai-project": ("OPENAI_PROJECT_ID",),
}

SERVERS: Mapping[str, Server] = {
    "openai": Server(
        "https://api.openai.com/v1",
        ("OPENAI_API_KEY",),
        ("OPENAI_BASE_URL", "OPENAI_API_BASE"),
        headers=_OPENAI_HEADERS,
        custom_headers="OPENAI_CUSTOM_HEADERS",
    ),
    # Its schemas (https://ai.google.dev/api/caching#Schema) lack these keywords; they are put into descriptions.
    "gemini": Server(
        "https://generativelanguage.googleapis.com/v1beta/openai",
        ("GOOGLE_API_KEY", "GEMINI_API_KEY"),  # in this order at Google's package and at litellm
        subset=SchemaSubset(constraints=False, any_choices=False),
    ),
    "groq": Server("https://api.groq.com/openai/v1", ("GROQ_API_KEY",), ("GROQ_API_BASE",), None),
    "together_ai": Server("https://api.together.xyz/v1", _TOGETHER, ("TOGETHER_AI_API_BASE",)),
    "fireworks_ai": Server("https://api.fireworks.ai/inference/v1", _FIREWORKS, ("FIREWORKS_API_BASE",)),
    "deepinfra": Server("https://api.deepinfra.com/v1/openai", ("DEEPINFRA_API_KEY",), ("DEEPINFRA_API_BASE",)),
    "mistral": Server("https://api.mistral.ai/v1", ("MISTRAL_API_KEY",), ("MISTRAL_API_BASE",)),
    "openrouter": Server(
        "https://openrouter.ai/api/v1", ("OPENROUTER_API_KEY", "OR_API_KEY"), ("OPENROUTER_API_BASE",)
    ),
    "xai": Server("https://api.x.ai/v1", ("XAI_API_KEY",), ("XAI_API_BASE",)),
    "deepseek": Server("https://api.deepseek.com/v1", ("DEEPSEEK_API_KEY",), ("DEEPSEEK_API_BASE",), "json_object"),
    "perplexity": Server(
        "https://api.perplexity.ai", ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"), ("PERPLEXITY_API_BASE",)
    ),
    "cerebras": Server(
        "https://api.cerebras.ai/v1",
        ("CEREBRAS_API_KEY",),
        ("CEREBRAS_API_BASE",),
        subset=SchemaSubset(constraints=False),
    ),
    "ollama": Server("http://127.0.0.1:11434/v1", ("OLLAMA_API_KEY",), ("OLLAMA_API_BASE",), needs_key=False),
    "lm_studio": Server("http://127.0.0.1:1234/v1", ("LM_STUDIO_API_KEY",), ("LM_STUDIO_API_BASE",), needs_key=False),
    "litellm_proxy": Server(None, ("LITELLM_PROXY_API_KEY",), ("LITELLM_PROXY_API_BASE",), needs_key=False),
    "hosted_vllm": Server(None, ("HOSTED_VLLM_API_KEY",), ("HOSTED_VLLM_API_BASE",), needs_key=False),
    "openai_compatible": Server(None, needs_key=False),
}


@dataclass(frozen=True, slots=True)
class ServerAccess:
    """The address, key and further headers of a model, and the form of requests until the server refuses a part."""

    base_url: str
    api_key: str | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    form: RequestForm


def find_access(spec: ModelSpec, name: str) -> ServerAccess:
    """The access to the model `name` of a server in the table.

    Raises:
        ConfigError: A setting, the address or the temperature is not valid, the key is missing, or the provider does
            not offer the model.
    """
    check_settings(spec, _SETTINGS)
    check_temperature(spec, name)
    server = SERVERS[spec.dialect]
    base_url = find_address(spec)
    if base_url is None:
        where = f", or the variable {server.addresses[0]}" if server.addresses else ""
        raise ConfigError(f"model={spec.model!r} needs base_url{where}, for instance 'http://127.0.0.1:8000/v1'.")
    check_root(base_url)
    host = urlsplit(base_url).hostname
    is_openai = host == "api.openai.com"
    if is_openai or host == urlsplit(server.base_url or "").hostname:
        check_offered(spec, "OpenAI" if is_openai else "The provider")
    # At OpenAI itself all models know max_completion_tokens, and some only that.
    limit_field = limit_field_of(spec, name, is_renamed=is_openai)
    form = RequestForm(_structure(spec, server), server.subset, limit_field)
    key = _key(spec, server)
    key_headers = ("authorization",) if key else ()
    headers = {**_own_headers(spec, server, key_headers), **extra_headers(spec, key_headers)}
    root = base_url.rstrip("/").removesuffix("/chat/completions")  # some servers document it whole
    return ServerAccess(root, key, headers, form)


def check_offered(spec: ModelSpec, provider: str) -> None:
    """Refuse a model that `provider` offers by its Responses API only, and an effort that the model does not take.

    Both are known from the price list.
    """
    entry = find_entry(spec.listed_as) or {}
    if entry.get("mode") == "responses":
        raise ConfigError(
            f"{provider} offers {spec.listed_as!r} by its Responses API only, and Ondine asks by chat completions; "
            "choose another model, or set base_url to a gateway that translates, such as LiteLLM's proxy."
        )
    effort = spec.request_params.get("reasoning_effort")
    levels = entry.get("reasoning_effort_levels")
    if levels:
        is_taken = effort is None or effort in levels
    else:  # other providers use the nearest effort that the model has
        is_strict = spec.dialect in ("azure", "openai")
        is_taken = not is_strict or entry.get(f"supports_{effort}_reasoning_effort") is not False
    if not is_taken:
        known = f"; it takes {', '.join(map(repr, levels))}" if levels else ""
        raise ConfigError(
            f"reasoning_effort={effort!r}: by the price list, {spec.listed_as!r} does not take this effort{known}."
        )


def find_address(spec: ModelSpec) -> str | None:
    """The address of the model of `spec`, by `spec`, a variable or the table; `None` if none of them has it."""
    if spec.dialect == "anthropic":
        return find_anthropic_address(spec)
    server = SERVERS.get(spec.dialect)
    if spec.base_url or server is None:
        return spec.base_url
    address = first_set(server.addresses) or server.base_url
    # Ollama's variable names the root of its server, which speaks the dialect at /v1.
    if address and spec.dialect == "ollama" and not urlsplit(address).path.strip("/"):
        return f"{address.rstrip('/')}/v1"
    return address


def _key(spec: ModelSpec, server: Server) -> str | None:
    own_key = api_key_of(spec)
    if own_key or not is_own_address(spec, server.base_url):  # keys of the environment go to the provider only
        return own_key or None
    key = first_set(server.keys)
    if key is None and server.needs_key:
        raise ConfigError(f"model={spec.model!r} needs a key: set api_key, or the variable {' or '.join(server.keys)}.")
    return key


def _own_headers(spec: ModelSpec, server: Server, key_headers: Sequence[str]) -> dict[str, str]:
    """The headers of the environment, which go to the provider only."""
    headers: dict[str, str] = {}
    if not is_own_address(spec, server.base_url):
        return headers
    for header, variables in server.headers.items():
        value = first_set(variables)
        if value is not None:
            check_header(" or ".join(variables), value)
            headers[header] = value
    if server.custom_headers is not None:
        headers |= environment_headers(server.custom_headers, key_headers)
    return headers


def _structure(spec: ModelSpec, server: Server) -> Structure:
    structure: Structure | None = setting_of(spec, "structured_output", get_args(Structure)) or server.structure
    if structure is not None:
        return structure
    supports_schemas = (find_entry(spec.model) or {}).get("supports_response_schema")
    return "json_schema" if supports_schemas else "json_object"
