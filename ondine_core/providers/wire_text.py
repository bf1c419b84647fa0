"""Text that JSON in UTF-8 can carry, as needed to send, store and show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ondine_core.errors import ConfigError


def storable_text(text: str) -> str:
    """`text` with a question mark for each lone surrogate, which wrong decoders produce and UTF-8 cannot carry."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def utf8_length(text: str) -> int:
    """Bytes of `text` in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def check_text(value: Any, where: str) -> None:
    """Refuse a lone surrogate in any text of `value`, names of mappings included, with a `ConfigError`."""
    match value:
        case str():
            if storable_text(value) != value:
                raise ConfigError(
                    f"{where} has {value!r}, which holds half of a character (a lone surrogate) that neither JSON nor "
                    "the store can carry; write the character itself."
                )
        case Mapping():
            for name, child in value.items():
                check_text(name, where)
                check_text(child, where)
        case list() | tuple():
            for child in value:
                check_text(child, where)
