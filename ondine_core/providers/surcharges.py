"""Surcharges of regional endpoints on the listed prices of tokens, by the price data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from ondine_core.providers.openai_servers import find_address
from ondine_core.providers.pricing import Price, find_entry
from ondine_core.providers.settings import first_set
from ondine_core.types.values import ModelSpec

_OPENAI_HOSTS: Mapping[str, str] = {
    "eu.api.openai.com": "regional_processing_uplift_multiplier_eu",
    "us.api.openai.com": "regional_processing_uplift_multiplier_us",
    "gov.api.openai.com": "fedramp_uplift_multiplier",
}
_VERTEX = "regional_endpoint_uplift_multiplier"
# Those of litellm, of Google's package and of Anthropic's.
_VERTEX_LOCATION = ("VERTEXAI_LOCATION", "VERTEX_LOCATION", "GOOGLE_CLOUD_LOCATION", "CLOUD_ML_REGION")
_TOKEN_PRICES = ("input", "output", "cached_input", "reasoning", "cache_write", "cache_write_1h")


def find_surcharge(spec: ModelSpec) -> Decimal:
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


def add_surcharge(price: Price, factor: Decimal) -> Price:
    """`price` with the prices of tokens multiplied by `factor`."""
    if factor == 1:
        return price
    prices = {name: getattr(price, name) for name in _TOKEN_PRICES}
    dearer: dict[str, Any] = {name: None if usd is None else usd * factor for name, usd in prices.items()}
    beyond = tuple((length, add_surcharge(longer, factor)) for length, longer in price.beyond)
    return replace(price, **dearer, beyond=beyond)
