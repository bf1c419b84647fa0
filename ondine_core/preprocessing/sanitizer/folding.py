r"""Folds texts for the rules: digits, dashes and blanks of any script become ASCII, invisible characters are removed.

A text may be JSON, with the escapes `\u0040` for `@` and `\n` for a line feed. A text that does not begin like JSON is
read both with and without escapes, since `CORP\robert` has none. So a rule is written once, in plain ASCII, and finds
data in any of these forms.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TypeAlias

_UNSEEN = re.compile("[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")
"""Soft hyphens, joiners, marks of direction and the like."""
_FULL_WIDTH = range(0xFF01, 0xFF5F)
"""The forms of ASCII's printable characters that are as wide as an ideograph."""
_ESCAPE = re.compile(r"""\\(?:([\\/"bfnrt])|u([0-9A-Fa-f]{4}))""")
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_JSON = re.compile(r'\s*(?:[{"]|\[\s*[\[{"])')

Places: TypeAlias = tuple[list[int], list[int]]


def fold(text: str) -> list[tuple[str, Places | None]]:
    """The folded forms of `text`, with the places in `text` where their characters start and end (`None`: the same)."""
    if "\\" not in text or _ESCAPE.search(text) is None:
        return [_fold(text, None)]
    with_escapes = _fold(*_unescape(text))
    return [with_escapes] if _JSON.match(text) else [with_escapes, _fold(text, None)]


def _fold(text: str, places: Places | None) -> tuple[str, Places | None]:
    if text.isascii():
        return text, places
    folded = text.translate(_TABLE)
    if _UNSEEN.search(folded):
        seen = [place for place, character in enumerate(folded) if not _UNSEEN.match(character)]
        folded = "".join([folded[place] for place in seen])
        starts, ends = places or (range(len(text)), range(1, len(text) + 1))
        places = [starts[place] for place in seen], [ends[place] for place in seen]
    return folded, places


def _unescape(text: str) -> tuple[str, Places]:
    """`text` with its escapes replaced, and the places in `text` where each character starts and ends."""
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    position = 0
    for escape in _ESCAPE.finditer(text):
        start, end = escape.span()
        character = chr(int(escape[2], 16)) if escape[2] else _ESCAPED.get(escape[1], escape[1])
        pieces += (text[position:start], character)
        starts += range(position, start + 1)
        ends += (*range(position + 1, start + 1), end)
        position = end
    starts += range(position, len(text))
    ends += range(position + 1, len(text) + 1)
    return "".join([*pieces, text[position:]]), (starts, ends)


class _Table(dict[int, str]):
    """The replacement of each character, computed at its first use."""

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
