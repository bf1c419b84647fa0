"""Prices of tokens and requests, by the data of `model_data`.

An unknown model has no price (never a price of 0), nor has a request with a part that cannot be priced. Some providers
charge more for each token of a long prompt, so the price is applied to each call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from operator import itemgetter
from typing import Any

from ondine_core.errors import ConfigError
from ondine_core.providers.model_data import model_facts
from ondine_core.types.field_types import check_types
from ondine_core.types.values import Json, ModelSpec, Tier, Usage

IN_PROCESS = ("llama_cpp", "mlx", "scripted")
"""Providers that run in this process and charge nothing."""
_INPUT = "input_cost_per_token"
_OUTPUT = "output_cost_per_token"
_CACHED = "cache_read_input_token_cost"
_REASONING, _CACHE_WRITE = "output_cost_per_reasoning_token", "cache_creation_input_token_cost"
_CACHE_WRITE_1H = f"{_CACHE_WRITE}_above_1hr"
_REQUEST, _SEARCH = "input_cost_per_request", "search_context_cost_per_query"
_DEARER: Mapping[str, tuple[Json, ...]] = {
    "speed": ("fast",),
    "performanceConfig": ({"latency": "optimized"},),
    "inference_geo": ("us",),
}
"""Values of request fields that make a call more expensive than listed."""
_FREE = re.compile(r"(?:ollama|lemonade)/(?!.*-cloud$).*|.*[:-]free", re.DOTALL)
"""Models whose replies are free: those of local servers, and those with `free` in their names."""
_OTHER_PART = re.compile(r"citation_cost_per_token|(?:input|output)_cost_per_(?:character|second)|cost_per_second")
_SUFFIXES: Mapping[Tier, str] = {"flex": "_flex", "priority": "_priority", "batch": "_batches"}
_HALF_IN_BATCHES: Mapping[str, bool] = {
    "anthropic": True,
    **dict.fromkeys(("azure", "gemini", "groq", "openai"), False),
}
"""Providers whose batch jobs cost half of the list price, and whether that includes input read from the cache."""
_HALVED = re.compile(r"(?:input|output|cache_\w+_input)_(?:cost_per_(?:reasoning_)?token|token_cost)(?:_above_\w+)?")
_ONE_HOUR = re.compile(r"\b1h\b|\b3600\b")
_ALIAS = "alias_of"
_LISTED_PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "bedrock": ("bedrock_converse",),
    "vertex_ai": ("vertex_ai-",),
    "cohere": ("cohere_chat",),
}
"""Prefixes of other names that the data file has for a provider, by the name that users write."""
_ROUTE = re.compile(r"^bedrock/(?:chat_completions|converse|invoke)/")
"""The part of litellm's names that selects an API of the provider; it changes neither price nor limits."""
_SEARCHES = ("web_search_options", "search_parameters", "enable_search", "plugins")
_ROUTER = re.compile(r"model[-_]router")
_PAID_TOOL = re.compile(r"search|code_interpreter|code_execution|grounding|url_context", re.IGNORECASE)
_BEYOND = re.compile(rf"(?:{_INPUT}|{_OUTPUT}|{_CACHED}|{_CACHE_WRITE}|{_CACHE_WRITE_1H})_above_(\d+)k_tokens")


