"""Images made smaller, and images of Pillow as files: what needs pixels, by way of Pillow."""

from __future__ import annotations

import sys
from hashlib import blake2b
from io import BytesIO
from typing import Any

from ondine_core.types.media import MediaError

_QUALITY = 90
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
_FORMATS = {"image/jpeg": "JPEG", "image/webp": "WEBP", "image/png": "PNG", "image/gif": "PNG"}


def is_pillow_image(value: Any) -> bool:
    """Whether `value` is an image of Pillow's, which is not imported for this."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def digest_pixels(image: Any, digest_size: int) -> str:
    """A digest of the pixels, which is the same however an image was encoded."""
    digest = blake2b(f"{image.mode} {image.width}x{image.height}".encode(), digest_size=digest_size)
    palette = image.getpalette() if image.mode == "P" else None
    digest.update(bytes(palette or ()))
    digest.update(repr(image.info.get("transparency")).encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def to_png(image: Any) -> bytes:
    """An image of Pillow's as a file, without metadata."""
    written = BytesIO()
    shown = image if image.mode in _PNG_MODES else image.convert("RGB")
    shown.save(written, "PNG", exif=b"", pnginfo=None)
    return written.getvalue()


def fit(width: int, height: int, max_side_px: int | None) -> tuple[int, int]:
    """Width and height of an image once its longer side has at most `max_side_px` pixels."""
    longest = max(width, height)
    if max_side_px is None or longest <= max_side_px:
        return width, height
    return max(1, round(width * max_side_px / longest)), max(1, round(height * max_side_px / longest))


def shrink_image(data: bytes, media_type: str, max_side_px: int) -> bytes:
    """An image in its format (a GIF as PNG) with at most `max_side_px` pixels on its longer side, upright.

    Raises:
        MediaError: It cannot be decoded.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(BytesIO(data)) as opened:
            size = fit(opened.width, opened.height, max_side_px)
            opened.draft("RGB", size)  # a JPEG is decoded no larger than needed
            upright = ImageOps.exif_transpose(opened)
            turned = size if (upright.width >= upright.height) == (size[0] >= size[1]) else size[::-1]
            shown = upright.convert("RGBA") if upright.mode in ("P", "PA") else upright
            written = BytesIO()
            shown.resize(turned, Image.Resampling.LANCZOS).save(
                written, _FORMATS[media_type], quality=_QUALITY, icc_profile=opened.info.get("icc_profile")
            )
    except Exception as error:  # noqa: BLE001  (a decoder may raise any error; only this row fails)
        raise MediaError(f"it cannot be decoded ({type(error).__name__})") from None
    return written.getvalue()
