"""Price tiers: which provider has which, how a request asks for one, how replies name them, and their prices.

A tier does not change answers, so keys do not include it. A call costs the price of the tier that its reply names;
until then the price of the most expensive tier that may answer is reserved. Regional endpoints add a surcharge to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final, get_args
from urllib.parse import urlsplit

from ondine_core.errors import ConfigError
from ondine_core.providers.openai_servers import find_address
from ondine_core.providers.pricing import Price, find_entry, find_price
from ondine_core.providers.settings import first_set
from ondine_core.types.values import ModelSpec, Tier


@dataclass(frozen=True, slots=True)
class ProviderTiers:
    """The tiers of a provider besides `"standard"`, which every provider has.

    Args:
        words: The value of the request field `service_tier` for each tier.
        at_list_price: Tiers that cost at most as much as the standard tier; used if the price data has no price.
        is_listed: Whether the price data says which models have which tiers; otherwise all models are assumed to.
        has_jobs: Whether the provider has a batch API, which is the tier `"batch"`.
    """

    words: Mapping[Tier, str]
    at_list_price: tuple[Tier, ...] = ()
    is_listed: bool = True
    has_jobs: bool = False


_BOTH: Final[Mapping[Tier, str]] = {"flex": "flex", "priority": "priority"}
_PROVIDERS: Mapping[str, ProviderTiers] = {
    "openai": ProviderTiers(_BOTH, has_jobs=True),
    "azure": ProviderTiers(_BOTH, has_jobs=True),
    "gemini": ProviderTiers(_BOTH, has_jobs=True),
    "bedrock": ProviderTiers(_BOTH),
    "fireworks_ai": ProviderTiers({"priority": "priority"}),
    "openrouter": ProviderTiers(_BOTH, is_listed=False),
    # Flex has higher limits at the same price; performance is capacity by contract.
    "groq": ProviderTiers({"flex": "flex", "priority": "performance"}, ("flex",), is_listed=False, has_jobs=True),
    # Capacity by contract if the account has some, otherwise the standard tier.
    "anthropic": ProviderTiers({"priority": "auto"}, ("priority",), is_listed=False, has_jobs=True),
    # Batches are cheaper at Mistral, and at Together for some models; the price data does not say by how much.
    "mistral": ProviderTiers({}, ("batch",), has_jobs=True),
    "together_ai": ProviderTiers({}, ("batch",), has_jobs=True),
}
JOB_PROVIDERS: Final = tuple(name for name, provider in _PROVIDERS.items() if provider.has_jobs)
"""The providers with a batch API."""
_NAMES: Mapping[str, Tier] = {
    **dict.fromkeys(("default", "standard", "on_demand", "scale"), "standard"),
    "flex": "flex",
    **dict.fromkeys(("priority", "performance"), "priority"),
    "batch": "batch",
}
"""The names of tiers in replies."""


def find_tiers(spec: ModelSpec) -> tuple[Tier, ...]:
    """The known tiers of the model of `spec`, the standard one first."""
    provider = _PROVIDERS.get(spec.dialect)
    if provider is None:
        return ("standard",)
    entry = find_entry(spec.listed_as)
    is_open = entry is None or not provider.is_listed
    live = (tier for tier in provider.words if is_open or find_price(spec.listed_as, tier=tier))
    return ("standard", *live, *(("batch",) if provider.has_jobs else ()))


def check_tier(spec: ModelSpec) -> None:
    """Refuse a tier that the model does not have."""
    tiers = find_tiers(spec)
    if spec.tier not in tiers:
        where = f" Those with a batch API are {', '.join(JOB_PROVIDERS)}." if spec.tier == "batch" else ""
        raise ConfigError(
            f"tier={spec.tier!r}: {spec.model!r} has no such tier; it has {', '.join(map(repr, tiers))}.{where}"
        )


def tier_fields(spec: ModelSpec, tier: Tier) -> dict[str, str]:
    """The request fields that ask for `tier`; empty for the standard one and for batch jobs."""
    provider = _PROVIDERS.get(spec.dialect)
    if provider is None or tier not in provider.words:
        return {}
    return {"service_tier": provider.words[tier]}


def billed_tier(named: str | None, asked: Tier) -> Tier | None:
    """The tier that a reply was billed at: the one that it names, else `asked`; `None` for an unknown name."""
    if named is None or named == "auto":
        return asked
    return _NAMES.get(named.lower())


def find_tier_prices(spec: ModelSpec) -> dict[Tier, Price]:
    """The known prices of the model of `spec` at its endpoint, by tier."""
    provider = _PROVIDERS.get(spec.dialect)
    prices: dict[Tier, Price] = {}
    hour, surcharge = spec.prompt_cache == "1h", _find_surcharge(spec)
    for tier in get_args(Tier):
        if tier == "batch" and spec.dialect not in JOB_PROVIDERS:
            continue
        price = find_price(spec.listed_as, spec.params, tier, hour=hour)
        if price is None and provider and tier in provider.at_list_price:
            price = find_price(spec.listed_as, spec.params, hour=hour)
        if price is not None:
            prices[tier] = _add_surcharge(price, surcharge)
    return prices


# -- surcharges of regional endpoints, by the price data -----------------------------------------------------------

_OPENAI_HOSTS: Mapping[str, str] = {
    "eu.api.openai.com": "regional_processing_uplift_multiplier_eu",
    "us.api.openai.com": "regional_processing_uplift_multiplier_us",
    "gov.api.openai.com": "fedramp_uplift_multiplier",
}
_VERTEX = "regional_endpoint_uplift_multiplier"
# Those of litellm, of Google's package and of Anthropic's.
_VERTEX_LOCATION = ("VERTEXAI_LOCATION", "VERTEX_LOCATION", "GOOGLE_CLOUD_LOCATION", "CLOUD_ML_REGION")
_TOKEN_PRICES = ("input", "output", "cached_input", "reasoning", "cache_write", "cache_write_1h")


def _find_surcharge(spec: ModelSpec) -> Decimal:
    """The factor on listed prices of tokens at the endpoint of `spec`; 1 without a surcharge."""
    name = _surcharge_name(spec)
    factor = (find_entry(spec.listed_as) or {}).get(name) if name else None
    return Decimal(1) if factor is None else Decimal(repr(factor))


def _surcharge_name(spec: ModelSpec) -> str | None:
    """The name of the factor in the price data; `None` if the endpoint has none."""
    if spec.dialect == "openai":
        return _OPENAI_HOSTS.get(urlsplit(find_address(spec) or "").hostname or "")
    if spec.dialect == "vertex_ai":
        # Without a location litellm uses a regional endpoint.
        return None if (find_vertex_location(spec) or "").lower() == "global" else _VERTEX
    return None


def find_vertex_location(spec: ModelSpec) -> str | None:
    """The location at which Vertex AI is asked, by `spec` or a variable; `None` if litellm chooses one."""
    given = spec.settings.get("vertex_location") or spec.params.get("vertex_location")
    return str(given) if given else first_set(_VERTEX_LOCATION)


def _add_surcharge(price: Price, factor: Decimal) -> Price:
    """`price` with the prices of tokens multiplied by `factor`."""
    if factor == 1:
        return price
    prices = {name: getattr(price, name) for name in _TOKEN_PRICES}
    dearer: dict[str, Any] = {name: None if usd is None else usd * factor for name, usd in prices.items()}
    beyond = tuple((length, _add_surcharge(longer, factor)) for length, longer in price.beyond)
    return replace(price, **dearer, beyond=beyond)
