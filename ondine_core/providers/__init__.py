"""From a model's name to something that can be asked.

The part of the name before the first slash picks the dialect; for servers that speak OpenAI's, address and key variable
are data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from ondine_core.errors import ConfigError
from ondine_core.values import ChatModel, ModelSpec

__all__ = ["connect"]


@dataclass(frozen=True, slots=True)
class _Server:
    """Where a provider's OpenAI-compatible API lives, and which variable holds its key (`None`: it needs none)."""

    base_url: str | None
    key_variable: str | None


_SERVERS: Mapping[str, _Server] = {
    "openai": _Server("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "groq": _Server("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "together_ai": _Server("https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    "ollama": _Server("http://127.0.0.1:11434/v1", None),
    "hosted_vllm": _Server(None, None),
    "openai_compatible": _Server(None, None),
}


def connect(spec: ModelSpec) -> ChatModel:
    """The model that `spec` names, ready to be asked.

    Raises:
        ConfigError: The provider is unknown, or its key or address is missing.
    """
    provider, slash, name = spec.model.partition("/")
    dialect = _DIALECTS.get(provider)
    if not slash or not name or dialect is None:
        raise ConfigError(
            f"model={spec.model!r} is not understood; write provider/name, where provider is one of "
            f"{', '.join(_DIALECTS)}. For any other OpenAI-compatible server: openai_compatible/name with base_url."
        )
    return dialect(spec, name)


def _openai_dialect(spec: ModelSpec, name: str) -> ChatModel:
    from ondine_core.providers.openai_wire import connect_openai

    provider = spec.model.partition("/")[0]
    server = _SERVERS[provider]
    base_url = spec.base_url or server.base_url
    if base_url is None:
        raise ConfigError(f"model={spec.model!r} needs base_url, for instance 'http://127.0.0.1:8000/v1'.")
    _check_address(base_url)
    api_key = (spec.api_key or "").strip() or None  # keys are often read from files that end in a line feed
    # The provider's own key goes to the provider only, never to an address that somebody configured.
    if api_key is None and spec.base_url is None and server.key_variable:
        api_key = os.environ.get(server.key_variable)
        if not api_key:
            raise ConfigError(f"model={spec.model!r} needs a key: set api_key, or the variable {server.key_variable}.")
    return connect_openai(spec, name, base_url, api_key)


def _check_address(base_url: str) -> None:
    try:
        parts = urlsplit(base_url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound, parts = False, urlsplit("")
    if "@" in base_url:
        raise ConfigError("base_url holds a user name or password, which would end up in logs; use api_key.")
    if not sound:
        raise ConfigError(f"base_url={base_url!r} is no address; write it like 'http://127.0.0.1:8000/v1'.")


def _llama_cpp(spec: ModelSpec, name: str) -> ChatModel:
    from ondine_core.providers.llama_cpp import connect_llama_cpp

    return connect_llama_cpp(spec, name)


_DIALECTS: Mapping[str, Callable[[ModelSpec, str], ChatModel]] = {
    **dict.fromkeys(_SERVERS, _openai_dialect),
    "llama_cpp": _llama_cpp,
}
