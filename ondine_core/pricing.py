"""What a model's tokens cost: read from the data file that litellm ships, without importing litellm.

Copied price tables rot, so there is none here. An unknown model has no price, never a price of 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from ondine_core.values import Usage

__all__ = ["FREE", "Price", "find_entry", "find_max_output_tokens", "find_price"]

_PRICE_FILE = "model_prices_and_context_window_backup.json"
_LOCAL = ("llama_cpp", "mlx", "scripted")


@dataclass(frozen=True, slots=True)
class Price:
    """USD per token."""

    input: Decimal
    output: Decimal
    cached_input: Decimal

    def cost(self, usage: Usage) -> Decimal:
        """USD for `usage`; input served from the provider's prompt cache is priced as such."""
        fresh = usage.input_tokens - usage.cached_input_tokens
        return fresh * self.input + usage.cached_input_tokens * self.cached_input + usage.output_tokens * self.output


FREE = Price(Decimal(0), Decimal(0), Decimal(0))
"""The price of a model that runs in this process."""


def find_price(model: str) -> Price | None:
    """The list price of `model`, named as in `openai/gpt-4o-mini`; `None` when no price is known."""
    if model.partition("/")[0] in _LOCAL:
        return FREE
    entry = find_entry(model)
    if entry is None or "input_cost_per_token" not in entry or "output_cost_per_token" not in entry:
        return None
    paid, answered = _usd(entry["input_cost_per_token"]), _usd(entry["output_cost_per_token"])
    cached = entry.get("cache_read_input_token_cost")
    return Price(paid, answered, paid if cached is None else _usd(cached))


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
