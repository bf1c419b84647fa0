"""Between mlx-lm and the writer: one interface to all models, and beginnings that are read only once.

Prompts of one table begin alike (instructions, examples). What two calls begin with is read by the model once and kept
for those that follow; reading is most of what a local model does when answers are short.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any

__all__ = ["PrefixCache", "start_generator"]

_READ_AT_ONCE = 512  # a cancelled call is noticed, and the others go on, after this many tokens of a prompt
_WORTH_KEEPING = 64
_KEPT = 4


def start_generator(model: Any, ends: Sequence[int], most: int) -> Any:
    """mlx-lm's `BatchGenerator` for `model`; or, if that cannot batch it, its like that does one text after another."""
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.models.cache import make_prompt_cache

    if not all(hasattr(layer, "merge") for layer in make_prompt_cache(model)):
        return _OneByOne(model, frozenset(ends))
    stop_tokens = [[token] for token in ends]
    return BatchGenerator(model, stop_tokens=stop_tokens, completion_batch_size=most, prefill_step_size=_READ_AT_ONCE)


@dataclass(frozen=True, slots=True)
class _Token:
    uid: int
    token: int
    finish_reason: str | None


class _OneByOne:
    """As much of `BatchGenerator` as the writer uses."""

    def __init__(self, model: Any, ends: frozenset[int]) -> None:
        self._model, self._ends = model, ends
        self._waiting: deque[tuple[int, int, Iterator[Any]]] = deque()
        self._inserted = self._written = 0

    def insert(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: Sequence[int],
        caches: Sequence[Any],
        **more: Sequence[Any],
    ) -> list[int]:
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        first = self._inserted
        for at, (prompt, most) in enumerate(zip(prompts, max_tokens, strict=True)):
            steps = generate_step(
                mx.array(list(prompt)),
                self._model,
                max_tokens=most,
                sampler=more["samplers"][at],
                logits_processors=more["logits_processors"][at],
                prompt_cache=copy.deepcopy(caches[at]),  # it is written into
                prefill_step_size=_READ_AT_ONCE,
            )
            self._waiting.append((self._inserted, most, steps))
            self._inserted += 1
        return list(range(first, self._inserted))

    def next(self) -> tuple[list[Any], list[_Token]]:
        number, most, steps = self._waiting[0]
        token, _ = next(steps)
        self._written += 1
        reason = "stop" if token in self._ends else "length" if self._written == most else None
        if reason:
            self.remove([number])
        return [], [_Token(number, token, reason)]

    def remove(self, numbers: Sequence[int]) -> None:
        if self._waiting and self._waiting[0][0] in numbers:
            self._written = 0
        self._waiting = deque(text for text in self._waiting if text[0] not in numbers)

    def close(self) -> None:
        self._waiting.clear()


class PrefixCache:
    """What prompts begin with, as the model has it in mind after reading it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._recent: deque[list[int]] = deque(maxlen=_KEPT)
        self._kept: deque[tuple[list[int], Any]] = deque(maxlen=_KEPT)

    def find(self, prompt: list[int]) -> tuple[int, Any]:
        """How many tokens of `prompt` need not be read, and the state of mind after them (`None`: the initial one).

        The last token is always read: the first one of the answer follows from it.
        """
        kept = max((kept for kept in self._kept if prompt[: len(kept[0])] == kept[0]), key=_length, default=None)
        known = len(kept[0]) if kept else 0
        shared = max((_shared(prompt, other) for other in self._recent), default=0)
        self._recent.append(prompt)
        shared = min(shared, len(prompt) - 1)
        if shared >= known + _WORTH_KEEPING:
            kept, known = (prompt[:shared], self._read(prompt[:shared])), shared
            self._kept.append(kept)
        return (known, kept[1]) if kept and known < len(prompt) else (0, None)

    def clear(self) -> None:
        """Free the memory."""
        self._recent.clear()
        self._kept.clear()

    def _read(self, tokens: list[int]) -> Any:
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self._model)
        for start in range(0, len(tokens), _READ_AT_ONCE):
            self._model(mx.array(tokens[start : start + _READ_AT_ONCE])[None], cache=cache)
            mx.eval([layer.state for layer in cache])
        return cache


def _length(kept: tuple[list[int], Any]) -> int:
    return len(kept[0])


def _shared(one: list[int], other: list[int]) -> int:
    """How many tokens two prompts begin with in common."""
    return next((at for at, same in enumerate(map(eq, one, other)) if not same), min(len(one), len(other)))
