"""Bounds the time that a user's regular expression takes.

An ambiguous pattern takes minutes for a text of thirty characters, with the interpreter's lock held, so that no signal
gets through. So a pattern is tried on runs of characters when it is declared, and replies are matched by an engine that
has a time-out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, pairwise
from time import thread_time

_UNITS = ("a", "A", "1", " ", "-", ".", "_", "@", "a1", "a ", "a.", "a-", "1-", "1 ")
_LENGTHS = (*range(12, 40, 2), *(round(40 * 1.1**step) for step in range(22)), 900, 2_700, 8_100, 20_000)
"""In small steps first, since what doubles with each character must be caught before it takes a lifetime."""
_TIMES = 3
_MATCH_S = 0.25
_SYNTAX = frozenset("\\^$*+?{}[]()|")
_FLAGS = ("IGNORECASE", "LOCALE", "MULTILINE", "DOTALL", "VERBOSE", "ASCII", "UNICODE")


def find_stall(pattern: re.Pattern[str], *, max_length: int, max_s: float) -> str | None:
    """A text for which a search takes longer than `max_s` of processor time; `None` if none of those tried does.

    The texts have at most `max_length` characters.
    """
    for text in _trials(pattern.pattern, max_length):
        # What took long once may only have been unlucky.
        if all(_time(pattern, text) > max_s for _ in range(_TIMES)):
            return text
    return None


def _trials(source: str, max_length: int) -> Iterator[str]:
    """Runs of what the pattern may be made for: of its own characters, of common ones, and of pairs."""
    own = [character for character in source if character not in _SYNTAX]
    pairs = (f"{one}{other}" for one, other in pairwise(source) if {one, other}.isdisjoint(_SYNTAX))
    opening = _literal_opening(source)
    for unit in dict.fromkeys(chain(_UNITS, own, pairs)):
        for length in _LENGTHS:
            if length <= max_length:
                yield opening + unit * (length // len(unit)) + "\0"


def _literal_opening(source: str) -> str:
    """The plain text that every match begins with, as far as it is easy to find; it makes searching faster."""
    body = re.sub(r"\A(?:\(\?[a-zA-Z]+\)|\(\?P<\w+>|\(\?:|\(|\^|\\A)*", "", source)
    found = re.match(r"(?:[^\\.^$*+?{}\[\]()|]|\\[^\w\s])*(?![*+?{])", body)
    return found.group().replace("\\", "") if found else ""


def _time(pattern: re.Pattern[str], text: str) -> float:
    started = thread_time()
    for _ in pattern.finditer(text):
        pass
    return thread_time() - started


def compile_bounded(pattern: re.Pattern[str]) -> Callable[[str], Mapping[str, str | None] | None]:
    """A function from a text to the named groups of the first match, `None` without one.

    Raises:
        TimeoutError: By the function: the search took too long.
    """
    import regex

    flags = regex.VERSION0
    for name in _FLAGS:
        if pattern.flags & getattr(re, name):
            flags |= getattr(regex, name)
    bounded = regex.compile(pattern.pattern, flags)

    def search(text: str) -> Mapping[str, str | None] | None:
        found = bounded.search(text, timeout=_MATCH_S, concurrent=True)
        return None if found is None else found.groupdict()

    return search
