"""Writes the values of a row as text of a prompt.

The text must be the same in every process: another prompt is asked, and paid for, again.
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
    """A value has no text that could stand in a prompt; the message names its type and nothing else of it."""


def decode(value: bytes | bytearray | memoryview) -> str:
    """The text that bytes are, as in a binary column of Parquet.

    Raises:
        NoTextError: They are not UTF-8.
    """
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        raise NoTextError(
            "its bytes are no text in UTF-8; decode them first, or write {column:image} or {column:document}"
        ) from None


def write_cell(value: Any) -> str:
    """A value as it stands in a prompt; what is missing is nothing."""
    if isinstance(value, str):
        return value
    if isinstance(value, BYTES):
        return decode(value)
    if hasattr(value, "tolist"):  # NumPy would write a long array with dots in the middle
        value = value.tolist()
    if isinstance(value, dict | list | tuple | set | frozenset):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    text = str(ensure_deterministic(value))
    return "" if text in _MISSING else text


def is_blank(value: Any) -> bool:
    """Whether `value` is missing: null, NaN, or a text of nothing but white space."""
    if value is None or isinstance(value, str | bytes):
        return not (value and value.strip())
    if isinstance(value, int | Collection):
        return False
    return str(value) in _MISSING


def _plain(value: Any) -> Any:
    return in_order(value) if isinstance(value, set | frozenset) else str(ensure_deterministic(value))


def in_order(values: Collection[Any]) -> list[Any]:
    """The elements of a set in a fixed order, since its own order differs from process to process."""
    return sorted(values, key=lambda value: (write_cell(value), type(value).__name__))


def with_sorted_sets(value: Any) -> Any:
    """`value` with lists for the sets in it, since a template may loop over them; itself if it has none."""
    if isinstance(value, set | frozenset):
        return [with_sorted_sets(child) for child in in_order(value)]
    if not isinstance(value, dict | list | tuple):
        return value
    old = list(value.values()) if isinstance(value, dict) else value
    new = [with_sorted_sets(child) for child in old]
    if all(map(operator.is_, new, old)):
        return value
    return dict(zip(value, new, strict=True)) if isinstance(value, dict) else new


def ensure_deterministic(value: Any) -> Any:
    """`value`, bytes as text; an error if its text has its address in memory, which differs from process to process."""
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