@dataclass(frozen=True, slots=True)
class Price:
    """USD per token, and per request.

    Args:
        input: For a token of the prompt.
        output: For a token of the reply.
        cached_input: For a token of the prompt that the provider read from its cache.
        reasoning: For a token of reasoning; `None` if it costs as much as `output`.
        beyond: Lengths of prompts in tokens and their prices; a price replaces this one, for the whole call, if the
            prompt is longer than its length.
        cache_write: For a token that the provider wrote to its cache; `None` if it costs as much as `input`.
        per_request: For each request, such as the fee of a model that searches the web.
        cache_write_1h: For a token written to the cache for an hour; `None` if it costs as much as `cache_write`.
    """

    input: Decimal
    output: Decimal
    cached_input: Decimal
    reasoning: Decimal | None = None
    beyond: tuple[tuple[int, Price], ...] = ()
    cache_write: Decimal | None = None
    per_request: Decimal = Decimal(0)
    cache_write_1h: Decimal | None = None

    def __post_init__(self) -> None:
        for name in ("input", "output", "cached_input", "reasoning", "cache_write", "per_request", "cache_write_1h"):
            usd: Any = getattr(self, name)
            if usd is not None and not (isinstance(usd, Decimal) and usd.is_finite() and usd >= 0):
                raise ConfigError(f"{name}={str(usd)!r} of a price must be a Decimal of USD, 0 or more.")
        check_types(self, ConfigError)

    def cost(self, usage: Usage) -> Decimal:
        """USD for the `usage` of one call; the sum of several calls has another cost, since prices depend on length.

        Tokens of unknown kind are charged as the most expensive kind, and may belong to the prompt.
        """
        if not usage.unexplained_tokens:
            return _cost_at(self._up_to(usage.input_tokens)[-1], usage, Decimal(0))
        return max(
            _cost_at(price, usage, max(price.dearest_input, price.dearest_output))
            for price in self._possible_prices(usage)
        )

    def proven(self, usage: Usage) -> Decimal:
        """USD that `usage` costs at least: tokens of unknown kind are charged as the cheapest kind."""
        return min(
            _cost_at(
                price,
                usage,
                min(price.input, price.cached_input, price.cache_write_price, price.output, price.thinking),
            )
            for price in self._possible_prices(usage)
        )

    def _possible_prices(self, usage: Usage) -> list[Price]:
        """The prices that may apply, depending on how many tokens of unknown kind belong to the prompt."""
        shorter = self._up_to(usage.input_tokens)[:-1]
        return self._up_to(usage.input_tokens + usage.unexplained_tokens)[len(shorter) :]

    def at_most(self, input_tokens: int, output_tokens: int | None) -> Decimal | None:
        """The most USD that a call with up to these tokens can cost, whatever part is cached or reasoning.

        `None` if the length of the reply is not bounded (`output_tokens` is `None`) and replies are not free.
        """
        prices = self._up_to(input_tokens)
        sent = max(price.dearest_input for price in prices)
        received = max(price.dearest_output for price in prices)
        if output_tokens is None and received > 0:
            return None
        fee = max(price.per_request for price in prices)
        return fee + input_tokens * sent + (output_tokens or 0) * received

    @property
    def cache_write_price(self) -> Decimal:
        """The price of a token that the provider writes to its cache."""
        return self.input if self.cache_write is None else self.cache_write

    @property
    def cache_write_1h_price(self) -> Decimal:
        """The price of a token that the provider writes to its cache for an hour."""
        return self.cache_write_price if self.cache_write_1h is None else self.cache_write_1h

    @property
    def thinking(self) -> Decimal:
        """The price of a token of reasoning."""
        return self.output if self.reasoning is None else self.reasoning

    @property
    def dearest_input(self) -> Decimal:
        """The highest price of a token of the prompt: plain, cached or written to the cache."""
        return max(self.input, self.cached_input, self.cache_write_price, self.cache_write_1h_price)

    @property
    def dearest_output(self) -> Decimal:
        """The highest price of a token of the reply."""
        return max(self.output, self.thinking)

    def _up_to(self, input_tokens: int) -> list[Price]:
        """The prices of prompts of this length and of shorter ones; the last is that of this length."""
        reached = sorted((tier for tier in self.beyond if input_tokens > tier[0]), key=itemgetter(0))
        return [self, *(price for _, price in reached)]


def _cost_at(price: Price, usage: Usage, unexplained_usd: Decimal) -> Decimal:
    """USD for `usage` at one price, regardless of `beyond`."""
    fresh = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
    plain = usage.output_tokens - usage.reasoning_tokens - usage.unexplained_tokens
    return (
        price.per_request
        + fresh * price.input
        + usage.cached_input_tokens * price.cached_input
        + (usage.cache_write_tokens - usage.cache_write_1h_tokens) * price.cache_write_price
        + usage.cache_write_1h_tokens * price.cache_write_1h_price
        + plain * price.output
        + usage.reasoning_tokens * price.thinking
        + usage.unexplained_tokens * unexplained_usd
    )


FREE = Price(Decimal(0), Decimal(0), Decimal(0))
"""The price of a model that runs in this process."""


def find_price(
    model: str, params: Mapping[str, Json] | None = None, tier: Tier = "standard", *, hour: bool = False
) -> Price | None:
    """The list price of `model`, named as in `openai/gpt-4o-mini`; `None` if none is known at this tier.

    `params` may change the fee of a request. `hour` says that prompts are cached for an hour, which may cost more.
    """
    entry = find_entry(model) or {}
    if model.partition("/")[0] in IN_PROCESS:
        return FREE
    if not entry.get(_OUTPUT, True) and not _FREE.fullmatch(model):  # the list has 0 for prices that it does not know
        return None
    fee = _usd(entry.get(_REQUEST) or 0) + _search_fee(model, entry, params or {})
    at_tier = entry if tier == "standard" else _at_tier(entry, tier, model.partition("/")[0])
    if not hour:
        at_tier = {name: usd for name, usd in at_tier.items() if not name.startswith(_CACHE_WRITE_1H)}
    prices = [(length, replace(price, per_request=fee)) for length, price in _by_length(at_tier)]
    return replace(prices[0][1], beyond=tuple(prices[1:])) if prices else None


