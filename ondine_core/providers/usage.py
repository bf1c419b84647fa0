"""What a reply says it used: the one place that reads token counts of the OpenAI dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ondine_core.values import Usage

__all__ = ["usage_of"]


def usage_of(data: Mapping[str, Any]) -> Usage:
    """The token counts of a completion; what the provider does not say is 0."""
    usage = data.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    cached, kept = details.get("cached_tokens") or 0, details.get("cache_write_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    sent, written = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    return Usage(int(sent), int(cached), int(written), int(reasoning), int(kept))
