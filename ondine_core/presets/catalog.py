"""The table of models by short names, without keys; prices and windows come from the price data.

The model of a name never changes, not even to a better one: all answers would be asked for, and paid for, again. A new
model gets a new name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from ondine_core.errors import ConfigError
from ondine_core.providers.settings import check_address, check_fields
from ondine_core.types.suggestion import did_you_mean
from ondine_core.types.values import ModelSpec

_MODELS = {
    "gpt-4o-mini": "openai/gpt-4o-mini",
    "gpt-4o": "openai/gpt-4o",
    "gpt-4.1-mini": "openai/gpt-4.1-mini",
    "gpt-4.1": "openai/gpt-4.1",
    "gpt-5-mini": "openai/gpt-5-mini",
    "gpt-5": "openai/gpt-5",
    "gpt-6-luna": "openai/gpt-6-luna",
    "gpt-6.1-sol": "openai/gpt-6.1-sol",
    "claude-sonnet-4": "anthropic/claude-sonnet-4-20250514",
    "claude-sonnet-4-6": "anthropic/claude-sonnet-4-6",
    "claude-haiku-5-5": "anthropic/claude-haiku-5-5",
    "claude-sonnet-5-5": "anthropic/claude-sonnet-5-5",
    "claude-opus-5-5": "anthropic/claude-opus-5-5",
    "groq-llama-3.3-70b": "groq/llama-3.3-70b-versatile",
    "groq-gpt-oss-20b": "groq/openai/gpt-oss-20b",
    "groq-gpt-oss-120b": "groq/openai/gpt-oss-120b",
    "together-llama-3.3-70b": "together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "together-llama-3.1-8b": "together_ai/meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo",
    "together-qwen-3.5-9b": "together_ai/Qwen/Qwen3.5-9B",
    "together-gpt-oss-120b": "together_ai/openai/gpt-oss-120b",
    # A deployment may have any name; these are the names that Azure proposes.
    "azure-gpt-4o-mini": "azure/gpt-4o-mini",
    "azure-gpt-4o": "azure/gpt-4o",
    "azure-gpt-5-mini": "azure/gpt-5-mini",
    "ollama-llama-3.3-70b": "ollama/llama3.3:70b",
    "ollama-llama-3.1-8b": "ollama/llama3.1:8b",
    "vllm-llama-3.3-70b": "hosted_vllm/meta-llama/Llama-3.3-70B-Instruct",
    "gemma-3-270m": "llama_cpp/gemma-3-270m",
    "mlx-qwen-3-4b": "mlx/mlx-community/Qwen3-4B-4bit",
}

PRESETS: Mapping[str, ModelSpec] = MappingProxyType({name: ModelSpec(model) for name, model in _MODELS.items()})
"""The presets of Ondine; `python -m ondine_core.presets` lists them with prices and windows."""

WITHDRAWN: Mapping[str, str] = MappingProxyType(
    {"claude-sonnet-4": "claude-sonnet-4-6", "groq-llama-3.3-70b": "groq-gpt-oss-120b"}
)
"""Presets whose model is no longer offered to all customers, and the successor that the provider names."""


def preset(name: str, presets: Mapping[str, ModelSpec] | None = None, /, **changes: Any) -> ModelSpec:
    """The preset called `name`, with some of its fields changed.

    Example:
        >>> preset("gpt-4o-mini", temperature=0).model
        'openai/gpt-4o-mini'

    Args:
        name: The name of a preset; `python -m ondine_core.presets` lists them.
        presets: The presets to choose from, as `load_presets` returns them; by default those of Ondine.
        changes: Fields of `ModelSpec` and their values.

    Raises:
        ConfigError: There is no such preset or field, or a value is not valid.
    """
    known = PRESETS if presets is None else presets
    if not isinstance(known, Mapping):
        raise ConfigError(f"The presets of a preset are a {type(known).__name__}; give what load_presets returned.")
    if name not in tuple(known):  # compared one by one, as a wrong name may not be hashable
        meant = did_you_mean(str(name), known, 3)
        raise ConfigError(f"There is no preset {name!r}.{meant} The presets are {', '.join(known)}.")
    return change(known[name], changes, f"preset {name!r}")


def openai_compatible(base_url: str, model: str, provider_name: str | None = None, **changes: Any) -> ModelSpec:
    """A model on any server that speaks OpenAI's dialect.

    Args:
        base_url: Root of the API, up to and including `/v1`.
        model: The server's name of the model.
        provider_name: The name of the server in reports.
        changes: Further fields of `ModelSpec`, such as `api_key`, and their values.

    Raises:
        ConfigError: A value is not valid.
    """
    all_changes = {"base_url": base_url, "provider_name": provider_name, **changes}
    return change(ModelSpec(f"openai_compatible/{model}"), all_changes, f"model {model!r}")


FIELDS = tuple(field.name for field in fields(ModelSpec))


def change(spec: ModelSpec, changes: Mapping[str, Any], where: str) -> ModelSpec:
    """A copy of `spec` with `changes`, which shares no mutable value with either.

    Raises:
        ConfigError: A field is unknown or a value not valid; the message begins with `where`.
    """
    for name in changes:
        if name not in FIELDS:
            raise ConfigError(f"{where}: {name_unknown(name, FIELDS)}")
    changed = replace(spec, **changes)
    try:
        check_fields(changed)
        if changed.base_url is not None:
            check_address(changed.base_url)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not isinstance(changed.model, str) or not re.fullmatch(r"[^/\s]+/.*\S", changed.model):
        raise ConfigError(f"{where}: model={changed.model!r} is not valid: write provider/name, as in {spec.model!r}.")
    for name in ("provider_name", "reasoning_effort"):
        if getattr(changed, name) == "":
            raise ConfigError(f"{where}: {name} is empty; leave it out.")
    return deepcopy(changed)


def name_unknown(name: str, known: Sequence[str]) -> str:
    """The message about a field that does not exist."""
    return f"there is no field {name!r}.{did_you_mean(name, known)} The fields are {', '.join(known)}."
