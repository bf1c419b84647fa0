"""Shows images and documents in Dagster's UI: descriptions, and thumbnails of the first rows.

Metadata stay in Dagster's event log, and more people can read them than the table. So they contain no bytes of a file
(a thumbnail is decoded and drawn anew, small, for a few rows), and no browser receives an address from a row.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ondine_core.preprocessing.media import Gallery, MediaReader
from ondine_core.prompts.template import CompiledPrompt
from ondine_core.types.media import Media, MediaError, MediaKind
from ondine_dagster.reporting.markdown import Picture, markdown

if TYPE_CHECKING:
    import narwhals as nw

_ROWS = 5
_MAX_IN_CELL = 3
_SIDES_PX = (96, 64)
_QUALITY = 60
_MAX_CHARACTERS = 6_000
"""The longest thumbnail; a longer one is drawn smaller, or not at all."""
_MAX_IN_ALL = 40_000
_MAX_PIXELS = 25_000_000
"""Larger images are not decoded for a thumbnail."""
_NAME_LENGTH, _PATH_LENGTH = 60, 4096
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP")


# -- descriptions --------------------------------------------------------------------------------------------------


def describe(media: Media, name: str = "") -> str:
    """A description of an image or document, as in "image, 640 x 480, 23 kB"; `name` is the name of its file."""
    parts = [f"{media.kind} {name}".strip()]
    if media.url is not None:
        parts = [f"{media.kind} at {_host_of(media.url)}"]
    if media.width and media.height:
        parts.append(f"{media.width} x {media.height}")
    if media.pages:
        parts.append(f"{media.pages} page{'s' if media.pages > 1 else ''}")
    if media.size:
        parts.append(_size(media.size))
    return ", ".join(parts)


def describe_cell(cell: Any, kind: MediaKind, reader: MediaReader) -> str | None:
    """A description of a cell with images or documents; `None` if the cell is empty."""
    try:
        content = reader.read(cell, kind)
    except MediaError:
        return f"{kind} {_name_of(cell)}".strip() + ", cannot be read"
    if isinstance(content, Gallery):
        descriptions = list(map(describe, content.items[:_MAX_IN_CELL]))
        more = len(content) - len(descriptions)
        if more:
            descriptions.append(f"and {more} more")
        return "; ".join(descriptions)
    return describe(content, _name_of(cell)) if isinstance(content, Media) else content


def _name_of(cell: Any) -> str:
    """The last part of a path; empty for any other value, and for an address, which may contain a secret."""
    if isinstance(cell, os.PathLike):
        cell = os.fsdecode(cell)
    if not isinstance(cell, str) or ":" in cell or len(cell) > _PATH_LENGTH:
        return ""
    name = os.path.basename(cell.strip())  # noqa: PTH119  (no path is made of it)
    return name if len(name) <= _NAME_LENGTH else f"{name[:_NAME_LENGTH]}…"


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or "an address"
    except ValueError:
        return "an address"


def _size(size: int) -> str:
    if size < 1000:  # noqa: PLR2004
        return f"{size} B"
    return f"{size / 1000:.0f} kB" if size < 1_000_000 else f"{size / 1_000_000:.1f} MB"  # noqa: PLR2004


# -- thumbnails ----------------------------------------------------------------------------------------------------


def draw(media: Media) -> Picture | None:
    """A small JPEG of an image as a `data:` URL; `None` if it is not an image, is too large, or cannot be decoded."""
    if media.kind != "image" or media.url is not None or media.width * media.height > _MAX_PIXELS:
        return None
    try:
        data = media.load()
        for side in _SIDES_PX:
            url = f"data:image/jpeg;base64,{b64encode(_shrink(data, side)).decode()}"
            if len(url) <= _MAX_CHARACTERS:
                return Picture(url, describe(media))
    except Exception:  # noqa: BLE001  (a decoder may raise any error, and a missing thumbnail must not fail a run)
        return None
    return None


def _shrink(data: bytes, side: int) -> bytes:
    from PIL import Image, ImageOps

    with Image.open(BytesIO(data), formats=_FORMATS) as opened:
        opened.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded no larger than needed
        image = ImageOps.exif_transpose(opened).convert("RGBA")
    image.thumbnail((side, side))
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image)
    written = BytesIO()
    paper.save(written, "JPEG", quality=_QUALITY, optimize=True)
    return written.getvalue()


@dataclass(slots=True)
class _ThumbnailSheet:
    """Draws thumbnails up to a total number of characters, since metadata stay in the event log."""

    left: int = _MAX_IN_ALL
    drawn: int = 0

    def cell(self, cell: Any, kind: MediaKind, reader: MediaReader) -> Any:
        """The thumbnails of a cell, or its description."""
        try:
            content = reader.read(cell, kind)
        except MediaError:
            return describe_cell(cell, kind, reader)
        if not isinstance(content, Media | Gallery):
            return content
        items = content.items[:_MAX_IN_CELL] if isinstance(content, Gallery) else (content,)
        return [self._draw(media) or describe(media) for media in items]

    def _draw(self, media: Media) -> Picture | None:
        picture = draw(media) if self.left >= _MAX_CHARACTERS else None
        if picture is not None:
            self.left -= len(picture.url)
            self.drawn += 1
        return picture


def shown_thumbnails(table: nw.DataFrame[Any], prompt: CompiledPrompt, outputs: Sequence[str]) -> str | None:
    """The images and answers of the first rows as a Markdown table; `None` if no image of them is drawn.

    Thumbnails need Pillow. Sanitized rows have none, because images are not searched for personal data.
    """
    images = [name for name, kind in prompt.media_columns.items() if kind == "image"]
    if not images or prompt.reader is None or prompt.is_sanitized or find_spec("PIL") is None:
        return None
    head, sheet = table.head(_ROWS), _ThumbnailSheet()
    names = list(dict.fromkeys((*images, *outputs)))
    rows = zip(*(head.get_column(name).to_list() for name in names), strict=True)
    cells = []
    for row in rows:
        values = zip(names, row, strict=True)
        cells.append([sheet.cell(value, "image", prompt.reader) if name in images else value for name, value in values])
    return markdown(names, cells) if sheet.drawn else None
