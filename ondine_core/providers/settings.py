"""Checks the settings of a model before any call is made.

Every check raises `ConfigError`, which names the value and says what to do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, TypeVar, get_args
from urllib.parse import urlsplit

from ondine_core.errors import ConfigError
from ondine_core.types.numbers import is_number, is_positive, is_whole
from ondine_core.types.suggestion import did_you_mean
from ondine_core.types.values import Json, ModelSpec, PromptCache, Tier

Choice = TypeVar("Choice", bound=str)

_EXTRA_BODY = "extra_body"
_LIMIT = "max_output_tokens (settings token_limit_field chooses what it is sent as)"
_RESERVED_FIELDS = {
    "extra_headers": "settings extra_headers",
    "max_completion_tokens": _LIMIT,
    "max_tokens": _LIMIT,
    "messages": "the prompt",
    "model": "model",
    "n": "one reply a prompt",
    "serviceTier": "tier",
    "service_tier": "tier",
    "stream": "whole replies",
    "stream_options": "whole replies",
    "system": "the prompt",
    "timeout": "timeout_s",
}
"""Request fields that users cannot set, and where each comes from. The first two and `n` bound the cost of a call."""
_CLIENT_ARGUMENTS = {
    "api_base": "set base_url",
    "api_key": "set api_key",
    "base_url": "set base_url",
    "betas": "set settings extra_headers (anthropic-beta)",
    "default_headers": "set settings extra_headers",
    "max_retries": "leave it out, since failed calls are repeated",
    "num_retries": "leave it out, since failed calls are repeated",
    "organization": "set settings extra_headers (OpenAI-Organization)",
    "request_timeout": "set timeout_s",
}
"""Arguments of OpenAI's, Anthropic's and litellm's packages that are no request fields, and what to do instead."""
_REQUEST_FIELDS = (
    *("extra_body", "frequency_penalty", "logit_bias", "logprobs", "metadata", "min_p", "presence_penalty"),
    *("parallel_tool_calls", "reasoning", "reasoning_effort", "repetition_penalty", "safety_identifier", "seed"),
    *("stop", "stop_sequences", "temperature", "thinking", "top_k", "top_logprobs", "top_p", "user", "verbosity"),
)
"""Common names in `params`; servers have further ones."""
_MIN_SIMILARITY = 0.85
"""Of a misspelt name to the right one; `top_a` and `top_p` are 0.8."""
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
"""A token of RFC 9110, section 5.6.2, in lower case."""
_HEADERS_OF_A_CALL = ("content-length", "transfer-encoding", "x-request-id")
"""Headers that the client writes itself."""
_NUMBERS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "max_output_tokens": (lambda value: is_whole(value, 1), "a whole number of at least 1"),
    "timeout_s": (is_positive, "a number of seconds, more than 0"),
    "temperature": (lambda value: is_number(value, 0), "a number of 0 or more"),
}
_CHOICES = {"prompt_cache": get_args(PromptCache), "tier": get_args(Tier)}


def another_model(spec: ModelSpec, model: str) -> ModelSpec:
    """`spec` for another model: unchanged for the same provider, else without provider-specific fields."""
    if model.partition("/")[0] == spec.dialect:
        settings = {name: value for name, value in spec.settings.items() if name != "base_model"}
        return replace(spec, model=model, settings=settings)
    return ModelSpec(model, None, None, spec.timeout_s, spec.temperature, spec.max_output_tokens)


