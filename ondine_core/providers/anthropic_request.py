"""Requests to Anthropic's messages API: fields, blocks of text, schema, thinking and cache breakpoint.

They follow Anthropic's API reference and SDK. The system text, the examples and the row are separate blocks; the last
block that is the same in every call has the breakpoint of the prompt cache. A schema is sent as `output_config.format`,
or as a tool that the model must call if it lacks that format. A schema that neither can express, such as a mapping with
any keys, is put into the prompt, since a closed object would come back empty. The limit on output tokens, thinking
included, is always sent, since the API requires it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

import orjson

from ondine_core.errors import ConfigError
from ondine_core.providers.media_parts import anthropic_content
from ondine_core.providers.pricing import find_entry, find_max_output_tokens
from ondine_core.providers.request_form import with_schema_in_prompt
from ondine_core.providers.settings import (
    api_key_of,
    check_header,
    check_root,
    check_settings,
    environment_headers,
    extra_headers,
    first_set,
    is_own_address,
    request_fields,
    setting_of,
)
from ondine_core.providers.strict_schema import SchemaSubset, strict_schema
from ondine_core.types.media import MediaMap
from ondine_core.types.values import Call, Json, ModelSpec

Structure: TypeAlias = Literal["json_schema", "tool", "words"]
"""What holds a model to a schema: the API's output format, a tool that it must call, or the prompt."""

TOOL: Final = "answer"
"""The name of that tool."""
_TOOL_USE = "Takes the answer."

_ADDRESS = "https://api.anthropic.com"
_ADDRESSES, _KEYS = ("ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL"), ("ANTHROPIC_API_KEY",)
_TOKENS, _CUSTOM_HEADERS = ("ANTHROPIC_AUTH_TOKEN",), "ANTHROPIC_CUSTOM_HEADERS"
_API_VERSION = "2023-06-01"
"""Later versions refuse `temperature`, even for models that have one."""
_SETTINGS = ("api_version", "drop_params", "extra_headers", "structured_output")
_SUBSET: Final = SchemaSubset(constraints=False)
_MAX_TOKENS = 4096
"""The limit for a model that the price list has none for: every Claude can write that much."""


# -- address, key and headers --------------------------------------------------------------------------------------


def find_anthropic_address(spec: ModelSpec) -> str:
    """The address to which messages are posted; `base_url` is the root of the API, with or without `/v1`."""
    base_url = spec.base_url or first_set(_ADDRESSES) or _ADDRESS
    check_root(base_url)
    root = base_url.rstrip("/").removesuffix("/messages").removesuffix("/v1")
    return f"{root}/v1/messages"


def find_anthropic_key(spec: ModelSpec) -> Mapping[str, str]:
    """The header that identifies the caller; empty for a `base_url` without a key."""
    own_key = api_key_of(spec)
    if own_key or not is_own_address(spec, _ADDRESS):  # keys of the environment go to the provider only
        return {"x-api-key": own_key} if own_key else {}
    key = first_set(_KEYS)
    if key is not None:
        check_header(_KEYS[0], key)
        return {"x-api-key": key}
    token = first_set(_TOKENS)
    if token is None:
        raise ConfigError(f"model={spec.model!r} needs a key: set api_key, or the variable {_KEYS[0]}.")
    check_header(_TOKENS[0], token)
    return {"Authorization": f"Bearer {token}"}


def further_headers(spec: ModelSpec) -> Mapping[str, str]:
    """The headers of every call beside the key: the version of the API, and those of environment and settings."""
    version = str(spec.settings.get("api_version") or _API_VERSION)
    check_header("api_version", version)
    key_headers = find_anthropic_key(spec)
    own = environment_headers(_CUSTOM_HEADERS, key_headers) if is_own_address(spec, _ADDRESS) else {}
    return {"anthropic-version": version, **own, **extra_headers(spec, key_headers)}


# -- fields --------------------------------------------------------------------------------------------------------

