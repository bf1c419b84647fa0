"""How prompts travel: a strategy writes a batch as one call and takes the reply apart again.

A strategy is a value, a pair of pure functions. Which one is used is not part of an answer's key: an answer is an
answer, however many others came in the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from ondine_core.values import Batch, Call, Key, Message

__all__ = ["ONE_PER_CALL", "Strategy", "pack"]


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way to put prompts into calls.

    Args:
        name: How it is called in reports.
        encode: Batch and JSON schema of one answer (or `None`) to the call that asks for all of them.
        decode: Batch and reply text to the text of each answer, by local id `1..n`; absent ids were not answered.
    """

    name: str
    encode: Callable[[Batch, bytes | None], Call]
    decode: Callable[[Batch, str], Mapping[int, str]]


def pack(prompts: Iterable[tuple[Key, tuple[Message, ...]]], size: int = 1) -> Iterator[Batch]:
    """Group `prompts` into batches of at most `size`, lazily and in order."""
    source = iter(prompts)
    while group := tuple(islice(source, size)):
        keys, messages = zip(*group, strict=True)
        yield Batch(keys, messages)


def _encode_one(batch: Batch, json_schema: bytes | None) -> Call:
    (messages,) = batch.prompts
    if batch.complaint:
        note = (
            f"\n\n(An earlier reply to this could not be used: {batch.complaint}. Reply in exactly the form asked for.)"
        )
        messages = (*messages[:-1], replace(messages[-1], content=messages[-1].content + note))
    return Call(messages, json_schema)


ONE_PER_CALL = Strategy("one", _encode_one, lambda _batch, text: {1: text})
"""The plain prompt, nothing around it."""
