"""Images in Dagster's metadata: their descriptions, and few, re-encoded thumbnails."""

from __future__ import annotations

import base64
import random
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from ondine_core import MediaOptions, ModelSpec, Prompt
from ondine_core.preprocessing.media import MediaReader
from ondine_core.prompts.task import compile_task
from ondine_core.prompts.template import CompiledPrompt
from ondine_core.types.media import Media
from ondine_dagster.frames import frame_of
from ondine_dagster.reporting.markdown import markdown, preview
from ondine_dagster.reporting.thumbnails import describe, describe_cell, draw, shown_thumbnails
from tests.support.pictures import TYPES, bomb, document, picture, saved

PHOTO = "What is this?\n{photo:image}"
READER = MediaReader(MediaOptions(root="/"), frozenset({"image", "document"}))
DATA_URL = re.compile(r"!\[([^]]*)]\((data:image/jpeg;base64,([A-Za-z0-9+/=]+))\)")
TALLEST_PX = 96


def compiled(prompt: str | Prompt = PHOTO, **arguments: Any) -> CompiledPrompt:
    return compile_task(prompt, {"name": "string"}, ModelSpec(""), **arguments).prompt


def table(*photos: Any) -> Any:
    return frame_of(pd.DataFrame({"photo": list(photos), "name": [f"name {n}" for n in range(len(photos))]}))


def noise(width: int, height: int) -> bytes:
    """An image that does not compress."""
    pixels = random.Random(0).randbytes(3 * width * height)
    return saved(Image.frombytes("RGB", (width, height), pixels), "png")


def decoded(text: str) -> list[Image.Image]:
    return [Image.open(BytesIO(base64.b64decode(found[3]))) for found in DATA_URL.finditer(text)]


# -- descriptions --------------------------------------------------------------------------------------------------


def test_cell_is_described_by_name_dimensions_and_bytes(tmp_path: Path) -> None:
    """Neither by its content nor by its folder."""
    file = tmp_path / "cat.png"
    file.write_bytes(noise(64, 48))
    kilobytes = round((len(file.read_bytes()) + 64) / 1000)
    description = f"64 x 48, {kilobytes} kB"
    assert describe_cell(str(file), "image", READER) == f"image cat.png, {description}"
    assert describe_cell(file, "image", READER) == f"image cat.png, {description}"
    assert describe_cell(file.read_bytes(), "image", READER) == f"image, {description}"
    assert (
        describe_cell(document("One", "Two"), "document", READER)
        == f"document, 2 pages, {len(document('One', 'Two'))} B"
    )
    assert describe_cell(None, "image", READER) is None


def test_several_images_of_a_cell_are_described() -> None:
    """The first three, and the number of the others."""
    description = describe_cell([picture(number) for number in range(5)], "image", READER)
    assert description is not None
    assert description.count("24 x 16") == 3
    assert description.endswith("; and 2 more")


@pytest.mark.parametrize(
    "cell", ["https://me:pw@shop.example/a.png?sig=s3cret", "https://shop.example/a.png#s3cret", "https://["]
)
def test_an_address_is_shown_by_its_host_only(cell: str) -> None:
    """Signed addresses hold secrets, and metadata is widely readable."""
    description = describe_cell(cell, "image", READER)
    assert description in ("image at shop.example", "image at an address")


@pytest.mark.parametrize("cell", ["missing/cat.png", b"no image", "data:image/png;base64,AAAA", 3.5])
def test_unreadable_image_is_described_as_such(cell: Any) -> None:
    """A preview never fails a run, and shows only a file's name of the cell."""
    name = " cat.png" if isinstance(cell, str) and "cat" in cell else ""
    assert describe_cell(cell, "image", READER) == f"image{name}, cannot be read"


def test_bytes_are_never_written_as_text() -> None:
    """Also of a byte column that is not an image of the prompt, or in lists and mappings."""
    rows = pd.DataFrame({"raw": [b"s3cret", bytearray(b"s3cret"), [b"s3cret"], {"bytes": b"s3cret", "path": None}]})
    text = preview(rows, ["raw"])
    assert "s3cret" not in text
    assert text.splitlines()[2:] == [
        "| 6 bytes |",
        "| 6 bytes |",
        r"| \[6 bytes\] |",
        "| {'bytes': 6 bytes, 'path': None} |",
    ]