def check_fields(spec: ModelSpec) -> None:
    """Refuse fields of `spec` whose types or ranges are not valid: a negative bound on output would loosen a cap."""
    for name, (is_valid, meaning) in _NUMBERS.items():
        number = getattr(spec, name)
        if number is not None and not is_valid(number):
            raise ConfigError(f"{name}={number!r} must be {meaning}, or None.")
    for name, choices in _CHOICES.items():
        if getattr(spec, name) not in choices:
            raise ConfigError(f"{name}={getattr(spec, name)!r} is not one of {', '.join(map(repr, choices))}.")
    for name in ("api_key", "base_url", "reasoning_effort", "provider_name"):
        if not isinstance(getattr(spec, name), str | None):
            raise ConfigError(f"{name} is a {type(getattr(spec, name)).__name__}; it must be a text, or None.")
    for name in ("params", "settings"):
        values = getattr(spec, name)
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise ConfigError(f"{name} is a {type(values).__name__}; it must be a mapping of names to values.")


def check_params(spec: ModelSpec) -> None:
    """Refuse `spec.params` if it has reserved fields, or a field twice."""
    extra = _extra_body(spec)
    duplicates = sorted(spec.params.keys() & extra.keys())
    if duplicates:
        raise ConfigError(f"params: {duplicates[0]!r} of {spec.model!r} is set twice, once of them in extra_body.")
    if spec.reasoning_effort is not None and "reasoning_effort" in (*spec.params, *extra):
        raise ConfigError(f"reasoning_effort of {spec.model!r} is set twice, once of them in params.")
    for name in (*spec.params, *extra):
        source = _RESERVED_FIELDS.get(name)
        if source is not None:
            raise ConfigError(f"params: {name!r} of {spec.model!r} is not yours to set; it follows from {source}.")
    for name in spec.params:  # in extra_body these may be fields of a gateway
        advice = _CLIENT_ARGUMENTS.get(name)
        if advice is not None:
            raise ConfigError(f"params: {name!r} of {spec.model!r} is not a field of the request; {advice}.")


def find_misspelt_param(spec: ModelSpec) -> str | None:
    """A warning if a name in `params` is close to a common one; many servers ignore names that they do not know."""
    for name in spec.params:
        near = [] if name in _REQUEST_FIELDS else get_close_matches(name, _REQUEST_FIELDS, 1, _MIN_SIMILARITY)
        if near:
            return f"params: {name!r} of {spec.model!r} is sent as it is; did you mean {near[0]!r}?"
    return None


def request_fields(spec: ModelSpec) -> dict[str, Json]:
    """The request fields that `spec` sets; those inside `extra_body` stand beside the others.

    `extra_body` is the argument of OpenAI's package for fields that the package does not know.
    """
    fields = {**spec.request_params, **_extra_body(spec)}
    fields.pop(_EXTRA_BODY, None)
    return fields


def _extra_body(spec: ModelSpec) -> Mapping[str, Json]:
    extra = spec.params.get(_EXTRA_BODY, {})
    if not isinstance(extra, Mapping):
        raise ConfigError(f"params: extra_body={extra!r} of {spec.model!r} is not a mapping of request fields.")
    return extra


def check_settings(spec: ModelSpec, valid: Collection[str]) -> None:
    """Refuse `spec.settings` if it has names other than the `valid` ones."""
    for name in spec.settings:
        if name not in valid:
            known = f"valid are {', '.join(sorted(valid))}" if valid else "it has none"
            raise ConfigError(f"settings: {spec.model!r} knows no {name!r}; {known}.{did_you_mean(name, valid)}")


def setting_of(spec: ModelSpec, setting: str, options: Sequence[Choice]) -> Choice | None:
    """The value of a setting, which must be one of `options`; `None` if it is not set."""
    chosen: Choice | None = spec.settings.get(setting)
    if chosen is not None and chosen not in options:
        raise ConfigError(f"settings: {setting}={chosen!r} is not one of {', '.join(map(repr, options))}.")
    return chosen


def check_header(name: str, value: str) -> None:
    """Refuse a secret that cannot be sent in a header, without showing it."""
    for position, character in enumerate(value, 1):
        if not " " <= character <= "~":
            kind = "a line end" if character in "\r\n" else f"the character U+{ord(character):04X}"
            raise ConfigError(f"{name} has {kind} at position {position} of {len(value)}; check how it was copied.")


