"""Prices of tokens and requests, by the data of `model_data`.

An unknown model has no price (never a price of 0), and neither has a request of which a part cannot be priced. Some
providers charge more for each token of a long prompt, so a price is applied call by call.
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
"""Providers that run in this process, and charge nothing."""
_INPUT = "input_cost_per_token"
_OUTPUT = "output_cost_per_token"
_CACHED = "cache_read_input_token_cost"
_REASONING, _CACHE_WRITE = "output_cost_per_reasoning_token", "cache_creation_input_token_cost"
_CACHE_WRITE_1H = f"{_CACHE_WRITE}_above_1hr"
_REQUEST, _SEARCH = "input_cost_per_request", "search_context_cost_per_query"
_DEARER: Mapping[str, tuple[str, ...]] = {
    "speed": ("fast",),
    "inference_geo": ("us",),
}
"""Request fields that make a call dearer than listed, and with which values."""
_FREE = re.compile(r"(?:ollama|lemonade)/(?!.*-cloud$).*|.*[:-]free", re.DOTALL)
"""Models whose replies are free: of servers on one's own machine, and those that are named so."""
_OTHER_PART = re.compile(r"citation_cost_per_token|(?:input|output)_cost_per_(?:character|second)|cost_per_second")
_SUFFIXES: Mapping[Tier, str] = {"flex": "_flex", "priority": "_priority", "batch": "_batches"}
_HALF_IN_BATCHES: Mapping[str, bool] = {
    "anthropic": True,
    **dict.fromkeys(("azure", "gemini", "groq", "openai"), False),
}
"""Providers that document half of the list price for a batch job, and whether also for what is read from the cache."""
_HALVED = re.compile(r"(?:input|output|cache_\w+_input)_(?:cost_per_(?:reasoning_)?token|token_cost)(?:_above_\w+)?")
_ONE_HOUR = re.compile(r"\b1h\b|\b3600\b")
_ALIAS = "alias_of"
_PARTS: Mapping[str, tuple[str, ...]] = {
    "bedrock": ("bedrock_converse",),
    "vertex_ai": ("vertex_ai-",),
    "cohere": ("cohere_chat",),
}
"""Prefixes of further names that the data file has for a provider, by the name under which the provider is called."""
_ROUTE = re.compile(r"^bedrock/(?:chat_completions|converse|invoke)/")
"""How litellm's names say by which API of a provider a model is asked, which changes neither price nor limits."""
_SEARCHES = ("web_search_options", "search_parameters", "enable_search", "plugins")
_ROUTER = re.compile(r"model[-_]router")
_PAID_TOOL = re.compile(r"search|code_interpreter|code_execution|grounding|url_context", re.IGNORECASE)
_BEYOND = re.compile(rf"(?:{_INPUT}|{_OUTPUT}|{_CACHED}|{_CACHE_WRITE}|{_CACHE_WRITE_1H})_above_(\d+)k_tokens")


@dataclass(frozen=True, slots=True)
class Price:
    """USD per token, and per request.

    Args:
        input: For the prompt.
        output: For the reply.
        cached_input: For what of the prompt the provider had in its cache.
        reasoning: For what of the reply was thinking; `None` if that costs as much as the rest.
        beyond: Prices for longer prompts: each replaces this one, for the whole call, if the prompt has more tokens
            than the number it comes with.
        cache_write: For what of the prompt the provider put into its cache; `None` if that costs as much as the rest.
        per_request: For each request, whatever its length, such as the fee of a model that searches the web.
        cache_write_1h: For what of the prompt is kept there for an hour; `None` if that costs as much as the rest.
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
        """USD for `usage` of one call; of many, add up what each cost, for its price depends on its length.

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
        """The prices that may hold, depending on how many tokens of unknown kind belong to the prompt."""
        shorter = self._up_to(usage.input_tokens)[:-1]
        return self._up_to(usage.input_tokens + usage.unexplained_tokens)[len(shorter) :]

    def at_most(self, input_tokens: int, output_tokens: int | None) -> Decimal | None:
        """The most USD that a call of at most these tokens can cost, whatever part is cached or reasoning.

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
        """For a token that the provider puts into its cache."""
        return self.input if self.cache_write is None else self.cache_write

    @property
    def cache_write_1h_price(self) -> Decimal:
        """For a token that the provider keeps in its cache for an hour."""
        return self.cache_write_price if self.cache_write_1h is None else self.cache_write_1h

    @property
    def thinking(self) -> Decimal:
        """For a token of reasoning."""
        return self.output if self.reasoning is None else self.reasoning

    @property
    def dearest_input(self) -> Decimal:
        """The highest price of a token of the prompt: fresh, cached or written to the cache."""
        return max(self.input, self.cached_input, self.cache_write_price, self.cache_write_1h_price)

    @property
    def dearest_output(self) -> Decimal:
        """For a token of the reply, whatever it is."""
        return max(self.output, self.thinking)

    def _up_to(self, input_tokens: int) -> list[Price]:
        """The prices of prompts of this length and shorter, its own last."""
        reached = sorted((tier for tier in self.beyond if input_tokens > tier[0]), key=itemgetter(0))
        return [self, *(price for _, price in reached)]


def _cost_at(price: Price, usage: Usage, unexplained_usd: Decimal) -> Decimal:
    """USD for `usage` at one price, whatever the length of the prompt."""
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
    """The list price of `model`, named as in `openai/gpt-4o-mini`; `None` when no price is known.

    A model without listed prices at `tier` has none there. `params` may change the fee of a request; with `hour`,
    prompts are kept in the provider's cache for an hour, which may cost more.
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
    """What a request of `spec` costs beyond the list price of its tokens and that cannot be bounded, in words."""
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
    """The most tokens that one reply of `model` can have; `None` when that is not known."""
    found = (find_entry(model) or {}).get("max_output_tokens")
    return found if isinstance(found, int) else None


