"""Images and documents of rows, and the references to them in the texts of prompts.

A prompt stays a text. In place of an image it has a reference: a digest of the content between two private-use
characters. So keys hash the content, and the store never holds an image. `Media` only locates the bytes, which are read
when a call leaves and are not kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

MediaKind: TypeAlias = Literal["image", "document"]

_BEGIN, _END = "\ue000", "\ue001"
_REFERENCE = re.compile(f"{_BEGIN}(?:image|document):[0-9a-f]{{32}}{_END}")
_MARKS = str.maketrans(dict.fromkeys((_BEGIN, _END), "\ufffd"))


class MediaError(ValueError):
    """A cell holds no image or document that can be sent; the message does not show its content."""


@contextmanager
def as_media_error(what: str) -> Iterator[None]:
    """Raise any error of the body, which calls a library to read a file, as a `MediaError`: only its row then fails."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:  # noqa: BLE001
        raise MediaError(f"{what} ({type(error).__name__})") from None


@dataclass(frozen=True, slots=True)
class Media:
    """An image or document of a row, without its bytes.

    Args:
        kind: Image or document.
        media_type: MIME type that is sent.
        digest: Digest of the content, 32 hexadecimal digits.
        size: Maximum number of bytes that are sent; 0 if only the address is sent.
        width: Width in pixels of the image that is sent, 0 if unknown.
        height: Height in pixels of the image that is sent, 0 if unknown.
        pages: Pages of the document that is sent, 0 if unknown.
        detail: OpenAI's level of detail for an image; `None` leaves it to the provider.
        url: The address, if it is sent instead of the content.
        load: Reads the bytes that are sent; it may block.
    """

    kind: MediaKind
    media_type: str
    digest: str
    size: int = 0
    width: int = 0
    height: int = 0
    pages: int = 0
    detail: str | None = None
    url: str | None = field(default=None, repr=False)
    load: Callable[[], bytes] = field(default=bytes, repr=False, compare=False)

    @property
    def reference(self) -> str:
        """The text that stands for it in a prompt."""
        return f"{_BEGIN}{self.kind}:{self.digest}{_END}"

    def __str__(self) -> str:
        return self.reference


MediaMap: TypeAlias = Mapping[str, Media]
"""Images and documents by their references."""


def escape_marks(text: str) -> str:
    """Replace the characters that delimit references, so that a row's text cannot refer to another row's image."""
    return text.translate(_MARKS) if _BEGIN in text or _END in text else text


def split_media(text: str, media: MediaMap) -> Iterator[str | Media]:
    """Split `text` at its references into texts and media, in order; unknown references stay text."""
    position = 0
    for match in _REFERENCE.finditer(text):
        part = media.get(match[0])
        if part is not None:
            if match.start() > position:
                yield text[position : match.start()]
            yield part
            position = match.end()
    if position < len(text):
        yield text[position:]


def find_media(text: str, media: MediaMap) -> list[Media]:
    """The media that `text` refers to, one for each reference."""
    return [part for part in split_media(text, media) if isinstance(part, Media)] if media else []


def remove_media(text: str, media: MediaMap) -> str:
    """Remove the references from `text`."""
    return "".join(part for part in split_media(text, media) if isinstance(part, str)) if media else text
