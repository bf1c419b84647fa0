"""Reads PDFs with pypdf: counts pages, cuts pages out, extracts text."""

from __future__ import annotations

import logging
from io import BytesIO
from time import thread_time
from typing import Any

from ondine_core.types.media import MediaError, as_media_error

_MAX_PAGES = 5_000
_MAX_TEXT_S = 60.0
"""Of reading the text of a document: 5,000 pages of text take 20 s, but a page of few bytes can take many seconds."""
_MAX_TAIL = 1_024
"""The most bytes behind the end marker; by the specification, readers search for it in the last 1,024 bytes."""


def end_of_pdf(data: bytes) -> int:
    """The number of bytes up to and including the end marker."""
    marker = b"%%EOF"
    start = data.rfind(marker)
    if start < 0:
        raise MediaError("it is corrupt or broken off (application/pdf)")
    end = start + len(marker)
    if len(data) - end > _MAX_TAIL:
        raise MediaError("something else comes behind its end (application/pdf)")
    return end


def count_pages(data: bytes) -> int:
    """The number of pages of a document."""
    pages = len(_open(data).pages)
    if not 0 < pages <= _MAX_PAGES:
        raise MediaError(f"it has {pages:,} pages; 1 to {_MAX_PAGES:,} are sent (application/pdf)")
    return pages


def cut_pages(data: bytes, first: int, end: int | None) -> bytes:
    """A document of the pages from `first` up to but not including `end`, counted from 0."""
    from pypdf import PdfWriter

    writer, written = PdfWriter(), BytesIO()
    with as_media_error("its pages cannot be cut out"):
        for page in _open(data).pages[first:end]:
            writer.add_page(page)
        writer.write(written)
    return written.getvalue()


def read_text(data: bytes, first: int, end: int | None, max_s: float = _MAX_TEXT_S) -> str:
    """The text of the pages from `first` up to but not including `end`, with a blank line between pages.

    Raises:
        MediaError: They have no text, for instance scans; or reading it takes more than `max_s` seconds of CPU time.
    """
    end_at = thread_time() + max_s

    def check_time(*_: Any) -> None:
        if thread_time() > end_at:
            raise MediaError(f"reading its text takes more than {max_s:.0f} s (application/pdf)")

    with as_media_error("its text cannot be read"):
        pages = _open(data).pages[first:end]
        texts = [page.extract_text(visitor_operand_before=check_time).strip() for page in pages]
        check_time()  # pypdf ignores errors in a form, and would return the text before its end
    text = "\n\n".join(filter(None, texts))
    if not text:
        raise MediaError("its pages have no text (application/pdf); send the pages, without as_text")
    return text


def _open(data: bytes) -> Any:
    from pypdf import PdfReader

    # It logs warnings about the file that quote its content.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL + 1)
    with as_media_error("it is corrupt or broken off"):
        reader = PdfReader(BytesIO(data))
        is_encrypted = reader.is_encrypted
        _ = None if is_encrypted else len(reader.pages)
    if is_encrypted:
        raise MediaError("it is encrypted (application/pdf)")
    return reader
