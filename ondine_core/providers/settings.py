"""What only one provider knows of: a name that it does not know is a mistake, found before any call is made."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from ondine_core.errors import ConfigError
from ondine_core.values import ModelSpec

__all__ = ["check_settings"]


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
