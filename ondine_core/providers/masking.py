"""Removes keys and the text of rows from messages of providers.

Text of the definition (the template, the system message) is kept, since explanations refer to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ondine_core.types.values import Call

_MASK = "…"
_MAX_SCANNED = 1_000
_MIN_QUOTATION = 8
"""The fewest characters in common with a row that count as a quotation; half as many if they are not ASCII, since such
a character says more."""
_WORDS = """
a an and any api are as at be been but by call can cannot check content context could data do does error exceed
exceeded exceeds field for from has have id if in input invalid is it its json key length less limit maximum message
messages minimum model more must no not of on one only or output parameter per please prompt provided rate reduce
request requested requests required requires response schema string supported than that the their there this to token
tokens too try type unsupported use used user value was were when which with you your
"""
_PLAIN_WORDS = frozenset(_WORDS.split())
"""Common words of explanations: repeating them discloses nothing of a row."""
_KEY = re.compile(r"\b(?:sk|gsk|key|pk|xai|tok)[-_][\w*-]{6,}|\bAIza[\w-]{6,}")
_ENCODED = re.compile(r"data:[\w/+.*-]{0,80};base64,[\w+/=-]*|(?:[A-Za-z0-9+/_-]{4}){15,}[A-Za-z0-9+/=_-]*")
"""An image, or a part of one, in base64."""
_QUOTATION = re.compile(r"(['\"`\u2018\u201c])([^'\"`\u2019\u201d]+)['\"`\u2019\u201d]")


def mask(message: str, call: Call, secrets: Iterable[str]) -> str:
    """`message` without keys (the `secrets` that were sent, and all that look like keys) and without text of rows."""
    if call.media:
        message = _ENCODED.sub(_MASK, message)
    message = " ".join(message.split())
    for secret in filter(None, secrets):
        message = message.replace(secret, "***")
    message = _KEY.sub("***", message)[:_MAX_SCANNED]
    sent = _squeeze("\n".join(part.content for part in call.messages))
    masked: list[str] = []
    position = 0
    for start, end in _quotations(message, sent, _squeeze(call.fixed)):
        masked += [message[position:start], _MASK]
        position = end
    return "".join(masked) + message[position:]


def _squeeze(text: str) -> str:
    return " ".join(text.split()).lower()


def _quotations(message: str, sent: str, fixed: str) -> list[tuple[int, int]]:
    """The spans of `message` that repeat text of a row, extended to whole words and merged where they overlap."""
    lowered = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in message)
    spans: list[tuple[int, int]] = []
    for first, last in sorted(_repeated_spans(lowered, sent)):
        start, end = _whole_words(message, first, last)
        words = lowered[start:end]
        if words.strip() in fixed or set(re.findall(r"\w+", words)) <= _PLAIN_WORDS:
            continue
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def _repeated_spans(message: str, sent: str) -> Iterator[tuple[int, int]]:
    """The spans of `message` that are in `sent`: texts in quotation marks, and runs of characters."""
    for quote in _QUOTATION.finditer(message):
        if quote[2] in sent:
            yield quote.span(2)
    length = 0
    for start in range(len(message)):
        length = max(0, length - 1)  # the match of the previous character, less that character, is still one
        while start + length < len(message) and message[start : start + length + 1] in sent:
            length += 1
        is_ascii = message[start : start + length].isascii()
        if length >= (_MIN_QUOTATION if is_ascii else _MIN_QUOTATION // 2):
            yield start, start + length


def _whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    while start > 0 and text[start].isalnum() and text[start - 1].isalnum():
        start -= 1
    while end < len(text) and text[end - 1].isalnum() and text[end].isalnum():
        end += 1
    return start, end
