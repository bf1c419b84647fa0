"""Processes beginnings that prompts share only once.

Prompts of one table begin alike (instructions, examples), and processing them is most of what a local model does when
answers are short. mlx-lm's own cache keeps whole prompts and trims them, which models with a sliding window do not
allow.
"""

from __future__ import annotations

from collections import deque
from operator import itemgetter
from os.path import commonprefix
from typing import Any

READ_AT_ONCE = 512
"""Tokens of a prompt that are processed at a time; between two chunks cancelled calls are dropped and others go on."""
_WORTH_KEEPING = 64
_KEPT = 4


class PrefixCache:
    """The state of `model` after beginnings of prompts."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._recent: deque[list[int]] = deque(maxlen=_KEPT)
        self._kept: deque[tuple[list[int], Any]] = deque(maxlen=_KEPT)

    def find(self, prompt: list[int]) -> tuple[int, Any]:
        """How many tokens of `prompt` need not be read, and the state after them (`None`: the initial one).

        The last token is always read: the first one of the answer follows from it.
        """
        text = prompt[:-1]
        known = [(len(beginning), state) for beginning, state in self._kept if text[: len(beginning)] == beginning]
        length, state = max(known, key=itemgetter(0), default=(0, None))
        shared = max((len(commonprefix([text, other])) for other in self._recent), default=0)  # noqa: RUF071  (of lists)
        self._recent.append(prompt)
        if shared >= length + _WORTH_KEEPING:
            length, state = shared, self._read(prompt[:shared])
            self._kept.append((prompt[:shared], state))
        return length, state

    def _read(self, tokens: list[int]) -> Any:
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        state = make_prompt_cache(self._model)
        for start in range(0, len(tokens), READ_AT_ONCE):
            self._model(mx.array(tokens[start : start + READ_AT_ONCE])[None], cache=state)
            mx.eval([layer.state for layer in state])
        return state
