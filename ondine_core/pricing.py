"""What a model's tokens cost: read from the data file that litellm ships, without importing litellm.

Copied price tables rot, so there is none here. An unknown model has no price, never a price of 0. Some providers charge
a call with a long prompt more for each of its tokens, so a price is applied call by call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson

from ondine_core.values import Usage

__all__ = ["FREE", "Price", "find_entry", "find_max_output_tokens", "find_price"]

_PRICE_FILE = "model_prices_and_context_window_backup.json"
_LOCAL = ("llama_cpp", "mlx", "scripted")
_INPUT, _OUTPUT, _CACHED = "input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost"
_REASONING, _CACHE_WRITE = "output_cost_per_reasoning_token", "cache_creation_input_token_cost"
_BEYOND = re.compile(rf"(?:{_INPUT}|{_OUTPUT}|{_CACHED}|{_CACHE_WRITE})_above_(\d+)k_tokens")


@dataclass(frozen=True, slots=True)
class Price:
    """USD per token.

    Args:
        input: For the prompt.
        output: For the reply.
        cached_input: For what of the prompt the provider had in its cache.
        reasoning: For what of the reply was thinking; `None` if that costs as much as the rest.
        beyond: Prices for longer prompts: each replaces this one, for the whole call, if the prompt has more tokens
            than the number it comes with.
        cache_write: For what of the prompt the provider put into its cache; `None` if that costs as much as the rest.
    """

    input: Decimal
    output: Decimal
    cached_input: Decimal
    reasoning: Decimal | None = None
    beyond: tuple[tuple[int, Price], ...] = ()
    cache_write: Decimal | None = None

    def cost(self, usage: Usage) -> Decimal:
        """USD for `usage` of one call; of many, add up what each cost, for its price depends on its length."""
        *_, price = self._up_to(usage.input_tokens)
        fresh = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        thinking = price.output if price.reasoning is None else price.reasoning
        keeping = price.input if price.cache_write is None else price.cache_write
        return (
            fresh * price.input
            + usage.cached_input_tokens * price.cached_input
            + usage.cache_write_tokens * keeping
            + (usage.output_tokens - usage.reasoning_tokens) * price.output
            + usage.reasoning_tokens * thinking
        )

    def at_most(self, input_tokens: int, output_tokens: int) -> Decimal:
        """The most USD that a call of at most so many tokens can cost, whatever of it is cached or thinking."""
        prices = self._up_to(input_tokens)
        sent = max(max(price.input, price.cached_input, price.cache_write or price.input) for price in prices)
        received = max(max(price.output, price.reasoning or price.output) for price in prices)
        return input_tokens * sent + output_tokens * received

    def _up_to(self, input_tokens: int) -> list[Price]:
        """The prices of prompts of this length and shorter, its own last."""
        reached = sorted((tier for tier in self.beyond if input_tokens > tier[0]), key=itemgetter(0))
        return [self, *(price for _, price in reached)]


FREE = Price(Decimal(0), Decimal(0), Decimal(0))
"""The price of a model that runs in this process."""


def find_price(model: str) -> Price | None:
    """The list price of `model`, named as in `openai/gpt-4o-mini`; `None` when no price is known."""
    if model.partition("/")[0] in _LOCAL:
        return FREE
    prices = list(_by_length(find_entry(model) or {}))
    return replace(prices[0][1], beyond=tuple(prices[1:])) if prices else None


def find_max_output_tokens(model: str) -> int | None:
    """The most tokens that one reply of `model` can have; `None` when that is not known."""
    found = (find_entry(model) or {}).get("max_output_tokens")
    return found if isinstance(found, int) else None


def find_entry(model: str) -> dict[str, Any] | None:
    """What the data file says of `model`, named as in `openai/gpt-4o-mini`; `None` when it does not know it."""
    provider, _, name = model.partition("/")
    models = _price_map()
    if not name or model in models:
        return models.get(model) if name else None
    # The map names OpenAI's own models without the provider; another provider's model of that name is not the same.
    return models[name] if models.get(name, {}).get("litellm_provider") == provider else None


def _by_length(entry: Mapping[str, Any]) -> Iterator[tuple[int, Price]]:
    """The prices of an entry, for the shortest prompts first, each with the length beyond which it holds."""
    tiers = [tier for tier in entry.get("tiered_pricing", ()) if {"range", _INPUT, _OUTPUT} <= tier.keys()]
    if tiers:
        yield from sorted(((int(tier["range"][0]), _price(tier)) for tier in tiers), key=itemgetter(0))
    elif {_INPUT, _OUTPUT} <= entry.keys():
        yield 0, _price(entry)
        lengths = {int(match[1]) for name in entry if (match := _BEYOND.fullmatch(name))}
        for length in sorted(lengths):
            above = {
                name: entry.get(f"{name}_above_{length}k_tokens", entry.get(name))
                for name in (_INPUT, _OUTPUT, _CACHED, _CACHE_WRITE)
            }
            # At xAI a prompt of exactly that length is a long one already.
            yield length * 1000 - (entry.get("litellm_provider") == "xai"), _price(above)


def _price(entry: Mapping[str, Any]) -> Price:
    paid, answered = _usd(entry[_INPUT]), _usd(entry[_OUTPUT])
    cached, thinking, keeping = (entry.get(name) for name in (_CACHED, _REASONING, _CACHE_WRITE))
    return Price(
        paid,
        answered,
        paid if cached is None else _usd(cached),
        None if thinking is None else _usd(thinking),
        cache_write=None if keeping is None else _usd(keeping),
    )


def _usd(number: float) -> Decimal:
    # By way of the shortest decimal text: 1.5e-07 is meant, not its nearest binary fraction.
    return Decimal(repr(number))


@cache
def _price_map() -> dict[str, dict[str, Any]]:
    package = find_spec("litellm")
    for folder in (package.submodule_search_locations or ()) if package else ():
        file = Path(folder) / _PRICE_FILE
        if file.is_file():
            models: dict[str, dict[str, Any]] = orjson.loads(file.read_bytes())
            return models
    return {}
