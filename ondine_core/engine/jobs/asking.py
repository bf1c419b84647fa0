"""Asks the rows without an outcome, by live calls or by batch jobs, until each has one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import islice
from typing import Literal

from ondine_core.engine.adaptive_size import BatchSizes
from ondine_core.engine.jobs.context import BatchQueue, JobContext
from ondine_core.engine.jobs.job_run import JobRun
from ondine_core.engine.jobs.waits import check_store
from ondine_core.engine.run_context import RunContext
from ondine_core.engine.steps import items
from ondine_core.engine.workers import Asker
from ondine_core.errors import ConfigError
from ondine_core.store import Store, job_tables
from ondine_core.types.values import Item, Key

_KEYS_AT_ONCE = 10_000


async def leave_to_jobs(run: RunContext) -> None:
    """Leave the prompts that batch jobs of the task have in flight to these jobs."""
    store = run.runtime.store
    if not isinstance(store, Store):
        return
    jobs = await store.read(job_tables.read_jobs)
    if not any(job.task == run.others.own.task for job in jobs):
        return
    keys = iter([key for key, _ in run.pending()])
    while group := list(islice(keys, _KEYS_AT_ONCE)):
        await run.others.leave_to_jobs(group)


async def ask_pending(run: RunContext, asker: Asker, batch_size: int | Literal["auto"]) -> None:
    """Ask all rows without an outcome.

    Raises:
        JobsUnderWayError: Batch jobs have some of the rows and have not ended.
        ConfigError: The tier is "batch", and the provider has no batch API or the store is in memory.
        OndineError: Another error ended the run.
    """
    by_jobs = run.task.model.tier == "batch"
    if not by_jobs:
        await asker.ask_all(run.pending(), batch_size)
    async with AsyncExitStack() as stack:
        context = None
        while by_jobs or run.others.in_jobs:
            if context is None:
                context = _open_context(run, batch_size, stack)
            left = await JobRun(context, submits=by_jobs).ask()
            by_jobs = False
            await asker.ask_all((), batch_size, ready=left)


def _open_context(run: RunContext, batch_size: int | Literal["auto"], stack: AsyncExitStack) -> JobContext:
    """Open the connection with which batch jobs are submitted and read; `stack` closes it."""
    task = run.task
    runtime = run.runtime
    store = check_store(runtime.store)
    if runtime.connect_jobs is None:
        raise ConfigError(f"tier='batch': {task.model.model!r} has no batch API.")
    api = runtime.connect_jobs(task.model)
    stack.push_async_callback(api.aclose)
    sizes = BatchSizes(task, runtime, run.policy, batch_size)

    def find_items(keys: Sequence[Key]) -> dict[Key, Item]:
        rows = ((key, run.first[key]) for key in keys if key in run.first)
        return {item.key: item for item in items(task, run.columns, rows, with_fields=sizes.several_rows)}

    pending = run.pending() if task.model.tier == "batch" else []
    fresh = sizes.pack(items(task, run.columns, pending, with_fields=sizes.several_rows))
    return JobContext(run, api, store, sizes.pack, BatchQueue(fresh, len(pending), find_items))