_UNKNOWN: Mapping[str, str] = {
    "seed": "it cannot repeat a reply",
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "repetition_penalty", "min_p"), ""),
    **dict.fromkeys(("logit_bias", "logprobs", "top_logprobs"), ""),
    **dict.fromkeys(("functions", "function_call", "modalities", "parallel_tool_calls", "prediction", "store"), ""),
    **dict.fromkeys(("prompt_cache_key", "prompt_cache_retention", "safety_identifier", "verbosity"), ""),
    "response_format": "the output's types say how a reply looks",
    "web_search_options": "name the tool in params tools",
}
"""Fields of OpenAI's dialect that this API does not have, with a hint or `""`."""
_SAMPLING = ("temperature", "top_p", "top_k")


def fixed_fields(spec: ModelSpec, name: str) -> dict[str, Json]:
    """The fields of every request for the model `name`."""
    check_settings(spec, _SETTINGS)
    entry = find_entry(spec.listed_as)
    fields = _rename_fields(request_fields(spec), spec)
    max_tokens = spec.max_output_tokens or find_max_output_tokens(spec.listed_as) or _MAX_TOKENS
    if spec.temperature is not None:
        fields.setdefault("temperature", spec.temperature)
    effort = fields.pop("reasoning_effort", None)
    if effort is not None:
        _set_effort(fields, effort, max_tokens, spec, entry)
    _check_sampling(fields, spec, entry)
    return {"model": name, "max_tokens": max_tokens, **fields}


def _rename_fields(fields: Mapping[str, Json], spec: ModelSpec) -> dict[str, Json]:
    """`fields` under the names of this API; a field that it lacks is an error, or left out with `drop_params`."""
    own: dict[str, Json] = {}
    for name, value in fields.items():
        if name in _UNKNOWN:
            if not spec.settings.get("drop_params"):
                hint = f": {_UNKNOWN[name]}" if _UNKNOWN[name] else ""
                raise ConfigError(
                    f"params: Anthropic's API has no {name!r}{hint}. Remove it, or leave out all such by settings "
                    "drop_params=true."
                )
        elif name == "stop":
            own["stop_sequences"] = [value] if isinstance(value, str) else value
        elif name == "user":
            own["metadata"] = {"user_id": value}
        else:
            own[name] = value
    return own


def _check_sampling(fields: dict[str, Json], spec: ModelSpec, entry: Mapping[str, Any] | None) -> None:
    """Remove a temperature that changes nothing, and refuse sampling fields for which every call would be refused."""
    temperature = fields.get("temperature")
    if entry is not None and entry.get("supports_sampling_params") is False:
        if temperature == 1:
            del fields["temperature"]  # 1 is the only one that such a model has
        for name in _SAMPLING:
            if name in fields and not spec.settings.get("drop_params"):
                raise ConfigError(
                    f"{name}={fields[name]!r}: {spec.model!r} does not take it; leave it out, or leave out all "
                    "such by settings drop_params=true."
                )
            fields.pop(name, None)
    elif temperature not in (None, 1) and _thinks(fields):
        raise ConfigError(f"temperature={temperature!r}: {spec.model!r} takes 1 only while it thinks; leave it out.")


def _thinks(fields: Mapping[str, Json]) -> bool:
    thinking = fields.get("thinking")
    return isinstance(thinking, Mapping) and thinking.get("type") in ("enabled", "adaptive")


# -- thinking ------------------------------------------------------------------------------------------------------

_BUDGETS: Mapping[str, int] = {"minimal": 1024, "low": 1024, "medium": 2048, "high": 4096, "xhigh": 8192, "max": 16384}
"""Tokens of thinking by effort, for models that take a number of tokens; the same as litellm's."""
_EFFORTS = ("none", *_BUDGETS)


