"""Removes metadata from images without decoding them, such as place, time, author and device.

Data that change how an image looks are kept: colour profiles, transparency and orientation. All else is removed, also
the bytes behind the end of the image.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress

from ondine_core.preprocessing.media.image_headers import Part, gif_parts, jpeg_parts, png_parts, webp_parts
from ondine_core.preprocessing.media.pixels import MAX_TURNS, ORIENTATION, UPRIGHT


def strip_metadata(data: bytes, media_type: str) -> bytes:
    """A valid image without its metadata; the encoded pixels are unchanged."""
    return _STRIPPERS[media_type](data)


# -- orientation ---------------------------------------------------------------------------------------------------

_EXIF = b"Exif\0\0"


def _find_orientation(tiff: bytes) -> int:
    """The orientation in the metadata `tiff`; upright if they have none."""
    with suppress(struct.error, KeyError):
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, offset)
        for number in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, offset + 2 + 12 * number)
            if tag == ORIENTATION and UPRIGHT < value <= MAX_TURNS:
                return int(value)
    return UPRIGHT


def _only_orientation(tiff: bytes) -> bytes:
    """Metadata with only the orientation of `tiff`; empty for an upright image."""
    orientation = _find_orientation(tiff)
    if orientation == UPRIGHT:
        return b""
    return struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)


# -- formats -------------------------------------------------------------------------------------------------------

_PNG_KEPT = frozenset({b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"bKGD", b"pHYs"})
_LOWER_CASE = 0x20
"""Bit of the first letter of a chunk's name that says that the chunk is not needed to show the image."""


def _strip_png(data: bytes) -> bytes:
    kept = [data[:8]]
    for part in png_parts(data):
        if part.name == b"eXIf":
            tiff = _only_orientation(data[part.body : part.end - 4])
            if tiff:
                chunk = b"eXIf" + tiff
                kept += [struct.pack(">I", len(tiff)), chunk, struct.pack(">I", zlib.crc32(chunk))]
        elif not part.name[0] & _LOWER_CASE or part.name in _PNG_KEPT:
            kept.append(data[part.start : part.end])
    return b"".join(kept)


_APP0, _APP1, _APP2, _APP14, _APP15, _COMMENT = b"\xe0", b"\xe1", b"\xe2", b"\xee", b"\xef", b"\xfe"


def _strip_jpeg(data: bytes) -> bytes:
    kept = [data[:2]]
    for part in jpeg_parts(data):
        body = data[part.body : part.end]
        if part.name == _APP1 and body.startswith(_EXIF):
            tiff = _only_orientation(body[len(_EXIF) :])
            if tiff:
                kept.append(b"\xff\xe1" + struct.pack(">H", 2 + len(_EXIF) + len(tiff)) + _EXIF + tiff)
        elif _is_shown(part, body):
            kept.append(data[part.start : part.end])
    return b"".join(kept)


def _is_shown(part: Part, body: bytes) -> bool:
    """Whether a segment of a JPEG changes how it looks: picture data, JFIF, a colour profile, Adobe's colour space."""
    if part.name == _APP0:
        return body.startswith(b"JFIF\0")
    if part.name == _APP2:
        return body.startswith(b"ICC_PROFILE\0")
    return part.name == _APP14 or not (_APP0 < part.name <= _APP15 or part.name == _COMMENT)


_GIF_REMOVED = (b"\xfe", b"\xff", b"\x01")
"""Comments, extensions of applications, and plain text."""


def _strip_gif(data: bytes) -> bytes:
    return b"".join(data[part.start : part.end] for part in gif_parts(data) if part.name not in _GIF_REMOVED)


_WEBP_KEPT = (b"VP8 ", b"VP8L", b"ALPH", b"ICCP", b"ANIM", b"ANMF")
_WEBP_EXIF, _WEBP_XMP = 0x08, 0x04
"""Header flags for the presence of such metadata."""


def _strip_webp(data: bytes) -> bytes:
    parts = list(webp_parts(data))
    exif = next((data[part.body : part.end] for part in parts if part.name == b"EXIF"), b"")
    tiff = _only_orientation(exif.removeprefix(_EXIF))
    kept = []
    for part in parts:
        body = data[part.body : part.end]
        if part.name == b"VP8X":
            flags = body[0] & ~(_WEBP_EXIF | _WEBP_XMP) | (_WEBP_EXIF if tiff else 0)
            kept.append(_webp_chunk(part.name, bytes((flags,)) + body[1:]))
        elif part.name in _WEBP_KEPT:
            kept.append(_webp_chunk(part.name, body))
    if tiff and parts[0].name == b"VP8X":
        kept.append(_webp_chunk(b"EXIF", tiff))
    content = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _webp_chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


_STRIPPERS: Mapping[str, Callable[[bytes], bytes]] = {
    "image/png": _strip_png,
    "image/jpeg": _strip_jpeg,
    "image/gif": _strip_gif,
    "image/webp": _strip_webp,
}
