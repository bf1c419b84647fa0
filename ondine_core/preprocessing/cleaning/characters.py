"""Cleans characters: forms of one character, invisible ones, and repeated blanks and punctuation."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

_UNSAFE_LENGTH = 1000
_MARKS_IN_A_ROW = 30
"""The limit of Unicode's stream-safe text format (UAX #15); sorting marks takes time by the square of their number."""
_JOINER = "\N{COMBINING GRAPHEME JOINER}"


def normalize_unicode(text: str, form: Literal["NFC", "NFKC"] = "NFC") -> str:
    """`text` with one form of each character: `NFC` composes accents, `NFKC` also writes `ﬁ` as `fi` and `①` as `1`."""
    if text.isascii():
        return text
    return unicodedata.normalize(form, _stream_safe(text) if len(text) > _UNSAFE_LENGTH else text)


def _stream_safe(text: str) -> str:
    pieces, run = [], 0
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run > _MARKS_IN_A_ROW:
            pieces.append(_JOINER)
            run = 1
        pieces.append(character)
    return "".join(pieces)


_LINE_ENDS = re.compile("\r\n?|[\u0085\u2028\u2029]")
# Controls, soft hyphens, marks of direction, byte-order marks, and tags, which are invisible ASCII.
_CONTROLS = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
# Joiners are part of words in Persian and the scripts of India, and of composed pictographs.
_STRAY_JOINERS = re.compile("(?<![\u0600-\u0dff\u200d\u2190-\u2bff\ufe0f\U0001f000-\U0001faff])[\u200c\u200d]+")
_SURROGATES = re.compile("[\ud800-\udfff]")


def strip_control(text: str) -> str:
    """`text` without invisible characters, except line feeds and tabs; a lone surrogate becomes `�`."""
    text = _CONTROLS.sub("", _LINE_ENDS.sub("\n", text))
    return text if text.isascii() else _SURROGATES.sub("\ufffd", _STRAY_JOINERS.sub("", text))


_BLANKS = re.compile(r"[^\S\n]+")
_BLANK_ENDS = re.compile(r" ?\n ?")
_EMPTY_LINES = re.compile(r"\n{3,}")


def collapse_whitespace(text: str) -> str:
    """`text` with one space for each run of blanks and at most one empty line in a row, and neither at the ends."""
    return _EMPTY_LINES.sub("\n\n", _BLANK_ENDS.sub("\n", _BLANKS.sub(" ", text))).strip()


_REPEATED = re.compile(r"([!?,;])\1+|([^\w\s])\2{3,}")


def collapse_punctuation(text: str) -> str:
    """`text` with `!` for `!!!!`, also of `?,;`, and at most three of any other mark in a row."""
    return _REPEATED.sub(lambda run: run[1] or run[2] * 3, text)
