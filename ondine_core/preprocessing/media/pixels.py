"""Shrinks images, and writes images of Pillow as files."""

from __future__ import annotations

import sys
from contextlib import suppress
from hashlib import blake2b
from io import BytesIO
from typing import Any

from ondine_core.types.media import as_media_error

_QUALITY = 90
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_SIXTEEN_BITS = ("I", "I;16B", "I;16L", "I;16N")
"""Modes with whole numbers that a conversion to RGB would cut off at 255."""
_TRANSPARENT = ("PA", "RGBa", "La")
ORIENTATION, UPRIGHT, MAX_TURNS = 0x0112, 1, 8
"""The metadata tag of the orientation, and its lowest and highest value."""
_FORMATS = {"image/jpeg": "JPEG", "image/webp": "WEBP", "image/png": "PNG", "image/gif": "PNG"}


def is_pillow_image(value: Any) -> bool:
    """Whether `value` is an image of Pillow's; Pillow is not imported for this."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def find_orientation(image: Any) -> int:
    """The orientation in the metadata of an image of Pillow's: 1 is upright, from 5 on it lies on a side."""
    with suppress(Exception):  # a parser may raise any error; without metadata an image is upright
        orientation = image.getexif().get(ORIENTATION)
        if orientation in range(UPRIGHT, MAX_TURNS + 1):
            return int(orientation)
    return UPRIGHT


def digest_pixels(image: Any, digest_size: int) -> str:
    """A digest of the pixels and the orientation, which is the same however an image was encoded."""
    digest = blake2b(f"{image.mode} {image.width}x{image.height}".encode(), digest_size=digest_size)
    with as_media_error("it cannot be decoded"):
        orientation = find_orientation(image)
        if orientation != UPRIGHT:
            digest.update(f"orientation {orientation}".encode())
        palette = image.getpalette() if image.mode == "P" else None
        digest.update(bytes(palette or ()))
        digest.update(repr(image.info.get("transparency")).encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def to_png(image: Any) -> bytes:
    """An image of Pillow's as a PNG file, upright and without metadata."""
    from PIL import ImageOps

    written = BytesIO()
    shown = image if find_orientation(image) == UPRIGHT else ImageOps.exif_transpose(image)
    if shown.mode in _SIXTEEN_BITS:
        shown = shown.convert("I").convert("I;16")
    elif shown.mode not in _PNG_MODES:
        shown = shown.convert("RGBA" if shown.mode in _TRANSPARENT else "RGB")
    shown.save(written, "PNG", exif=b"", pnginfo=None)
    return written.getvalue()


def fit(width: int, height: int, max_side_px: int | None) -> tuple[int, int]:
    """The width and height of an image that is shrunk to at most `max_side_px` pixels on its longer side."""
    longest = max(width, height)
    if max_side_px is None or longest <= max_side_px:
        return width, height
    return max(1, round(width * max_side_px / longest)), max(1, round(height * max_side_px / longest))


def shrink_image(data: bytes, media_type: str, max_side_px: int) -> bytes:
    """An image in its own format (a GIF as PNG), upright, with at most `max_side_px` pixels on its longer side."""
    from PIL import Image, ImageOps

    written = BytesIO()
    with as_media_error("it cannot be decoded"), Image.open(BytesIO(data)) as opened:
        size = fit(opened.width, opened.height, max_side_px)
        opened.draft("RGB", size)  # a JPEG is decoded no larger than needed
        upright = ImageOps.exif_transpose(opened)
        turned = size if (upright.width >= upright.height) == (size[0] >= size[1]) else size[::-1]
        shown = upright.convert("RGBA") if upright.mode in ("P", "PA") else upright
        shown.resize(turned, Image.Resampling.LANCZOS).save(
            written, _FORMATS[media_type], quality=_QUALITY, icc_profile=opened.info.get("icc_profile")
        )
    return written.getvalue()
