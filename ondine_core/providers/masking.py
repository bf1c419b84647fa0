"""What a provider says, without keys and without the text of rows.

Only what the set-up says itself (the template, the system message) may be repeated: it is what explanations are about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ondine_core.types.values import Call

_MASK = "…"
_MAX_SCANNED = 1_000
_SHORTEST_MATCH = 8
"""Characters that a message and a row have in common before it counts as a quotation; half of it beyond ASCII, where
a character says more."""
_PLAIN_WORDS = """
a an and any api are as at be been but by call can cannot check content context could data do does error exceed
exceeded exceeds field for from has have id if in input invalid is it its json key length less limit maximum message
messages minimum model more must no not of on one only or output parameter per please prompt provided rate reduce
request requested requests required requires response schema string supported than that the their there this to token
tokens too try type unsupported use used user value was were when which with you your
"""
_IS_PLAIN = frozenset(_PLAIN_WORDS.split())
"""Words that explanations are made of; that a row has them, too, discloses nothing."""
_KEY = re.compile(r"\b(?:sk|gsk|key|pk|xai|tok)[-_][\w*-]{6,}|\bAIza[\w-]{6,}")
_ENCODED = re.compile(r"data:[\w/+.*-]{0,80};base64,[\w+/=-]*|(?:[A-Za-z0-9+/_-]{4}){15,}[A-Za-z0-9+/=_-]*")
"""An image, or a part of one, in base64."""
_QUOTATION = re.compile(r"(['\"`\u2018\u201c])([^'\"`\u2019\u201d]+)['\"`\u2019\u201d]")


def mask(message: str, call: Call, secrets: Iterable[str]) -> str:
    """`message` without keys, of which `secrets` are those that were sent, and without what it repeats of a row."""
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
    """Where `message` repeats text of a row: a quoted text, or a run of characters, each extended to whole words."""
    lowered = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in message)
    quotes = _QUOTATION.finditer(lowered)
    spans = [quote.span(2) for quote in quotes if quote[2] in sent]
    length = 0
    for start in range(len(lowered)):
        length = max(0, length - 1)  # what matched from the character before on still matches
        while start + length < len(lowered) and lowered[start : start + length + 1] in sent:
            length += 1
        shortest = _SHORTEST_MATCH if lowered[start : start + length].isascii() else _SHORTEST_MATCH // 2
        if length >= shortest:
            spans.append((start, start + length))
    found: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        start, end = _whole_words(message, first, last)
        words = lowered[start:end]
        if words.strip() in fixed or set(re.findall(r"\w+", words)) <= _IS_PLAIN:
            continue
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    while start > 0 and text[start].isalnum() and text[start - 1].isalnum():
        start -= 1
    while end < len(text) and text[end - 1].isalnum() and text[end].isalnum():
        end += 1
    return start, end