def find_unpriced_part(spec: ModelSpec) -> str | None:
    """A cost of requests of `spec` that the list price does not bound, in words; `None` if there is none."""
    params = dict(spec.params)
    extra = params.get("extra_body")
    if isinstance(extra, Mapping):
        params |= extra
    return next(_unpriced_parts(spec, params), None)


def _unpriced_parts(spec: ModelSpec, params: Mapping[str, Json]) -> Iterator[str]:
    for name, values in _DEARER.items():
        if params.get(name) in values:
            yield f"{name}={params[name]!r} costs more than the list says"
    if _ONE_HOUR.search(repr(params.get("cache_control"))):
        yield "'cache_control' keeps a prompt for an hour, which costs more than the list says"
    if _ROUTER.search(spec.listed_as):
        yield "it is a router, of which the list has the fee alone, and the model that it picks costs, too"
    for name, usd in (find_entry(spec.listed_as) or {}).items():
        if usd and _OTHER_PART.fullmatch(name):
            yield f"the model is priced by {name!r} too"
    if not _always_searches(spec.listed_as):
        yield from _searches(spec, params)


def _searches(spec: ModelSpec, params: Mapping[str, Json]) -> Iterator[str]:
    for name in _SEARCHES:
        if params.get(name):
            yield f"{name!r} lets it search the web, and each search costs"
    tools = params.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, Mapping) and _PAID_TOOL.search(" ".join((*tool, str(tool.get("type"))))):
            yield "'tools' names one that the provider runs, and each use costs"
    if spec.model.endswith(":online"):
        yield "':online' lets it search the web, and each search costs"


def find_max_output_tokens(model: str) -> int | None:
    """The most tokens that one reply of `model` can have; `None` if that is not known."""
    limit = (find_entry(model) or {}).get("max_output_tokens")
    return limit if isinstance(limit, int) else None


def find_entry(model: str) -> Mapping[str, Any] | None:
    """The entry of the data file for `model`, named as in `openai/gpt-4o-mini`; `None` if there is none.

    For the latest model of a family, such as `openai/gpt-sol-latest`, it is the entry of that model.

    Raises:
        ConfigError: `model` is no text.
    """
    check_name(model)
    listed = _listed_name(model) or _listed_name(_ROUTE.sub("bedrock/", model))
    return None if listed is None else model_facts()[listed]


def check_name(model: Any) -> None:
    """Refuse a model name that is not a text, with a `ConfigError`."""
    if not isinstance(model, str):
        raise ConfigError(f"model is a {type(model).__name__}; write provider/name, as in 'openai/gpt-6-luna'.")


def find_sent_name(spec: ModelSpec) -> str:
    """The name of the model of `spec` in requests.

    litellm's names for the latest model of a family (`openai/gpt-sol-latest`) are not the provider's, so the listed
    name is sent instead. Names of Azure deployments and of models at a `base_url` are sent as they are.
    """
    provider, _, name = spec.model.partition("/")
    listed = None if provider == "azure" or spec.base_url is not None else _listed_name(spec.model)
    return name if listed is None or listed == spec.model else listed.removeprefix(f"{provider}/")


def _listed_name(model: str) -> str | None:
    """The name of `model` in the data file."""
    provider, _, name = model.partition("/")
    models = model_facts()
    if not name:
        return None
    if model in models:
        return str(models[model].get(_ALIAS, model))
    listed = str(models.get(name, {}).get(_ALIAS, name))
    # The file names some models without the provider, so the provider has to agree.
    owner = models.get(listed, {}).get("litellm_provider")
    return (
        listed
        if owner is not None and (owner == provider or owner.startswith(_LISTED_PROVIDERS.get(provider, ())))
        else None
    )


