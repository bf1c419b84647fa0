"""Which models take images and documents, and how much of them one request may carry.

Sources: the providers' pages on images, files and request sizes, as of November 2026. Limits that are not listed are
left to the provider.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ondine_core.errors import ConfigError
from ondine_core.providers.model_data import model_facts
from ondine_core.providers.pricing import find_entry
from ondine_core.types.media import Media, MediaKind
from ondine_core.types.values import Call, ModelSpec

_MB = 10**6


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """The most that one request may carry; `None` for a limit that is not known.

    Args:
        bytes: Bytes of the request, with images and documents in base64.
        each_bytes: Bytes of one image, before base64.
        images: Number of images.
        side_px: Pixels of the longer side of an image.
        fetches: Whether the provider fetches images by their addresses.
        fetches_documents: Whether it fetches documents.
    """

    bytes: int | None = None
    each_bytes: int | None = None
    images: int | None = None
    side_px: int | None = None
    fetches: bool = False
    fetches_documents: bool = False

    def take(self, size: int, images: int) -> bool:
        """Whether a request of `size` bytes with this number of images is within the limits."""
        return (self.bytes is None or size <= self.bytes) and (self.images is None or images <= self.images)


_LIMITS: Mapping[str, MediaLimits] = {
    "openai": MediaLimits(50 * _MB, None, 500, None, fetches=True),
    "azure": MediaLimits(50 * _MB, 20 * _MB, 50, None, fetches=True),
    "anthropic": MediaLimits(32 * _MB, 3_932_160, 100, 8_000, fetches=True, fetches_documents=True),
    "gemini": MediaLimits(20 * _MB, None, 3_000, None),
    "groq": MediaLimits(4 * _MB, None, 5, None, fetches=True),
    "mistral": MediaLimits(None, 10 * _MB, 8, None, fetches=True),
    "xai": MediaLimits(None, 20 * _MB, None, None, fetches=True),
    "bedrock": MediaLimits(None, 3_750_000, 20, 8_000),
    **dict.fromkeys(
        ("together_ai", "fireworks_ai", "openrouter", "deepinfra", "perplexity"), MediaLimits(fetches=True)
    ),
}
"""Anthropic's limit is 5 MiB of an image in base64. For the user's own servers, addresses are fetched here, where
private ones are refused: such a server could fetch from its own network."""
_UNKNOWN = MediaLimits()
_TEXT_ONLY = ("llama_cpp", "mlx")
_KEYS: Mapping[MediaKind, tuple[str, ...]] = {
    "image": ("supports_vision", "supports_image_input"),
    "document": ("supports_pdf_input",),
}
_DATED = re.compile(r"\d{4}")
_MAX_NAMED = 3
_LEFT_FOR_TEXT = 2**16
"""Bytes of a request besides its messages: schema and fields."""


def find_media_limits(spec: ModelSpec) -> MediaLimits:
    """The limits of a request to the provider of `spec`."""
    return _LIMITS.get(spec.dialect, _UNKNOWN)


def check_media(spec: ModelSpec, kinds: Collection[MediaKind]) -> None:
    """Refuse a model that does not take images or documents, as far as the price list knows.

    Raises:
        ConfigError: It does not take one of the `kinds`.
    """
    if kinds and spec.dialect in _TEXT_ONLY:
        raise ConfigError(
            f"The prompt has {' and '.join(sorted(kinds))}s, which models in this process do not take; "
            f"{spec.model!r} reads text only. Ask a server instead, such as Ollama or llama.cpp's own."
        )
    entry = find_entry(spec.listed_as)
    for kind in sorted(kinds):
        if entry is not None and not _takes(entry, kind):
            capable = _capable_models(spec.listed_as.partition("/")[0], kind)
            others = f" Models that do: {', '.join(map(repr, capable))}." if capable else ""
            raise ConfigError(
                f"The prompt has {kind}s, which {spec.model!r} does not take by the price list.{others} If it does, "
                "set Prompt(..., media=MediaOptions(check_model=False))."
            )


def _takes(entry: Mapping[str, Any], kind: MediaKind) -> bool:
    return any(entry.get(key) for key in _KEYS[kind])


def _capable_models(provider: str, kind: MediaKind) -> list[str]:
    """The cheapest models of a provider that take this kind, at most three."""
    models = []
    for name, entry in model_facts().items():
        own = name.removeprefix(f"{provider}/")
        if entry.get("mode") != "chat" or not _takes(entry, kind):
            continue
        usd = entry.get("input_cost_per_token")
        if usd and not _DATED.search(own) and find_entry(f"{provider}/{own}") is entry:
            models.append(("/" in own, usd, f"{provider}/{own}"))  # names without a region come first
    return [name for _, _, name in sorted(models)[:_MAX_NAMED]]


# -- requests ------------------------------------------------------------------------------------------------------


def sent_bytes(media: Media) -> int:
    """Bytes that an image or document takes in a request, in base64."""
    return len(media.url) if media.url is not None else -(-media.size // 3) * 4


def find_unsendable(call: Call, spec: ModelSpec) -> str | None:
    """The reason why the provider cannot take the images and documents of `call`; `None` if none is known."""
    limits, sent = find_media_limits(spec), call.shown_media
    for media in sent:
        reason = _reason_against(media, limits, spec)
        if reason:
            return reason
    size = sum(map(sent_bytes, sent)) + sum(len(message.content.encode()) for message in call.messages)
    images = sum(media.kind == "image" for media in sent)
    if limits.take(size + _LEFT_FOR_TEXT, images):
        return None
    is_too_large = limits.bytes is not None and size + _LEFT_FOR_TEXT > limits.bytes
    most = f"{limits.bytes:,} bytes" if is_too_large else f"{limits.images} images"
    return (
        f"its {len(sent)} images and documents take {size:,} bytes of a request, of which {spec.provider!r} takes "
        f"{most}; send fewer, or set max_side_px"
    )


def _reason_against(media: Media, limits: MediaLimits, spec: ModelSpec) -> str | None:
    """The reason why the provider cannot take this image or document; `None` if none is known."""
    if media.url is not None:
        fetches = limits.fetches if media.kind == "image" else limits.fetches_documents
        return None if fetches else f"{spec.provider!r} does not fetch {media.kind}s by address; set fetch=True"
    if media.kind == "image" and limits.each_bytes is not None and media.size > limits.each_bytes:
        return f"its image has {media.size:,} bytes, {spec.provider!r} takes {limits.each_bytes:,}; set max_side_px"
    longest = max(media.width, media.height)
    if limits.side_px is not None and longest > limits.side_px:
        return (
            f"its image has {longest:,} pixels on a side, {spec.provider!r} takes {limits.side_px:,}; set max_side_px"
        )
    return None
