"""What only one provider knows of, and what none leaves to the user: mistakes are found before any call is made."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from ondine_core.errors import ConfigError
from ondine_core.values import ModelSpec

__all__ = ["check_params", "check_settings"]

_OURS = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "the prompt",
    "model": "model",
    "n": "one reply a prompt",
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
    for name in spec.params:
        if name in _OURS:
            raise ConfigError(f"params: {name!r} of {spec.model!r} is not yours to set; it follows from {_OURS[name]}.")


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
