"""The user's settings of the sanitizer, checked where they are declared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from ondine_core.errors import ConfigError
from ondine_core.preprocessing.safe_regex import find_stall
from ondine_core.preprocessing.sanitizer.rules import RULES, Rule

Mode: TypeAlias = Literal["redact", "placeholder", "hash"]

RULE_NAMES: tuple[str, ...] = tuple(dict.fromkeys(rule.name for rule in RULES))
"""The built-in rules."""
_SHORTEST_SALT = 16


@dataclass(frozen=True, slots=True)
class Sanitizer:
    """Which personal data are removed from rows, and what replaces them.

    Args:
        mode: `"redact"` writes `[EMAIL]`; `"placeholder"` writes `<EMAIL_1>`, the same for equal texts of a row, and
            puts the text back if an answer repeats the placeholder; `"hash"` writes `[EMAIL#kdfajlmbgoehpicn]`, the
            same for equal texts of all rows.
        rules: Names of the built-in rules to use, by default all.
        patterns: Your own rules: names and regular expressions; if one has a group `value`, only that is replaced.
            Built-in rules take precedence if matches overlap.
        salt: For `"hash"`, a secret of at least 16 characters. Without it the text of a hash cannot be guessed; a plain
            hash of a phone number could be, by trying all numbers.

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
        if not isinstance(self.rules, Iterable):
            raise ConfigError(f"rules={self.rules!r} must be a list of names.")
        names = [self.rules] if isinstance(self.rules, str) else list(self.rules)
        unknown = [name for name in names if not isinstance(name, str) or name.upper() not in RULE_NAMES]
        if unknown:
            valid = ", ".join(repr(name.lower()) for name in RULE_NAMES)
            raise ConfigError(f"There is no rule {unknown[0]!r}; those are {valid}. Write your own with patterns=.")
        wanted = {name.upper() for name in names}
        if not isinstance(self.patterns, Mapping):
            raise ConfigError(r"patterns= is a mapping of names to patterns, as in {'CUSTOMER': r'\bC-\d{6}\b'}.")
        own = [_user_rule(name, pattern) for name, pattern in self.patterns.items()]
        if not wanted and not own:
            raise ConfigError("The sanitizer has no rules; leave rules= out for all of them, or sanitize= for none.")
        object.__setattr__(self, "chosen", (*(rule for rule in RULES if rule.name in wanted), *own))

    def __str__(self) -> str:
        return f"{self.mode}: {', '.join(dict.fromkeys(rule.name for rule in self.chosen))}"


Sanitize: TypeAlias = Sanitizer | Mode | Mapping[str, Any]
"""How a user asks for it: a sanitizer, a mode, or the arguments of a sanitizer."""


def find_sanitizer(sanitize: Sanitize | None) -> Sanitizer | None:
    """The sanitizer for the user's setting."""
    match sanitize:
        case None | Sanitizer():
            return sanitize
        case str():
            return Sanitizer(sanitize)
        case Mapping():
            names = ("mode", "rules", "patterns", "salt")
            unknown = [name for name in sanitize if name not in names]
            if unknown:
                raise ConfigError(f"sanitize has no {unknown[0]!r}; it takes {', '.join(map(repr, names))}.")
            return Sanitizer(**sanitize)
    raise ConfigError(f"sanitize={sanitize!r}; give a mode, a Sanitizer, or a mapping with its arguments.")


# -- rules of the user's own -----------------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,30}(?<!_)")
_MAX_TRIAL = 20_000
_STALLED_S = 0.05
"""Seconds of CPU time: five times what a linear pattern takes for the longest trial, a tenth of a quadratic one's."""


def _user_rule(name: str, pattern: str) -> Rule:
    """A rule called `name`, in capitals, for what `pattern` matches (only its group `value`, if it has one)."""
    written, name = name, name.upper() if isinstance(name, str) else ""
    if not _NAME.fullmatch(name) or name in {rule.name for rule in RULES}:
        raise ConfigError(
            f"A pattern cannot be called {written!r}: letters, digits and underscores, and none of the built-in names."
        )
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError, RecursionError) as error:
        raise ConfigError(f"The pattern of {name!r} is not a regular expression: {error}.") from None
    if not isinstance(pattern, str):
        raise ConfigError(f"The pattern of {name!r} is a {type(pattern).__name__}; write it as a text.")
    if compiled.search("") is not None:
        raise ConfigError(f"The pattern of {name!r} matches the empty text, so it would be found everywhere.")
    text = find_stall(compiled, max_length=_MAX_TRIAL, max_s=_STALLED_S)
    if text is not None:
        raise ConfigError(
            f"The pattern of {name!r} stalls: searching {text[:2]!r} and so on for {len(text):,} characters takes "
            rf"more than {_STALLED_S:g} s. Bound its repeats, as in \w{{1,64}} for \w+, and start it with \b."
        )
    return Rule(name, pattern, folded=False)
