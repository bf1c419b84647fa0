r"""Texts as the rules read them: every script's digits, dashes and blanks as ASCII, and nothing that cannot be seen.

A text may be JSON: of its escapes `\u0040` is read as `@`, and the `n` of a line feed is no letter. So a rule is
written once, in plain ASCII, and finds what a phone, a form or an evasive writer made of a number.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TypeAlias

_UNSEEN = re.compile("[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")
"""Soft hyphens, joiners, marks of direction and the like."""
_FULL_WIDTH = range(0xFF01, 0xFF5F)
"""The forms of ASCII's printable characters that are as wide as an ideograph."""
_ESCAPE = re.compile(r"\\(?:\\|[bfnrt]|u([0-9A-Fa-f]{4}))")

Places: TypeAlias = tuple[list[int], list[int]]


def fold(text: str) -> tuple[str, Places | None]:
    """`text` for matching, and where in `text` each of its characters starts and ends (`None`: at the same place)."""
    is_escaped = "\\" in text and _ESCAPE.search(text) is not None
    if text.isascii() and not is_escaped:
        return text, None
    places: Places | None = None
    if is_escaped:
        text, places = _unescape(text)
    folded = text.translate(_TABLE)
    if _UNSEEN.search(folded):
        seen = [place for place, character in enumerate(folded) if not _UNSEEN.match(character)]
        folded = "".join([folded[place] for place in seen])
        starts, ends = places or (range(len(text)), range(1, len(text) + 1))
        places = [starts[place] for place in seen], [ends[place] for place in seen]
    return folded, places


def _unescape(text: str) -> tuple[str, Places]:
    """`text` with characters in the place of escapes, and where each starts and ends."""
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    at = 0
    for escape in _ESCAPE.finditer(text):
        start, end = escape.span()
        pieces += (text[at:start], chr(int(escape[1], 16)) if escape[1] else "\\")
        starts += range(at, start + 1)
        ends += (*range(at + 1, start + 1), end)
        at = end
    starts += range(at, len(text))
    ends += range(at + 1, len(text) + 1)
    return "".join([*pieces, text[at:]]), (starts, ends)


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
