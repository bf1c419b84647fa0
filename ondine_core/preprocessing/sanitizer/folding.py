"""Texts as the rules read them: every script's digits, dashes and blanks as ASCII, and nothing that cannot be seen.

So a rule is written once, in plain ASCII, and finds what a phone, a form or an evasive writer made of a number.
"""

from __future__ import annotations

import re
import unicodedata

_UNSEEN = re.compile("[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")
"""Soft hyphens, joiners, marks of direction and the like."""
_FULL_WIDTH = range(0xFF01, 0xFF5F)
"""The forms of ASCII's printable characters that are as wide as an ideograph."""


def fold(text: str) -> tuple[str, list[int] | None]:
    """`text` for matching, and the place in `text` of each of its characters (`None`: the same)."""
    if text.isascii():
        return text, None
    folded = text.translate(_TABLE)
    if not _UNSEEN.search(folded):
        return folded, None
    places = [place for place, character in enumerate(folded) if not _UNSEEN.match(character)]
    return "".join([folded[place] for place in places]), places


class _Table(dict[int, str]):
    """One character for one; each is looked into when it is met for the first time."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if code in _FULL_WIDTH:
            character = chr(code - _FULL_WIDTH.start + ord("!"))
        else:
            match unicodedata.category(character):
                case "Nd":
                    character = str(unicodedata.decimal(character))
                case "Pd":
                    character = "-"
                case "Zs":
                    character = " "
        self[code] = character
        return character


_TABLE = _Table({ord("\N{MINUS SIGN}"): "-"})
