"""Extracts text from HTML and from Markdown.

The parser of the standard library takes hours for a megabyte of `<a ` and raises for `<![<`, so tags are found here, in
time proportional to the text. A tag has the name of an HTML element: `<3`, `a < b` and `<alice@example.com>` stay.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from functools import cache, partial

_BLOCK_NAMES = """
    address article aside blockquote body br caption center dd details dialog dir div dl dt fieldset figcaption figure
    footer form frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html legend li main menu nav ol optgroup option p pre
    section select summary table tbody tfoot thead title tr ul
"""
_INLINE_NAMES = """
    a abbr acronym applet area audio b base basefont bdi bdo big button canvas cite code col colgroup data datalist del
    dfn em embed font frame i iframe img input ins kbd label link map mark math meta meter noframes noscript object
    output param picture progress q rb rp rt ruby s samp slot small source span strike strong sub sup svg template
    textarea time track tt u var video wbr
"""
_BLOCKS = frozenset(_BLOCK_NAMES.split())
_CELLS = frozenset({"td", "th"})
_DROPPED = frozenset({"script", "style"})
_ELEMENTS = _BLOCKS | _CELLS | _DROPPED | frozenset(_INLINE_NAMES.split())
_OPEN = re.compile(
    r"<(?:/?(?P<name>[A-Za-z][A-Za-z0-9]{0,15})(?=[\s/>])|(?P<comment>!--)|!DOCTYPE(?=[\s>])|\?xml\s|!\[(?:end)?if\b)",
    re.IGNORECASE,
)
_STOP = re.compile(r"[<>]|=\s{0,9}(?P<quote>[\"'])")
_MAX_STOPS = 200
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_EMPTY_LINES = re.compile(r"\n{3,}")


def strip_html(text: str) -> str:
    """`text` without HTML: a line feed for a block, a space for a cell, entities decoded, no scripts and styles."""
    if "<" in text:
        pieces = list(_between_tags(text))
        if len(pieces) > 1:
            text = _EMPTY_LINES.sub("\n\n", "".join(pieces)).strip()
    if "&" in text:
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]).replace("\N{NO-BREAK SPACE}", " "), text)
    return text


def _between_tags(text: str) -> Iterator[str]:
    """The pieces of `text` between its tags, and the replacement of each tag."""
    find_end = partial(_find_end, text, set())
    kept = position = 0
    while tag := _OPEN.search(text, position):
        position = tag.end()
        name = (tag["name"] or "").lower()
        if name and name not in _ELEMENTS:
            continue
        end = find_end(tag)
        if end is None:
            continue
        yield text[kept : tag.start()]
        if name in _BLOCKS:
            yield "\n"
        elif name in _CELLS:
            yield " "
        kept = position = end
    yield text[kept:]


def _find_end(text: str, missing: set[str], tag: re.Match[str]) -> int | None:
    """The end of `tag`, or of the comment, script or style that it opens; `None` if it is not a tag.

    Marks that are `missing` in the rest of the text are not searched for again.
    """

    def after(mark: str, start: int) -> int | None:
        place = -1 if mark in missing else text.find(mark, start)
        if place < 0:
            missing.add(mark)
            return None
        return place + len(mark)

    if tag["comment"]:
        return after("-->", tag.end())
    position = tag.end()
    for _ in range(_MAX_STOPS):
        stop = _STOP.search(text, position)
        if stop is None or stop[0] == "<":
            return None
        if stop[0] == ">":
            break
        # A quote that is not closed is an ordinary character.
        position = after(stop["quote"], stop.end()) or stop.end()
    else:
        return None
    name = (tag["name"] or "").lower()
    if name in _DROPPED and tag[0][1] != "/" and name not in missing:
        closing = re.compile(rf"</{name}\s{{0,9}}>", re.IGNORECASE).search(text, stop.end())
        if closing:
            return closing.end()
        missing.add(name)
    return stop.end()


# -- Markdown ------------------------------------------------------------------------------------------------------

_EMPHASIS = (
    (r"(?<![*\\\w])\*{1,3}(?=[^*\s])([^*\n]{1,1000}+)(?<=\S)\*{1,3}(?!\*)", r"\1"),
    (r"(?<![\w\\])_{1,3}(?=[^_\s])((?:[^_\n]|(?<=[^\W_])_(?=[^\W_])){1,1000}+)(?<=\S)_{1,3}(?![\w])", r"\1"),
    (r"~~(?=\S)([^~\n]{1,1000}+)(?<=\S)~~", r"\1"),
)
_LINK = (
    r"(?<![\w\])])!?\[([^\[\]\n]{0,1000}+)\]\((?:[^()\s]++|\([^()\s]*+\))*+(?: {1,9}[\"'][^\"'\n]{0,300}+[\"'])?\)",
    r"\1",
)
_MARKDOWN = (
    (r"^ {0,3}(?:```|~~~)[^\n`]*$\n?", ""),  # fences; the code between them stays
    (r"^ {0,3}(?:[*_-][ \t]*+){3,100}+$", ""),  # rules
    (r"^ {0,3}(?:=++|--++)[ \t]*$\n?", ""),  # lines under headings
    (r"^ {0,3}#{1,6}(?:[ \t]++|$)", ""),
    (r"^ {0,3}(?:>[ \t]?){1,20}", ""),
    _LINK,
    _LINK,  # a picture in a link
    (r"<((?:https?|mailto):[^<>\s]{1,2000}+)>", r"\1"),
    (r"(?<![`\\])`([^`\n]{1,1000}+)`", r"\1"),
    *_EMPHASIS,
    *_EMPHASIS,  # one kind in another
    (r"\\([\\`*_{}\[\]()#+.!>~|-])", r"\1"),
)


def strip_markdown(text: str) -> str:
    """`text` without the marks of Markdown; headings, list items, code and the words of links stay."""
    for pattern, replacement in _markdown():
        text = pattern.sub(replacement, text)
    return text


@cache
def _markdown() -> tuple[tuple[re.Pattern[str], str], ...]:
    """The compiled patterns; compiled at the first use, since each step of Dagster's is a new process."""
    return tuple((re.compile(pattern, re.MULTILINE), replacement) for pattern, replacement in _MARKDOWN)
