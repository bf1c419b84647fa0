"""What only one provider knows of, and what none leaves to the user: mistakes are found before any call is made."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from difflib import get_close_matches

from ondine_core.errors import ConfigError
from ondine_core.types.values import Json, ModelSpec

__all__ = ["check_header", "check_params", "check_settings", "first_set", "request_fields"]

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


def check_params(spec: ModelSpec) -> None:
    """Refuse `spec.params` if it has fields that are decided elsewhere.

    Raises:
        ConfigError: It has; the message says by what.
    """
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
    """Refuse `spec.settings` if it has names other than the `valid` ones.

    Raises:
        ConfigError: It has; the message names them, what was perhaps meant, and what is valid.
    """
    for name in spec.settings:
        if name not in valid:
            near = get_close_matches(name, valid, 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            known = f"valid are {', '.join(sorted(valid))}" if valid else "it has none"
            raise ConfigError(f"settings: {spec.model!r} knows no {name!r}; {known}.{meant}")


def check_header(name: str, value: str) -> None:
    """Refuse a secret that cannot be sent in a header, without showing it.

    Raises:
        ConfigError: It has line ends, control characters, or characters outside of ASCII.
    """
    for at, character in enumerate(value, 1):
        if not " " <= character <= "~":
            kind = "a line end" if character in "\r\n" else f"the character U+{ord(character):04X}"
            raise ConfigError(f"{name} has {kind} at position {at} of {len(value)}; check how it was copied.")


def first_set(variables: tuple[str, ...]) -> str | None:
    """The value of the first of these environment variables that has one."""
    return next((value for name in variables if (value := os.environ.get(name, "").strip())), None)
