"""Replaces what the rules find by marks in rows, and marks by what they stand for in answers.

Placeholders are numbered a row at a time, and what they stand for is kept nowhere: to restore the answer of a row, the
row is sanitized once more.
"""

from __future__ import annotations

import hashlib
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

from ondine_core.preprocessing.sanitizer.finding import find
from ondine_core.preprocessing.sanitizer.rule_settings import Sanitizer
from ondine_core.types.cell_text import BYTES, decode, sort_elements
from ondine_core.types.values import Json


@dataclass(frozen=True, slots=True)
class Sanitized:
    """A row without what was found in it.

    `values` is the row itself if nothing was found; `raw` is what each placeholder stands for, `found` how often each
    rule found something.
    """

    values: Mapping[str, Any]
    raw: Mapping[str, str] = field(default_factory=dict, repr=False)
    found: Mapping[str, int] = field(default_factory=dict)


def sanitize(row: Mapping[str, Any], sanitizer: Sanitizer) -> Sanitized:
    """`row` with marks in the place of what the rules find in its values.

    Texts inside lists and mappings are read as well, and every other value as the text it is written as. Each
    value is read by itself: what only a template puts together is not seen.
    """
    marks = _Marks(sanitizer, row)
    values = {name: _change(value, marks.put) for name, value in row.items()}
    return Sanitized(values, marks.raw, marks.found) if marks.found else Sanitized(row)


def redact(text: str, sanitizer: Sanitizer) -> str:
    """`text` with `[EMAIL]` and the like in the place of what the rules find, whatever the mode: for people to see."""
    return _replace(text, sanitizer, lambda name, _: f"[{name}]")


def restore(value: Json, raw: Mapping[str, str]) -> Json:
    """`value` with each placeholder in its texts replaced by what it stands for; others stay as they are."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda found: raw.get(found[0], found[0]), value)
    if isinstance(value, list):
        return [restore(item, raw) for item in value]
    if isinstance(value, dict):
        return {name: restore(item, raw) for name, item in value.items()}
    return value


def has_placeholder(value: Json) -> bool:
    """Whether a text in `value` has something that `restore` might replace."""
    if isinstance(value, str):
        return _PLACEHOLDER.search(value) is not None
    if isinstance(value, list | dict):
        return any(map(has_placeholder, value if isinstance(value, list) else value.values()))
    return False


# -- marks ---------------------------------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9_]*_[0-9]+>")
_IN_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")


class _Marks:
    """The marks of one row, numbered as they are met; `raw` is what placeholders stand for."""

    def __init__(self, sanitizer: Sanitizer, row: Mapping[str, Any]) -> None:
        self._sanitizer, self._row = sanitizer, row
        self._given: dict[tuple[str, str], str] = {}
        self._numbers: Counter[str] = Counter()
        self.raw: dict[str, str] = {}
        self.found: Counter[str] = Counter()

    def put(self, text: str) -> str:
        return _replace(text, self._sanitizer, self._mark)

    def _mark(self, name: str, text: str) -> str:
        self.found[name] += 1
        mark = self._given.get((name, text))
        if mark is None:
            mark = self._given[name, text] = self._new(name, text)
        return mark

    def _new(self, name: str, text: str) -> str:
        if self._sanitizer.mode == "redact":
            return f"[{name}]"
        if self._sanitizer.mode == "hash":
            return f"[{name}#{_hash(text, self._sanitizer.salt or '')}]"
        self._numbers[name] += 1
        # A number that the row writes itself must not be taken for this one.
        while (name, self._numbers[name]) in self._written:
            self._numbers[name] += 1
        mark = f"<{name}_{self._numbers[name]}>"
        self.raw[mark] = text
        return mark

    @cached_property
    def _written(self) -> set[tuple[str, int]]:
        written = set()
        names = "|".join({rule.name for rule in self._sanitizer.chosen})

        def keep(text: str) -> str:
            if "_" in text:
                for match in re.finditer(rf"({names})_0{{0,9}}([0-9]{{1,9}})(?![0-9])", text, re.IGNORECASE):
                    written.add((match[1].upper(), int(match[2])))
            return text

        _change(list(self._row.values()), keep)
        return written


def _hash(text: str, salt: str) -> str:
    """16 letters, and no digit among them, which other rules might take for a number."""
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
    """`value` with `change` applied to each text in it, and to all else as it is written; itself if nothing changes."""
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
        return value if _same([part for pair in pairs for part in pair], old) else _with_own_names(pairs)
    if isinstance(plain, list | tuple):
        items = [_change(item, change) for item in plain]
        return value if _same(items, plain) else items if isinstance(plain, list) else tuple(items)
    written = str(plain)
    changed = change(written)
    return value if changed == written else changed


def _same(new: Sequence[Any], old: Sequence[Any]) -> bool:
    return all(map(operator.is_, new, old))


def _with_own_names(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A mapping of `pairs` that loses none of them, although names that were different may have become the same."""
    named: dict[Any, Any] = {}
    for name, item in pairs:
        free = (f"{name} ({number})" for number in count(2))
        named[name if name not in named else next(new for new in free if new not in named)] = item
    return named
