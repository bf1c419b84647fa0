"""Images and documents in Dagster's UI: in a few words, and as thumbnails of the first rows.

Metadata stays in Dagster's event log and is read by more people than the table is. So it holds no byte of a file: a
thumbnail is decoded and drawn anew, small, for a few rows; and no address that a row names is given to a browser.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
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
"""Of one thumbnail; one that is longer is drawn smaller, or not at all."""
_MAX_IN_ALL = 40_000
_MAX_PIXELS = 25_000_000
"""Larger images are not decoded for a thumbnail."""
_NAME_LENGTH, _PATH_LENGTH = 60, 4096
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP")


# -- descriptions --------------------------------------------------------------------------------------------------


def describe(media: Media, name: str = "") -> str:
    """An image or document in a few words, as in "image, 640 x 480, 23 kB".

    `name` is that of its file, if it is to be shown.
    """
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
    """A cell with images or documents in a few words; nothing if it is missing."""
    try:
        found = reader.read(cell, kind)
    except MediaError:
        return f"{kind} {_name_of(cell)}".strip() + ", cannot be read"
    if isinstance(found, Gallery):
        shown = [describe(one) for one in found.items[:_MAX_IN_CELL]]
        more = len(found) - len(shown)
        return "; ".join([*shown, *([f"and {more} more"] if more else [])])
    return describe(found, _name_of(cell)) if isinstance(found, Media) else found


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


# -- drawn ---------------------------------------------------------------------------------------------------------


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
    """Draws thumbnails as long as there is room for them, in metadata that stays in the event log."""

    left: int = _MAX_IN_ALL
    drawn: int = 0

    def cell(self, cell: Any, kind: MediaKind, reader: MediaReader) -> Any:
        """The thumbnails of a cell, or its description."""
        try:
            found = reader.read(cell, kind)
        except MediaError:
            return describe_cell(cell, kind, reader)
        if not isinstance(found, Media | Gallery):
            return found
        items = found.items[:_MAX_IN_CELL] if isinstance(found, Gallery) else (found,)
        return [self._draw(one) or describe(one) for one in items]

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
    columns: Mapping[str, Iterable[Any]] = {name: head.get_column(name).to_list() for name in (*images, *outputs)}
    cells = [
        [sheet.cell(value, "image", prompt.reader) if name in images else value for name, value in row]
        for row in (list(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    ]
    return markdown(list(columns), cells) if sheet.drawn else None
