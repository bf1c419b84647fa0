"""The door: a table and a question in, a report out, from a coroutine or from ordinary code.

`enrich` is the whole pipeline without Dagster. `enrich_sync` is its twin for scripts and notebooks: it runs the event
loop in a thread of its own, so it works under a running loop, and an interrupt that lands in the caller stops it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from ondine_core.budget import Budget, Cap, Purse
from ondine_core.context_limits import get_output_limit
from ondine_core.engine import run
from ondine_core.errors import ConfigError
from ondine_core.lease import hold_lease
from ondine_core.policy import Clock, Means, Policy
from ondine_core.pricing import FREE, Price, find_price
from ondine_core.prompts import Prompt
from ondine_core.providers import connect
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.question import Question, check_columns, compile_question
from ondine_core.rate_limiter import RateLimiter, Rates
from ondine_core.report import Progress, Report
from ondine_core.schema import Output
from ondine_core.store import open_store
from ondine_core.values import AnswerStore, ChatModel, ModelSpec, Origin

__all__ = [
    "Options",
    "answer",
    "enrich",
    "enrich_sync",
    "run_in_thread",
    "spec_of",
]

T = TypeVar("T")


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
        origin: For whom calls are made, in the books; by default a run of its own.
        lease: Name under which one process at a time works on this store; others wait, and find its answers then.
        lease_ttl_s: Seconds after which the work of a process that was killed is taken over by another run.
        on_progress: Told after every batch, on the event loop; it must return quickly.
        on_wait: Told while another process has the lease, with the seconds after which it would be free if that were
            dead.
        clock: Time and chance.
    """

    store: str | Path | AnswerStore = ":memory:"
    policy: Policy = Policy()
    rates: Rates = Rates()
    price: Price | None = None
    max_cost_usd: Decimal | float | None = None
    caps: tuple[Cap, ...] = ()
    on_threshold: Callable[[str], None] = lambda _: None
    origin: Origin = field(default_factory=lambda: Origin(uuid4().hex))
    lease: str | None = None
    lease_ttl_s: float = 30.0
    on_wait: Callable[[float], None] = lambda _: None
    on_progress: Callable[[Progress], None] = lambda _: None
    clock: Clock = field(default_factory=Clock)