def extra_headers(spec: ModelSpec, key_headers: Collection[str]) -> dict[str, str]:
    """The headers in the settings of `spec`, with names in lower case; `key_headers` are those that have the key."""
    extra = spec.settings.get("extra_headers") or {}
    if not isinstance(extra, Mapping):
        raise ConfigError(
            f"settings: extra_headers is a {type(extra).__name__}; it must be a mapping of names to texts."
        )
    return _check_headers(extra, "settings: extra_headers", key_headers)


def environment_headers(variable: str, key_headers: Collection[str]) -> dict[str, str]:
    """The headers in an environment variable, a line each, as OpenAI's and Anthropic's packages read them."""
    lines = (line.partition(":") for line in os.environ.get(variable, "").split("\n"))
    given = {name.strip(): value.strip() for name, colon, value in lines if colon}
    return _check_headers(given, variable, key_headers)


def _check_headers(given: Mapping[Any, Any], source: str, key_headers: Collection[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for given_name, value in given.items():
        name = str(given_name).lower()
        if name in map(str.lower, key_headers):
            raise ConfigError(f"{source}: the header {name!r} has the key; set api_key instead.")
        if name in _HEADERS_OF_A_CALL:
            raise ConfigError(f"{source}: the header {name!r} differs from call to call; leave it out.")
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"{source}: {name!r} is not the name of a header.")
        if not isinstance(value, str):
            raise ConfigError(f"{source}[{name!r}] is a {type(value).__name__}; it must be a text.")
        check_header(f"{source}[{name!r}]", value)
        headers[name] = value
    return headers


def first_set(variables: tuple[str, ...]) -> str | None:
    """The value of the first of these environment variables that is set and not blank."""
    return next((value for name in variables if (value := os.environ.get(name, "").strip())), None)


@contextmanager
def set_variable(environment: MutableMapping[str, str], name: str, value: str) -> Iterator[None]:
    """Set a variable within the context; afterwards it is as before."""
    before = environment.get(name)
    environment[name] = value
    try:
        yield
    finally:
        if before is None:
            del environment[name]
        else:
            environment[name] = before


def api_key_of(spec: ModelSpec) -> str:
    """The `api_key` of `spec` without the white space around it, such as a key file's last line feed; `""` for none.

    Keys in the environment are not read here: they belong to the provider and must not be sent to another `base_url`.
    """
    key = (spec.api_key or "").strip()
    check_header("api_key", key)
    return key


def is_own_address(spec: ModelSpec, own: str | None) -> bool:
    """Whether the provider, whose address is `own`, gets the calls of `spec`, so that the environment's key is for it.

    That is so without `base_url`, and for the provider's host or one of its regions, such as `eu.api.openai.com`.
    """
    if spec.base_url is None or own is None:
        return spec.base_url is None
    given = urlsplit(spec.base_url)
    return given.scheme == "https" and f".{given.hostname}".endswith(f".{urlsplit(own).hostname}")


def check_address(base_url: str, name: str = "base_url") -> None:
    """Refuse `base_url` unless it is a URL of http or https with a host, and without credentials."""
    if "@" in base_url:
        raise ConfigError(f"{name} holds a user name or password, which would end up in logs; use api_key.")
    try:
        parts = urlsplit(base_url)
        (parts.hostname or "").encode("idna")  # as a DNS look-up does
        has_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_valid = has_server and not any(map(str.isspace, base_url))
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ConfigError(f"{name}={base_url!r} is not an address; write it like 'http://127.0.0.1:8000/v1'.")


def check_root(base_url: str) -> None:
    """Refuse an address as `check_address` does, and one to which no path can be added."""
    check_address(base_url)
    root = re.split("[?#]", base_url, maxsplit=1)[0]
    if root != base_url:
        raise ConfigError(f"base_url has a query or a fragment, to which no path can be added; write {root!r}.")
