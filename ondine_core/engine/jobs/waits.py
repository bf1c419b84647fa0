"""A materialization that waits for batch jobs goes on in later runs, which draw from its own cap on cost."""

from __future__ import annotations

from functools import partial

from ondine_core.store import Store, job_tables
from ondine_core.types.ledger import Origin
from ondine_core.types.protocols import AnswerStore

__all__ = ["end_wait", "find_first_run"]


async def find_first_run(store: AnswerStore, origin: Origin) -> Origin:
    """`origin` with the run that began its materialization, where that waits for batch jobs."""
    if not isinstance(store, Store) or not origin.asset:
        return origin
    waits = await store.read(partial(job_tables.read_waits, origin=origin))
    return waits[0].origin if waits else origin


async def end_wait(store: AnswerStore, origin: Origin) -> None:
    """Note that the materialization of `origin` waits for nothing any more."""
    if not isinstance(store, Store) or not origin.asset:
        return
    if await store.read(partial(job_tables.read_waits, origin=origin)):
        await store.change(partial(job_tables.remove_wait, origin=origin))
