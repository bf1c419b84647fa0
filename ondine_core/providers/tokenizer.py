"""Counts the tokens of a text offline: exactly for OpenAI's models, on the safe side for all others.

tiktoken downloads its encodings at first use; here they come from `model_data`, without a network. Other providers do
not publish their tokenizers or keep them on a hub, so their counts are OpenAI's with a measured margin (see
`_FAMILIES`). A count is for estimates before a call; after it, the provider's own figure is better.

Counts do not include the few tokens that a chat format adds to each message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

from ondine_core.providers.model_data import ENCODINGS
from ondine_core.providers.settings import set_variable
from ondine_core.types.forking import make_lock


def counter(model: str, *, cautious: bool = True) -> Callable[[str], int]:
    """A function that counts the tokens of a text for `model`, named as in `openai/gpt-4o-mini`.

    Its first call loads the encoding (half a second, once a process); any thread may call it.

    If the tokenizer of the model is not known, counts have the whole margin if `cautious`, else half of it.

    Example:
        >>> counter("openai/gpt-4o-mini")("tiktoken is great!")
        6
    """
    return partial(_count, model, cautious)


def min_tokens(text: str) -> int:
    """The fewest tokens of `text` in any of OpenAI's vocabularies, without a margin."""
    return min(sum(len(encode(piece)) for piece in _pieces(text)) for encode in map(_encoder, _ENCODINGS))


def _count(model: str, cautious: bool, text: str) -> int:
    return _measure(model, cautious=cautious)(text)


# -- families of models --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Family:
    """How to count the tokens of models with similar tokenizers.

    Args:
        encoding: The closest of OpenAI's encodings.
        percent: The factor on its counts, in percent.
        digits_alone: Whether each digit is a token; OpenAI's encodings have up to three digits in one.
    """

    encoding: str
    percent: int = 100
    digits_alone: bool = False


_CL100K, _O200K = "cl100k_base", "o200k_base"

# Measured on prose in 28 languages (Latin, Cyrillic, Greek, Arabic, Hebrew, Georgian, Indic and East Asian scripts),
# Python, HTML, JSON, tables of figures, identifiers and pictographs: no margin was ever exceeded; the comments name
# the smallest distance to it. cl100k is the better bound for small vocabularies, o200k for large ones.
_FAMILIES: tuple[tuple[str, _Family], ...] = (
    ("gpt-oss", _Family(_O200K)),  # its own encoding differs in special tokens only
    # Newer than tiktoken's table: no vendor's next tokenizer took more than a third over the one before.
    (r"gpt-\d|/o\d", _Family(_O200K, 135)),
    # Nothing to measure: 30 % over o200k on code at the time of Claude 3.5, by independent reports, and since Opus 4.7
    # up to 35 % over that, by Anthropic's own. Claude 2, whose tokenizer is public, reaches 180 % in Thai only.
    ("claude", _Family(_CL100K, 176)),
    ("gemini|gemma", _Family(_O200K, 121, digits_alone=True)),  # one tokenizer for both; Gemma 3: 120 % on JSON
    ("llama-?[34]", _Family(_CL100K, 102)),  # grown from OpenAI's vocabularies: 101 %
    ("qwen", _Family(_CL100K, 102, digits_alone=True)),  # likewise: 100 %
)
# Mistral's 32k vocabulary 133 % in Persian and Vietnamese, its Tekken 122 %, DeepSeek 106 %.
_OTHERS = _Family(_CL100K, 136, digits_alone=True)


def _family(model: str) -> _Family:
    from tiktoken.model import encoding_name_for_model

    name = model.lower()
    try:
        encoding = encoding_name_for_model(name.rpartition("/")[2])
    except KeyError:
        encoding = ""
    if encoding in _ENCODINGS:
        return _Family(encoding)
    return next((family for pattern, family in _FAMILIES if re.search(pattern, name)), _OTHERS)


@cache
def _measure(model: str, *, cautious: bool) -> Callable[[str], int]:
    family = _family(model)
    percent = family.percent if cautious else (100 + family.percent) // 2
    encode = _encoder(family.encoding)

    def measure(text: str) -> int:
        tokens = sum(len(encode(piece)) for piece in _pieces(text))
        if family.digits_alone:
            # Three digits in one token become three tokens: at most two more for every three digits.
            tokens += -(-2 * sum(map(text.count, "0123456789")) // 3)
        return -(-tokens * percent // 100)

    return measure


# -- long texts ----------------------------------------------------------------------------------------------------

_MAX_PIECE = 1000
"""The most characters for one call of tiktoken.

It panics at a megabyte of blanks, and before 0.13 its time grew with the square of a run of characters without a blank.
"""


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces of at most `_MAX_PIECE` characters.

    No token spans the end of a word and the blank behind it, so a cut there changes no count. A run without blanks is
    cut anywhere, which adds about one token to each piece.
    """
    start = 0
    while len(text) - start > _MAX_PIECE:
        # Not at a line feed, which may be in one token with the characters before it.
        cut = text.rfind(" ", start + 1, start + _MAX_PIECE + 1)
        while cut > start and text[cut - 1].isspace():
            cut = text.rfind(" ", start + 1, cut)
        end = cut if cut > start else start + _MAX_PIECE
        yield text[start:end]
        start = end
    yield text[start:]


# -- encodings, from local files -----------------------------------------------------------------------------------

_ENCODINGS = (_O200K, _CL100K)
_FOLDER_VARIABLE = "TIKTOKEN_CACHE_DIR"
_loading = make_lock()  # guards the variable above, which tiktoken reads while it loads


@cache
def _encoder(name: str) -> Callable[[str], list[int]]:
    import tiktoken

    with _loading, set_variable(os.environ, _FOLDER_VARIABLE, str(ENCODINGS)):
        # Text that looks like a special token is text, since it comes from a row.
        return tiktoken.get_encoding(name).encode_ordinary
