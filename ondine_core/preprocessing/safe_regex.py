"""Bounds the time that a user's regular expression takes.

An ambiguous pattern takes minutes for a text of thirty characters, and holds the interpreter's lock, so no signal is
handled meanwhile. Therefore a pattern is tried on runs of characters when it is declared, and replies are matched by an
engine with a time-out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, pairwise
from time import thread_time

_UNITS = ("a", "A", "1", " ", "-", ".", "_", "@", "a1", "a ", "a.", "a-", "1-", "1 ")
_LENGTHS = (*range(12, 40, 2), *(round(40 * 1.1**step) for step in range(22)), 900, 2_700, 8_100, 20_000)
"""In small steps first, since a time that doubles with each character must be noticed while it is short."""
_TIMES = 3
_MATCH_S = 0.25
_SYNTAX = frozenset("\\^$*+?{}[]()|")
_FLAGS = ("IGNORECASE", "LOCALE", "MULTILINE", "DOTALL", "VERBOSE", "ASCII", "UNICODE")


def find_stall(pattern: re.Pattern[str], *, max_length: int, max_s: float) -> str | None:
    """A text of at most `max_length` characters that the pattern searches for longer than `max_s` seconds of CPU time.

    `None` if none of the texts tried is one.
    """
    for text in _trials(pattern.pattern, max_length):
        # Measured several times, as one measurement may be disturbed.
        if all(_time(pattern, text) > max_s for _ in range(_TIMES)):
            return text
    return None


def _trials(source: str, max_length: int) -> Iterator[str]:
    """Runs of characters that a pattern may repeat: of its own, of common ones, and of pairs."""
    own = [character for character in source if character not in _SYNTAX]
    pairs = (f"{first}{second}" for first, second in pairwise(source) if {first, second}.isdisjoint(_SYNTAX))
    opening = _literal_opening(source)
    for unit in dict.fromkeys(chain(_UNITS, own, pairs)):
        for length in _LENGTHS:
            if length <= max_length:
                yield opening + unit * (length // len(unit)) + "\0"


def _literal_opening(source: str) -> str:
    """The literal text with which every match begins, as far as it is easy to find.

    Trials begin with it: otherwise the engine would skip them without a try.
    """
    body = re.sub(r"\A(?:\(\?[a-zA-Z]+\)|\(\?P<\w+>|\(\?:|\(|\^|\\A)*", "", source)
    literal = re.match(r"(?:[^\\.^$*+?{}\[\]()|]|\\[^\w\s])*(?![*+?{])", body)
    return literal.group().replace("\\", "") if literal else ""


def _time(pattern: re.Pattern[str], text: str) -> float:
    started = thread_time()
    for _ in pattern.finditer(text):
        pass
    return thread_time() - started


def compile_bounded(pattern: re.Pattern[str]) -> Callable[[str], Mapping[str, str | None] | None]:
    """A function that returns the named groups of the first match in a text, `None` without a match.

    The function raises `TimeoutError` if the search takes too long.
    """
    import regex

    flags = regex.VERSION0
    for name in _FLAGS:
        if pattern.flags & getattr(re, name):
            flags |= getattr(regex, name)
    bounded = regex.compile(pattern.pattern, flags)

    def search(text: str) -> Mapping[str, str | None] | None:
        match = bounded.search(text, timeout=_MATCH_S, concurrent=True)
        return None if match is None else match.groupdict()

    return search
