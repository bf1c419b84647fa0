"""Read the text, images and documents of a request in each dialect, as a provider does.

It shares no code with the packages under test, which write them.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

_MAGIC_BYTES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"%PDF": "application/pdf",
}


@dataclass(frozen=True)
class ReceivedMedia:
    """A received image or document.

    Args:
        kind: The kind of the part.
        media_type: The type in the request.
        content: The bytes; empty for an address.
        url: The address.
        detail: The requested level of detail.
    """

    kind: str
    media_type: str
    content: bytes = b""
    url: str = ""
    detail: str | None = None

    @property
    def name(self) -> str:
        """Its placeholder in the text of a prompt."""
        return name_of(self.content or self.url.encode())


def name_of(content: bytes) -> str:
    """The placeholder of a content in the text of a prompt."""
    return f"[{sha256(content).hexdigest()[:12]}]"


def find_type(content: bytes) -> str | None:
    """The type of a content, by its first bytes."""
    return next((kind for start, kind in _MAGIC_BYTES.items() if content.startswith(start)), None)


def text_of(content: Any) -> str:
    """The text of a message, with placeholders for images and documents."""
    if isinstance(content, str):
        return content
    return "".join(_read_part(part).name if _is_media(part) else part.get("text", "") for part in content)


def media_of(content: Any) -> Iterator[ReceivedMedia]:
    """The images and documents of a message."""
    if not isinstance(content, str):
        yield from (_read_part(part) for part in content if _is_media(part))


def _is_media(part: Mapping[str, Any]) -> bool:
    return part.get("type") in ("image_url", "file", "image", "document") or "inlineData" in part


def _read_part(part: Mapping[str, Any]) -> ReceivedMedia:
    if "inlineData" in part:
        data = part["inlineData"]
        return ReceivedMedia("inlineData", data["mimeType"], b64decode(data["data"], validate=True))
    if part["type"] in ("image", "document"):
        source = part["source"]
        if source["type"] == "url":
            return ReceivedMedia(part["type"], "", url=source["url"])
        return ReceivedMedia(part["type"], source["media_type"], b64decode(source["data"], validate=True))
    url = part["file"]["file_data"] if part["type"] == "file" else part["image_url"]["url"]
    detail = part["image_url"].get("detail") if part["type"] == "image_url" else None
    if not url.startswith("data:"):
        return ReceivedMedia(part["type"], "", url=url, detail=detail)
    head, _, body = url.partition(",")
    media_type, _, encoding = head.removeprefix("data:").partition(";")
    assert encoding == "base64"
    return ReceivedMedia(part["type"], media_type, b64decode(body, validate=True), detail=detail)
