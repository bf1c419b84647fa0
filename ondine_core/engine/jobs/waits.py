"""Continues a materialization that waits for batch jobs in later runs, which use its budget.

This needs a store that outlives the process.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ondine_core.engine.policy import Policy
from ondine_core.errors import ConfigError
from ondine_core.store import Store, job_tables
from ondine_core.types.job_record import JobWait
from ondine_core.types.ledger import Origin
from ondine_core.types.protocols import AnswerStore


async def find_wait(store: AnswerStore, origin: Origin) -> JobWait | None:
    """The wait of the materialization of `origin`; `None` if it does not wait.

    If all its jobs have been read, the materialization is over (its last run failed), and the wait is removed.
    """
    if not isinstance(store, Store) or not origin.asset:
        return None
    waits = await store.read(partial(job_tables.read_waits, origin=origin))
    if not waits:
        return None
    jobs = list(waits[0].jobs)
    if jobs and not await store.read(partial(job_tables.read_jobs, jobs=jobs)):
        await store.change(partial(job_tables.remove_wait, origin=origin))
        return None
    return waits[0]


async def continue_materialization(store: AnswerStore, origin: Origin, policy: Policy) -> Policy:
    """Adapt `policy` to a run that continues a materialization that an earlier run began.

    Answers since its beginning are reused whatever `reuse_since` is, and its failures are not asked again.
    """
    wait = await find_wait(store, origin)
    if wait is None:
        return policy
    return replace(policy, reuse_since=min(policy.reuse_since, wait.since), retry_failed_rows=False)


async def end_wait(store: AnswerStore, origin: Origin, *, unless_jobs: bool = False) -> None:
    """Record that the materialization of `origin` does not wait any more; with `unless_jobs`, only if no job is open.

    The next run then begins a new materialization, with a new budget.
    """
    wait = await find_wait(store, origin)
    if wait is not None and isinstance(store, Store) and not (unless_jobs and wait.jobs):
        await store.change(partial(job_tables.remove_wait, origin=origin))


def check_store(store: AnswerStore) -> Store:
    """Return `store` if it outlives the process.

    Raises:
        ConfigError: It does not.
    """
    if not isinstance(store, Store) or store.location == ":memory:":
        raise ConfigError(
            "tier='batch' needs a store that outlives the process, since a job may be read by another one: set store "
            "to a file or a postgresql:// URL (in code: Options(store=...))."
        )
    return store
