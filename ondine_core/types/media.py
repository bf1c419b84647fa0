"""Images and documents as values: what a provider is shown, and how a prompt's text refers to it.

A prompt stays a text. In the place of an image it has a reference, a digest of the content between two private-use
characters, so keys hash the content and the store never holds an image. `Media` only locates the bytes, which are read
when a call leaves, and are not kept.
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
    """A cell holds no image or document that can be sent; the message names nothing of its content."""


@contextmanager
def as_media_error(what: str) -> Iterator[None]:
    """Report any error of a library that reads a file as a `MediaError`, since only its row fails."""
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
        kind: What it is.
        media_type: MIME type of what is sent.
        digest: Names the content: 32 hexadecimal digits.
        size: Bytes that are sent at most; 0 for an address that is passed on.
        width: Pixels of an image as it is sent, 0 if unknown.
        height: The same.
        pages: Pages of a document as it is sent, 0 if unknown.
        detail: How closely a model is to look, in OpenAI's words; `None` leaves it to the provider.
        url: The address, if that is sent instead of the content.
        load: Reads what is sent; it may block.
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
        """What stands for it in a prompt."""
        return f"{_BEGIN}{self.kind}:{self.digest}{_END}"

    def __str__(self) -> str:
        return self.reference


MediaMap: TypeAlias = Mapping[str, Media]
"""Images and documents by their references."""


def escape_marks(text: str) -> str:
    """`text` of a row without the characters that delimit references, so that it cannot name another row's image."""
    return text.translate(_MARKS) if _BEGIN in text or _END in text else text


def split_media(text: str, media: MediaMap) -> Iterator[str | Media]:
    """`text` in order as pieces of text and what is referred to between them; unknown references stay text."""
    position = 0
    for found in _REFERENCE.finditer(text):
        part = media.get(found[0])
        if part is not None:
            if found.start() > position:
                yield text[position : found.start()]
            yield part
            position = found.end()
    if position < len(text):
        yield text[position:]


def find_media(text: str, media: MediaMap) -> list[Media]:
    """What `text` refers to, as often as it does."""
    return [part for part in split_media(text, media) if isinstance(part, Media)] if media else []


def without_media(text: str, media: MediaMap) -> str:
    """The words of `text`, without references."""
    return "".join(part for part in split_media(text, media) if isinstance(part, str)) if media else text
