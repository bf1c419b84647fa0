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
        store: The store of answers: a path, a Postgres URL, or an open store; by default answers are kept in memory
            until the run ends.
        durability: What a store in a file survives without loss, if it is opened here: `"process"` a kill of the
            process, and a power cut or a crash of the system except for about the last second; `"power"` both, with
            slower commits.
        policy: Batching, concurrency and retries.
        rates: Rates that the provider allows, shared by all processes that use the same store.
        price: USD per token; by default the model's list price.
        max_cost_usd: Hard cap on the cost of this run, which is named by `origin`; the price must be known.
        caps: Further caps, which may be shared with other runs.
        on_threshold: Called with a sentence, once for each share of a cap in `warn_at` that is spent.
        fallbacks: Models that take over the remaining rows when the model fails for good or is unreachable for long.
        on_warning: Called with a sentence when a fallback takes over, when the rest of a run is asked at the standard
            price tier, when the provider withdraws the model within 30 days, when a name in `params` seems misspelt, at
            the first error in the `decode` of a strategy, and about problems with batch jobs.
        on_job: Called with a sentence when a batch job was submitted, and with its progress.
        origin: Run, asset and partition for the ledger; without a run, each call of `enrich` is a run of its own.
        budget_run: The run whose budgets are used, if this one continues it; by default that of `origin`.
        lease: Name under which one process at a time works on this store; other processes wait, and reuse its answers.
        lease_ttl_s: Seconds after which another run takes over the work of a process that was killed.
        on_progress: Called after every batch, on the event loop; it must return quickly.
        progress_bar: Whether `enrich` and `enrich_sync` show a progress bar on stderr or in the notebook; by default
            if stderr is a terminal, and in Jupyter. A step of Dagster never shows one.
        on_wait: Called while another process holds the lease, with the seconds until it expires if not renewed.
        observers: Receivers of the run's events, each a name (`"logging"`, `"opentelemetry"`, `"langfuse"`,
            `"prometheus"`, or your own), a mapping of `name` and options, or a function of an event.
        traceparent: The parent of the run's spans in W3C's notation; by default the active span.
        on_observer_error: Called with a sentence, from any thread, when an observer fails, at the end with the events
            that it missed, and when a row of the store is damaged.
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
