"""Reads the token counts and costs of a reply in OpenAI's dialect.

Servers write them in many ways. A count that is missing, invalid or in contradiction to another makes the usage
incomplete; the figures that are certain are kept, and `charges` decides what the call costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any

from ondine_core.providers.charges import MAX_TOKENS, MAX_USD, is_count
from ondine_core.types.values import Usage

_SENT = ("prompt_tokens", "input_tokens")
_RECEIVED = ("completion_tokens", "output_tokens")
_TOTAL = ("total_tokens",)
_READ_APART, _WRITTEN_APART = "cache_read_input_tokens", "cache_creation_input_tokens"
_READ = ("cached_tokens", "prompt_cache_hit_tokens", _READ_APART)
_WRITTEN = ("cache_write_tokens", "cache_creation_tokens", _WRITTEN_APART)
_WRITTEN_FOR_1H = ("ephemeral_1h_input_tokens",)
_THOUGHT = ("reasoning_tokens", "thinking_tokens")
_COUNTS = frozenset((*_SENT, *_RECEIVED, *_TOTAL, *_READ, *_WRITTEN, *_WRITTEN_FOR_1H, *_THOUGHT))
_DETAILS = (*(f"{part}_tokens_details" for part in ("prompt", "input", "completion", "output")), "cache_creation")
_PLAIN = frozenset(
    ("prompt_tokens_details", "completion_tokens_details", "prompt_tokens", "completion_tokens", "total_tokens")
)
_PLAIN_READ = frozenset(("cached_tokens", "audio_tokens"))
_PLAIN_THOUGHT = frozenset(
    ("reasoning_tokens", "audio_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens")
)
_COSTS = ("cost", "cost_in_usd_ticks", "estimated_cost")
_COST_HEADERS = ("x-litellm-response-cost", "llm_provider-x-litellm-response-cost")
_TICK = Decimal("1e-10")
"""xAI's unit of cost, in USD."""
_MAX_DIGITS, _LARGEST = 40, 10**40
_PICO = Decimal("1e-12")


# -- tokens --------------------------------------------------------------------------------------------------------


def usage_of(data: Mapping[str, Any]) -> Usage:
    """The token counts of a completion, as far as they are certain."""
    usage = _usage_object(data)
    plain = _plain_usage(usage)
    if plain is not None:
        return plain
    counts: dict[str, int | None] = {}
    for part in (usage, *(_object(usage[name]) for name in _DETAILS if usage.get(name))):
        for name, value in part.items():
            if name in _COUNTS and value is not None:
                counts.setdefault(name, _count(value))
    sent, received = _largest(counts, _SENT), _largest(counts, _RECEIVED)
    read, written = _largest(counts, _READ) or 0, _largest(counts, _WRITTEN) or 0
    # Anthropic's `input_tokens` do not include the tokens read from and written to the cache.
    if sent is not None and "prompt_tokens" not in counts and {_READ_APART, _WRITTEN_APART} & counts.keys():
        sent += read + written
    is_complete = None not in counts.values() and bool(sent) and received is not None
    counted = Usage(
        sent or 0,
        read,
        received or 0,
        _largest(counts, _THOUGHT) or 0,
        written,
        is_complete=is_complete,
        cache_write_1h_tokens=_largest(counts, _WRITTEN_FOR_1H) or 0,
    )
    return _reconcile(counted, _largest(counts, _TOTAL) or None)  # LiteLLM writes 0 for a total that it does not know


def _plain_usage(usage: Mapping[str, Any]) -> Usage | None:
    """The counts of a usage with OpenAI's fields only that adds up, which is the most frequent; `None` for others."""
    sent: Any = usage.get("prompt_tokens")
    received: Any = usage.get("completion_tokens")
    if not (usage.keys() <= _PLAIN and is_count(sent) and sent and is_count(received)):
        return None
    read_part, thought_part = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    if not (isinstance(read_part, dict) and isinstance(thought_part, dict)):
        return None
    if not (read_part.keys() <= _PLAIN_READ and thought_part.keys() <= _PLAIN_THOUGHT):
        return None
    read: Any = read_part.get("cached_tokens", 0)
    thought: Any = thought_part.get("reasoning_tokens", 0)
    adds_up = is_count(read) and read <= sent and is_count(thought) and thought <= received
    if not adds_up or usage.get("total_tokens", sent + received) != sent + received:
        return None
    return Usage(sent, read, received, thought)


