"""Finds the matches of the rules in a text.

Matches are blanked out and the rest is searched again, since a datum next to another one may not have matched before.
So the rest has no match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from ondine_core.preprocessing.sanitizer.folding import fold
from ondine_core.preprocessing.sanitizer.rules import Rule

_DIGITS = "0123456789"
_NUMBER = re.compile("[0-9](?:[ ./()-]{0,3}[0-9])*+")
_BLANK = "<"  # ends the match of any built-in rule
_READINGS = 8
_READ_IN_ALL = 500_000
"""The most searches of a text, or the most characters in all searches if that allows more; two mostly suffice."""
_REACH = 400
_NEXT = 4

_Match: TypeAlias = tuple[int, int, int]
"""Start, end, and the number of the rule."""


@dataclass(frozen=True, slots=True)
class Span:
    """A datum from `start` up to `end` in its text, and the name of its rule."""

    start: int
    end: int
    name: str


@cache
def compile_rule(rule: Rule) -> re.Pattern[str]:
    """The pattern of `rule`, compiled when it is first needed, since that takes a millisecond."""
    return re.compile(rule.pattern, re.ASCII if rule.folded else 0)


_compile = cache(re.compile)


def find(text: str, rules: Sequence[Rule]) -> list[Span]:
    """The data that `rules` find in `text`, in order and without overlaps, in time proportional to the text.

    Overlapping matches are merged, and named by the first of their rules.
    """
    matches: list[_Match] = []
    rest = text
    for _ in range(max(_READINGS, _READ_IN_ALL // (1 + len(text)))):
        merged = _merge([*matches, *_matches(rest, rules)])
        if merged == matches:
            break
        matches, rest = merged, _blank(text, merged)
    return [Span(start, end, rules[number].name) for start, end, number in matches]


def _blank(text: str, matches: Sequence[_Match]) -> str:
    pieces: list[str] = []
    position = 0
    for start, end, _ in matches:
        pieces += (text[position:start], _BLANK * (end - start))
        position = end
    return "".join([*pieces, text[position:]])


def _matches(text: str, rules: Iterable[Rule]) -> Iterator[_Match]:
    readings = [(folded, folded.lower(), _most_digits(folded), places) for folded, places in fold(text)]
    for number, rule in enumerate(rules):
        if not rule.folded:
            yield from ((start, end, number) for start, end in _search(rule, text))
            continue
        for folded, lowered, digits, places in readings:
            if digits < rule.digits or (rule.hints and not any(map(lowered.__contains__, rule.hints))):
                continue
            if rule.needs and (folded.isascii() or not _compile(rule.needs).search(folded)):
                continue
            matches = _search(rule, folded)
            if places is None:
                yield from ((start, end, number) for start, end in matches)
            else:
                starts, ends = places
                yield from ((starts[start], ends[end - 1], number) for start, end in matches)


def _most_digits(text: str) -> int:
    """The most digits of a number in `text`, with up to three blanks and marks between two digits."""
    most = 0
    for number in _NUMBER.findall(text):
        if len(number) > most:
            most = max(most, sum(map(number.count, _DIGITS)))
    return most


def _search(rule: Rule, text: str) -> Iterator[tuple[int, int]]:
    pattern, at = compile_rule(rule), 0
    while match := pattern.search(text, at):
        start, end = _datum(rule, match)
        if start < end:
            yield start, end
            # The text behind a datum may match if the datum is disregarded.
            while adjacent := _next(rule, text, end):
                yield adjacent
                _, end = adjacent
        # A match that failed its check may hide another one that begins in it.
        at = max(end, match.start() + 1)


def _next(rule: Rule, text: str, position: int) -> tuple[int, int] | None:
    """A datum that begins right behind `position`, if the text before is disregarded."""
    view = text[position : position + _REACH]
    for offset in range(min(_NEXT, len(view))):
        match = compile_rule(rule).match(view, offset)
        # A match that reaches the end of the view may continue behind it.
        if match and (match.end() < len(view) or position + len(view) == len(text)):
            start, end = _datum(rule, match)
            if start < end:
                return position + start, position + end
    return None


def _datum(rule: Rule, match: re.Match[str]) -> tuple[int, int]:
    start, end = match.span("value" if "value" in match.re.groupindex else 0)
    return start, end if rule.check is None else start + rule.check(match.string[start:end])


def _merge(matches: Iterable[_Match]) -> list[_Match]:
    merged: list[_Match] = []
    for start, end, number in sorted(matches):
        if merged and start < merged[-1][1]:
            first, last, other = merged[-1]
            merged[-1] = (first, max(last, end), min(other, number))
        else:
            merged.append((start, end, number))
    return merged