def find_entry(model: str) -> Mapping[str, Any] | None:
    """What the data file says of `model`, named as in `openai/gpt-4o-mini`; `None` when it does not know it.

    A name for the latest model of a family stands for the model that it means.

    Raises:
        ConfigError: `model` is no text.
    """
    check_name(model)
    listed = _listed_name(model) or _listed_name(_ROUTE.sub("bedrock/", model))
    return None if listed is None else model_facts()[listed]


def check_name(model: Any) -> None:
    """Refuse a name of a model that is no text."""
    if not isinstance(model, str):
        raise ConfigError(f"model is a {type(model).__name__}; write provider/name, as in 'openai/gpt-6-luna'.")


def find_sent_name(spec: ModelSpec) -> str:
    """The name by which a request asks for the model of `spec`.

    litellm's names for the latest model of a family (`openai/gpt-sol-latest`) are not the provider's. Deployments of
    Azure and models of a server at an address of the user's have names of their own.
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
    # The file names some models without the provider; another provider's model of that name is not the same.
    owner = models.get(listed, {}).get("litellm_provider")
    return listed if owner is not None and (owner == provider or owner.startswith(_PARTS.get(provider, ()))) else None


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
                for name in (_INPUT, _OUTPUT, _CACHED, _CACHE_WRITE, _CACHE_WRITE_1H)
            }
            # At xAI a prompt of exactly that length is a long one already.
            yield length * 1000 - (entry.get("litellm_provider") == "xai"), _price(above)


def _at_tier(entry: Mapping[str, Any], tier: Tier, provider: str) -> dict[str, Any]:
    """The prices of an entry at another tier than the standard one, by the names of the latter; nothing if it has none.

    Some lists leave a figure out. In its place stands the standard tier's at a tier that is cheaper; otherwise it is
    taken to cost as much as what the tier charges most for of its kind. In a batch job, what is read from the cache is
    taken to cost as much as the rest of the prompt: not every provider grants both discounts at once.
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
    """Half of each standard price of a token in an entry, as far as `provider` grants it."""
    names = [name for name in entry if _HALVED.fullmatch(name) and entry[name] is not None]
    return {name: entry[name] / 2 for name in names if _HALF_IN_BATCHES[provider] or not name.startswith(_CACHED)}


def _always_searches(model: str) -> bool:
    """Whether a model searches once for every request, so that a search is a fee of the request."""
    provider, _, name = model.partition("/")
    return provider == "perplexity" or "-search-" in name


def _search_fee(model: str, entry: Mapping[str, Any], params: Mapping[str, Json]) -> Decimal:
    fees = entry.get(_SEARCH)
    if not isinstance(fees, Mapping) or not _always_searches(model):
        return Decimal(0)
    chosen = params.get("web_search_options")
    size = chosen.get("search_context_size") if isinstance(chosen, Mapping) else None
    return max(
        map(_usd, [fees[f"search_context_size_{size}"]] if f"search_context_size_{size}" in fees else fees.values())
    )


def _price(entry: Mapping[str, Any]) -> Price:
    paid, answered = _usd(entry[_INPUT]), _usd(entry[_OUTPUT])
    cached, thinking = entry.get(_CACHED), entry.get(_REASONING)
    cache_write_price, cache_write_1h_price = entry.get(_CACHE_WRITE), entry.get(_CACHE_WRITE_1H)
    return Price(
        paid,
        answered,
        paid if cached is None else _usd(cached),
        None if thinking is None else _usd(thinking),
        # Where the list says 0, writing is not charged on top of reading the prompt.
        cache_write=None if cache_write_price is None else max(paid, _usd(cache_write_price)),
        cache_write_1h=None if cache_write_1h_price is None else max(paid, _usd(cache_write_1h_price)),
    )


def _usd(number: float) -> Decimal:
    # By way of the shortest decimal text: 1.5e-07 is meant, not its nearest binary fraction.
    return Decimal(repr(number))
