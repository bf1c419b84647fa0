"""The number of rows of the next call and its capacity: fixed, or learned from replies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from ondine_core.batching.batch_size import AdaptiveSize, adapt, start_size, take_rows
from ondine_core.batching.packing import find_capacity, pack
from ondine_core.engine.policy import Policy
from ondine_core.engine.runtime import Runtime
from ondine_core.prompts.task import Task
from ondine_core.providers.context_window import CallCapacity, learn_answer_tokens
from ondine_core.providers.finish_reasons import finish_kind
from ondine_core.types.values import Batch, Item, Reply


class BatchSizes:
    """The number of rows of the next call, and its capacity in tokens; both are learned from replies."""

    def __init__(self, task: Task, runtime: Runtime, policy: Policy, batch_size: int | Literal["auto"]) -> None:
        max_rows = runtime.model.max_batch_size
        self._max_repairs = policy.max_repairs
        self._adaptive: AdaptiveSize | None = None
        if batch_size == "auto":
            timeout_s = task.model.max_call_s
            self._adaptive = start_size(max_rows, timeout_s) if max_rows else start_size(timeout_s=timeout_s)
            self._fixed = 1
        else:
            self._fixed = min(batch_size, max_rows or batch_size)
        self.several_rows = self._fixed > 1 or (self._adaptive is not None and self._adaptive.max_rows > 1)
        self.capacity: CallCapacity | None = None
        if self.several_rows:
            self.capacity = find_capacity(
                policy.strategy, task, runtime.count, policy.context_window, runtime.media_tokens
            )

    def pack(self, prompts: Iterable[Item]) -> Iterator[Batch]:
        """Put prompts into batches, lazily."""
        return pack(prompts, self._take, self._max_repairs, lambda: self.capacity)

    def _take(self) -> int:
        """Rows for the next call."""
        if self._adaptive is None:
            return self._fixed
        rows, self._adaptive = take_rows(self._adaptive)
        return rows

    @property
    def fixed_size(self) -> int | None:
        """The fixed number of rows, `None` if it is learned."""
        return None if self._adaptive else self._fixed

    def learn(self, batch: Batch, answered: int, reply: Reply) -> None:
        """Learn from the reply to a batch, of which `answered` rows have an answer."""
        rows = len(batch.items)
        if self.capacity:
            cut = finish_kind(reply.finish_reason) == "cut"
            self.capacity = learn_answer_tokens(self.capacity, rows, reply.usage.output_tokens, cut=cut)
        if self._adaptive and batch.attempt == 1:
            self._adaptive = adapt(self._adaptive, rows=rows, unanswered=rows - answered, latency_s=reply.latency_s)