def _reconcile(usage: Usage, total: int | None) -> Usage:
    """Correct `usage` by its own parts and the `total` of the reply, which may contradict each other."""
    cached = usage.cached_input_tokens + usage.cache_write_tokens
    sent = usage.input_tokens
    received = usage.output_tokens
    thought = usage.reasoning_tokens
    missing = 0 if total is None else total - sent - received
    if not missing and cached <= sent and thought <= received:
        return usage
    # Most servers include thinking in the output and the cache in the input; xAI, Gemini and some gateways do not.
    if missing > 0 and missing == thought != cached:
        return replace(usage, output_tokens=received + thought)
    if missing > 0 and missing == cached > sent:
        return replace(usage, input_tokens=sent + cached)
    if cached > sent:
        usage = replace(usage, input_tokens=sent + cached, is_complete=False)
    if thought > received:
        usage = replace(usage, output_tokens=received + thought, is_complete=False)
    unexplained = 0 if total is None else max(0, total - usage.input_tokens - usage.output_tokens)
    return replace(
        usage,
        output_tokens=usage.output_tokens + unexplained,
        unexplained_tokens=unexplained,
        is_complete=usage.is_complete and missing >= 0,
    )


def _usage_object(data: Mapping[str, Any]) -> Mapping[str, Any]:
    usage = data.get("usage")
    if isinstance(usage, dict) and usage:
        return usage
    return _object(data.get("usage")) or _object(_object(data.get("x_groq")).get("usage"))


def _object(value: Any) -> Mapping[str, Any]:
    """`value` if it is an object, or the only one in a list."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and len(value) == 1:
        return _object(value[0])
    return {}


def _largest(counts: Mapping[str, int | None], names: Sequence[str]) -> int | None:
    largest: int | None = None
    for name in names:
        count = counts.get(name)
        if count is not None and (largest is None or count > largest):
            largest = count
    return largest


def _count(value: Any) -> int | None:
    if is_count(value):  # as nearly all are
        return int(value)
    number = _number(value)
    if number is None or not 0 <= number <= MAX_TOKENS or number != number.to_integral_value():
        return None
    return int(number)


def _number(value: Any) -> Decimal | None:
    """A number, or a text of one, if it is finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if (isinstance(value, int) and abs(value) > _LARGEST) or len(str(value)) > _MAX_DIGITS:
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


# -- texts ---------------------------------------------------------------------------------------------------------


def tier_of(data: Mapping[str, Any]) -> str | None:
    """The price tier that a completion names: beside its usage, or inside it as Anthropic does."""
    return text_field(data, "service_tier") or text_field(_object(data.get("usage")), "service_tier")


def text_field(data: Mapping[str, Any], name: str) -> str | None:
    """The field if it is a text: some servers write numbers for ids."""
    value = data.get(name)
    return value if isinstance(value, str) else None


# -- cost ----------------------------------------------------------------------------------------------------------


def stated_usd_of(data: Mapping[str, Any]) -> Decimal | None:
    """The cost that a completion states, as OpenRouter, xAI, Perplexity, DeepInfra and gateways do; else `None`."""
    usage = _usage_object(data)
    if usage.keys().isdisjoint(_COSTS):
        return None
    cost = usage.get("cost")
    usd = _usd(cost.get("total_cost") if isinstance(cost, Mapping) else cost)
    if usd is not None:
        return _with_own_key(usd, usage)
    ticks = _usd(usage.get("cost_in_usd_ticks"), _TICK)
    return _usd(usage.get("estimated_cost")) if ticks is None else ticks


def stated_usd_in(headers: Mapping[str, str]) -> Decimal | None:
    """The cost that the headers of a reply state; not 0, which a proxy writes for a price that it does not know."""
    stated = [_usd(headers[name]) for name in _COST_HEADERS if name in headers]
    return next(filter(None, stated), None)


def _with_own_key(usd: Decimal, usage: Mapping[str, Any]) -> Decimal | None:
    """OpenRouter's charge, plus the provider's charge to the user's own key if OpenRouter called with that."""
    is_own = usage.get("is_byok")
    upstream = _usd(_object(usage.get("cost_details")).get("upstream_inference_cost"))
    if is_own is True:
        return None if upstream is None else usd + upstream
    if is_own is False or upstream is None or upstream <= usd:
        return usd
    # Without the flag, a provider that was paid more than OpenRouter charged was paid by the user.
    return usd + upstream


def _usd(value: Any, unit: Decimal = Decimal(1)) -> Decimal | None:
    number = _number(value)
    if number is None or not 0 <= number <= MAX_USD / unit:
        return None
    return (number * unit).quantize(_PICO, ROUND_CEILING)
