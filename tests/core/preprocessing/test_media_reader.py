"""Files made with bad intent: they are refused or sent unharmed, in bounded time."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from ondine_core.preprocessing.media import Gallery, MediaOptions, MediaReader
from ondine_core.preprocessing.media.documents import read_text
from ondine_core.types.media import Media, MediaError, escape_marks, find_media, remove_media, split_media
from tests.support.pictures import TYPES, document, picture, saved

READER = MediaReader(MediaOptions(), frozenset({"image", "document"}))
edits = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6)


def damaged(content: bytes, changes: list[tuple[int, int]], cut: int | None) -> bytes:
    found = bytearray(content)
    for at, byte in changes:
        found[at % len(found)] = byte
    return bytes(found[: None if cut is None else cut % len(found)])


@pytest.mark.parametrize("form", TYPES)
@given(edits, st.none() | st.integers(0, 10_000), st.booleans())
def test_a_damaged_image_is_refused_or_sent(
    form: str, changes: list[tuple[int, int]], cut: int | None, keep: bool
) -> None:
    """Whatever byte is changed, the result is a reason, or an image that still reads the same when it is sent."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 3, "Maker"
    plain = Image.new("RGB", (30, 20), "red")
    content = saved(plain, form, **({"exif": exif} if form != "gif" else {"comment": b"hello"}))
    reader = MediaReader(MediaOptions(keep_metadata=keep), frozenset({"image"}))
    with suppress(MediaError):
        media = reader.read(damaged(content, changes, cut), "image")
        assert isinstance(media, Media)
        sent = media.load()
        assert len(sent) <= media.size
        again = reader.read(sent, "image")
        assert isinstance(again, Media)
        assert (again.media_type, again.width, again.height) == (media.media_type, media.width, media.height)


@given(edits, st.none() | st.integers(0, 10_000))
@example([(325, 0)], None)
@example([(324, 1)], None)
def test_a_damaged_document_is_refused_or_sent(changes: list[tuple[int, int]], cut: int | None) -> None:
    """A PDF, sent whole, in part, or as text."""
    content = damaged(document("one", "two"), changes, cut)
    for options in ({}, {"pages": "1"}, {"as_text": True}):
        reader = MediaReader(MediaOptions(**options), frozenset({"document"}))  # type: ignore[arg-type]
        with suppress(MediaError):
            found = reader.read(content, "document")
            if isinstance(found, Media):
                found.load()


@given(st.binary(max_size=200))
def test_noise_is_refused(content: bytes) -> None:
    """With a reason that does not repeat its content."""
    with pytest.raises(MediaError):
        READER.read(content or b" ", "image")


def test_file_with_too_many_parts_is_refused() -> None:
    """Reading them all would take long."""
    chunk = struct.pack(">I4sI", 0, b"tEXt", zlib.crc32(b"tEXt"))
    content = picture()
    with pytest.raises(MediaError, match="more than 100,000 parts"):
        READER.read(content[:33] + chunk * 200_000 + content[33:], "image")


def test_file_named_by_many_rows_is_read_once(tmp_path: Path) -> None:
    """As long as its size and time are unchanged; its bytes are not kept."""
    path = tmp_path / "p.png"
    path.write_bytes(picture(1))
    reader = MediaReader(MediaOptions(root=tmp_path), frozenset({"image"}))
    first = reader.read("p.png", "image")
    assert reader.read(path, "image") is first
    assert reader.read(str(path), "image") is first
    path.write_bytes(picture(2, size=(30, 30)))
    assert reader.read("p.png", "image") != first


@given(st.text(st.sampled_from("ab\ue000\ue001:image0123"), max_size=60))
def test_row_text_is_never_a_media_reference(text: str) -> None:
    """For any text; its length is unchanged."""
    media = READER.read(picture(), "image")
    assert isinstance(media, Media)
    known = {media.reference: media}
    escaped = escape_marks(text)
    assert find_media(escaped + escape_marks(media.reference), known) == []
    assert len(escaped) == len(text)
    around = f"{escaped}{media}{escaped}{media}"
    assert find_media(around, known) == [media, media]
    assert remove_media(around, known) == escaped * 2
    assert "".join(map(str, split_media(around, known))) == around


def test_list_of_images_is_sent_in_order() -> None:
    """It is not written as a list of texts."""
    found = READER.read([picture(1), None, picture(2)], "image")
    assert isinstance(found, Gallery)
    assert [Image.open(BytesIO(media.load())).size for media in found] == [(24, 16)] * 2
    assert str(found) == " ".join(media.reference for media in found)


def test_reading_the_text_of_a_document_has_a_time_limit() -> None:
    """The limit holds within a page, too."""
    assert read_text(document("hello"), 0, None).endswith("hello")
    with pytest.raises(MediaError, match="reading its text takes more than 0 s"):
        read_text(document("hello"), 0, None, max_s=0)


def test_the_time_limit_holds_within_a_form() -> None:
    """The text of a page that is cut off within a form, where pypdf ignores errors, is not sent."""
    body = b"q Q " * 10_000
    fonts = b"/Font << /F1 3 0 R >>"
    form = b"<< /Subtype /Form /Resources << %b >> /Length %d >>\nstream\n%b\nendstream" % (fonts, len(body), body)
    page = document("hello").replace(fonts, b"/XObject << /S 6 0 R >> " + fonts)
    page = page.replace(b"(hello) Tj ET", b"(h) Tj  /S Do")
    data = page.replace(b"xref\n", b"6 0 obj\n%b\nendobj\nxref\n" % form, 1)
    with pytest.raises(MediaError, match="reading its text takes more than"):
        read_text(data, 0, None, max_s=0.02)