async def enrich(
    table: Any,
    *,
    prompt: str | Prompt,
    output: Output,
    model: str | ModelSpec | ChatModel,
    options: Options | None = None,
) -> Report:
    """Ask `prompt` about every row of `table`.

    Args:
        table: A data frame (pandas, polars, pyarrow), a mapping of column to values, or a sequence of mappings.
        prompt: The question, with `{column}` where a row's value belongs.
        output: The columns wanted: a Pydantic model, a JSON schema, a mapping of column to type, a regular expression
            with named groups, or the name of one free-text column.
        model: Provider and name as in `"openai/gpt-4o-mini"`, a full `ModelSpec`, or anything that is a `ChatModel`.
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
    if isinstance(model, str | ModelSpec):
        spec = ModelSpec(model) if isinstance(model, str) else model
        return await answer(table, compile_question(prompt, output, spec), options or Options())
    return await answer(table, compile_question(prompt, output, spec_of(model)), options or Options(), model)


def enrich_sync(
    table: Any,
    *,
    prompt: str | Prompt,
    output: Output,
    model: str | ModelSpec | ChatModel,
    options: Options | None = None,
) -> Report:
    """`enrich` for code that is not a coroutine; works in notebooks, too. Same arguments, result and errors."""
    return run_in_thread(lambda: enrich(table, prompt=prompt, output=output, model=model, options=options))


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
    names, rows, columns = _read(table, question.prompt.columns)
    check_columns(question, names)
    async with AsyncExitStack() as stack:
        if isinstance(options.store, str | Path):
            store: AnswerStore = stack.enter_context(open_store(options.store))
        else:
            store = options.store
        if model is None:
            model = connect(question.model)
            stack.push_async_callback(model.aclose)
        clock, limiter = options.clock, None
        if options.lease is not None:
            await stack.enter_async_context(
                hold_lease(
                    store,
                    options.lease,
                    now=clock.now,
                    sleep=clock.sleep,
                    owner=options.origin.run,
                    ttl_s=options.lease_ttl_s,
                    on_wait=options.on_wait,
                )
            )
        if options.rates:
            limiter = RateLimiter(_bucket(question.model), options.rates, store, now=clock.now, sleep=clock.sleep)
        price = options.price or find_price(question.model.listed_as)
        means = Means(model, store, price, limiter, _purse(question.model, options, price, store))
        return await run(
            question,
            columns,
            rows,
            means,
            policy=options.policy,
            origin=options.origin,
            on_progress=options.on_progress,
            clock=clock,
        )


def _purse(spec: ModelSpec, options: Options, price: Price | None, store: AnswerStore) -> Purse | None:
    caps = list(options.caps)
    if options.max_cost_usd is not None:
        caps.insert(0, Cap(Decimal(str(options.max_cost_usd))))
    if not caps:
        return None
    if price is None:
        raise ConfigError(
            f"{caps[0]} needs the price of {spec.model!r}, which is not known; "
            "set input_cost_per_1k_tokens and output_cost_per_1k_tokens (in code: Options(price=Price(...)))."
        )
    if options.price is None and (tier := spec.params.get("service_tier")) in _DEARER:
        raise ConfigError(
            f"{caps[0]} does not know what service_tier={tier!r} costs; "
            "set input_cost_per_1k_tokens and output_cost_per_1k_tokens."
        )
    longest = get_output_limit(spec)
    if longest is None:
        if price != FREE:
            raise ConfigError(
                f"{caps[0]} needs to know how long a reply of {spec.model!r} can get; set max_output_tokens."
            )
        longest = 0
    # A run's own purse is for one materialization; a named one is for all that name it.
    origin, clock = options.origin, options.clock
    own = f"{origin.run}/{origin.asset}/{origin.partition}"
    budgets = (
        Budget(
            cap,
            origin.run if cap.name else own,
            store,
            now=clock.now,
            sleep=clock.sleep,
            on_threshold=options.on_threshold,
            patience_s=max(_PATIENCE_S, 2 * spec.timeout_s),
        )
        for cap in caps
    )
    return Purse(tuple(budgets), price, longest)


_PATIENCE_S = 60.0
_DEARER = ("priority", "fast")


def run_in_thread(main: Callable[[], Coroutine[Any, Any, T]], tick: Callable[[], None] = lambda: None) -> T:
    """Run a coroutine on an event loop in another thread, and wait for it.

    An exception that lands here while waiting (KeyboardInterrupt, an orchestrator's own) cancels the coroutine, waits
    until it has cleaned up, and goes on.

    Args:
        main: Makes the coroutine.
        tick: Called in this thread about four times a second while waiting.
    """
    result: Future[T] = Future()
    started = threading.Event()
    cancel: list[Callable[[], object]] = []

    async def cancellable() -> T:
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel) if task else None)
        started.set()
        return await main()

    def thread() -> None:
        try:
            result.set_result(asyncio.run(cancellable()))
        except BaseException as error:  # noqa: BLE001  (it is handed over to the waiting thread)
            result.set_exception(error)

    worker = threading.Thread(target=thread, name="ondine", daemon=True)
    worker.start()
    try:
        while True:
            try:
                return result.result(timeout=_TICK_S)
            except TimeoutError:
                if result.done():
                    return result.result()
                tick()
    except BaseException:
        if not result.done():
            started.wait()
            with suppress(RuntimeError):  # the loop may have closed this very moment
                cancel[0]()
            worker.join(_CLEAN_UP_S)
        raise


_TICK_S = 0.25
_CLEAN_UP_S = 1.5
"""Closing connections and a last commit take milliseconds; a step told to stop must not wait for more."""


def _bucket(spec: ModelSpec) -> str:
    """Whoever asks the same model at the same address shares its rates."""
    return f"{spec.model}@{(spec.base_url or '').rpartition('@')[2]}"


def _read(table: Any, wanted: Sequence[str]) -> tuple[tuple[str, ...], int, dict[str, Sequence[Any]]]:
    """The column names of `table`, its length, and the values of the `wanted` columns that it has."""
    if isinstance(table, Mapping):
        return _read_columns(table, wanted)
    if isinstance(table, Sequence) and all(isinstance(row, Mapping) for row in table):
        names = tuple(dict.fromkeys(name for row in table for name in row)) or tuple(wanted)
        return names, len(table), {name: [row.get(name) for row in table] for name in wanted}
    import narwhals as nw

    try:
        frame = nw.from_native(table, eager_only=True)
    except TypeError:
        raise ConfigError(
            f"A {type(table).__name__} is not a table; give a pandas, polars or pyarrow frame (collect lazy ones), "
            "a mapping of column to values, or a list of mappings."
        ) from None
    columns = {name: _values(frame.get_column(name)) for name in wanted if name in frame.columns}
    return tuple(frame.columns), len(frame), columns


def _read_columns(
    table: Mapping[str, Any], wanted: Sequence[str]
) -> tuple[tuple[str, ...], int, dict[str, Sequence[Any]]]:
    lengths = {name: -1 if isinstance(values, str | bytes) else len(values) for name, values in table.items()}
    if len(set(lengths.values())) > 1 or -1 in lengths.values():
        shown = ", ".join(f"{name!r}: {'a text' if n < 0 else n}" for name, n in lengths.items())
        raise ConfigError(f"The columns must be sequences of one length; they are {shown}.")
    # By position: a pandas Series would be read by label.
    columns: dict[str, Sequence[Any]] = {name: list(table[name]) for name in wanted if name in table}
    return tuple(table), next(iter(lengths.values()), 0), columns


def _values(series: Any) -> Sequence[Any]:
    """The values as Python objects, every kind of missing as `None`."""
    values: list[Any] = series.to_list()
    if not series.null_count():
        return values
    return [None if missing else value for value, missing in zip(values, series.is_null().to_list(), strict=True)]
