"""Groups prompts into batches, lazily and in order, up to the batch size and the capacity of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ondine_core.batching.strategy import BatchStrategy, encode
from ondine_core.prompts.task import Task
from ondine_core.providers.context_window import (
    TOKENS_A_MESSAGE,
    CallCapacity,
    estimate_answer_tokens,
    estimate_tokens,
    get_context_limit,
    get_output_limit,
)
from ondine_core.providers.media_limits import find_media_limits, sent_bytes
from ondine_core.providers.media_tokens import max_tokens_anywhere
from ondine_core.types.media import Media, find_media
from ondine_core.types.values import Batch, Item


def find_capacity(
    strategy: BatchStrategy,
    task: Task,
    count: Callable[[str], int] = estimate_tokens,
    window_tokens: int | None = None,
    media_tokens: Callable[[Media], int] = max_tokens_anywhere,
) -> CallCapacity | None:
    """The capacity of calls by `strategy`; `None` if no limit is known.

    `window_tokens` replaces the listed window of the model. `count` counts the tokens of a text, and `media_tokens`
    those of an image or document.
    """
    window = window_tokens or get_context_limit(task.model.listed_as)
    output = get_output_limit(task.model)
    limits = find_media_limits(task.model) if task.prompt.media_columns else None
    if window is None and output is None and limits is None:
        return None
    blank = Item(b"", "", dict.fromkeys(task.prompt.columns, ""))
    # A complaint may be added to the rows later, when tokens are not counted any more.
    call = encode(strategy, Batch((blank,), complaint=_LONG_COMPLAINT), task)
    fixed = sum(count(message.content) + TOKENS_A_MESSAGE for message in call.messages)
    shown = call.shown_media
    fixed += sum(map(media_tokens, shown))

    def media_tokens_of(item: Item) -> int:
        return sum(map(media_tokens, find_media(item.text, item.media)))

    def weigh(item: Item) -> int:
        return count(strategy.carried(item, task)) + media_tokens_of(item)

    def bound(item: Item) -> int:
        # No encoding in use has more tokens than bytes.
        return len(strategy.carried(item, task).encode()) + media_tokens_of(item)

    return CallCapacity(
        window_tokens=window,
        output_tokens=output,
        fixed_tokens=fixed + count((call.json_schema or b"").decode()),
        answer_tokens=estimate_answer_tokens(task.schema.json_schema, count),
        # Many servers refuse a call whose prompt and max_output_tokens together exceed the window.
        reserved_tokens=min(task.model.max_output_tokens or 0, (window or 0) // 2),
        weigh=weigh if window else lambda _: 0,
        bound=bound if window else None,
        media=limits,
        media_bytes=sum(map(sent_bytes, shown)) + sum(len(message.content.encode()) for message in call.messages),
        media_images=sum(media.kind == "image" for media in shown),
    )


_LONG_COMPLAINT = "mood: input should be 'good' or 'bad'; " * 5


def pack(
    items: Iterable[Item],
    size: int | Callable[[], int],
    max_repairs: int,
    capacity: Callable[[], CallCapacity | None] = lambda: None,
) -> Iterator[Batch]:
    """Group `items` into batches, lazily and in order.

    A batch is closed when it has `size` items, or when the next item would not fit; so every batch of two or more fits.
    An item that does not fit even alone is sent alone, and the provider decides. Tokens are counted only if their upper
    bound does not fit, and not at all if `size` is 1.

    A batch of several is repaired at most once, since its remaining prompts are then more likely to succeed in smaller
    batches. `size` and `capacity` are called for each batch.
    """
    source = iter(items)
    left_over: Item | None = None
    while True:
        max_items = size() if callable(size) else size
        limits = capacity()
        load = _Load(limits) if limits is not None and max_items > 1 else None
        group: list[Item] = []
        while len(group) < max_items:
            item = left_over or next(source, None)
            left_over = None
            if item is None:
                break
            if load and not load.take(item) and group:
                left_over = item
                break
            group.append(item)
        if not group:
            return
        yield Batch(tuple(group), max_repairs if len(group) == 1 else min(1, max_repairs))


class _Load:
    """The part of its capacity that a batch takes; tokens are bounded from above first, and counted if need be."""

    def __init__(self, capacity: CallCapacity) -> None:
        self._capacity = capacity
        self._rows = 0
        self._tokens = 0
        self._at_most = 0
        self._uncounted: list[Item] = []
        self._bytes = capacity.media_bytes
        self._images = capacity.media_images

    def take(self, item: Item) -> bool:
        """Add `item`; returns whether the batch still fits."""
        if self._capacity.media is not None and item.media:
            shown = find_media(item.text, item.media)
            self._bytes += sum(map(sent_bytes, shown)) + len(item.text.encode())
            self._images += sum(media.kind == "image" for media in shown)
            if not self._capacity.media.take(self._bytes, self._images):
                return False
        self._rows += 1
        self._uncounted.append(item)
        self._at_most += (self._capacity.bound or self._capacity.weigh)(item)
        if self._capacity.fits(self._rows, self._tokens + self._at_most):
            return True
        if self._capacity.bound is not None:
            self._tokens += sum(map(self._capacity.weigh, self._uncounted))
            self._at_most = 0
            self._uncounted.clear()
        return self._capacity.fits(self._rows, self._tokens + self._at_most)
