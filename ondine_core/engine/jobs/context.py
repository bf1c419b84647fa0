"""The context that all parts of a run by batch jobs share, and the queue of batches."""

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
    """A batch in the queue, and how many jobs have ended without running it."""

    batch: Batch
    not_run: int = 0


class BatchQueue:
    """The queue of batches for jobs: first batches to ask again, then the `fresh` ones, which are made lazily.

    `rows` is the number of prompts in the queue. `find_items` renders the prompts of those keys that are in the table.
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
            keys, written = self._requeued.popleft()
            queued: QueuedBatch | None = read_batch(written, self.find_items(keys).values())[0]
        else:
            batch = next(self._fresh, None)
            queued = None if batch is None else QueuedBatch(batch)
        if queued is not None:
            self.rows -= len(queued.batch.items)
        return queued

    def put(self, *queued: QueuedBatch) -> None:
        """Queue batches to ask again, after others of this kind and before fresh ones."""
        self._requeued.extend(map(_pack, queued))
        self.rows += sum(len(batch.batch.items) for batch in queued)

    def put_back(self, queued: Sequence[QueuedBatch]) -> None:
        """Queue batches before all others, in this order."""
        self._requeued.extendleft(map(_pack, reversed(queued)))
        self.rows += sum(len(batch.batch.items) for batch in queued)

    def drain(self) -> Iterator[Batch]:
        """Take all batches."""
        while (queued := self.take()) is not None:
            yield queued.batch


def _pack(queued: QueuedBatch) -> tuple[tuple[Key, ...], bytes]:
    return tuple(item.key for item in queued.batch.items), write_batch(queued, "")


def write_batch(queued: QueuedBatch, strategy: str) -> bytes:
    """Convert a batch and the name of its strategy to JSON for the store, without its prompts."""
    batch = queued.batch
    return orjson.dumps((batch.attempt, batch.repairs_left, batch.complaint, batch.ids, strategy, queued.not_run))


def read_batch(written: bytes, prompts: Iterable[Item]) -> tuple[QueuedBatch, str]:
    """Parse what `write_batch` wrote: a batch, here of `prompts`, and the name of its strategy."""
    attempt, repairs_left, complaint, ids, strategy, not_run = orjson.loads(written)
    return QueuedBatch(Batch(tuple(prompts), repairs_left, attempt, complaint, tuple(ids)), not_run), strategy


def to_batch(call: CallStarted, items: Mapping[Key, Item] = MappingProxyType({})) -> tuple[QueuedBatch, str]:
    """The batch that a request of a job carries, and the name of its strategy; prompts not in `items` have no text."""
    return read_batch(call.batch or b"", (items.get(key) or Item(key, "") for key in call.keys))


@dataclass(frozen=True, slots=True)
class JobContext:
    """The context that all parts of a run by batch jobs share."""

    run: RunContext
    api: JobApi
    store: Store
    pack: Callable[[Iterable[Item]], Iterator[Batch]]
    queue: BatchQueue

    def requeue(self, queued: QueuedBatch) -> None:
        """Queue those prompts of a batch again that are in the table."""
        batch = self.release(queued.batch)
        if batch.items:
            self.queue.put(replace(queued, batch=batch))

    def release(self, batch: Batch) -> Batch:
        """Record that no job has the prompts of a batch in flight; returns those that are in the table."""
        items = tuple(item for item in batch.items if item.key in self.run.first)
        for item in items:
            self.run.others.in_jobs.pop(item.key, None)
        return replace(batch, items=items)


def find_strategy(name: str, batch: Batch, policy: Policy) -> BatchStrategy:
    """Find the strategy by which a batch was sent; the task may have another one now."""
    if len(batch.items) == 1:
        return ONE_PER_CALL
    # If the strategy does not exist any more, the reply cannot be read, and the batch is asked again in halves.
    return policy.strategy if name == policy.strategy.name else STRATEGIES.get(name, policy.strategy)