def _by_length(entry: Mapping[str, Any]) -> Iterator[tuple[int, Price]]:
    """The prices of an entry, each with the prompt length in tokens above which it applies, in ascending order."""
    tiers = [tier for tier in entry.get("tiered_pricing", ()) if {"range", _INPUT, _OUTPUT} <= tier.keys()]
    if tiers:
        yield from sorted(((int(tier["range"][0]), _price(tier)) for tier in tiers), key=itemgetter(0))
    elif {_INPUT, _OUTPUT} <= entry.keys():
        yield 0, _price(entry)
        # At xAI a prompt of exactly this length already counts as long.
        shift = 1 if entry.get("litellm_provider") == "xai" else 0
        matches = filter(None, map(_BEYOND.fullmatch, entry))
        for length in sorted({int(match[1]) for match in matches}):
            above = {
                name: entry.get(f"{name}_above_{length}k_tokens", entry.get(name))
                for name in (_INPUT, _OUTPUT, _CACHED, _CACHE_WRITE, _CACHE_WRITE_1H)
            }
            yield length * 1000 - shift, _price(above)


def _at_tier(entry: Mapping[str, Any], tier: Tier, provider: str) -> dict[str, Any]:
    """The prices of an entry at another tier than the standard one, under the standard names; empty if it has none.

    A price that the list leaves out is the tier's input or output price if the two are equal at the standard tier.
    Otherwise it is the standard one, or at a more expensive tier the higher of the two. In a batch job, cached input
    costs as much as other input: not every provider grants both discounts at once.
    """
    suffix = _SUFFIXES[tier]
    own = {name.removesuffix(suffix): usd for name, usd in entry.items() if name.endswith(suffix)}
    halved = _halve(entry, provider) if tier == "batch" and provider in _HALF_IN_BATCHES else {}
    if not {_INPUT, _OUTPUT} <= entry.keys():
        return {}
    if not {_INPUT, _OUTPUT} <= own.keys():
        return {**halved, "litellm_provider": entry.get("litellm_provider")} if halved else {}
    is_cheaper = own[_INPUT] <= entry[_INPUT]
    for name, usd in halved.items():
        if name.startswith(_CACHE_WRITE_1H):
            own.setdefault(name, usd)
    for name, kind in (
        (_CACHED, _INPUT),
        (_CACHE_WRITE, _INPUT),
        (_CACHE_WRITE_1H, _INPUT),
        (_REASONING, _OUTPUT),
    ):
        if name in own or entry.get(name) is None:
            continue
        is_same = entry[name] == entry[kind] or (tier == "batch" and name == _CACHED)
        listed = entry[name] if is_cheaper else max(entry[name], own[kind])
        own[name] = own[kind] if is_same else listed
    for name, usd in entry.items():
        if name not in own and usd is not None and _BEYOND.fullmatch(name):
            own[name] = max(usd, own.get(name.rpartition("_above_")[0], 0))
    return {**own, "litellm_provider": entry.get("litellm_provider")}


def _halve(entry: Mapping[str, Any], provider: str) -> dict[str, Any]:
    """Half of each standard price of a token that `provider` halves in batch jobs."""
    names = [name for name in entry if _HALVED.fullmatch(name) and entry[name] is not None]
    return {name: entry[name] / 2 for name in names if _HALF_IN_BATCHES[provider] or not name.startswith(_CACHED)}


def _always_searches(model: str) -> bool:
    """Whether a model searches the web once for every request, so the search is a fee of the request."""
    provider, _, name = model.partition("/")
    return provider == "perplexity" or "-search-" in name


def _search_fee(model: str, entry: Mapping[str, Any], params: Mapping[str, Json]) -> Decimal:
    fees = entry.get(_SEARCH)
    if not isinstance(fees, Mapping) or not _always_searches(model):
        return Decimal(0)
    search_options = params.get("web_search_options")
    size = search_options.get("search_context_size") if isinstance(search_options, Mapping) else None
    fee_of_size = fees.get(f"search_context_size_{size}")
    return max(map(_usd, fees.values())) if fee_of_size is None else _usd(fee_of_size)


def _price(entry: Mapping[str, Any]) -> Price:
    input_usd = _usd(entry[_INPUT])
    cached, reasoning = entry.get(_CACHED), entry.get(_REASONING)
    cache_write, cache_write_1h = entry.get(_CACHE_WRITE), entry.get(_CACHE_WRITE_1H)
    return Price(
        input_usd,
        _usd(entry[_OUTPUT]),
        input_usd if cached is None else _usd(cached),
        None if reasoning is None else _usd(reasoning),
        # A listed 0 means that writing to the cache costs nothing in addition to the prompt.
        cache_write=None if cache_write is None else max(input_usd, _usd(cache_write)),
        cache_write_1h=None if cache_write_1h is None else max(input_usd, _usd(cache_write_1h)),
    )


def _usd(number: float) -> Decimal:
    # From the shortest decimal text: 1.5e-07 is meant, not its nearest binary fraction.
    return Decimal(repr(number))
