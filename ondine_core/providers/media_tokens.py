"""The most tokens that images and documents take, by the rule of each family of models.

Sources: OpenAI, "Images and vision" (tiles of 512 pixels; patches of 32 pixels with a factor by model) and "File
inputs" (text and a picture of each page); Anthropic, "Vision" (patches of 28 pixels, about width x height / 750, within
1,568 or 4,784 tokens) and "PDF support" (1,500 to 3,000 tokens of text a page, and a picture of it); Google, "Image
understanding" (258 tokens a tile) and "Media resolution" (1,120 an image from Gemini 3 on). For the newest models the
rules agree with measured counts (the data set JOHNISKING/image-token-cost on Hugging Face, and docs.rs on
vision-squeezer). For unknown models the rule with the most tokens applies. If a model takes more tokens than its rule
says, later reservations are raised; the charge is the provider's bill.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from math import ceil
from typing import TypeAlias

from ondine_core.types.media import Media

_UNKNOWN_SIDE = 8_192
"""Pixels assumed for a side of an image that is sent as an address."""
_UNKNOWN_PAGES = 100
_PAGE = (1_700, 2_200)
"""Pixels of the picture of a page."""
_PAGE_TEXT = 4_000
"""Tokens of the text of a page; Anthropic's documentation says up to 3,000."""

Rule: TypeAlias = Callable[[int, int, bool], int]
"""The tokens of an image from its width, height, and whether the request asks for OpenAI's low resolution."""


# -- OpenAI --------------------------------------------------------------------------------------------------------

_FIT_PX, _SHORT_PX, _TILE_PX, _PATCH_PX = 2_048, 768, 512, 32


def _tiles(base: int, tile: int, width: int, height: int, is_low: bool) -> int:
    """Tokens by tiles of the image fitted into a square; it is not documented whether a small image is enlarged."""
    if is_low:
        return base
    within = min(1.0, _FIT_PX / max(width, height))
    scales = (within, within * min(1.0, _SHORT_PX / (within * min(width, height))))
    enlarged = min(_FIT_PX / max(width, height), _SHORT_PX / min(width, height))
    counts = [ceil(width * scale / _TILE_PX) * ceil(height * scale / _TILE_PX) for scale in (scales[1], enlarged)]
    return base + tile * max(counts)


def _patches(percent: int, max_patches: int | None, width: int, height: int, _is_low: bool) -> int:
    patches = ceil(width / _PATCH_PX) * ceil(height / _PATCH_PX)
    return ceil((patches if max_patches is None else min(patches, max_patches)) * percent / 100)


# -- Anthropic, Google, and others ---------------------------------------------------------------------------------


def _claude(max_tokens: int, width: int, height: int, _is_low: bool) -> int:
    return min(max_tokens, max(ceil(width / 28) * ceil(height / 28), ceil(width * height / 750)))


_GEMINI_TILE, _GEMINI_3_IMAGE, _SMALL_PX = 258, 1_120, 384


def _gemini(width: int, height: int, _is_low: bool) -> int:
    unit = max(1, int(min(width, height) / 1.5))
    by_unit = ceil(width / unit) * ceil(height / unit)
    by_size = ceil(width / _SHORT_PX) * ceil(height / _SHORT_PX)
    tiles = 1 if max(width, height) <= _SMALL_PX else max(by_unit, by_size)
    return max(_GEMINI_3_IMAGE, _GEMINI_TILE * tiles)


def _others(width: int, height: int, _is_low: bool) -> int:
    """Tokens by patches of 14 pixels and a mark for each line; at least 5,120, as for models that cut any image."""
    lines = ceil(height / 14)
    return min(_MAX_PATCHES_ELSEWHERE, max(5_120, ceil(width / 14) * lines + lines))


_MAX_PATCHES_ELSEWHERE = 18_000
"""Models shrink an image to 16,384 patches (Qwen); partial patches at the edges add some."""


_MINI, _NANO, _O4_MINI, _NEW = 162, 246, 172, 120
_MAX_PATCHES = 1_536
_FAMILIES: tuple[tuple[str, Rule], ...] = (
    (r"gpt-4o-mini", partial(_tiles, 2_833, 5_667)),
    (r"gpt-(?:4\.1|5)-mini", partial(_patches, _MINI, _MAX_PATCHES)),
    (r"gpt-(?:4\.1|5)-nano", partial(_patches, _NANO, _MAX_PATCHES)),
    (r"\bo4-mini", partial(_patches, _O4_MINI, _MAX_PATCHES)),
    (r"gpt-4o|gpt-4\.1|gpt-4\.5|gpt-4-turbo|chatgpt-4o", partial(_tiles, 85, 170)),
    (r"\bo[13](?!-mini|\w)", partial(_tiles, 75, 150)),
    (r"gpt-5(?:-chat|-pro|-codex|-search|-20|$)", partial(_tiles, 70, 140)),
    (r"gpt-(?:5\.\d|[6-9]).*nano", partial(_patches, _NANO, None)),
    (r"gpt-(?:5\.\d|[6-9]).*mini", partial(_patches, _MINI, None)),
    # Tiles until GPT-5.1, patches later; between the two the larger figure.
    (r"gpt-(?:5\.\d|[6-9])", lambda w, h, low: max(_patches(_NEW, None, w, h, low), _tiles(70, 140, w, h, low))),
    (r"claude-(?:2|3|sonnet-4|opus-4(?!-[7-9]|\.[7-9])|haiku-[34]|4)", partial(_claude, 1_600)),
    (r"claude", partial(_claude, 4_784)),
    (r"gemini-(?:[3-9]|\d\d)", lambda *_: _GEMINI_3_IMAGE),
    (r"gemini", _gemini),
)
"""Patterns of models' names and their rules; the first pattern that matches applies."""


def _dearest(width: int, height: int, is_low: bool) -> int:
    rules = (*(rule for _, rule in _FAMILIES), _others)
    return max(rule(width, height, is_low) for rule in rules)


@cache
def _rule_of(model: str) -> Rule:
    name = model.lower()
    # The name of a deployment may hide any model.
    fallback = _dearest if name.startswith(("openai/", "azure/", "/")) else _others
    return next((rule for pattern, rule in _FAMILIES if re.search(pattern, name)), fallback)


def max_media_tokens(model: str, media: Media) -> int:
    """The most tokens that an image or document takes with `model`, named as in `openai/gpt-4o-mini`."""
    rule = _rule_of(model)
    if media.kind == "document":
        return (media.pages or _UNKNOWN_PAGES) * (rule(*_PAGE, False) + _PAGE_TEXT)
    return rule(media.width or _UNKNOWN_SIDE, media.height or _UNKNOWN_SIDE, media.detail == "low")


def max_tokens_anywhere(media: Media) -> int:
    """The most tokens that an image or document takes with any model."""
    return max_media_tokens("/", media)
