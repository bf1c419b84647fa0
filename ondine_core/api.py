"""Public entry points: a table and a prompt in, a report out, from a coroutine or from ordinary code.

`enrich` is the whole pipeline without Dagster. `enrich_sync` is the same for scripts and notebooks: it runs the event
loop in a thread of its own, so it works under a running loop, and an interrupt of the caller stops it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any, Never, cast
from uuid import uuid4

from ondine_core.engine.gc_tuning import rare_garbage_collection
from ondine_core.engine.in_thread import run_in_thread
from ondine_core.engine.jobs.waits import continue_materialization, end_wait
from ondine_core.engine.options import Options
from ondine_core.engine.policy import Policy
from ondine_core.engine.progress_bar import progress_bar
from ondine_core.engine.report import Report
from ondine_core.engine.run import run as ask_rows
from ondine_core.engine.runtime import Runtime, open_options_store, open_runtime
from ondine_core.engine.tables import read
from ondine_core.errors import BudgetExhaustedError, ConfigError
from ondine_core.limits.lease import Lease
from ondine_core.preprocessing.cleaning import Clean
from ondine_core.preprocessing.sanitizer import Sanitize
from ondine_core.prompts.output_schema import Output
from ondine_core.prompts.task import Task, check_columns, check_media_model, compile_task
from ondine_core.prompts.template import Prompt
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.telemetry.events import Run
from ondine_core.telemetry.observing import Observation, observed
from ondine_core.types.progress import Progress
from ondine_core.types.protocols import ChatModel
from ondine_core.types.suggestion import did_you_mean
from ondine_core.types.values import ModelSpec


async def enrich(  # noqa: PLR0913  (by keyword)
    table: Any,
    *,
    prompt: str | Prompt,
    output: Output,
    model: str | ModelSpec | ChatModel,
    clean: Clean | str = (),
    sanitize: Sanitize | None = None,
    overwrite: bool = False,
    options: Options | None = None,
    **_unknown: Never,
) -> Report:
    """Ask `prompt` about every row of `table`.

    Args:
        table: A data frame (pandas, polars, pyarrow), a mapping of column to values, or a sequence of mappings.
        prompt: The question, with `{column}` where a row's value belongs.
        output: The columns wanted: a Pydantic model, a JSON schema, a mapping of column to type, a regular expression
            with named groups, or the name of one free-text column.
        model: Provider and name as in `"openai/gpt-6-luna"`, a full `ModelSpec`, or anything that is a `ChatModel`.
        clean: Steps that clean the texts of a row before the prompt is rendered, in order: names such as `"html"`,
            functions, `{"truncate": 500}`; see `ondine_core.preprocessing.cleaning`.
        sanitize: How personal data and secrets of a row are replaced before the prompt is rendered: `"redact"`,
            `"placeholder"` (restored in the answer), or a `Sanitizer`.
        overwrite: Whether `table` may have the output columns already, as when a cell of a notebook runs again;
            `report.to_frame(table)` then replaces them.
        options: Store, concurrency, rates, progress bar and so on.

    Returns:
        One outcome a row, in row order, with counts and cost. `report.to_frame(table)` is the table with the output
        columns, `report.column(name)` one of them.

    Raises:
        ConfigError: Prompt, output, model and table do not fit together; nothing was asked.
        BudgetExhaustedError: `max_cost_usd` is reached. Answers that arrived are in the store.
        FatalError: No request can succeed. Answers that arrived are in the store.
        TransientError: The provider stayed unreachable. Answers that arrived are in the store.
        JobsUnderWayError: At the tier "batch", jobs have not ended within `Policy.batch_wait_s`. Run again later.
        StoreError: Answers cannot be stored.
    """
    _refuse_unknown(_unknown)
    spec, opened = _spec_and_model(model)
    task = compile_task(prompt, output, spec, clean=clean, sanitize=sanitize)
    options = _for_one_run(options)
    with progress_bar(options.progress_bar) as show:

        def on_progress(progress: Progress) -> None:
            options.on_progress(progress)
            show(progress)

        return await answer(table, task, replace(options, on_progress=on_progress), opened, overwrite=overwrite)


def enrich_sync(  # noqa: PLR0913  (by keyword)
    table: Any,
    *,
    prompt: str | Prompt,
    output: Output,
    model: str | ModelSpec | ChatModel,
    clean: Clean | str = (),
    sanitize: Sanitize | None = None,
    overwrite: bool = False,
    options: Options | None = None,
    **_unknown: Never,
) -> Report:
    """`enrich` for code that is not a coroutine, also in notebooks; arguments, result and errors are the same."""
    _refuse_unknown(_unknown)
    spec, opened = _spec_and_model(model)
    task = compile_task(prompt, output, spec, clean=clean, sanitize=sanitize)
    options = _for_one_run(options)
    latest: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        options.on_progress(progress)
        latest[:] = [progress]

    watched = replace(options, on_progress=on_progress)
    # The bar is drawn in this thread: a notebook shows the output of other threads in another cell, or not at all.
    with progress_bar(options.progress_bar) as show:

        def tick() -> None:
            for progress in latest:
                show(progress)

        try:
            return run_in_thread(lambda: answer(table, task, watched, opened, overwrite=overwrite), tick)
        finally:
            tick()


def _refuse_unknown(names: Iterable[str]) -> None:
    """Refuse unknown arguments, and say where the first belongs."""
    for name in names:
        owners = [owner.__name__ for owner in (Options, ModelSpec, Policy) if name in owner.__dataclass_fields__]
        meant = did_you_mean(name, list(signature(enrich).parameters)[:-1])
        if owners:
            meant = f" It belongs to {owners[0]}."
        raise ConfigError(f"enrich has no argument {name!r}.{meant}")


def _for_one_run(options: Options | None) -> Options:
    """`options` with a new id of the run if they have none, since one value may be the options of many runs."""
    checked: Any = options or Options()
    if not isinstance(checked, Options):
        raise ConfigError(f"options is a {type(checked).__name__}; give options=Options(store=..., ...).")
    origin = checked.origin
    return checked if origin.run else replace(checked, origin=replace(origin, run=uuid4().hex))


def _spec_and_model(model: str | ModelSpec | ChatModel) -> tuple[ModelSpec, ChatModel | None]:
    """The spec of the model, and the model itself if it is open already."""
    if isinstance(model, str):
        return ModelSpec(model), None
    if isinstance(model, ModelSpec):
        return model, None
    return spec_of(model), model


def spec_of(model: ChatModel) -> ModelSpec:
    """The spec of an open model for keys and reports: named by its class, with an unknown price.

    Models that answer differently need different classes, stores or (for a `ScriptedModel`) names.

    Raises:
        ConfigError: It is a class, or lacks an attribute of a `ChatModel`.
    """
    if isinstance(model, type):
        raise ConfigError(f"model={model.__qualname__} is a class; give an instance of it.")
    kind = type(model)
    missing = [name for name in ("max_concurrency", "max_batch_size", "aclose") if not hasattr(model, name)]
    if missing:
        raise ConfigError(f"A {kind.__qualname__} cannot be asked: it lacks {missing[0]!r}, see ondine_core.ChatModel.")
    if isinstance(model, ScriptedModel):
        return ModelSpec(f"scripted/{model.name}")
    return ModelSpec(f"{kind.__module__}/{kind.__qualname__}")


async def answer(
    table: Any, task: Task, options: Options, model: ChatModel | None = None, *, overwrite: bool = False
) -> Report:
    """`enrich` with a compiled task; the other arguments and the errors are those of `enrich`.

    If `model` is given, it is asked instead of connecting to the model of `task`, and is not closed.
    """
    check_media_model(task.prompt, task.model)
    names, rows, columns = read(table, task.prompt.columns)
    check_columns(task, names, overwrite=overwrite)
    async with AsyncExitStack() as stack:
        stack.enter_context(rare_garbage_collection())
        store = open_options_store(options, stack)
        clock = options.clock
        lease = None
        if options.lease is not None:
            lease = Lease(store, options.lease, clock, options.lease_ttl_s)
            await stack.enter_async_context(lease.held(options.on_wait))
        policy = await continue_materialization(store, options.origin, options.policy)
        options = replace(options, policy=policy)
        # All models are opened at the start: if a key or price is missing, this is an error before the first call.
        runtime = await open_runtime(task.model, store, options, stack, model)
        chain = [(task, replace(runtime, lease=lease))]
        for spec in options.fallbacks:
            check_media_model(task.prompt, spec)
            runtime = await open_runtime(spec, store, replace(options, price=None), stack)
            chain.append((replace(task, model=spec), replace(runtime, lease=lease)))
        run = Run(options.origin, task.model.model, rows, options.traceparent)
        observing = observed(run, options.observers, clock, options.on_progress, options.on_observer_error)
        try:
            async with observing as observation:
                report = await _ask_in_turn(chain, columns, rows, options, observation)
        except BudgetExhaustedError:
            await end_wait(store, options.origin, unless_jobs=True)
            raise
        await end_wait(store, options.origin)
        return replace(report, overwrite=overwrite)


async def _ask_in_turn(
    chain: Sequence[tuple[Task, Runtime]],
    columns: Mapping[str, Sequence[Any]],
    rows: int,
    options: Options,
    observation: Observation,
) -> Report:
    """Ask the first model about all rows, and each next one about the rows for which all before it are unreachable."""
    report: Report | None = None
    left: Sequence[int] = range(rows)
    columns_left = columns
    for number, (task, runtime) in enumerate(chain, 1):
        before = None if report is None else report.progress
        part = await ask_rows(
            task,
            columns_left,
            replace(runtime, emitter=observation.emitter(task.model)),
            replace(options, on_progress=partial(_report_progress, observation.progress, before)),
            may_end_early=number < len(chain),
        )
        report = part if report is None else report.merge_rest(left, part)
        if report.stopped_by is None:
            break
        options.on_warning(f"{chain[number][0].model.model} takes over the rows that are left: {report.stopped_by}")
        failures = enumerate(report.outcomes.failures())
        left = [row for row, failure in failures if failure is not None and failure.reason == "unreachable"]
        columns_left = {name: [values[row] for row in left] for name, values in columns.items()}
    return cast("Report", report)


def _report_progress(on_progress: Callable[[Progress], None], before: Progress | None, progress: Progress) -> None:
    on_progress(before.merge_rest(progress) if before else progress)
