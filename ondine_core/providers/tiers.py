"""Price tiers: which provider has which, how a request asks for one, and what a reply calls it.

A tier is a way of asking, not part of the question, so it is in no key. What a call costs is decided by the tier that
its reply names; until then it is reserved at the dearest tier that may answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, get_args

from ondine_core.errors import ConfigError
from ondine_core.providers.pricing import Price, find_entry, find_price
from ondine_core.types.values import ModelSpec, Tier

__all__ = ["billed_tier", "check_tier", "find_tier_prices", "find_tiers", "tier_fields"]


@dataclass(frozen=True, slots=True)
class ProviderTiers:
    """The tiers of a provider besides `"standard"`, which every provider has.

    Args:
        words: What the request field `service_tier` says for each.
        at_list_price: Those that cost as much as the standard tier.
        is_listed: Whether the price data says which models have which; otherwise all models are taken to have all.
    """

    words: Mapping[Tier, str]
    at_list_price: tuple[Tier, ...] = ()
    is_listed: bool = True


_BOTH: Final[Mapping[Tier, str]] = {"flex": "flex", "priority": "priority"}
_PROVIDERS: Mapping[str, ProviderTiers] = {
    "openai": ProviderTiers(_BOTH),
    "azure": ProviderTiers(_BOTH),
    "gemini": ProviderTiers(_BOTH),
    "bedrock": ProviderTiers(_BOTH),
    "fireworks_ai": ProviderTiers({"priority": "priority"}),
    "openrouter": ProviderTiers(_BOTH, is_listed=False),
    # Flex has higher limits at the same price; performance is capacity that is paid for by contract.
    "groq": ProviderTiers({"flex": "flex", "priority": "performance"}, ("flex",), is_listed=False),
    # Committed capacity where there is some, otherwise the standard tier.
    "anthropic": ProviderTiers({"priority": "auto"}, ("priority",), is_listed=False),
}
_NAMES: Mapping[str, Tier] = {
    "default": "standard",
    "standard": "standard",
    "on_demand": "standard",
    "scale": "standard",
    "flex": "flex",
    "priority": "priority",
    "performance": "priority",
}
"""What replies call the tiers."""


def find_tiers(spec: ModelSpec) -> tuple[Tier, ...]:
    """The tiers of the model of `spec`, as far as is known; the standard one first."""
    provider = _provider_of(spec)
    if provider is None:
        return ("standard",)
    entry = find_entry(spec.listed_as)
    is_open = entry is None or not provider.is_listed
    return ("standard", *(tier for tier in provider.words if is_open or find_price(spec.listed_as, tier=tier)))


def check_tier(spec: ModelSpec) -> None:
    """Refuse a tier that the model does not have.

    Raises:
        ConfigError: It does not have it; the message names those it has.
    """
    if spec.tier not in get_args(Tier):
        raise ConfigError(f"tier={spec.tier!r} is not one of {', '.join(map(repr, get_args(Tier)))}.")
    tiers = find_tiers(spec)
    if spec.tier not in tiers:
        raise ConfigError(f"tier={spec.tier!r}: {spec.model!r} has no such tier; it has {', '.join(map(repr, tiers))}.")


def tier_fields(spec: ModelSpec, tier: Tier) -> dict[str, str]:
    """The request fields that ask for `tier`; none for the standard one."""
    provider = _provider_of(spec)
    if provider is None or tier not in provider.words:
        return {}
    return {"service_tier": provider.words[tier]}


def billed_tier(named: str | None, asked: Tier) -> Tier | None:
    """The tier that a reply was billed at, `None` if it names one that is not known.

    Args:
        named: What the reply calls it.
        asked: What was asked for, which holds where the reply does not say.
    """
    if named is None or named == "auto":
        return asked
    return _NAMES.get(named.lower())


def find_tier_prices(spec: ModelSpec) -> dict[Tier, Price]:
    """The list prices of the tiers of the model of `spec`, as far as they are known."""
    provider = _provider_of(spec)
    prices: dict[Tier, Price] = {}
    for tier in get_args(Tier):
        listed: Tier = "standard" if provider and tier in provider.at_list_price else tier
        price = find_price(spec.listed_as, spec.params, listed, hour=spec.prompt_cache == "1h")
        if price is not None:
            prices[tier] = price
    return prices


def _provider_of(spec: ModelSpec) -> ProviderTiers | None:
    return _PROVIDERS.get(spec.model.partition("/")[0])