def _set_effort(
    fields: dict[str, Json], effort: Json, max_tokens: int, spec: ModelSpec, entry: Mapping[str, Any] | None
) -> None:
    """Set how long the model thinks, in the form that it takes: an effort, or a number of tokens."""
    wrong = f"reasoning_effort={effort!r} of {spec.model!r}"
    if effort not in _EFFORTS:
        raise ConfigError(f"{wrong} is not one of {', '.join(map(repr, _EFFORTS))}.")
    if "thinking" in fields:
        raise ConfigError(f"{wrong} and params thinking say the same; leave one of them out.")
    about = {"supports_adaptive_thinking": True, "supports_reasoning": True} if entry is None else entry
    if effort == "none":
        if about.get("thinking_always_on"):
            raise ConfigError(f"{wrong}: this model always thinks; 'low' is the least.")
        if about.get("supports_reasoning"):
            fields["thinking"] = {"type": "disabled"}
    elif about.get("supports_adaptive_thinking"):
        level = "low" if effort == "minimal" else effort
        if entry is not None and level in ("xhigh", "max") and not about.get(f"supports_{level}_reasoning_effort"):
            raise ConfigError(f"{wrong}: this model has no such effort; take 'high' or less.")
        fields["thinking"] = {"type": "adaptive"}
        fields["output_config"] = {**(fields.get("output_config") or {}), "effort": level}
    elif about.get("supports_reasoning"):
        budget = _BUDGETS[effort]
        if budget >= max_tokens:
            raise ConfigError(
                f"{wrong} thinks with up to {budget:,} tokens, which max_output_tokens={max_tokens} includes; raise "
                "max_output_tokens, or lower the effort."
            )
        fields["thinking"] = {"type": "enabled", "budget_tokens": budget}
    else:
        raise ConfigError(f"{wrong}: this model does not think; leave it out.")


# -- schema --------------------------------------------------------------------------------------------------------


def structure_of(spec: ModelSpec, fields: Mapping[str, Json]) -> Structure:
    """What holds the model to a schema: the user's setting, else by the price list."""
    chosen = setting_of(spec, "structured_output", get_args(Structure))
    entry = find_entry(spec.listed_as)
    # A model that is not in the list is probably new and has the output format.
    has_format = entry is None or bool(entry.get("supports_native_structured_output"))
    structure: Structure = chosen or ("json_schema" if has_format else "tool")
    return "words" if structure == "tool" and not may_force_tool(fields) else structure


def may_force_tool(fields: Mapping[str, Json]) -> bool:
    """Whether a request with `fields` can force a call of one tool: not while the model thinks, or with other tools."""
    return not _thinks(fields) and "tools" not in fields and "tool_choice" not in fields


# -- body ----------------------------------------------------------------------------------------------------------


def cache_mark(spec: ModelSpec) -> Mapping[str, str]:
    """The mark at the end of the part that all calls have in common; it is cached for five minutes by default."""
    return {"type": "ephemeral", "ttl": "1h"} if spec.prompt_cache == "1h" else {"type": "ephemeral"}


def message_body(fixed: Mapping[str, Json], call: Call, structure: Structure, mark: Mapping[str, str]) -> bytes:
    """`call` as a request that also has the fields `fixed`; `mark` ends the part to be cached, if the call has one."""
    schema = None
    if call.json_schema is not None and structure != "words":
        schema = strict_schema(call.json_schema, _SUBSET)
    if schema is None:
        call = with_schema_in_prompt(call)
    *before, row = call.messages
    start, rest = row.content[: call.fixed_chars], row.content[call.fixed_chars :]
    content: Json = _blocks(row.content, call.media) if call.media else row.content
    messages: list[Json] = [
        {"role": message.role, "content": _blocks(message.content, call.media)} for message in before
    ]
    if call.cache_prefix and start.strip() and rest.strip():
        content = [{**_block(start), "cache_control": mark}, *_blocks(rest, call.media)]
    elif call.cache_prefix and messages:
        messages[-1]["content"][-1]["cache_control"] = mark
    body = dict(fixed)
    if before and before[0].role == "system":
        body["system"] = messages.pop(0)["content"]
    body["messages"] = [*messages, {"role": row.role, "content": content}]
    if schema is not None and structure == "json_schema":
        form = {"type": "json_schema", "schema": orjson.Fragment(schema)}
        body["output_config"] = {**(body.get("output_config") or {}), "format": form}
    elif schema is not None:
        body["tools"] = [{"name": TOOL, "description": _TOOL_USE, "input_schema": orjson.Fragment(schema)}]
        body["tool_choice"] = {"type": "tool", "name": TOOL, "disable_parallel_tool_use": True}
    return orjson.dumps(body)


def _blocks(text: str, media: MediaMap) -> list[dict[str, Json]]:
    return (anthropic_content(text, media) if media else None) or [_block(text)]


def _block(text: str) -> dict[str, Json]:
    return {"type": "text", "text": text}