# -- thumbnails ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", TYPES)
def test_thumbnail_is_small_and_re_encoded(form: str) -> None:
    """At most 96 pixels and 6,000 characters, as JPEG without metadata."""
    image = Image.new("RGB", (900, 600), (200, 30, 30))
    exif = Image.Exif()
    exif[0x010E] = "s3cret place"
    content = saved(image, form, **({"exif": exif} if form != "gif" else {}))
    text = shown_thumbnails(table(content), compiled(), ["name"])
    assert text is not None
    (thumbnail,) = decoded(text)
    assert thumbnail.format == "JPEG"
    assert thumbnail.size == (TALLEST_PX, TALLEST_PX * 2 // 3)
    red, green, _ = thumbnail.convert("RGB").getpixel((40, 30))  # type: ignore[misc]
    assert red > 150 > green  # type: ignore[operator]
    assert not thumbnail.getexif()
    assert base64.b64encode(content[:30]).decode()[:36] not in text


def test_a_thumbnail_stands_upright_on_white() -> None:
    """The camera's orientation is applied, and transparent pixels are white."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = draw(_media(saved(Image.new("RGB", (80, 40), "red"), "jpeg", exif=exif)))
    assert turned is not None
    clear = draw(_media(saved(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "png")))
    assert clear is not None
    (upright,), (white,) = decoded(markdown(["a"], [[turned]])), decoded(markdown(["a"], [[clear]]))
    assert upright.size == (40, 80)
    assert white.convert("RGB").getpixel((5, 5)) == (255, 255, 255)


def _media(content: bytes) -> Media:
    found = READER.read(content, "image")
    assert isinstance(found, Media)
    return found


def test_thumbnails_are_few_and_take_little_room() -> None:
    """Five rows of at most three each and 40 kB in all, since they stay in the event log; others are described."""
    text = shown_thumbnails(table(*([noise(300, 300)] * 4 for _ in range(20))), compiled(), ["name"])
    assert text is not None
    assert text.count("\n") == 1 + 5
    assert 5 <= len(decoded(text)) <= 15
    assert len(text) < 42_000
    assert "name 4" in text


@pytest.mark.parametrize("content", [bomb(), bomb(6_000), picture(), b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_hostile_files_are_not_drawn(content: bytes) -> None:
    """Decompression bombs, broken files and markup are described, without an original byte."""
    text = shown_thumbnails(table(content, picture(1)), compiled(), ["name"])
    assert text is not None
    assert len(decoded(text)) == (2 if content == picture() else 1)
    assert "svg" not in text


def test_image_addresses_are_neither_fetched_nor_linked() -> None:
    """An address in a cell is neither fetched nor shown."""
    assert shown_thumbnails(table("https://shop.example/a.png"), compiled(), ["name"]) is None


def test_sanitized_assets_have_no_thumbnails() -> None:
    """Images are not searched for personal data, and metadata is more widely readable than the table."""
    prompt = compiled(sanitize="redact")
    assert shown_thumbnails(table(picture()), prompt, ["name"]) is None


def test_documents_and_texts_have_no_thumbnail() -> None:
    """Only images are drawn."""
    assert shown_thumbnails(table(document("One")), compiled("{photo:document}"), ["name"]) is None
    assert shown_thumbnails(table("a text"), compiled("{photo}"), ["name"]) is None


def test_a_description_cannot_be_markup(tmp_path: Path) -> None:
    """Not even through a file's name."""
    file = tmp_path / "![a](b)<i>.png"
    file.write_bytes(picture())
    description = describe_cell(str(file), "image", READER)
    assert description is not None
    assert r"\!\[a\](b)\<i\>.png" in markdown(["photo"], [[description]])
    assert describe(_media(picture())).startswith("image, 24 x 16, ")
