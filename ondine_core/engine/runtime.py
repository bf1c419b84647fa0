"""What a run works with, built from the user's settings: model, store, price, rate limiter, budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from ondine_core.errors import ConfigError
from ondine_core.limits.budget import Budget, BudgetSet
from ondine_core.limits.budget_limit import BudgetLimit
from ondine_core.limits.lease import Lease
from ondine_core.limits.rate_limiter import RateLimiter, Rates
from ondine_core.providers.context_window import estimate_tokens, get_output_limit
from ondine_core.providers.job_api import JobApi
from ondine_core.providers.jobs import connect_jobs
from ondine_core.providers.media_tokens import max_media_tokens, max_tokens_anywhere
from ondine_core.providers.pricing import Price, find_unpriced_part
from ondine_core.providers.tiers import check_tier, find_tier_prices
from ondine_core.providers.tokenizer import counter
from ondine_core.types.clock import Clock
from ondine_core.types.ledger import Origin
from ondine_core.types.media import Media
from ondine_core.types.protocols import AnswerStore, ChatModel
from ondine_core.types.values import ModelSpec, Tier

__all__ = ["RunLimits", "Runtime", "find_runtime"]


_WAIT_TIMEOUT_S = 60.0
_USED = 0.985


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a run works with.

    Args:
        model: Who is asked.
        store: Keeps answers; what it knows already is not asked.
        price: USD per token at the tier that is asked for, `None` when unknown.
        max_output_tokens: The most tokens that one reply can have, `None` when unknown.
        limiter: Holds calls back to a shared rate.
        budgets: Holds calls back to a cap on cost.
        count: Text to tokens, as the model counts.
        lease: Must be held while calls leave.
        tier_prices: USD per token by tier; `None` if `price` holds at each.
        on_warning: Told in a sentence what a person should know of the run.
        on_job: Told in a sentence when a batch job was handed in, and how far it is.
        connect_jobs: Connects the provider's batch API; raises `ConfigError` if it has none.
        media_tokens: The most tokens that an image or document takes.
    """

    model: ChatModel
    store: AnswerStore
    price: Price | None = None
    max_output_tokens: int | None = None
    limiter: RateLimiter | None = None
    budgets: BudgetSet | None = None
    count: Callable[[str], int] = estimate_tokens
    lease: Lease | None = None
    tier_prices: Mapping[Tier, Price] | None = None
    on_warning: Callable[[str], None] = lambda _: None
    on_job: Callable[[str], None] = lambda _: None
    connect_jobs: Callable[[], JobApi] | None = None
    media_tokens: Callable[[Media], int] = max_tokens_anywhere


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What holds for all calls of a run.

    Args:
        caps: What it may cost; the one without a name is its own.
        rates: What the provider allows.
        origin: For whom calls are made.
        on_threshold: Told once when most of a cap is spent.
        clock: Time and chance.
        on_warning: Told in a sentence what a person should know of the run.
        on_job: Told in a sentence when a batch job was handed in, and how far it is.
    """

    caps: tuple[BudgetLimit, ...]
    rates: Rates
    origin: Origin
    on_threshold: Callable[[str], None]
    clock: Clock
    on_warning: Callable[[str], None] = lambda _: None
    on_job: Callable[[str], None] = lambda _: None


def find_runtime(
    model: ChatModel, spec: ModelSpec, price: Price | None, store: AnswerStore, terms: RunLimits
) -> Runtime:
    """What a run that asks `model` works with; `price` is the user's, else the list's holds.

    Raises:
        ConfigError: A cap needs a figure that is not known, or the model has no such price tier.
    """
    check_tier(spec)
    clock, limiter = terms.clock, None
    if terms.rates:
        limiter = RateLimiter(_bucket(spec), _used(terms.rates), store, now=clock.now, sleep=clock.sleep)
    unpriced = None if price else find_unpriced_part(spec)
    listed = {} if unpriced else find_tier_prices(spec)
    known = price or listed.get(spec.tier)
    longest = get_output_limit(spec)
    if terms.caps:
        _check_bounded(spec, known, longest, terms.caps[0], unpriced)
    budgets = _budgets(spec, store, terms) if terms.caps else None
    return Runtime(
        model,
        store,
        known,
        longest,
        limiter,
        budgets,
        counter(spec.listed_as),
        tier_prices=None if price else listed,
        on_warning=terms.on_warning,
        on_job=terms.on_job,
        connect_jobs=partial(connect_jobs, spec),
        media_tokens=partial(max_media_tokens, spec.listed_as),
    )


def _used(rates: Rates) -> Rates:
    """What of `rates` is used: calls arrive some milliseconds early or late.

    A provider that counts those of any second, wherever that begins, would turn one away now and then that is early.
    """
    requests, tokens = (rate and _USED * rate for rate in (rates.requests_per_minute, rates.tokens_per_minute))
    return replace(rates, requests_per_minute=requests, tokens_per_minute=tokens)


def _bucket(spec: ModelSpec) -> str:
    """Name of the shared rates: the same for all runs that ask the same model at the same address."""
    return f"{spec.model}@{(spec.base_url or '').rpartition('@')[2]}"


def _check_bounded(
    spec: ModelSpec, price: Price | None, max_output_tokens: int | None, cap: BudgetLimit, unpriced: str | None
) -> None:
    """Refuse a cap on calls whose maximum cost is not known."""
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


def _budgets(spec: ModelSpec, store: AnswerStore, terms: RunLimits) -> BudgetSet:
    # A run's own budget is for one materialization; a named one is shared by all that name it.
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
            wait_timeout_s=max(_WAIT_TIMEOUT_S, 2 * spec.max_call_s),
        )
        for cap in terms.caps
    )
    return BudgetSet(tuple(budgets))
