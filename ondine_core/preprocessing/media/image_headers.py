"""Reads type, size, frames and end of an image from its bytes.

By the formats' specifications: PNG (W3C), JPEG (ITU T.81), GIF89a, WebP (RFC 9649). Nothing is decoded, so an image
that would decode to gigabytes costs nothing. All parts of a file are walked, so a truncated file is noticed, and the
end of the image is known.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ondine_core.types.media import MediaError


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The facts in the headers of an image.

    `width` and `height` are in pixels; an animation has several `frames`; `end` is the number of bytes up to and
    including the end marker.
    """

    width: int
    height: int
    frames: int
    end: int


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a file: a chunk, a segment, or a block.

    `name` is its name in the format; its header begins at `start`, its content at `body`.
    """

    name: bytes
    start: int
    end: int
    body: int


_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_UNSUPPORTED: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"....ftyp(?:heic|heix|hevc|heim|mif1)", re.DOTALL), "HEIC"),
    (re.compile(rb"....ftypavif", re.DOTALL), "AVIF"),
    (re.compile(rb"II\*\0|MM\0\*", re.DOTALL), "TIFF"),
    (re.compile(rb"BM", re.DOTALL), "BMP"),
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|!--|!DOCTYPE|svg)", re.IGNORECASE), "SVG or another markup"),
    (re.compile(rb"PK\x03\x04"), "ZIP (also Word, Excel)"),
)


def find_type(data: bytes) -> str | None:
    """The MIME type of `data` by its first bytes; `None` if it is unknown.

    Raises:
        MediaError: It is a known type that no provider takes.
    """
    if data.startswith(_PNG):
        return "image/png"
    if data.startswith(_JPEG):
        return "image/jpeg"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data.startswith(b"%PDF-"):
        return "application/pdf"
    for pattern, name in _UNSUPPORTED:
        if pattern.match(data):
            raise MediaError(f"{name} is not a type that is sent; convert it to PNG, JPEG, GIF, WebP or PDF")
    return None


def read_image(data: bytes, media_type: str) -> ImageFacts:
    """Read the headers of an image of this type.

    Raises:
        MediaError: It is corrupt or truncated.
    """
    try:
        return _READERS[media_type](data)
    except (struct.error, IndexError, zlib.error):
        raise MediaError(f"it is corrupt or broken off ({media_type})") from None


_MAX_PARTS = 100_000


def _limited(parts: Iterator[Part]) -> Iterator[Part]:
    """`parts`, with an error beyond a limit on their number, since reading very many takes long."""
    for number, part in enumerate(parts):
        if number == _MAX_PARTS:
            raise MediaError(f"it has more than {_MAX_PARTS:,} parts")
        yield part


def _corrupt(media_type: str, what: str) -> MediaError:
    return MediaError(f"it is corrupt: {what} ({media_type})")


# -- PNG -----------------------------------------------------------------------------------------------------------


def png_parts(data: bytes) -> Iterator[Part]:
    """The chunks of a PNG."""
    at = len(_PNG)
    while True:
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        (check,) = struct.unpack_from(">I", data, end - 4)
        if check != zlib.crc32(data[at + 4 : end - 4]):
            raise _corrupt("image/png", "a check sum is wrong")
        yield Part(name, at, end, at + 8)
        if name == b"IEND":
            return
        at = end


def _read_png(data: bytes) -> ImageFacts:
    parts = list(_limited(png_parts(data)))
    names = [part.name for part in parts]
    if names[0] != b"IHDR" or b"IDAT" not in names:
        raise _corrupt("image/png", "it has no header or no pixels")
    width, height = struct.unpack_from(">II", data, parts[0].body)
    frames = next((struct.unpack_from(">I", data, part.body)[0] for part in parts if part.name == b"acTL"), 1)
    return ImageFacts(width, height, frames, parts[-1].end)


# -- JPEG ----------------------------------------------------------------------------------------------------------

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_ALONE = frozenset({0x01, 0xD8, *range(0xD0, 0xD8)})
_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def jpeg_parts(data: bytes) -> Iterator[Part]:
    """The segments of a JPEG, scans with the data that follows them, and the end marker; named by their marker."""
    at = 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # noqa: PLR2004  (fill bytes)
            at += 1
        if data[at] != 0xFF:  # noqa: PLR2004
            raise _corrupt("image/jpeg", "a marker is missing")
        marker = data[at + 1]
        if marker == 0xD9:  # noqa: PLR2004  (end of image)
            yield Part(b"\xd9", at, at + 2, at + 2)
            return
        end = at + 2
        if marker not in _ALONE:
            (length,) = struct.unpack_from(">H", data, at + 2)
            end = at + 2 + length
        if marker == 0xDA:  # noqa: PLR2004  (start of scan)
            following = _MARKER.search(data, end)
            if following is None:
                raise _corrupt("image/jpeg", "it is broken off")
            end = following.start()
        yield Part(data[at + 1 : at + 2], at, end, at + 4)
        at = end


def _read_jpeg(data: bytes) -> ImageFacts:
    width = height = scans = end = 0
    for part in _limited(jpeg_parts(data)):
        if part.name[0] in _SIZES:
            own_height, own_width = struct.unpack_from(">HH", data, part.body + 1)
            width, height = max(width, own_width), max(height, own_height)
        scans += part.name == b"\xda"
        end = part.end
    if not scans:
        raise _corrupt("image/jpeg", "it has no pixels")
    return ImageFacts(width, height, 1, end)


# -- GIF -----------------------------------------------------------------------------------------------------------


def gif_parts(data: bytes) -> Iterator[Part]:
    """The header with its colours, the extensions, the pictures, and the trailer of a GIF."""
    at = 13 + _colours(data[10])
    yield Part(b"header", 0, at, 0)
    while True:
        kind = data[at]
        start = at
        if kind == 0x3B:  # noqa: PLR2004  (trailer)
            yield Part(b";", at, at + 1, at + 1)
            return
        if kind == 0x21:  # noqa: PLR2004  (extension)
            name, at = data[at + 1 : at + 2], at + 2
        elif kind == 0x2C:  # noqa: PLR2004  (picture)
            name, at = b",", at + 11 + _colours(data[at + 9])
        else:
            raise _corrupt("image/gif", "a block is of no known kind")
        while data[at]:
            at += 1 + data[at]
        at += 1
        yield Part(name, start, at, start + 2)


def _colours(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _read_gif(data: bytes) -> ImageFacts:
    width, height = struct.unpack_from("<HH", data, 6)
    frames = end = 0
    for part in _limited(gif_parts(data)):
        if part.name == b",":
            frames += 1
            own_width, own_height = struct.unpack_from("<HH", data, part.start + 5)
            width, height = max(width, own_width), max(height, own_height)
        end = part.end
    if not frames:
        raise _corrupt("image/gif", "it has no picture")
    return ImageFacts(width, height, frames, end)


# -- WebP ----------------------------------------------------------------------------------------------------------


def webp_parts(data: bytes) -> Iterator[Part]:
    """The chunks of a WebP."""
    (size,) = struct.unpack_from("<I", data, 4)
    end_of_file = 8 + size
    if end_of_file > len(data) + 1:
        raise _corrupt("image/webp", "it is broken off")
    at = 12
    while at + 8 <= end_of_file:
        name, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length
        if end > len(data):
            raise _corrupt("image/webp", "it is broken off")
        yield Part(name, at, end, at + 8)
        at = end + length % 2


def _read_webp(data: bytes) -> ImageFacts:
    width = height = frames = 0
    end = 12
    for part in _limited(webp_parts(data)):
        end = min(part.end + (part.end - part.body) % 2, len(data))  # with the byte that pads it
        own_width, own_height = _webp_size(data, part)
        width, height = max(width, own_width), max(height, own_height)
        frames += part.name in (b"VP8 ", b"VP8L", b"ANMF")
    if not frames:
        raise _corrupt("image/webp", "it has no picture")
    return ImageFacts(width, height, frames, end)


def _webp_size(data: bytes, part: Part) -> tuple[int, int]:
    """The width and height of the image in a chunk; 0 if it has none."""
    if part.name == b"VP8X":
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, part.body + 4)
        return 1 + low_w + (high_w << 16), 1 + low_h + (high_h << 16)
    if part.name == b"VP8 ":
        if data[part.body + 3 : part.body + 6] != b"\x9d\x01\x2a":
            raise _corrupt("image/webp", "it has no frame header")
        width, height = struct.unpack_from("<HH", data, part.body + 6)
        return width & 0x3FFF, height & 0x3FFF
    if part.name == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, part.body)
        if signature != 0x2F:  # noqa: PLR2004
            raise _corrupt("image/webp", "it has no frame header")
        return 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
    return 0, 0


_READERS: Mapping[str, Callable[[bytes], ImageFacts]] = {
    "image/png": _read_png,
    "image/jpeg": _read_jpeg,
    "image/gif": _read_gif,
    "image/webp": _read_webp,
}
