"""Cuts a text to a number of tokens, at the end of a sentence if possible.

The same tokenizer counts whichever model is asked, so a row has the same prompt with another model.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ondine_core.errors import ConfigError
from ondine_core.providers.tokenizer import counter
from ondine_core.types.field_types import check_types
from ondine_core.types.numbers import is_whole

_STRIDE = 1000
_SENTENCE_ENDS = re.compile(
    "(?<![.!?\u2026])[.!?\u2026]++[\"'\u00bb\u201d\u2019)\\]]*+(?=\\s)|[\u3002\uff01\uff1f]|(?=\n)"
)
_WORD_ENDS = re.compile(r"(?<=\S)(?=\s)")


@dataclass(frozen=True, slots=True)
class Truncation:
    """The cleaning step `truncate` with its arguments.

    The `max_tokens`, by the tokenizer of `model`, include the `mark`, which is appended to a text that was cut.
    """

    max_tokens: int
    model: str = "openai/gpt-4o-mini"
    mark: str = " […]"

    def __post_init__(self) -> None:
        check_types(self, ConfigError, skip=("max_tokens",))
        most = self.max_tokens
        if not is_whole(most, 1 + len(self.mark.encode())):
            raise ConfigError(
                f"max_tokens={most!r} must be a whole number with room for the mark {self.mark!r} and a few words."
            )

    def __call__(self, text: str) -> str:
        """`text` if it fits, else its first sentences that fit, or the first words of a long sentence."""
        if len(text.encode("utf-8", "replace")) <= self.max_tokens:  # no token is shorter than a byte
            return text
        count = counter(self.model)
        reach = _reach(text, self.max_tokens, count)
        if reach == len(text) and count(text) <= self.max_tokens:
            return text

        def too_long(end: int) -> bool:
            return count(text[:end].rstrip() + self.mark) > self.max_tokens

        def longest(ends: Sequence[int]) -> int:
            fitting = bisect_left(ends, True, key=too_long)
            return ends[fitting - 1] if fitting else 0

        end = longest(range(reach + 1))
        for ends in (_WORD_ENDS, _SENTENCE_ENDS):
            border = longest([match.end() for match in ends.finditer(text, 0, end)])
            if 2 * border >= end:  # otherwise more than half of the text that fits would be lost
                end = border
        return text[:end].rstrip() + self.mark


def truncate(max_tokens: int, *, model: str = "openai/gpt-4o-mini", mark: str = " […]") -> Truncation:
    """A step that cuts a text to `max_tokens` at the end of a sentence, or of a word if the sentence is too long."""
    return Truncation(max_tokens, model, mark)


def _reach(text: str, max_tokens: int, count: Callable[[str], int]) -> int:
    """The number of characters of `text` that certainly have more than `max_tokens`, at most all of them."""
    tokens = 0
    for start in range(0, len(text), _STRIDE):
        # Less one, since each cut may split a token.
        tokens += count(text[start : start + _STRIDE]) - 1
        if tokens > max_tokens:
            return min(start + _STRIDE, len(text))
    return len(text)
