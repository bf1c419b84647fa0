"""Rules of the user's own, checked where they are declared.

A pattern that takes quadratic time or worse would hang a run at the first long row, in the middle of the night, with
the interpreter's lock held. So it is tried on runs of characters when it is declared, and refused if it stalls.
"""

from __future__ import annotations

import re

from ondine_core.errors import ConfigError
from ondine_core.preprocessing.safe_regex import find_stall
from ondine_core.preprocessing.sanitizer.rules import RULES, Rule

_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,30}(?<!_)")
_MAX_TRIAL = 20_000
_STALLED_S = 0.05
"""Of processor time. A linear pattern takes a fifth of it for the longest trial, a quadratic one ten times as long."""


def user_rule(name: str, pattern: str) -> Rule:
    """A rule called `name`, in capitals, for what `pattern` matches (only its group `value`, if it has one).

    Raises:
        ConfigError: The name or the pattern is not valid, the pattern matches nothing at all, or it takes too long.
    """
    given, name = name, name.upper() if isinstance(name, str) else ""
    if not _NAME.fullmatch(name) or name in {rule.name for rule in RULES}:
        raise ConfigError(
            f"A pattern cannot be called {given!r}: letters, digits and underscores, and none of the built-in names."
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
