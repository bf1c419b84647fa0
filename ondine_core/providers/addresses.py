"""Addresses of servers, refused as early as they are given: what cannot be one, and what would tell a password."""

from __future__ import annotations

from urllib.parse import urlsplit

from ondine_core.errors import ConfigError

__all__ = ["check_address", "find_fault"]


def find_fault(base_url: str) -> str | None:
    """What is wrong with an address, as the end of a sentence; `None` if nothing is."""
    if "@" in base_url:
        return "holds a user name or password, which would end up in logs; use api_key"
    try:
        parts = urlsplit(base_url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    return None if sound else "is no address; write it like 'http://127.0.0.1:8000/v1'"


def check_address(base_url: str, name: str = "base_url") -> None:
    """Refuse an address with a fault.

    Raises:
        ConfigError: It cannot be an address, or it holds a password.
    """
    fault = find_fault(base_url)
    if fault:
        raise ConfigError(f"{name if '@' in base_url else f'{name}={base_url!r}'} {fault}.")
