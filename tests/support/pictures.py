"""Small pictures and documents, drawn on demand."""

from __future__ import annotations

import os
import struct
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

TYPES = {"png": "image/png", "jpeg": "image/jpeg", "gif": "image/gif", "webp": "image/webp"}


@cache
def picture(number: int = 0, form: str = "png", size: tuple[int, int] = (24, 16)) -> bytes:
    """A picture of one colour, different for each number, as a file without metadata."""
    written = BytesIO()
    image = Image.new("RGB", size, ((37 * number) % 256, (91 * number) % 256, (number // 256) % 256))
    image.save(written, form.upper(), **({"lossless": True} if form == "webp" else {}))
    return written.getvalue()


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    """An image as a file."""
    written = BytesIO()
    image.save(written, form.upper(), **options)
    return written.getvalue()


def animated(form: str) -> bytes:
    """An image of two frames."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    return saved(frames[0], form, save_all=True, append_images=frames[1:], duration=100, loop=0)


def bomb(side: int = 50_000) -> bytes:
    """A PNG of some kilobytes that decodes to gigabytes."""
    return _png(side, zlib.compress(bytes(1000)))


def uncompressed(side: int, pixels: bytes) -> bytes:
    """A square PNG of RGB pixels that are not compressed, written faster than by Pillow."""
    rows = (pixels[start : start + 3 * side] for start in range(0, len(pixels), 3 * side))
    return _png(side, zlib.compress(b"\0" + b"\0".join(rows), 0))


def _png(side: int, data: bytes) -> bytes:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@cache
def document(*pages: str) -> bytes:
    """A PDF with a line of text on each page."""
    count = len(pages)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count %d /Kids [%b] >>" % (count, b" ".join(b"%d 0 R" % (4 + 2 * n) for n in range(count))),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        stream = b"BT /F1 24 Tf 72 700 Td (%b) Tj ET" % text.encode("latin-1")
        objects += [
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % (5 + 2 * number),
            b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream),
        ]
    out, offsets = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def write(folder: Path, *contents: bytes) -> list[str]:
    """Write a file for each content; returns the names."""
    names = [f"{number}.bin" for number in range(len(contents))]
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content)
    return names


class ChangingPath(os.PathLike[str]):
    """A path to a file whose content changes at the second read, with the same modification time."""

    def __init__(self, path: Path, later_content: bytes) -> None:
        path.write_bytes(picture(98))
        self.path = path
        self.later_content = later_content
        self.reads = 0

    def __fspath__(self) -> str:
        self.reads += 1
        if self.reads == 2:
            at = self.path.stat()
            with self.path.open("r+b") as file:
                file.write(self.later_content)
                file.truncate()
            os.utime(self.path, ns=(at.st_atime_ns, at.st_mtime_ns))
        return str(self.path)
