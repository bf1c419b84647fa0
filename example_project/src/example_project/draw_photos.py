"""Draw the pictures in `data/photos`, a few hundred bytes each: `python -m example_project.draw_photos`.

The PNG files are written without an image library, so that the example does not depend on one.
"""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

PHOTOS = Path(__file__).parent / "data" / "photos"
SIDE = 128

Shape = Callable[[float, float], bool]
Colour = tuple[int, int, int]

PAPER: Colour = (250, 248, 244)


def ball(x: float, y: float) -> bool:
    """Whether a point, with coordinates from -1 to 1, is on a ball."""
    return x * x + y * y < 0.6


def mug(x: float, y: float) -> bool:
    """Whether a point is on a mug with a handle."""
    handle = 0.05 < (x - 0.4) ** 2 + y * y < 0.14 and x > 0.4
    return (abs(x) < 0.45 and abs(y) < 0.6) or handle


def bowl(x: float, y: float) -> bool:
    """Whether a point is on a bowl."""
    return y > 0 and x * x + y * y < 0.55


def lamp(x: float, y: float) -> bool:
    """Whether a point is on a lamp."""
    shade = -0.7 < y < 0 and abs(x) < 0.25 + (y + 0.7) / 2
    return shade or (abs(x) < 0.05 and 0 <= y < 0.6) or (abs(x) < 0.35 and 0.6 <= y < 0.7)


PICTURES: dict[str, tuple[Colour, Shape]] = {
    "red-mug": ((200, 40, 40), mug),
    "blue-bowl": ((40, 80, 190), bowl),
    "green-lamp": ((40, 140, 70), lamp),
    "yellow-ball": ((235, 190, 40), ball),
    "blue-mug": ((40, 80, 190), mug),
    "red-lamp": ((200, 40, 40), lamp),
}


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def draw(colour: Colour, shape: Shape) -> bytes:
    """A PNG file of two colours."""
    coordinates = [2 * (number + 0.5) / SIDE - 1 for number in range(SIDE)]
    lines = [b"\0" + bytes(shape(x, y) for x in coordinates) for y in coordinates]
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", bytes([*PAPER, *colour])),
            chunk(b"IDAT", zlib.compress(b"".join(lines), 9)),
            chunk(b"IEND", b""),
        ]
    )


def main() -> None:
    """Draw all pictures."""
    PHOTOS.mkdir(parents=True, exist_ok=True)
    for name, (colour, shape) in PICTURES.items():
        (PHOTOS / f"{name}.png").write_bytes(draw(colour, shape))


if __name__ == "__main__":
    main()
