"""The content of a request as a provider reads it: its text, and images and documents in each dialect.

It shares no code with what writes them.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

_BEGINNINGS = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"%PDF": "application/pdf",
}


@dataclass(frozen=True)
class Seen:
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
    return next((kind for start, kind in _BEGINNINGS.items() if content.startswith(start)), None)


def text_of(content: Any) -> str:
    """The text of a message, with placeholders for images and documents."""
    if isinstance(content, str):
        return content
    return "".join(_seen(part).name if _is_media(part) else part.get("text", "") for part in content)


def media_of(content: Any) -> Iterator[Seen]:
    """The images and documents of a message."""
    if not isinstance(content, str):
        yield from (_seen(part) for part in content if _is_media(part))


def _is_media(part: Mapping[str, Any]) -> bool:
    return part.get("type") in ("image_url", "file", "image", "document") or "inlineData" in part


def _seen(part: Mapping[str, Any]) -> Seen:
    if "inlineData" in part:
        data = part["inlineData"]
        return Seen("inlineData", data["mimeType"], b64decode(data["data"], validate=True))
    if part["type"] in ("image", "document"):
        source = part["source"]
        if source["type"] == "url":
            return Seen(part["type"], "", url=source["url"])
        return Seen(part["type"], source["media_type"], b64decode(source["data"], validate=True))
    url = part["file"]["file_data"] if part["type"] == "file" else part["image_url"]["url"]
    detail = part["image_url"].get("detail") if part["type"] == "image_url" else None
    if not url.startswith("data:"):
        return Seen(part["type"], "", url=url, detail=detail)
    head, _, body = url.partition(",")
    media_type, _, encoding = head.removeprefix("data:").partition(";")
    assert encoding == "base64"
    return Seen(part["type"], media_type, b64decode(body, validate=True), detail=detail)
