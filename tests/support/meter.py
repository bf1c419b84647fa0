"""Simulate a provider's token counts, prompt cache and bill: tokens by length, entries that expire, prices by tier.

It shares no code with the packages under test. The cache holds prefixes whose lengths are multiples of a step. An entry
exists once the call that wrote it is answered, and expires some time after its last use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from typing import Any

import orjson

_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True)
class Rates:
    """USD for each token."""

    input: Decimal
    read: Decimal
    write: Decimal
    output: Decimal


@dataclass(frozen=True)
class Cache:
    """A provider's prompt cache.

    Prefixes of at least `min_tokens`, whose length is a multiple of `step`, are kept for `life_s` after their last use.
    With `is_marked` only the prefix that a call marks is cached, whatever its length.
    """

    min_tokens: int = 1024
    step: int = 128
    life_s: float = 300.0
    is_marked: bool = False


def rates_of(entry: Mapping[str, Any], tier: str = "") -> Rates:
    """The prices of an entry of the price list, at a tier (`""` is the standard one)."""
    suffix = f"_{tier}" if tier else ""

    def usd(name: str, other: str) -> Decimal:
        return Decimal(repr(entry.get(f"{name}{suffix}", entry[f"{other}{suffix}"])))

    return Rates(
        usd("input_cost_per_token", "input_cost_per_token"),
        usd("cache_read_input_token_cost", "input_cost_per_token"),
        usd("cache_creation_input_token_cost", "input_cost_per_token"),
        usd("output_cost_per_token", "output_cost_per_token"),
    )


def prompt_text(body: Mapping[str, Any]) -> str:
    """The parts of a request that are the prompt, in the order in which a provider reads them."""
    schema = orjson.dumps(body.get("response_format", "")).decode()
    return schema + "".join(f"<{message['role']}>{message['content']}" for message in body["messages"])


def tokens_of(text: str) -> int:
    """Tokens of a text."""
    return max(1, len(text) // _CHARACTERS_A_TOKEN)


class Meter:
    """Counts and bills calls.

    Args:
        rates: Prices by the tier that a reply states.
        cache: The prompt cache; `None` caches nothing.
        answered_at: Returns the tier at which a call is answered, from the requested tier and the call's number.
        now: Returns the time in seconds.

    Attributes:
        usd: The bill.
        input_tokens, read_tokens, written_tokens: All input tokens, those read from the cache, and those written to it.
        cacheable_tokens: Tokens that could have been read from the cache, of all calls but the first.
        by_tier: Number of calls by the tier at which they were answered.
    """

    def __init__(
        self,
        rates: Mapping[str, Rates],
        cache: Cache | None = None,
        answered_at: Callable[[str, int], str] = lambda asked, _: asked,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rates, self._cache, self._answered_at, self._now = rates, cache, answered_at, now
        self._alive_until: dict[bytes, float] = {}
        self.usd = Decimal(0)
        self.calls = self.input_tokens = self.read_tokens = self.written_tokens = self.cacheable_tokens = 0
        self.by_tier: dict[str, int] = {}

    def bill(self, prompt: str, answer: str, asked_tier: str, marked: int | None = None) -> tuple[dict[str, Any], str]:
        """Bill a call that marks `marked` characters; returns its usage in OpenAI's format, and the tier."""
        tier = self._answered_at(asked_tier, self.calls)
        sent, received, read = tokens_of(prompt), tokens_of(answer), self._read(prompt, marked)
        cacheable = max(self._prefixes(prompt, marked), default=0)
        written = cacheable - read if self._rates[tier].write > self._rates[tier].input else 0
        rates = self._rates[tier]
        fresh = sent - read - written
        self.usd += fresh * rates.input + read * rates.read + written * rates.write + received * rates.output
        self.cacheable_tokens += cacheable if self.calls else 0
        self.calls += 1
        self.input_tokens += sent
        self.read_tokens += read
        self.written_tokens += written
        self.by_tier[tier] = self.by_tier.get(tier, 0) + 1
        details = {"cached_tokens": read, **({"cache_write_tokens": written} if written else {})}
        return {"prompt_tokens": sent, "completion_tokens": received, "prompt_tokens_details": details}, tier

    def keep(self, prompt: str, marked: int | None = None) -> None:
        """Cache the prefixes of a prompt, because its call is answered."""
        if self._cache:
            for prefix in self._prefixes(prompt, marked).values():
                self._alive_until[prefix] = self._now() + self._cache.life_s

    def _read(self, prompt: str, marked: int | None) -> int:
        now, prefixes = self._now(), self._prefixes(prompt, marked)
        return max((length for length, prefix in prefixes.items() if self._alive_until.get(prefix, 0) > now), default=0)

    def _prefixes(self, prompt: str, marked: int | None) -> dict[int, bytes]:
        """Digests of the prefixes that can be cached, by their number of tokens."""
        if self._cache is None:
            return {}
        if self._cache.is_marked:
            length = tokens_of(prompt[:marked]) if marked else 0
            long_enough = length >= self._cache.min_tokens
            return {length: blake2b(prompt[:marked].encode(), digest_size=12).digest()} if long_enough else {}
        first = -(-self._cache.min_tokens // self._cache.step) * self._cache.step
        digest, done, found = blake2b(digest_size=12), 0, {}
        for length in range(first, tokens_of(prompt) + 1, self._cache.step):
            end = length * _CHARACTERS_A_TOKEN
            digest.update(prompt[done:end].encode())
            done = end
            found[length] = digest.digest()
        return found
