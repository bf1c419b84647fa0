from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.batching import ONE_PER_CALL, pack
from ondine_core.values import Batch, Call, Key, Message
from tests.support.strategies import PROMPTS

HEAD = (Message("system", "s"), Message("user", "example"), Message("assistant", "answer"))


@given(PROMPTS, st.integers(1, 7))
def test_pack_keeps_everything_in_order(prompts: list[tuple[Key, tuple[Message, ...]]], size: int) -> None:
    """Every prompt is in exactly one batch, in order; all batches are full but the last, and none is empty."""
    batches = list(pack(prompts, size))
    assert [pair for batch in batches for pair in zip(batch.keys, batch.prompts, strict=True)] == prompts
    assert all(len(batch.keys) == size for batch in batches[:-1])
    assert all(1 <= len(batch.keys) <= size for batch in batches)
    assert all((batch.attempt, batch.complaint) == (1, None) for batch in batches)


@given(st.integers(1, 7), st.integers(0, 5))
def test_pack_is_lazy(size: int, taken: int) -> None:
    """No prompt is rendered before the batch that it travels in is taken, so a million prompts need no memory."""
    rendered = 0

    def prompts() -> Iterator[tuple[Key, tuple[Message, ...]]]:
        nonlocal rendered
        while True:
            rendered += 1
            yield b"k", (Message("user", "x"),)

    batches = pack(prompts(), size)
    for _ in range(taken):
        next(batches)
    assert rendered == taken * size


@pytest.mark.parametrize("schema", [None, b"{}"])
def test_one_per_call_says_the_prompt_and_no_more(schema: bytes | None) -> None:
    """A prompt that travels alone is sent as it is, with the schema that its reply is held to."""
    messages = (*HEAD, Message("user", "q"))
    assert ONE_PER_CALL.encode(Batch((b"k",), (messages,)), schema) == Call(messages, schema)


def test_a_complaint_follows_the_row() -> None:
    """Asked again, the model is told what was wrong, at the very end, so that the fixed part stays the same bytes."""
    messages = (*HEAD, Message("user", "q"))
    call = ONE_PER_CALL.encode(Batch((b"k",), (messages,), 2, "n: field required"), None)
    assert call.messages[:-1] == HEAD
    assert call.messages[-1].role == "user"
    assert call.messages[-1].content.startswith("q\n\n")
    assert "could not be used: n: field required." in call.messages[-1].content


@given(st.text())
def test_one_per_call_takes_the_reply_whole(text: str) -> None:
    """The reply to a prompt that travels alone is its answer, every character of it."""
    assert ONE_PER_CALL.decode(Batch((b"k",), (HEAD,)), text) == {1: text}
