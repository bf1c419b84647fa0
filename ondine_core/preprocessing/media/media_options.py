"""How images and documents of a prompt are read and sent, as a user says it."""

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
_WHAT_IS_SEEN = ("max_side_px", "detail", "pages", "as_text", "keep_metadata")
_DEFAULT_MAX_BYTES = 20_000_000
_DEFAULT_MAX_PIXELS = 100_000_000


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """How the images and documents of a prompt are read and sent.

    Args:
        root: Folder of the files that cells may name; by default the working directory. Relative paths begin there,
            and a path that leads elsewhere, also by `..` or a link, fails its row. `"/"` allows every file. A
            `pathlib.Path` in a cell was made by code of yours, and may lead anywhere.
        max_side_px: Most pixels on the longer side of an image; larger ones are made smaller (extra `images`).
        detail: How closely an OpenAI model looks at images: `"low"`, `"high"`, `"auto"` or `"original"`.
        pages: Which pages of documents are sent, counted from 1: `"2"`, `"1-3"`, `"4-"`.
        as_text: Whether the text of documents is sent instead of their pages.
        keep_metadata: Whether images keep their metadata, such as the place where they were taken.
        fetch: Whether addresses in cells are fetched here; by default they are passed on to providers that fetch.
        allow_private: Whether addresses of private networks, and of this machine, may be fetched.
        timeout_s: Seconds that fetching one address may take.
        max_bytes: Larger images and documents fail their row.
        max_pixels: Images of more pixels fail their row: a small file may decode to gigabytes.
        check_model: Whether a model that takes no images or documents, by the price list, is refused.
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
        """The first page, counted from 0, and the one behind the last; `None` for all to the end."""
        found = _PAGES.fullmatch("1-" if self.pages is None else str(self.pages).replace(" ", ""))
        first = int(found[1]) if found else 0
        end = first if found is None or found[2] is None else int(found[2] or 0) or None
        if found is None or first < 1 or (end is not None and end < first):
            raise ConfigError(f"media: pages={self.pages!r} is not understood; write '2', '1-3' or '4-'.")
        return first - 1, end

    @property
    def identity(self) -> Mapping[str, Json]:
        """The options that change what a model sees, as far as they are set: they belong to the question."""
        default = MediaOptions.__dataclass_fields__
        return {name: value for name in _WHAT_IS_SEEN if (value := getattr(self, name)) != default[name].default}
