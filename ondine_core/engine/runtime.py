"""Opens the resources of a run from the user's settings: model, store, price, rate limiter, budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from pathlib import Path

from ondine_core.engine.jobs.waits import check_store, find_wait
from ondine_core.engine.options import Options
from ondine_core.errors import ConfigError
from ondine_core.limits.budget import Budget, BudgetSet
from ondine_core.limits.budget_limit import BudgetLimit
from ondine_core.limits.lease import Lease
from ondine_core.limits.rate_limiter import RateLimiter
from ondine_core.limits.rates import Rates
from ondine_core.providers import connect
from ondine_core.providers.context_window import estimate_tokens, get_output_limit
from ondine_core.providers.job_api import JobApi
from ondine_core.providers.jobs import connect_jobs
from ondine_core.providers.media_tokens import max_media_tokens, max_tokens_anywhere
from ondine_core.providers.pricing import Price, find_unpriced_part
from ondine_core.providers.settings import find_misspelt_param
from ondine_core.providers.tiers import check_tier, find_tier_prices
from ondine_core.providers.tokenizer import counter
from ondine_core.providers.withdrawal import find_withdrawal
from ondine_core.store import open_store
from ondine_core.telemetry.emitter import EventEmitter
from ondine_core.types.ledger import Origin
from ondine_core.types.media import Media
from ondine_core.types.protocols import AnswerStore, ChatModel
from ondine_core.types.values import ModelSpec, Tier

_WAIT_TIMEOUT_S = 60.0
_USED_SHARE = 0.985


@dataclass(frozen=True, slots=True)
class Runtime:
    """The resources of a run.

    Args:
        model: The model that is asked.
        store: The store of answers.
        price: Price at the tier that is asked for; without `tier_prices`, at each tier.
        max_output_tokens: Maximum number of tokens of one reply, `None` if unknown.
        limiter: The shared rate limiter, if there is one.
        budgets: The budgets that calls are charged to, if there are any.
        count: Returns the number of tokens of a text.
        lease: The lease that must be held when a call leaves, if there is one.
        tier_prices: Prices by tier.
        on_warning: Called with a sentence.
        on_job: Called with a sentence about a batch job.
        connect_jobs: Connects to the batch API of a model, or raises `ConfigError` if it has none.
        media_tokens: Returns the maximum number of tokens of an image or document.
        emitter: Receives the events of the run.
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
    connect_jobs: Callable[[ModelSpec], JobApi] | None = None
    media_tokens: Callable[[Media], int] = max_tokens_anywhere
    emitter: EventEmitter = EventEmitter()


def open_options_store(options: Options, stack: AsyncExitStack) -> AnswerStore:
    """Return the store of `options`; if it is opened here, `stack` closes it."""
    if not isinstance(options.store, str | Path):
        return options.store
    return stack.enter_context(open_store(options.store, durability=options.durability, warn=options.on_observer_error))


async def open_runtime(
    spec: ModelSpec, store: AnswerStore, options: Options, stack: AsyncExitStack, model: ChatModel | None = None
) -> Runtime:
    """Open the resources of a run; unless `model` is given, it is connected here and `stack` closes it.

    Raises:
        ConfigError: The model cannot be connected or has no such price tier, a cap needs a figure that is unknown, or
            the tier is "batch" and the store is in memory.
    """
    if model is None:
        model = connect(spec)
        stack.push_async_callback(model.aclose)
        for warning in (find_withdrawal(spec, options.clock.now()), find_misspelt_param(spec)):
            if warning:
                options.on_warning(warning)
    if spec.tier == "batch":
        check_store(store)
    check_tier(spec)
    limiter = None
    if options.rates:
        # Rates are shared by all runs that ask the same model at the same address.
        address = (spec.base_url or "").rpartition("@")[2]
        limiter = RateLimiter(f"{spec.model}@{address}", _reduce_rates(options.rates), store, options.clock)
    unpriced = None if options.price else find_unpriced_part(spec)
    listed = {} if unpriced else find_tier_prices(spec)
    price = options.price or listed.get(spec.tier)
    max_output_tokens = get_output_limit(spec)
    caps = options.caps
    if options.max_cost_usd is not None:
        caps = (BudgetLimit(Decimal(str(options.max_cost_usd))), *caps)
    budgets = None
    if caps:
        _check_bounded(spec, price, max_output_tokens, caps[0], unpriced)
        wait = await find_wait(store, options.origin)
        origin = wait.origin if wait else replace(options.origin, run=options.budget_run or options.origin.run)
        budgets = BudgetSet(tuple(_budget(cap, spec, store, options, origin) for cap in caps))
    return Runtime(
        model=model,
        store=store,
        price=price,
        max_output_tokens=max_output_tokens,
        limiter=limiter,
        budgets=budgets,
        count=counter(spec.listed_as),
        tier_prices=None if options.price else listed,
        on_warning=options.on_warning,
        on_job=options.on_job,
        connect_jobs=connect_jobs,
        media_tokens=partial(max_media_tokens, spec.listed_as),
    )


def _reduce_rates(rates: Rates) -> Rates:
    """Reduce `rates` a little, since calls arrive some milliseconds early or late.

    Otherwise a provider that counts the calls of any second would refuse one that is early now and then.
    """
    requests, tokens = rates.requests_per_minute, rates.tokens_per_minute
    return replace(
        rates,
        requests_per_minute=None if requests is None else _USED_SHARE * requests,
        tokens_per_minute=None if tokens is None else _USED_SHARE * tokens,
    )


def _check_bounded(
    spec: ModelSpec, price: Price | None, max_output_tokens: int | None, cap: BudgetLimit, unpriced: str | None
) -> None:
    """Check that the maximum cost of a call is known, so that `cap` can hold.

    Raises:
        ConfigError: It is unknown.
    """
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


def _budget(cap: BudgetLimit, spec: ModelSpec, store: AnswerStore, options: Options, origin: Origin) -> Budget:
    # A budget without a name is for one materialization, of which a run may have several.
    run = origin.run if cap.name else f"{origin.run}/{origin.asset}/{origin.partition}"
    wait_timeout_s = max(_WAIT_TIMEOUT_S, 2 * spec.max_call_s)
    return Budget(cap, run, store, options.clock, options.on_threshold, wait_timeout_s)
