"""Asks the rows that have no outcome yet, at once or by batch jobs, until each has one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal

from ondine_core.batching.packing import pack
from ondine_core.batching.prompt_window import find_window
from ondine_core.engine.adaptive_size import Sizes
from ondine_core.engine.interpreting import Interpreter
from ondine_core.engine.jobs.context import BatchQueue, JobContext
from ondine_core.engine.jobs.job_run import JobRun, check_store
from ondine_core.engine.other_runs import OtherRuns
from ondine_core.engine.policy import Policy
from ondine_core.engine.run_state import RunState
from ondine_core.engine.runtime import Runtime
from ondine_core.engine.steps import items
from ondine_core.engine.workers import Asker
from ondine_core.errors import ConfigError
from ondine_core.prompts.task import Task
from ondine_core.store import Store, job_tables
from ondine_core.telemetry.emitter import EventEmitter
from ondine_core.types.clock import Clock
from ondine_core.types.ledger import Origin
from ondine_core.types.values import Batch, Item, Key

__all__ = ["Work", "ask_pending", "leave_to_jobs"]

_KEYS_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Work:
    """What a run is to do.

    Args:
        task: What is asked.
        columns: The columns that the prompt reads.
        first: The first row of each prompt.
        runtime: Model, store, price, limiter and budgets.
        policy: How hard to try.
        clock: Time and chance.
        origin: Run, asset and partition, for the ledger.
        emitter: Emits the events of batches and calls.
        others: Other runs of the same question.
        run_state: Takes the outcomes of rows.
        started_at: When the run began, in seconds since the epoch.
        unseen: Prompts that were asked by calls whose outcome was never seen.
    """

    task: Task
    columns: Mapping[str, Sequence[Any]]
    first: Mapping[Key, int]
    runtime: Runtime
    policy: Policy
    clock: Clock
    origin: Origin
    emitter: EventEmitter
    others: OtherRuns
    run_state: RunState
    started_at: float
    unseen: set[Key] = field(default_factory=set)

    def pending(self) -> list[tuple[Key, int]]:
        """The prompts without an outcome that no batch job has in flight, and a row of each."""
        known, in_jobs = self.run_state.outcomes, self.others.in_jobs
        return [(key, row) for key, row in self.first.items() if key not in known and key not in in_jobs]


async def leave_to_jobs(work: Work) -> None:
    """Find out which prompts batch jobs have in flight."""
    store = work.runtime.store
    if not isinstance(store, Store):
        return
    jobs = await store.read(job_tables.read_jobs)
    if not any(job.task == work.others.task for job in jobs):
        return
    keys = iter([key for key, _ in work.pending()])
    while some := list(islice(keys, _KEYS_AT_ONCE)):
        await work.others.leave_to_jobs(some)


async def ask_pending(work: Work, asker: Asker, batch_size: int | Literal["auto"]) -> None:
    """Ask about all rows that have no outcome yet.

    Raises:
        JobsUnderWayError: Batch jobs have some of them and have not ended.
        ConfigError: The tier is "batch", and the provider has no batch API or the store cannot keep jobs.
        OndineError: What else ended the run.
    """
    ask = partial(asker.ask_all, work.columns, run_state=work.run_state, batch_size=batch_size)
    by_jobs = work.task.model.tier == "batch"
    if not by_jobs:
        await ask(iter(work.pending()))
    async with AsyncExitStack() as stack:
        context = None
        while by_jobs or work.others.in_jobs:
            if context is None:
                context = _open_context(work, batch_size, stack)
            left = await JobRun(context, submits=by_jobs).ask()
            by_jobs = False
            await ask(iter(()), ready=left)


def _open_context(work: Work, batch_size: int | Literal["auto"], stack: AsyncExitStack) -> JobContext:
    """What batch jobs are handed in and read with; the connection is closed with `stack`."""
    task, runtime, policy = work.task, work.runtime, work.policy
    store = check_store(runtime.store)
    if runtime.connect_jobs is None:
        raise ConfigError(f"tier='batch': {task.model.model!r} has no batch API.")
    api = runtime.connect_jobs()
    stack.push_async_callback(api.aclose)
    sizes = Sizes(task, runtime, policy, batch_size)

    def find_items(keys: Sequence[Key]) -> dict[Key, Item]:
        rows = ((key, work.first[key]) for key in keys if key in work.first)
        return {item.key: item for item in items(task, work.columns, rows, apart=sizes.several)}

    def pack_items(prompts: Iterable[Item]) -> Iterator[Batch]:
        return pack(prompts, sizes.take, policy.max_repairs, lambda: sizes.room)

    pending = work.pending() if task.model.tier == "batch" else []
    fresh = pack_items(items(task, work.columns, pending, apart=sizes.several))
    window = policy.context_window or find_window(task.model)
    return JobContext(
        task=task,
        runtime=runtime,
        policy=policy,
        clock=work.clock,
        origin=work.origin,
        api=api,
        store=store,
        others=work.others,
        emitter=work.emitter,
        interpreter=Interpreter(task, policy, window, work.clock.now),
        run_state=work.run_state,
        asked=work.first,
        queue=BatchQueue(fresh, len(pending), find_items),
        pack=pack_items,
        warn=runtime.on_warning,
        started_at=work.started_at,
        unseen=work.unseen,
    )
