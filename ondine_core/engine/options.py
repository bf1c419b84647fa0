"""The options of a run that do not change what an answer means: store, limits, prices, caps, observers, clock."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import get_args

from ondine_core.engine.policy import Policy
from ondine_core.errors import ConfigError
from ondine_core.limits.budget_limit import BudgetLimit
from ondine_core.limits.rates import Rates
from ondine_core.providers.pricing import Price
from ondine_core.store import Durability, parse_address
from ondine_core.telemetry.registry import ObserverSpec, check_observers
from ondine_core.types.clock import Clock
from ondine_core.types.field_types import check_types
from ondine_core.types.ledger import NO_ORIGIN, Origin
from ondine_core.types.numbers import is_positive
from ondine_core.types.progress import Progress
from ondine_core.types.protocols import AnswerStore
from ondine_core.types.values import ModelSpec


def _ignore(_: object) -> None:
    """The call-back that options have by default; options can be sent to another process, where a lambda cannot."""


@dataclass(frozen=True, slots=True)
class Options:
    """Everything about a run that does not change what an answer means.

    Args:
        store: Where answers are kept: a path, or an open store; by default they are forgotten after the run.
        durability: What a store in a file survives, if it is opened here: `"process"` loses nothing to a kill of the
            process, and at most about the last second to a power cut or a crash of the system; `"power"` loses
            nothing to those either, and syncs the disk at every commit.
        policy: Batching, concurrency and retries.
        rates: What the provider allows, shared by all processes that use the same store.
        price: USD per token; by default the model's list price.
        max_cost_usd: Hard cap on the cost of this run, named by `origin`; it needs a known price.
        caps: Further caps, which others may draw from, too.
        on_threshold: Called once when most of a cap is spent.
        fallbacks: Models that take over the remaining rows when the model fails for good or is unreachable for long.
        on_warning: Called when a fallback takes over, when the rest of a run goes at the standard price tier, when the
            provider withdraws the model within 30 days, and with what a person should know about batch jobs.
        on_job: Called with a sentence when a batch job was submitted, and with its progress.
        origin: Run, asset and partition, for the ledger; without a run, each call of `enrich` is a run of its own.
        budget_run: The run whose budgets are drawn from, if this one repeats it; by default that of `origin`.
        lease: Name under which one process at a time works on this store; others wait, and find its answers then.
        lease_ttl_s: Seconds after which the work of a process that was killed is taken over by another run.
        on_progress: Called after every batch, on the event loop; it must return quickly.
        progress_bar: Whether `enrich` and `enrich_sync` show a progress bar on stderr or in the notebook; by default
            where stderr is a terminal, and in Jupyter. A step of Dagster never has one.
        on_wait: Called while another process has the lease, with the seconds until it is free if that process is dead.
        observers: Receivers of the run's events, each by its name (`"logging"`, `"opentelemetry"`, `"langfuse"`,
            `"prometheus"`, or your own), a mapping of `name` and options, or as a function of an event.
        traceparent: The trace that spans are to be a part of, in W3C's notation; by default that of the active span.
        on_observer_error: Called, from any thread, when an observer fails, at the end with what it missed, and when a
            row of the store is damaged.
        clock: Time and random numbers.
    """

    store: str | Path | AnswerStore = field(default=":memory:", repr=False)  # a URL may carry a password
    durability: Durability = "process"
    policy: Policy = Policy()
    rates: Rates = Rates()
    price: Price | None = None
    max_cost_usd: Decimal | float | None = None
    caps: tuple[BudgetLimit, ...] = ()
    on_threshold: Callable[[str], None] = _ignore
    fallbacks: tuple[ModelSpec, ...] = ()
    on_warning: Callable[[str], None] = _ignore
    on_job: Callable[[str], None] = _ignore
    origin: Origin = NO_ORIGIN
    budget_run: str | None = None
    lease: str | None = None
    lease_ttl_s: float = 30.0
    progress_bar: bool | None = None
    on_wait: Callable[[float], None] = _ignore
    on_progress: Callable[[Progress], None] = _ignore
    observers: tuple[ObserverSpec, ...] = ()
    traceparent: str | None = None
    on_observer_error: Callable[[str], None] = logging.getLogger(__name__).warning
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        check_observers(self.observers)
        check_types(self, ConfigError, skip=("store", "max_cost_usd", "lease_ttl_s", "durability"))
        if self.max_cost_usd is not None:
            BudgetLimit(self.max_cost_usd)  # type: ignore[arg-type]  # it takes any number, and checks it
        if not is_positive(self.lease_ttl_s):
            raise ConfigError(f"lease_ttl_s={self.lease_ttl_s!r} must be a number of seconds, more than 0.")
        if self.durability not in get_args(Durability):
            raise ConfigError(f"durability={self.durability!r} must be 'process' or 'power'.")
        if isinstance(self.store, str | Path):
            parse_address(self.store)
        elif not hasattr(self.store, "settle"):
            raise ConfigError(
                f"store={self.store!r} is not a store; give a path, a postgresql:// URL, ':memory:' or an open store."
            )
