"""Connects a model by its name.

The part of the name before the first slash selects the dialect. OpenAI's and Anthropic's have clients here; all others
are called through litellm, by litellm's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module

from ondine_core.errors import ConfigError
from ondine_core.providers.model_data import provider_names
from ondine_core.providers.openai_servers import SERVERS
from ondine_core.providers.pricing import check_name, find_entry, find_sent_name
from ondine_core.providers.settings import check_fields, check_params
from ondine_core.providers.tiers import check_tier
from ondine_core.providers.wire_text import check_text, storable_text
from ondine_core.types.protocols import ChatModel
from ondine_core.types.values import ModelSpec

__all__ = ["connect"]


def connect(spec: ModelSpec) -> ChatModel:
    """Connect the model that `spec` names.

    Raises:
        ConfigError: The provider is unknown, its key or address is missing, the provider has no such setting or the
            model no such price tier, a field is not valid, or `params` sets a field that follows from another setting.
    """
    check_name(spec.model)
    check_fields(spec)
    check_text((spec.model, spec.base_url or ""), "model")
    if storable_text(spec.api_key or "") != (spec.api_key or ""):
        raise ConfigError("api_key holds half of a character (a lone surrogate), which no header can carry.")
    check_params(spec)
    check_tier(spec)
    provider, slash, name = spec.model.partition("/")
    if slash and name and (provider in _DIALECTS or provider in provider_names()):
        module, _, function = _DIALECTS.get(provider, _LITELLM).partition(":")
        model: ChatModel = getattr(import_module(f"{__name__}.{module}"), function)(spec, find_sent_name(spec))
        return model
    raise ConfigError(
        f"model={spec.model!r} is not understood.{_suggest(spec.model)} Write provider/name, where provider is one of "
        f"{', '.join(_DIALECTS)}, or any other that litellm has (bedrock, cohere, vertex_ai, ...). "
        "For any other OpenAI-compatible server: openai_compatible/name with base_url."
    )


def _suggest(model: str) -> str:
    host, colon, rest = model.partition(":")
    known = {*_DIALECTS, *provider_names()}
    provider, _, name = model.partition("/")
    if colon and host in known:  # as other packages write it
        names = [f"{host}/{rest}"]
    elif name:
        names = [f"{near}/{name}" for near in get_close_matches(provider, known, 3)]
    else:
        names = [f"{near}/{provider}" for near in ("openai", "anthropic", "gemini") if find_entry(f"{near}/{provider}")]
    return f" Did you mean {' or '.join(map(repr, names))}?" if names else ""


# The module and function that connect each dialect; a module is imported when it is needed.
_DIALECTS: Mapping[str, str] = {
    **dict.fromkeys(SERVERS, "openai_http:connect_openai"),
    "anthropic": "anthropic_http:connect_anthropic",
    "azure": "azure:connect_azure",
    "llama_cpp": "llama_cpp:connect_llama_cpp",
    "mlx": "mlx:connect_mlx",
}
_LITELLM = "litellm:connect_litellm"
