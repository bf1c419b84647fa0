"""What a run works with, put together from what the user said: price, rates, purse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ondine_core.books import Origin
from ondine_core.budget import Budget, Purse
from ondine_core.caps import Cap
from ondine_core.context_limits import get_output_limit
from ondine_core.errors import ConfigError
from ondine_core.policy import Clock, Means
from ondine_core.ports import AnswerStore, ChatModel
from ondine_core.pricing import Price, find_price, find_unpriced_part
from ondine_core.rate_limiter import RateLimiter, Rates
from ondine_core.tokens import counter
from ondine_core.values import ModelSpec

__all__ = ["Terms", "find_means"]


_PATIENCE_S = 60.0
_USED = 0.985


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for all calls of a run.

    Args:
        caps: What it may cost; the one without a name is its own.
        rates: What the provider allows.
        origin: For whom calls are made.
        on_threshold: Told once when most of a cap is spent.
        clock: Time and chance.
    """

    caps: tuple[Cap, ...]
    rates: Rates
    origin: Origin
    on_threshold: Callable[[str], None]
    clock: Clock


def find_means(model: ChatModel, spec: ModelSpec, price: Price | None, store: AnswerStore, terms: Terms) -> Means:
    """What a run that asks `model` works with; `price` is the user's, else the list's holds.

    Raises:
        ConfigError: A cap needs a figure that is not known.
    """
    clock, limiter = terms.clock, None
    if terms.rates:
        limiter = RateLimiter(_bucket(spec), _used(terms.rates), store, now=clock.now, sleep=clock.sleep)
    unpriced = None if price else find_unpriced_part(spec)
    known = price or (None if unpriced else find_price(spec.listed_as, spec.params))
    longest = get_output_limit(spec)
    if terms.caps:
        _check_bounded(spec, known, longest, terms.caps[0], unpriced)
    purse = _purse(spec, store, terms) if terms.caps else None
    return Means(model, store, known, longest, limiter, purse, counter(spec.listed_as))


def _used(rates: Rates) -> Rates:
    """What of `rates` is used: calls arrive some milliseconds early or late.

    A provider that counts those of any second, wherever that begins, would turn one away now and then that is early.
    """
    requests, tokens = (rate and _USED * rate for rate in (rates.requests_per_minute, rates.tokens_per_minute))
    return replace(rates, requests_per_minute=requests, tokens_per_minute=tokens)


def _bucket(spec: ModelSpec) -> str:
    """Whoever asks the same model at the same address shares its rates."""
    return f"{spec.model}@{(spec.base_url or '').rpartition('@')[2]}"


def _check_bounded(
    spec: ModelSpec, price: Price | None, max_output_tokens: int | None, cap: Cap, unpriced: str | None
) -> None:
    """Refuse a cap on calls of which nobody can say what they cost at most."""
    if unpriced is not None:
        raise ConfigError(
            f"{cap} cannot bound a call of {spec.model!r}: {unpriced}. Leave that out, or set what a call costs: "
            "input_cost_per_1k_tokens and output_cost_per_1k_tokens (in code: "
            "Options(price=Price(..., per_request=...)), which takes a fee for each request, too)."
        )
    if price is None:
        raise ConfigError(
            f"{cap} needs the price of {spec.model!r}, which is not known; "
            "set input_cost_per_1k_tokens and output_cost_per_1k_tokens (in code: Options(price=Price(...))), "
            "to 0 for a server of your own."
        )
    if price.at_most(1, max_output_tokens) is None:
        raise ConfigError(f"{cap} needs to know how long a reply of {spec.model!r} can get; set max_output_tokens.")


def _purse(spec: ModelSpec, store: AnswerStore, terms: Terms) -> Purse:
    # A run's own purse is for one materialization; a named one is for all that name it.
    origin, clock = terms.origin, terms.clock
    own = f"{origin.run}/{origin.asset}/{origin.partition}"
    budgets = (
        Budget(
            cap,
            origin.run if cap.name else own,
            store,
            now=clock.now,
            sleep=clock.sleep,
            on_threshold=terms.on_threshold,
            patience_s=max(_PATIENCE_S, 2 * spec.timeout_s),
        )
        for cap in terms.caps
    )
    return Purse(tuple(budgets))
