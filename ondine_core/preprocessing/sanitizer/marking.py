"""Replaces personal data by marks in rows, and placeholders by the data in answers.

Placeholders are numbered in each row, and their data are not stored: to restore the answer of a row, the row is
sanitized once more.
"""

from __future__ import annotations

import hashlib
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count
from typing import Any

from ondine_core.preprocessing.sanitizer.finding import find
from ondine_core.preprocessing.sanitizer.rule_settings import Sanitizer
from ondine_core.types.cell_text import BYTES, decode, sort_elements
from ondine_core.types.values import Json


@dataclass(frozen=True, slots=True)
class Sanitized:
    """A sanitized row.

    `values` is the row itself if nothing was found; `raw` has the data of each placeholder, `found` the number of
    matches by rule.
    """

    values: Mapping[str, Any]
    raw: Mapping[str, str] = field(default_factory=dict, repr=False)
    found: Mapping[str, int] = field(default_factory=dict)


def sanitize(row: Mapping[str, Any], sanitizer: Sanitizer) -> Sanitized:
    """Replace data that the rules find in the values of `row` by marks.

    Texts inside lists and mappings are searched as well, and other values as text. Each value is searched separately: a
    datum that a template composes of several columns is not found.
    """
    marks = _Marks(sanitizer, row)
    values = {name: _change(value, marks.put) for name, value in row.items()}
    return Sanitized(values, marks.raw, marks.found) if marks.found else Sanitized(row)


def redact(text: str, sanitizer: Sanitizer) -> str:
    """`text` with `[EMAIL]` and the like for data that the rules find, whatever the mode: for display."""
    return _replace(text, sanitizer, lambda name, _: f"[{name}]")


def restore(value: Json, raw: Mapping[str, str]) -> Json:
    """`value` with the placeholders in its texts replaced by their data in `raw`; unknown ones stay."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda match: raw.get(match[0], match[0]), value)
    if isinstance(value, list):
        return [restore(item, raw) for item in value]
    if isinstance(value, dict):
        return {name: restore(item, raw) for name, item in value.items()}
    return value


def has_placeholder(value: Json) -> bool:
    """Whether a text in `value` has a placeholder that `restore` might replace."""
    if isinstance(value, str):
        return _PLACEHOLDER.search(value) is not None
    if isinstance(value, list | dict):
        return any(map(has_placeholder, value if isinstance(value, list) else value.values()))
    return False


# -- marks ---------------------------------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9_]*_[0-9]+>")
_IN_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")


class _Marks:
    """The marks of one row, numbered in order of occurrence; `raw` has the data of the placeholders."""

    def __init__(self, sanitizer: Sanitizer, row: Mapping[str, Any]) -> None:
        self._sanitizer, self._row = sanitizer, row
        self._marks: dict[tuple[str, str], str] = {}
        self._numbers: Counter[str] = Counter()
        self.raw: dict[str, str] = {}
        self.found: Counter[str] = Counter()

    def put(self, text: str) -> str:
        return _replace(text, self._sanitizer, self._mark)

    def _mark(self, name: str, text: str) -> str:
        self.found[name] += 1
        mark = self._marks.get((name, text))
        if mark is None:
            mark = self._marks[name, text] = self._make_mark(name, text)
        return mark

    def _make_mark(self, name: str, text: str) -> str:
        if self._sanitizer.mode == "redact":
            return f"[{name}]"
        if self._sanitizer.mode == "hash":
            return f"[{name}#{_hash(text, self._sanitizer.salt or '')}]"
        self._numbers[name] += 1
        # Skip numbers of placeholders that the text of the row itself contains.
        while (name, self._numbers[name]) in self._used_numbers:
            self._numbers[name] += 1
        mark = f"<{name}_{self._numbers[name]}>"
        self.raw[mark] = text
        return mark

    @cached_property
    def _used_numbers(self) -> set[tuple[str, int]]:
        """The names and numbers of placeholders in the text of the row itself."""
        used = set()
        names = "|".join({rule.name for rule in self._sanitizer.chosen})

        def keep(text: str) -> str:
            if "_" in text:
                for match in re.finditer(rf"({names})_0{{0,9}}([0-9]{{1,9}})(?![0-9])", text, re.IGNORECASE):
                    used.add((match[1].upper(), int(match[2])))
            return text

        _change(list(self._row.values()), keep)
        return used


def _hash(text: str, salt: str) -> str:
    """A hash of 16 letters, without digits, which other rules might take for a number."""
    key = hashlib.blake2b(salt.encode(), digest_size=64).digest()
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=key, digest_size=8)
    return digest.hexdigest().translate(_IN_LETTERS)


def _replace(text: str, sanitizer: Sanitizer, mark: Callable[[str, str], str]) -> str:
    spans = find(text, sanitizer.chosen)
    if not spans:
        return text
    pieces: list[str] = []
    start = 0
    for span in spans:
        pieces += (text[start : span.start], mark(span.name, text[span.start : span.end]))
        start = span.end
    return "".join([*pieces, text[start:]])


def _change(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with `change` applied to each text in it, and to other values as text; itself if nothing changes."""
    if isinstance(value, str):
        return change(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, BYTES):
        return change(decode(value))
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, set | frozenset):
        plain = sort_elements(plain)
    if isinstance(plain, dict):
        pairs = [(_change(name, change), _change(item, change)) for name, item in plain.items()]
        old = [part for pair in plain.items() for part in pair]
        return value if _same([part for pair in pairs for part in pair], old) else _with_distinct_names(pairs)
    if isinstance(plain, list | tuple):
        items = [_change(item, change) for item in plain]
        changed_items = items if isinstance(plain, list) else tuple(items)
        return value if _same(items, plain) else changed_items
    text = str(plain)
    changed = change(text)
    return value if changed == text else changed


def _same(new: Sequence[Any], old: Sequence[Any]) -> bool:
    return all(map(operator.is_, new, old))


def _with_distinct_names(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A mapping of all `pairs`; a name that occurs again, as marks may make names equal, gets a number."""
    named: dict[Any, Any] = {}
    for name, item in pairs:
        numbered = (f"{name} ({number})" for number in count(2))
        distinct = next(candidate for candidate in chain((name,), numbered) if candidate not in named)
        named[distinct] = item
    return named
