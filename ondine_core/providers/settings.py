"""Checks what the user sets for a model, before any call is made.

Every error is a `ConfigError` that names the value and what to do; all `connect` functions raise it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, get_args
from urllib.parse import urlsplit

from ondine_core.errors import ConfigError
from ondine_core.types.numbers import is_number, is_positive, is_whole
from ondine_core.types.suggestion import did_you_mean
from ondine_core.types.values import Json, ModelSpec, PromptCache, Tier

Choice = TypeVar("Choice", bound=str)

_EXTRA_BODY = "extra_body"
_LIMIT = "max_output_tokens (settings token_limit_field chooses what it is sent as)"
_OURS = {
    "max_completion_tokens": _LIMIT,
    "max_tokens": _LIMIT,
    "messages": "the prompt",
    "model": "model",
    "n": "one reply a prompt",
    "service_tier": "tier",
    "stream": "whole replies",
    "stream_options": "whole replies",
    "timeout": "timeout_s",
}
"""Fields of a request that are decided elsewhere, and by what. The first two and `n` bound what a call may cost."""


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
        held = getattr(spec, name)
        if not isinstance(held, Mapping) or not all(isinstance(key, str) for key in held):
            raise ConfigError(f"{name} is a {type(held).__name__}; it must be a mapping of names to values.")


def check_params(spec: ModelSpec) -> None:
    """Refuse `spec.params` if it has fields that are decided elsewhere."""
    extra = _extra_body(spec)
    both = sorted(spec.params.keys() & extra.keys())
    if both:
        raise ConfigError(f"params: {both[0]!r} of {spec.model!r} is set twice, once of them in extra_body.")
    if spec.reasoning_effort is not None and "reasoning_effort" in (*spec.params, *extra):
        raise ConfigError(f"reasoning_effort of {spec.model!r} is set twice, once of them in params.")
    for name in (*spec.params, *extra):
        if name in _OURS:
            raise ConfigError(f"params: {name!r} of {spec.model!r} is not yours to set; it follows from {_OURS[name]}.")


def request_fields(spec: ModelSpec) -> dict[str, Json]:
    """The further fields of a request: those of `spec`, and beside them what `extra_body` in its `params` holds.

    OpenAI's package takes fields that it does not know by that name; in a request it has no meaning.
    """
    return {**{name: value for name, value in spec.request_params.items() if name != _EXTRA_BODY}, **_extra_body(spec)}


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


def chosen_of(spec: ModelSpec, setting: str, options: Sequence[Choice]) -> Choice | None:
    """The setting of this name, which must be one of `options`; `None` if it is not set."""
    chosen: Any = spec.settings.get(setting)
    if chosen is not None and chosen not in options:
        raise ConfigError(f"settings: {setting}={chosen!r} is not one of {', '.join(map(repr, options))}.")
    found: Choice | None = chosen
    return found


def check_header(name: str, value: str) -> None:
    """Refuse a secret that cannot be sent in a header, without showing it."""
    for at, character in enumerate(value, 1):
        if not " " <= character <= "~":
            kind = "a line end" if character in "\r\n" else f"the character U+{ord(character):04X}"
            raise ConfigError(f"{name} has {kind} at position {at} of {len(value)}; check how it was copied.")


def first_set(variables: tuple[str, ...]) -> str | None:
    """The value of the first of these environment variables that has one."""
    return next((value for name in variables if (value := os.environ.get(name, "").strip())), None)


def given_key(spec: ModelSpec) -> str:
    """The key that `spec` gives, without the line feed with which files of keys end; empty if it gives none.

    Where only an address is given, no key of the environment may be sent: it belongs to the provider.
    """
    key = (spec.api_key or "").strip()
    check_header("api_key", key)
    return key


def check_address(base_url: str, name: str = "base_url") -> None:
    """Refuse an address with a fault."""
    if "@" in base_url:
        raise ConfigError(f"{name} holds a user name or password, which would end up in logs; use api_key.")
    try:
        parts = urlsplit(base_url)
        (parts.hostname or "").encode("idna")  # as it is done for a look-up
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        sound = sound and not any(map(str.isspace, base_url))
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError(f"{name}={base_url!r} is not an address; write it like 'http://127.0.0.1:8000/v1'.")


def check_root(base_url: str) -> None:
    """Refuse an address with a fault, or to which no path can be added."""
    check_address(base_url)
    root = re.split("[?#]", base_url, maxsplit=1)[0]
    if root != base_url:
        raise ConfigError(f"base_url has a query or a fragment, to which no path can be added; write {root!r}.")
