"""Personal data and secrets are taken out of a row before anything else sees it: rules as data, and three modes.

A row is sanitized before it is rendered, so nothing raw reaches a key, the store, a log or a provider. What a
placeholder stands for is kept nowhere: to restore the answer of a row, the row is sanitized once more. So rows that are
the same once they are sanitized share one answer, and each gets its own data back.
"""

from __future__ import annotations

import hashlib
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, TypeAlias, get_args

from ondine_core.errors import ConfigError
from ondine_core.sanitizer.finding import find
from ondine_core.sanitizer.rules import RULES, Rule
from ondine_core.sanitizer.user_rules import user_rule
from ondine_core.values import Json

__all__ = [
    "RULE_NAMES",
    "Sanitize",
    "Sanitized",
    "Sanitizer",
    "find_sanitizer",
    "has_placeholder",
    "redact",
    "restore",
    "sanitize",
]

Mode: TypeAlias = Literal["redact", "placeholder", "hash"]

RULE_NAMES: tuple[str, ...] = tuple(dict.fromkeys(rule.name for rule in RULES))
"""The built-in rules."""
_SHORTEST_SALT = 16


@dataclass(frozen=True, slots=True)
class Sanitizer:
    """What is taken out of rows, and what stands in its place.

    Args:
        mode: `"redact"` writes `[EMAIL]`; `"placeholder"` writes `<EMAIL_1>`, the same for the same text of a row, and
            puts the text back where an answer repeats it; `"hash"` writes `[EMAIL#kdfajlmbgoehpicn]`, the same for the
            same text of any row.
        rules: Names of the built-in rules to use, by default all.
        patterns: Rules of your own: a name and a regular expression, of which only the group `value` counts if there
            is one. They come after the built-in ones where two overlap.
        salt: For `"hash"`, a secret of at least 16 characters. Without it nobody can tell the text from its hash;
            there are so few phone numbers that a plain hash of one is soon found out by trying them all.

    Raises:
        ConfigError: One of them is not valid, or a pattern takes too long on some texts.
    """

    mode: Mode = "redact"
    rules: Sequence[str] = RULE_NAMES
    patterns: Mapping[str, str] = field(default_factory=dict)
    salt: str | None = field(default=None, repr=False)
    chosen: tuple[Rule, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(f"sanitize={self.mode!r}; valid modes are {', '.join(map(repr, get_args(Mode)))}.")
        if (self.mode == "hash") != (self.salt is not None):
            raise ConfigError(
                "A salt belongs to mode='hash', which needs one: a text of your own that you keep secret."
            )
        if self.salt is not None and not (isinstance(self.salt, str) and len(self.salt) >= _SHORTEST_SALT):
            raise ConfigError(
                f"The salt is too short to be secret; give a text of at least {_SHORTEST_SALT} characters."
            )
        names = [self.rules] if isinstance(self.rules, str) else list(self.rules)
        if unknown := [name for name in names if not isinstance(name, str) or name.upper() not in RULE_NAMES]:
            valid = ", ".join(repr(name.lower()) for name in RULE_NAMES)
            raise ConfigError(f"There is no rule {unknown[0]!r}; those are {valid}. Write your own with patterns=.")
        wanted = {name.upper() for name in names}
        own = [user_rule(name, pattern) for name, pattern in self.patterns.items()]
        if not wanted and not own:
            raise ConfigError("The sanitizer has no rules; leave rules= out for all of them, or sanitize= for none.")
        object.__setattr__(self, "chosen", (*(rule for rule in RULES if rule.name in wanted), *own))

    def __str__(self) -> str:
        return f"{self.mode}: {', '.join(dict.fromkeys(rule.name for rule in self.chosen))}"


Sanitize: TypeAlias = Sanitizer | Mode | Mapping[str, Any]
"""How a user asks for it: a sanitizer, a mode, or the arguments of a sanitizer."""


def find_sanitizer(given: Sanitize | None) -> Sanitizer | None:
    """The sanitizer that a user means.

    Raises:
        ConfigError: It is none, or one of its arguments is not valid.
    """
    match given:
        case None | Sanitizer():
            return given
        case str():
            return Sanitizer(given)
        case Mapping():
            names = ("mode", "rules", "patterns", "salt")
            if unknown := [name for name in given if name not in names]:
                raise ConfigError(f"sanitize has no {unknown[0]!r}; it takes {', '.join(map(repr, names))}.")
            return Sanitizer(**given)
    raise ConfigError(f"sanitize={given!r}; give a mode, a Sanitizer, or a mapping with its arguments.")


@dataclass(frozen=True, slots=True)
class Sanitized:
    """A row without what was found in it.

    Args:
        values: Column to value; the row itself if nothing was found.
        raw: What each placeholder stands for.
        found: How often each rule found something.
    """

    values: Mapping[str, Any]
    raw: Mapping[str, str] = field(default_factory=dict, repr=False)
    found: Mapping[str, int] = field(default_factory=dict)


def sanitize(row: Mapping[str, Any], sanitizer: Sanitizer) -> Sanitized:
    """`row` with marks in the place of what the rules find in its values.

    Texts inside lists and mappings are read as well, and everything that is no text as the text it is written as. Each
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
        self._written: set[tuple[str, int]] | None = None
        self.raw: dict[str, str] = {}
        self.found: Counter[str] = Counter()

    def put(self, text: str) -> str:
        return _replace(text, self._sanitizer, self._mark)

    def _mark(self, name: str, text: str) -> str:
        self.found[name] += 1
        if (mark := self._given.get((name, text))) is None:
            mark = self._given[name, text] = self._new(name, text)
        return mark

    def _new(self, name: str, text: str) -> str:
        if self._sanitizer.mode == "redact":
            return f"[{name}]"
        if self._sanitizer.mode == "hash":
            return f"[{name}#{_hash(text, self._sanitizer.salt or '')}]"
        self._numbers[name] += 1
        # A number that the row writes itself must not be taken for this one.
        while (name, self._numbers[name]) in self._taken():
            self._numbers[name] += 1
        mark = f"<{name}_{self._numbers[name]}>"
        self.raw[mark] = text
        return mark

    def _taken(self) -> set[tuple[str, int]]:
        if self._written is None:
            self._written = set()
            names = "|".join({rule.name for rule in self._sanitizer.chosen})

            def keep(text: str) -> str:
                if "_" in text and self._written is not None:
                    for match in re.finditer(rf"({names})_0{{0,9}}([0-9]{{1,9}})(?![0-9])", text, re.IGNORECASE):
                        self._written.add((match[1].upper(), int(match[2])))
                return text

            _change(list(self._row.values()), keep)
        return self._written


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
    plain = value.tolist() if hasattr(value, "tolist") else value
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
