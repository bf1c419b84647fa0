"""Prompt caches of providers: the shortest prefix that is cached, for how long, and which calls share a prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b

import orjson

from ondine_core.providers.pricing import find_entry
from ondine_core.types.values import Call, Message, ModelSpec

_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class CacheRule:
    """What a provider caches. An entry exists once the first call with its prefix is answered.

    Args:
        min_tokens: The shortest prefix that is cached; the price list may have another figure for a model.
        life_s: Seconds that an entry lives after its last use, at least.
        has_hour: Whether a request can ask for a life of an hour.
    """

    min_tokens: int = 1024
    life_s: float = 300.0
    has_hour: bool = False


_PROVIDERS: Mapping[str, CacheRule] = {
    **dict.fromkeys(("openai", "azure", "groq", "mistral", "xai"), CacheRule()),
    "anthropic": CacheRule(has_hour=True),
    "gemini": CacheRule(min_tokens=2048),
    "deepseek": CacheRule(min_tokens=64),
}
_KEY_HOSTS = ("api.openai.com", "api.mistral.ai")
"""Hosts with a request field that routes calls with one prefix to one cache; other servers may refuse it."""


def find_cache_rule(spec: ModelSpec) -> CacheRule | None:
    """The cache rule for the model of `spec`; `None` if none is known, or if caching is turned off."""
    rule = _PROVIDERS.get(spec.dialect)
    if rule is None or spec.prompt_cache == "off":
        return None
    listed = (find_entry(spec.listed_as) or {}).get("prompt_cache_min_tokens")
    life_s = _HOUR_S if spec.prompt_cache == "1h" and rule.has_hour else rule.life_s
    return replace(rule, min_tokens=int(listed or rule.min_tokens), life_s=life_s)


def cache_key_field(host: str | None) -> str | None:
    """The request field for the identity of a prefix at the server `host`, if it has one."""
    return "prompt_cache_key" if host in _KEY_HOSTS else None


@dataclass(frozen=True, slots=True)
class Prefix:
    """The part of a call that is the same for every row: schema, messages, and the start of the last message."""

    json_schema: bytes | None
    messages: tuple[Message, ...]
    start: str


def prefix_of(call: Call) -> Prefix:
    """The fixed part of `call`."""
    *before, last = call.messages
    return Prefix(call.json_schema, tuple(before), last.content[: call.fixed_chars])


@lru_cache(maxsize=64)
def prefix_id(prefix: Prefix) -> str:
    """An identity of `prefix`, the same in every process: 32 hexadecimal characters."""
    parts = [[message.role, message.content] for message in prefix.messages]
    text = orjson.dumps([(prefix.json_schema or b"").decode(), parts, prefix.start])
    return blake2b(text, digest_size=16).hexdigest()
