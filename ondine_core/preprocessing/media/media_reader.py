"""Reads the image or document that a cell contains or names.

Cells are not trusted: the content decides the type, a path must lead below the root, and an unreadable cell fails only
its row, with a reason that does not quote the cell. A file is read once for its digest, however often its prompt is
rendered, and a second time when its call is sent.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from shutil import rmtree
from stat import S_ISREG
from tempfile import mkdtemp
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes
from weakref import finalize

from ondine_core.errors import ConfigError
from ondine_core.preprocessing.media.documents import count_pages, cut_pages, end_of_pdf, read_text
from ondine_core.preprocessing.media.image_headers import find_type, read_image
from ondine_core.preprocessing.media.media_options import MediaOptions
from ondine_core.preprocessing.media.pixels import (
    digest_pixels,
    find_orientation,
    fit,
    is_pillow_image,
    shrink_image,
    to_png,
)
from ondine_core.preprocessing.media.strip_metadata import strip_metadata
from ondine_core.types.cell_text import is_blank
from ondine_core.types.media import Media, MediaError, MediaKind

_DIGEST_BYTES = 16
_MAX_KNOWN = 200_000
_MAX_IN_CELL = 100
_TURNED = 5
"""From this orientation on, width and height of an image are swapped."""
_ADDED_BYTES = 64
"""The most bytes that the orientation takes, which is kept when metadata are removed."""
_URL = re.compile(r"https?://[^\s]+", re.IGNORECASE)
_DATA_URL = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)

Load: TypeAlias = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Gallery:
    """The images or documents of one cell, in order; as text, their references with spaces between them."""

    items: tuple[Media, ...]

    def __iter__(self) -> Iterator[Media]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Media:
        return self.items[index]

    def __str__(self) -> str:
        return " ".join(map(str, self.items))


class MediaReader:
    """Reads the cells of one prompt; any thread may use it."""

    def __init__(self, options: MediaOptions, kinds: frozenset[MediaKind]) -> None:
        self.options = options
        self._root = os.path.realpath(options.root or ".")
        self._known: dict[tuple[str, int, int, int], Media] = {}
        self.fetched: dict[str, Path | MediaError] = {}
        """The file of each fetched address, or the error."""
        if options.max_side_px is not None and find_spec("PIL") is None:
            raise ConfigError("media: max_side_px needs Pillow: pip install 'ondine-dagster[images]'.")
        if "document" in kinds and find_spec("pypdf") is None:
            raise ConfigError("Documents in a prompt need pypdf: pip install 'ondine-dagster[documents]'.")

    @cached_property
    def folder(self) -> Path:
        """The folder of fetched files, which is removed with this object."""
        folder = Path(mkdtemp(prefix="ondine-"))
        finalize(self, rmtree, folder, ignore_errors=True)
        return folder

    def read(self, cell: Any, kind: MediaKind) -> Media | Gallery | str | None:
        """Read a cell: an image or document, several, the text of documents with `as_text`, or `None` if it is empty.

        Raises:
            MediaError: The cell contains something else, or its file or address cannot be read.
        """
        if isinstance(cell, Media | Gallery):
            return cell
        if hasattr(cell, "tolist") and not isinstance(cell, memoryview):
            cell = cell.tolist()
        if not isinstance(cell, list | tuple):
            return None if _is_missing(cell) else self._read_one(cell, kind)
        items = [self._read_one(item, kind) for item in cell if not _is_missing(item)]
        if len(items) > _MAX_IN_CELL:
            raise MediaError(f"it lists {len(items):,} {kind}s; at most {_MAX_IN_CELL} are sent")
        if not items:
            return None
        texts = [item for item in items if isinstance(item, str)]
        return "\n\n".join(texts) if texts else Gallery(tuple(item for item in items if isinstance(item, Media)))

    def _read_one(self, cell: Any, kind: MediaKind) -> Media | str:
        if is_pillow_image(cell):
            return self._read_pillow(cell, kind)
        if isinstance(cell, bytes | bytearray | memoryview):
            return self._read_bytes(bytes(cell), kind)
        if isinstance(cell, os.PathLike):
            return self._read_file(os.path.realpath(os.fsdecode(cell)), kind)
        if not isinstance(cell, str):
            raise MediaError(f"a {type(cell).__name__} is not a {kind}; give bytes, a path, an address or a PIL.Image")
        cell = cell.strip()
        if _DATA_URL.match(cell):
            return self._read_bytes(self._decode(cell), kind)
        if is_url(cell):
            return self._read_url(cell, kind)
        if _SCHEME.match(cell):
            raise MediaError("its address is neither http, https nor data")
        return self._read_file(self._resolve(cell), kind)

    # -- sources ---------------------------------------------------------------------------------------------------

    def _resolve(self, cell: str) -> str:
        """The file that a text names, if it is below the root."""
        if "\0" in cell:
            raise MediaError("its path holds a NUL")
        path = os.path.realpath(os.path.join(self._root, cell))  # noqa: PTH118  (half the time of pathlib)
        if os.path.commonpath((path, self._root)) != self._root:
            raise MediaError("its path leads out of the root; set MediaOptions(root=...) to a folder that has the file")
        return path

    def _read_file(self, path: str, kind: MediaKind) -> Media | str:
        try:
            stat = os.stat(path)  # noqa: PTH116
            if not S_ISREG(stat.st_mode):
                raise MediaError("its path names no file")
            version = (f"{kind} {path}", stat.st_size, stat.st_mtime_ns, stat.st_ino)
            known = self._known.get(version)
            if known is not None:
                return known
            self._check_size(stat.st_size)
            load = partial(_load_file, path, self.options.max_bytes)
            content = self._inspect(load(), kind, load)
        except OSError as error:
            raise MediaError(f"its file cannot be read ({error.strerror or type(error).__name__})") from None
        if isinstance(content, Media) and len(self._known) < _MAX_KNOWN:
            self._known[version] = content
        return content

    def _read_bytes(self, data: bytes, kind: MediaKind) -> Media | str:
        self._check_size(len(data))
        return self._inspect(data, kind, lambda: data)

    def _read_url(self, url: str, kind: MediaKind) -> Media | str:
        options = self.options
        if not options.fetch:
            if kind == "document" and (options.as_text or options.pages):
                raise MediaError("its address is passed on, so pages and as_text need fetch=True")
            media_type = "application/pdf" if kind == "document" else "image/*"
            return Media(kind, media_type, _digest(f"url:{url}".encode()), detail=options.detail, url=url)
        fetched = self.fetched.get(url)
        if fetched is None:
            raise MediaError("its address was not fetched")
        if isinstance(fetched, MediaError):
            raise fetched
        return self._read_file(str(fetched), kind)

    def _decode(self, url: str) -> bytes:
        """The content of a data: URL."""
        head, _, body = url.partition(",")
        self._check_size(len(body) * 3 // 4)
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(body)
        try:
            return base64.b64decode("".join(body.split()), validate=True)
        except (binascii.Error, ValueError):
            raise MediaError("its data: URL is not base64") from None

    def _check_size(self, size: int) -> None:
        if size == 0:
            raise MediaError("it has 0 bytes")
        if size > self.options.max_bytes:
            raise MediaError(f"it has {size:,} bytes, more than max_bytes={self.options.max_bytes:,}")

    # -- contents --------------------------------------------------------------------------------------------------

    def _inspect(self, data: bytes, kind: MediaKind, load: Load) -> Media | str:
        media_type = find_type(data)
        if media_type is None:
            raise MediaError("its content is not a PNG, JPEG, GIF, WebP or PDF")
        is_document = media_type == "application/pdf"
        if is_document != (kind == "document"):
            raise MediaError(f"its content is {media_type}, and the prompt takes it as {kind}")
        return self._inspect_document(data, load) if is_document else self._inspect_image(data, media_type, load)

    def _inspect_image(self, data: bytes, media_type: str, load: Load) -> Media:
        options = self.options
        facts = read_image(data, media_type)
        width, height = self._fit(facts.width, facts.height, facts.frames)
        is_resized = (width, height) != (facts.width, facts.height)
        write: Callable[[bytes], bytes] = partial(strip_metadata, media_type=media_type)
        if is_resized:
            write = partial(shrink_image, media_type=media_type, max_side_px=max(width, height))
        elif options.keep_metadata:
            write = itemgetter(slice(facts.end))
        digest = _digest(data)
        return Media(
            "image",
            "image/png" if is_resized and media_type == "image/gif" else media_type,
            digest,
            facts.end + _ADDED_BYTES,
            width,
            height,
            detail=options.detail,
            load=partial(_load_checked, load, digest, write),
        )

    def _inspect_document(self, data: bytes, load: Load) -> Media | str:
        end_of_file = end_of_pdf(data)
        first, end = self.options.page_range()
        if self.options.as_text:
            return read_text(data, first, end)
        pages = len(range(count_pages(data))[first:end])
        if not pages:
            raise MediaError(f"it has none of the pages {self.options.pages!r}")
        digest = _digest(data)
        write: Callable[[bytes], bytes] = itemgetter(slice(end_of_file))
        size = len(data)
        if self.options.pages:
            write = partial(cut_pages, first=first, end=end)
            size *= 2
        return Media(
            "document",
            "application/pdf",
            digest,
            size,
            pages=pages,
            load=partial(_load_checked, load, digest, write),
        )

    def _read_pillow(self, image: Any, kind: MediaKind) -> Media:
        if kind != "image":
            raise MediaError("a PIL.Image is not a document")
        if image.mode == "F":
            raise MediaError("its pixels are decimal numbers (mode F), which no PNG holds; convert it to L or RGB")
        # Photos of some phones and cameras (MPO) contain further pictures that are not shown.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        fitted = self._fit(image.width, image.height, frames)
        write = partial(to_png, image)
        digest = digest_pixels(image, _DIGEST_BYTES)
        width, height = fitted if find_orientation(image) < _TURNED else fitted[::-1]
        return Media(
            "image",
            "image/png",
            digest,
            4 * width * height + 2**16,
            width,
            height,
            detail=self.options.detail,
            load=write if fitted == image.size else lambda: shrink_image(write(), "image/png", max(fitted)),
        )

    def _fit(self, width: int, height: int, frames: int) -> tuple[int, int]:
        """The width and height at which an image is sent.

        Raises:
            MediaError: It is animated, empty or too large.
        """
        if frames > 1:
            raise MediaError("it is animated; send one frame of it")
        if not (width and height):
            raise MediaError("its width or height is 0")
        if width * height > self.options.max_pixels:
            raise MediaError(f"it has {width}x{height} pixels, more than max_pixels={self.options.max_pixels:,}")
        return fit(width, height, self.options.max_side_px)


def is_url(cell: str) -> bool:
    """Whether a text is an address that is passed on or fetched."""
    return _URL.fullmatch(cell.strip()) is not None


def _is_missing(cell: Any) -> bool:
    return not isinstance(cell, os.PathLike | bytes) and not is_pillow_image(cell) and is_blank(cell)


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


# -- loading when a call is sent -----------------------------------------------------------------------------------


def _load_file(path: str, max_bytes: int) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise MediaError(f"it has more than max_bytes={max_bytes:,} bytes")
    return data


def _load_checked(load: Load, digest: str, write: Callable[[bytes], bytes]) -> bytes:
    """The bytes to send; the content must still have the `digest` that is in the prompt's key."""
    data = load()
    if _digest(data) != digest:
        raise MediaError("its content has changed since the run began; run again")
    return write(data)
