"""The door: a table and a question in, a report out, from a coroutine or from ordinary code.

`enrich` is the whole pipeline without Dagster. `enrich_sync` is its twin for scripts and notebooks: it runs the event
loop in a thread of its own, so it works under a running loop, and an interrupt that lands in the caller stops it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from ondine_core.budget import Cap
from ondine_core.cleaning import Clean
from ondine_core.engine import run as ask_rows
from ondine_core.errors import ConfigError
from ondine_core.garbage import seldom_collected
from ondine_core.lease import hold_lease
from ondine_core.means import Terms, find_means
from ondine_core.policy import Clock, Means, Policy
from ondine_core.pricing import Price
from ondine_core.prompts import Prompt
from ondine_core.providers import connect
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.question import Question, check_columns, compile_question
from ondine_core.rate_limiter import Rates
from ondine_core.reading import read
from ondine_core.report import Progress, Report
from ondine_core.sanitizer import Sanitize
from ondine_core.schema import Output
from ondine_core.store import open_store
from ondine_core.telemetry.events import Run
from ondine_core.telemetry.observing import Observation, observed
from ondine_core.telemetry.registry import ObserverSpec, check_observers
from ondine_core.thread import run_in_thread
from ondine_core.values import AnswerStore, ChatModel, ModelSpec, Origin

__all__ = [
    "Options",
    "answer",
    "enrich",
    "enrich_sync",
    "open_means",
    "open_options_store",
    "spec_of",
]


@dataclass(frozen=True, slots=True)
class Options:
    """Everything about a run that does not change what an answer means.

    Args:
        store: Where answers are kept: a path, or an open store; by default they are forgotten after the run.
        policy: How hard to try, and how much at once.
        rates: What the provider allows, shared with everybody who uses the same store.
        price: USD per token; by default the model's list price.
        max_cost_usd: Hard cap on what this run, as `origin` names it, may cost; it needs a known price.
        caps: Further caps, which others may draw from, too.
        on_threshold: Told once when most of a cap is spent.
        fallbacks: Who takes over the rows that are left when the model fails for good or is out of reach for long.
        on_fallback: Told when that happens.
        origin: For whom calls are made, in the books; by default a run of its own.
        lease: Name under which one process at a time works on this store; others wait, and find its answers then.
        lease_ttl_s: Seconds after which the work of a process that was killed is taken over by another run.
        on_progress: Told after every batch, on the event loop; it must return quickly.
        on_wait: Told while another process has the lease, with the seconds after which it would be free if that were
            dead.
        observers: Who is told what happens in the run, each by its name (`"logging"`, `"opentelemetry"`, `"langfuse"`,
            `"prometheus"`, or your own), a mapping of `name` and options, or as a function of an event.
        traceparent: The trace that spans are to be a part of, in W3C's notation; by default that of the active span.
        on_trouble: Told, from any thread, when an observer fails, and in the end of what it missed.
        clock: Time and chance.
    """

    store: str | Path | AnswerStore = ":memory:"
    policy: Policy = Policy()
    rates: Rates = Rates()
    price: Price | None = None
    max_cost_usd: Decimal | float | None = None
    caps: tuple[Cap, ...] = ()
    on_threshold: Callable[[str], None] = lambda _: None
    fallbacks: tuple[ModelSpec, ...] = ()
    on_fallback: Callable[[str], None] = lambda _: None
    origin: Origin = field(default_factory=lambda: Origin(uuid4().hex))
    lease: str | None = None
    lease_ttl_s: float = 30.0
    on_wait: Callable[[float], None] = lambda _: None
    on_progress: Callable[[Progress], None] = lambda _: None
    observers: tuple[ObserverSpec, ...] = ()
    traceparent: str | None = None
    on_trouble: Callable[[str], None] = logging.getLogger(__name__).warning
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        check_observers(self.observers)


async def enrich(  # noqa: PLR0913  (by keyword)
    table: Any,
    *,
    prompt: str | Prompt,
    output: Output,
    model: str | ModelSpec | ChatModel,
    clean: Clean | str = (),
    sanitize: Sanitize | None = None,
    options: Options | None = None,
) -> Report:
    """Ask `prompt` about every row of `table`.

    Args:
        table: A data frame (pandas, polars, pyarrow), a mapping of column to values, or a sequence of mappings.
        prompt: The question, with `{column}` where a row's value belongs.
        output: The columns wanted: a Pydantic model, a JSON schema, a mapping of column to type, a regular expression
            with named groups, or the name of one free-text column.
        model: Provider and name as in `"openai/gpt-4o-mini"`, a full `ModelSpec`, or anything that is a `ChatModel`.
        clean: Steps that clean the texts of a row before it is asked about, in order: names such as `"html"`,
            functions, `{"truncate": 500}`; see `ondine_core.cleaning`.
        sanitize: What stands for the personal data and secrets of a row when it is asked about: `"redact"`,
            `"placeholder"` (given back in its answer), or a `Sanitizer`.
        options: Store, concurrency, rates and so on.

    Returns:
        One outcome a row, in row order, and what it took. `report.column(name)` gives an output column.

    Raises:
        ConfigError: Prompt, output, model and table do not fit together; nothing was asked.
        BudgetExhaustedError: `max_cost_usd` is reached. Answers that arrived are in the store.
        FatalError: No request can succeed. Answers that arrived are in the store.
        TransientError: The provider stayed unreachable. Answers that arrived are in the store.
        StoreError: Answers cannot be kept.
    """
    if isinstance(model, str):
        model = ModelSpec(model)
    spec, opened = (model, None) if isinstance(model, ModelSpec) else (spec_of(model), model)
    question = compile_question(prompt, output, spec, clean=clean, sanitize=sanitize)
    return await answer(table, question, options or Options(), opened)


def enrich_sync(  # noqa: PLR0913  (by keyword)
    table: Any,
    *,
    prompt: str | Prompt,
    output: Output,
    model: str | ModelSpec | ChatModel,
    clean: Clean | str = (),
    sanitize: Sanitize | None = None,
    options: Options | None = None,
) -> Report:
    """`enrich` for code that is not a coroutine; works in notebooks, too. Same arguments, result and errors."""
    return run_in_thread(
        lambda: enrich(
            table, prompt=prompt, output=output, model=model, clean=clean, sanitize=sanitize, options=options
        )
    )


def spec_of(model: ChatModel) -> ModelSpec:
    """What a model that was handed over open is called in keys and reports: by its class, and its price is unknown.

    Two that answer differently need different classes, stores or (for a `ScriptedModel`) names.

    Raises:
        ConfigError: It is no `ChatModel`.
    """
    kind = type(model)
    if missing := [name for name in ("max_concurrency", "max_batch_size", "aclose") if not hasattr(model, name)]:
        raise ConfigError(f"A {kind.__qualname__} cannot be asked: it lacks {missing[0]!r}, see ondine_core.ChatModel.")
    return ModelSpec(
        f"scripted/{model.name}" if isinstance(model, ScriptedModel) else f"{kind.__module__}/{kind.__qualname__}"
    )


async def answer(table: Any, question: Question, options: Options, model: ChatModel | None = None) -> Report:
    """`enrich` with a question that is compiled already.

    Args:
        table: As for `enrich`.
        question: What is asked.
        options: Store, concurrency, rates and so on.
        model: Who is asked, if not to be connected by `question.model`; it is left open.

    Raises:
        OndineError: As for `enrich`.
    """
    names, rows, columns = read(table, question.prompt.columns)
    check_columns(question, names)
    async with AsyncExitStack() as stack:
        stack.enter_context(seldom_collected())
        store = open_options_store(options, stack)
        clock = options.clock
        if options.lease is not None:
            lease = hold_lease(
                store,
                options.lease,
                now=clock.now,
                sleep=clock.sleep,
                ttl_s=options.lease_ttl_s,
                on_wait=options.on_wait,
            )
            await stack.enter_async_context(lease)
        # All at the start: a key or a price that is missing for the last of them is an error before the first call.
        chain = [(question, await open_means(question.model, store, options, stack, model))]
        for spec in options.fallbacks:
            means = await open_means(spec, store, replace(options, price=None), stack)
            chain.append((replace(question, model=spec), means))
        run = Run(options.origin, question.model.model, rows, options.traceparent)
        observing = observed(run, options.observers, clock, options.on_progress, options.on_trouble)
        async with observing as observation:
            return await _ask_in_turn(chain, columns, rows, options, observation)


def open_options_store(options: Options, stack: AsyncExitStack) -> AnswerStore:
    """The store of `options`; one that is opened here is closed with `stack`."""
    return stack.enter_context(open_store(options.store)) if isinstance(options.store, str | Path) else options.store


async def open_means(
    spec: ModelSpec, store: AnswerStore, options: Options, stack: AsyncExitStack, model: ChatModel | None = None
) -> Means:
    """What a run works with; a model that is connected here is closed with `stack`.

    Raises:
        ConfigError: The model cannot be connected, or a cap needs a figure that is not known.
    """
    if model is None:
        model = connect(spec)
        stack.push_async_callback(model.aclose)
    own = () if options.max_cost_usd is None else (Cap(Decimal(str(options.max_cost_usd))),)
    terms = Terms((*own, *options.caps), options.rates, options.origin, options.on_threshold, options.clock)
    return find_means(model, spec, options.price, store, terms)


async def _ask_in_turn(
    chain: Sequence[tuple[Question, Means]],
    columns: Mapping[str, Sequence[Any]],
    rows: int,
    options: Options,
    observation: Observation,
) -> Report:
    """Ask the first about all rows, and each next one about those that are out of reach of those before it."""
    report: Report | None = None
    left: Sequence[int] = range(rows)
    for number, (question, means) in enumerate(chain, 1):
        found = await ask_rows(
            question,
            columns if report is None else {name: [values[row] for row in left] for name, values in columns.items()},
            len(left),
            means,
            policy=options.policy,
            origin=options.origin,
            partial=number < len(chain),
            on_progress=partial(_tell, observation.progress, report.progress if report else None),
            clock=options.clock,
            feed=observation.feed(question.model),
        )
        report = report.followed_by(left, found) if report else found
        if report.stopped_by is None:
            break
        options.on_fallback(f"{chain[number][0].model.model} takes over the rows that are left: {report.stopped_by}")
        failures = enumerate(report.outcomes.failures())
        left = [row for row, failure in failures if failure is not None and failure.reason == "unreachable"]
    return cast("Report", report)


def _tell(on_progress: Callable[[Progress], None], before: Progress | None, progress: Progress) -> None:
    on_progress(before.followed_by(progress) if before else progress)
