from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ondine_core.batching.packing import find_capacity, pack
from ondine_core.batching.strategy import STRATEGIES, BatchStrategy
from ondine_core.prompts.task import compile_task
from ondine_core.providers.context_window import CallCapacity
from ondine_core.types.values import Batch, Item, ModelSpec
from tests.support.batches import QUESTION, batch, every_strategy
from tests.support.strategies import ITEMS


@given(ITEMS, st.integers(1, 7), st.integers(0, 3))
def test_pack_keeps_everything_in_order(items: list[Item], size: int, max_repairs: int) -> None:
    """Every prompt is in exactly one batch, in order; all batches but the last are full, and none is empty."""
    batches = list(pack(items, size, max_repairs))
    assert [item for packed in batches for item in packed.items] == items
    assert all(len(packed.items) == size for packed in batches[:-1])
    assert all(1 <= len(packed.items) <= size for packed in batches)
    for packed in batches:
        repairs = max_repairs if len(packed.items) == 1 else min(1, max_repairs)
        assert packed == Batch(packed.items, repairs, 1, None)


@given(st.integers(1, 7), st.integers(0, 5))
def test_pack_is_lazy(size: int, taken: int) -> None:
    """No prompt is rendered before its batch is taken, so a million prompts need no memory."""
    rendered = 0

    def items() -> Iterator[Item]:
        nonlocal rendered
        while True:
            rendered += 1
            yield Item(b"k", "x")

    batches = pack(items(), size, 0)
    for _ in range(taken):
        next(batches)
    assert rendered == taken * size


@given(ITEMS, st.lists(st.integers(1, 7), min_size=30, max_size=30))
def test_new_size_applies_to_the_next_batch(items: list[Item], sizes: list[int]) -> None:
    """The size is read for each batch, so a change applies to the next call."""
    next_sizes = iter(sizes)
    batches = list(pack(items, lambda: next(next_sizes), 0))
    assert all(len(packed.items) == size for packed, size in zip(batches[:-1], sizes, strict=False))


LENGTHS = st.integers(0, 30) | st.integers(100, 2_000)


@given(st.lists(LENGTHS, max_size=40), st.integers(2, 20), st.integers(100, 1_000), st.integers(10, 300))
def test_every_batch_fits(lengths: list[int], size: int, window: int, reply: int) -> None:
    """Any two or more prompts of a batch fit window and reply with their answers; none is lost."""
    items = [Item(bytes([number]), "x" * length) for number, length in enumerate(lengths)]
    capacity = CallCapacity(window, reply, fixed_tokens=20, answer_tokens=10, weigh=lambda item: len(item.text))
    batches = list(pack(items, size, 0, lambda: capacity))
    assert [item for packed in batches for item in packed.items] == items
    for number, packed in enumerate(batches, 1):
        count, tokens = len(packed.items), sum(len(item.text) for item in packed.items)
        assert count == 1 or (10 * count <= reply and 20 + tokens + 10 * count <= window)
        # No batch is closed before it has to be.
        if number < len(batches) and count < size:
            assert not capacity.fits(count + 1, tokens + len(batches[number].items[0].text))


@given(ITEMS, st.integers(1, 7))
def test_each_prompt_is_counted_once_in_a_batch(items: list[Item], size: int) -> None:
    """A prompt's tokens are counted once, again if it opens the next batch, and never if prompts are sent alone."""
    counted: list[Item] = []
    capacity = CallCapacity(60, None, weigh=lambda item: counted.append(item) or len(item.text))
    batches = list(pack(items, size, 0, lambda: capacity))
    assert [item for packed in batches for item in packed.items] == items
    assert list(dict.fromkeys(item.key for item in counted)) == [item.key for item in items if size > 1]
    opening = Counter(packed.items[0].key for packed in batches[1:])
    assert Counter(item.key for item in counted) <= Counter(item.key for item in items) + opening


@given(ITEMS, st.integers(2, 7), st.integers(20, 200))
def test_tokens_are_counted_only_if_a_bound_does_not_suffice(items: list[Item], size: int, window: int) -> None:
    """Where a cheap bound fits, nothing is counted, elsewhere at most twice; the batches are the same."""
    counted: list[Item] = []

    def weigh(item: Item) -> int:
        counted.append(item)
        return len(item.text) // 2

    capacity = CallCapacity(window, None, weigh=weigh, bound=lambda item: len(item.text))
    batches = [packed.items for packed in pack(items, size, 0, lambda: capacity)]
    assert max(Counter(item.key for item in counted).values(), default=0) <= 2
    if capacity.fits(len(items), sum(len(item.text) for item in items)):
        assert not counted
    exact = CallCapacity(window, None, weigh=lambda item: len(item.text) // 2)
    assert batches == [packed.items for packed in pack(items, size, 0, lambda: exact)]


@every_strategy
@given(texts=st.lists(st.text('aé<"\n&,x', max_size=400), min_size=1, max_size=12), window=st.integers(400, 3_000))
def test_calls_stay_in_the_window(strategy: BatchStrategy, texts: list[str], window: int) -> None:
    """The tokens counted are those sent: with markup, escapes, instructions, schema and complaint."""
    capacity = find_capacity(strategy, QUESTION, len, window_tokens=window)
    assert capacity is not None
    for packed in pack(batch(QUESTION, texts).items, 12, 1, lambda: capacity):
        call = strategy.encode(replace(packed, complaint="mood: field required"), QUESTION)
        sent = sum(len(message.content) for message in call.messages) + len(call.json_schema or b"")
        assert len(packed.items) == 1 or sent + capacity.answer_tokens * len(packed.items) <= window


def test_room_comes_from_the_model_list_and_the_user() -> None:
    """Window and longest reply come from the list or the user; without either nothing is counted."""
    spec = ModelSpec("openai/gpt-4", max_output_tokens=900)
    known = find_capacity(STRATEGIES["json"], compile_task("{a}", "b", spec))
    assert known is not None
    assert (known.window_tokens, known.output_tokens, known.reserved_tokens) == (8192, 900, 900)
    assert find_capacity(STRATEGIES["json"], QUESTION) is None
