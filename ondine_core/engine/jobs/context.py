"""What all parts of a run that asks by batch jobs share, and the batches that wait for a job."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import orjson

from ondine_core.batching.strategy import ONE_PER_CALL, STRATEGIES, BatchStrategy
from ondine_core.engine.policy import Policy
from ondine_core.engine.run_context import RunContext
from ondine_core.providers.job_api import JobApi
from ondine_core.store import Store
from ondine_core.types.ledger import CallStarted
from ondine_core.types.values import Batch, Item, Key


@dataclass(frozen=True, slots=True)
class QueuedBatch:
    """A batch that waits for a job, and how many jobs have ended without running it."""

    batch: Batch
    not_run: int = 0


class BatchQueue:
    """Batches that wait for a job: first those to be asked again, then new ones, whose prompts are made when needed.

    `rows` is the number of prompts in the `fresh` batches; `find_items` makes those prompts of some keys that are in
    the table.
    """

    def __init__(
        self, fresh: Iterator[Batch], rows: int, find_items: Callable[[Sequence[Key]], Mapping[Key, Item]]
    ) -> None:
        self._fresh = fresh
        self._requeued: deque[tuple[tuple[Key, ...], bytes]] = deque()
        self.find_items = find_items
        self.rows = rows

    def take(self) -> QueuedBatch | None:
        """The next batch, `None` if there is none."""
        if self._requeued:
            keys, how = self._requeued.popleft()
            queued: QueuedBatch | None = read_batch(how, self.find_items(keys).values())[0]
        else:
            batch = next(self._fresh, None)
            queued = None if batch is None else QueuedBatch(batch)
        if queued is not None:
            self.rows -= len(queued.batch.items)
        return queued

    def put(self, *queued: QueuedBatch) -> None:
        """Queue batches behind those that are queued already."""
        self._requeued.extend(map(_pack, queued))
        self.rows += sum(len(one.batch.items) for one in queued)

    def put_back(self, queued: Sequence[QueuedBatch]) -> None:
        """Have batches asked before all others, in this order."""
        self._requeued.extendleft(map(_pack, reversed(queued)))
        self.rows += sum(len(one.batch.items) for one in queued)

    def drain(self) -> Iterator[Batch]:
        """All that is left."""
        while (queued := self.take()) is not None:
            yield queued.batch


def _pack(queued: QueuedBatch) -> tuple[tuple[Key, ...], bytes]:
    return tuple(item.key for item in queued.batch.items), write_batch(queued, "")


def write_batch(queued: QueuedBatch, strategy: str) -> bytes:
    """How a batch was put together, as a store keeps it; its prompts' texts are not in it."""
    batch = queued.batch
    how = (batch.attempt, batch.repairs_left, batch.complaint, batch.ids, strategy, queued.not_run)
    return orjson.dumps(how)


def read_batch(kept: bytes, prompts: Iterable[Item]) -> tuple[QueuedBatch, str]:
    """A batch as `write_batch` wrote it, and the name of its strategy."""
    attempt, repairs_left, complaint, ids, strategy, not_run = orjson.loads(kept)
    return QueuedBatch(Batch(tuple(prompts), repairs_left, attempt, complaint, tuple(ids)), not_run), strategy


def batch_of(call: CallStarted, items: Mapping[Key, Item] = MappingProxyType({})) -> tuple[QueuedBatch, str]:
    """The batch that a request of a job carries, and the name of its strategy; prompts not in `items` have no text."""
    return read_batch(call.batch or b"", (items.get(key) or Item(key, "") for key in call.keys))


@dataclass(frozen=True, slots=True)
class JobContext:
    """What all parts of a run that asks by batch jobs share."""

    run: RunContext
    api: JobApi
    store: Store
    pack: Callable[[Iterable[Item]], Iterator[Batch]]
    queue: BatchQueue

    def requeue(self, queued: QueuedBatch) -> None:
        """Have those prompts of a batch asked again that are in the table."""
        batch = self.release(queued.batch)
        if batch.items:
            self.queue.put(replace(queued, batch=batch))

    def release(self, batch: Batch) -> Batch:
        """Those prompts of a batch that are in the table; no job has them in flight any more."""
        items = tuple(item for item in batch.items if item.key in self.run.first)
        for item in items:
            self.run.others.in_jobs.pop(item.key, None)
        return replace(batch, items=items)


def choose_strategy_of(name: str, batch: Batch, policy: Policy) -> BatchStrategy:
    """The strategy by which a batch was sent, which the definition may have replaced meanwhile."""
    if len(batch.items) == 1:
        return ONE_PER_CALL
    # By a strategy that is gone a reply cannot be read, and its prompts are asked again in smaller batches.
    return policy.strategy if name == policy.strategy.name else STRATEGIES.get(name, policy.strategy)
