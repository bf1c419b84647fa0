"""Images and documents as parts of a request, by the API references of OpenAI, Anthropic and Google.

The bytes are read here, just before a call is sent, so writing a call with media must not run on the event loop.
"""

from __future__ import annotations

from base64 import b64encode

from ondine_core.errors import RefusedError
from ondine_core.types.media import Media, MediaMap, split_media
from ondine_core.types.values import Json


def openai_content(text: str, media: MediaMap) -> Json:
    """The content of a message in OpenAI's dialect: a text, or parts if it refers to images or documents."""
    if not media:
        return text
    parts = list(split_media(text, media))
    if not any(isinstance(part, Media) for part in parts):
        return text
    return [{"type": "text", "text": part} if isinstance(part, str) else _openai_part(part) for part in parts]


def _openai_part(media: Media) -> dict[str, Json]:
    address = media.url or f"data:{media.media_type};base64,{_read(media)}"
    if media.kind == "document":
        return {"type": "file", "file": {"filename": f"{media.digest[:8]}.pdf", "file_data": address}}
    detail = {} if media.detail is None else {"detail": media.detail}
    return {"type": "image_url", "image_url": {"url": address, **detail}}


def anthropic_content(text: str, media: MediaMap) -> list[dict[str, Json]]:
    """The blocks of a message in Anthropic's API, which refuses blank ones."""
    return [
        {"type": "text", "text": part} if isinstance(part, str) else _anthropic_block(part)
        for part in split_media(text, media)
        if isinstance(part, Media) or part.strip()
    ]


def _anthropic_block(media: Media) -> dict[str, Json]:
    if media.url is not None:
        return {"type": media.kind, "source": {"type": "url", "url": media.url}}
    source = {"type": "base64", "media_type": media.media_type, "data": _read(media)}
    return {"type": media.kind, "source": source}


def gemini_parts(text: str, media: MediaMap) -> list[dict[str, Json]]:
    """The parts of a message in Gemini's own API."""
    parts = list(split_media(text, media)) if media else []
    return [
        {"text": part} if isinstance(part, str) else {"inlineData": {"mimeType": part.media_type, "data": _read(part)}}
        for part in parts or [text]
    ]


def _read(media: Media) -> str:
    """The bytes to send, in base64.

    Raises:
        RefusedError: They cannot be read, which fails the row.
    """
    try:
        return b64encode(media.load()).decode()
    except ValueError as error:  # MediaError, which does not quote the content
        reason = str(error)
    except Exception as error:  # noqa: BLE001  (a file may be gone, a decoder may fail)
        reason = type(error).__name__
    raise RefusedError(f"The {media.kind} of the row cannot be read any more: {reason}.", fault="row")
