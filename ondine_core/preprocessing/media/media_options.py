"""The user's options for images and documents of a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ondine_core.errors import ConfigError
from ondine_core.types.field_types import check_types
from ondine_core.types.numbers import is_positive
from ondine_core.types.values import Json

Detail = Literal["low", "high", "auto", "original"]

_PAGES = re.compile(r"(\d+)(?:-(\d*))?")
_IN_KEYS = ("max_side_px", "detail", "pages", "as_text", "keep_metadata")
"""Options that change what a model sees, so they are part of keys."""
_DEFAULT_MAX_BYTES = 20_000_000
_DEFAULT_MAX_PIXELS = 100_000_000


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """How the images and documents of a prompt are read and sent.

    Args:
        root: Folder of the files that cells may name; by default the working directory. Relative paths begin there, and
            a path that leads elsewhere, also by `..` or a link, fails its row. `"/"` allows every file. A
            `pathlib.Path` in a cell comes from your own code, so it may lead anywhere.
        max_side_px: Most pixels on the longer side of an image; larger images are shrunk (extra `images`).
        detail: The detail in which an OpenAI model sees images: `"low"`, `"high"`, `"auto"` or `"original"`.
        pages: Which pages of documents are sent, counted from 1: `"2"`, `"1-3"`, `"4-"`.
        as_text: Whether the text of documents is sent instead of their pages.
        keep_metadata: Whether images keep their metadata, such as the place where they were taken.
        fetch: Whether addresses in cells are fetched here; by default they are passed on to providers that fetch.
        allow_private: Whether addresses of private networks, and of this machine, may be fetched.
        timeout_s: Seconds that fetching one address may take.
        max_bytes: Larger images and documents fail their row.
        max_pixels: Images with more pixels fail their row: a small file may decode to gigabytes.
        check_model: Whether a model is refused that takes no images or documents by the price list.
    """

    root: str | Path | None = None
    max_side_px: int | None = None
    detail: Detail | None = None
    pages: str | None = None
    as_text: bool = False
    keep_metadata: bool = False
    fetch: bool = False
    allow_private: bool = False
    timeout_s: float = 30.0
    max_bytes: int = _DEFAULT_MAX_BYTES
    max_pixels: int = _DEFAULT_MAX_PIXELS
    check_model: bool = True

    def __post_init__(self) -> None:
        if self.detail is not None and self.detail not in get_args(Detail):
            raise ConfigError(f"media: detail={self.detail!r} is not one of {', '.join(map(repr, get_args(Detail)))}.")
        for name in ("max_side_px", "max_bytes", "max_pixels", "timeout_s"):
            value = getattr(self, name)
            if value is not None and not is_positive(value):
                raise ConfigError(f"media: {name}={value!r} must be more than 0, as a number.")
        check_types(self, ConfigError)
        if self.pages is not None:
            self.page_range()

    def page_range(self) -> tuple[int, int | None]:
        """The first page and the page after the last one, counted from 0; `None` for all pages to the end."""
        match = _PAGES.fullmatch("1-" if self.pages is None else self.pages.replace(" ", ""))
        if match is not None:
            first = int(match[1])
            last = first if match[2] is None else int(match[2] or 0) or None  # "4-" has no last page
            if first >= 1 and (last is None or last >= first):
                return first - 1, last
        raise ConfigError(f"media: pages={self.pages!r} is not understood; write '2', '1-3' or '4-'.")

    @property
    def identity(self) -> Mapping[str, Json]:
        """The options in `_IN_KEYS` that do not have their default."""
        defaults = {name: MediaOptions.__dataclass_fields__[name].default for name in _IN_KEYS}
        return {name: getattr(self, name) for name in _IN_KEYS if getattr(self, name) != defaults[name]}
