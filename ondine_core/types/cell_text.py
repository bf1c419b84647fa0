"""Converts the values of a row to text for a prompt.

The text must be the same in every process: a prompt whose text changes is asked, and paid for, again.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Collection
from typing import Any

_MISSING = frozenset({"None", "nan", "NaT", "<NA>"})
"""The texts of missing values; a model would read them as words."""
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+>")


BYTES = (bytes, bytearray, memoryview)


class NoTextError(TypeError):
    """A value cannot be written as text of a prompt; the message shows its type and not its content."""


def decode(value: bytes | bytearray | memoryview) -> str:
    """Decode bytes, for instance of a binary column of Parquet.

    Raises:
        NoTextError: The bytes are not UTF-8.
    """
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        raise NoTextError(
            "its bytes are no text in UTF-8; decode them first, or write {column:image} or {column:document}"
        ) from None


def write_cell(value: Any) -> str:
    """Convert a value to its text in a prompt; the text of a missing value is empty.

    Raises:
        NoTextError: The value has no text that is the same in every process.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, BYTES):
        return decode(value)
    if hasattr(value, "tolist"):  # str() of a long NumPy array leaves out its middle
        value = value.tolist()
    if isinstance(value, dict | list | tuple | set | frozenset):
        return json.dumps(value, ensure_ascii=False, default=_json_default)
    text = str(ensure_deterministic(value))
    return "" if text in _MISSING else text


def is_blank(value: Any) -> bool:
    """Whether `value` is missing: null, NaN, or an empty or blank text."""
    if value is None or isinstance(value, str | bytes):
        return not (value and value.strip())
    if isinstance(value, int | Collection):
        return False
    return str(value) in _MISSING


def _json_default(value: Any) -> Any:
    return sort_elements(value) if isinstance(value, set | frozenset) else str(ensure_deterministic(value))


def sort_elements(values: Collection[Any]) -> list[Any]:
    """Sort the elements of a set, since the order of a set differs between processes."""
    return sorted(values, key=lambda value: (write_cell(value), type(value).__name__))


def replace_sets(value: Any) -> Any:
    """Replace the sets in `value` by sorted lists, for templates that loop over them; `value` itself if it has none."""
    if isinstance(value, set | frozenset):
        return [replace_sets(child) for child in sort_elements(value)]
    if not isinstance(value, dict | list | tuple):
        return value
    children = list(value.values()) if isinstance(value, dict) else value
    replaced = [replace_sets(child) for child in children]
    if all(map(operator.is_, replaced, children)):
        return value
    return dict(zip(value, replaced, strict=True)) if isinstance(value, dict) else replaced


def ensure_deterministic(value: Any) -> Any:
    """Return `value`, decoded if it is bytes.

    Raises:
        NoTextError: Its text contains a memory address, which differs between processes.
    """
    if isinstance(value, BYTES):
        return decode(value)
    if isinstance(value, dict | list | tuple):
        for child in value.values() if isinstance(value, dict) else value:
            ensure_deterministic(child)
    elif not isinstance(value, str | int | float) and _ADDRESS.search(str(value)):
        raise NoTextError(
            f"a value of type {type(value).__name__!r} has no text but its address; give the type a __str__"
        )
    return value
