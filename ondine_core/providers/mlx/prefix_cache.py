"""Processes the common beginning of several prompts only once.

The prompts of a table have a common beginning (instructions, examples). With short answers, processing it is most of a
local model's work. mlx-lm's own cache keeps whole prompts and trims them, which models with a sliding window do not
allow.
"""

from __future__ import annotations

from collections import deque
from operator import itemgetter
from os.path import commonprefix
from typing import Any

PREFILL_TOKENS = 512
"""Tokens of a prompt that are processed at a time; between two chunks cancelled calls are dropped and others go on."""
_MIN_SHARED_TOKENS = 64
_MAX_ENTRIES = 4


class PrefixCache:
    """Keeps the states of `model` after common beginnings of prompts."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._recent: deque[list[int]] = deque(maxlen=_MAX_ENTRIES)
        self._states: deque[tuple[list[int], Any]] = deque(maxlen=_MAX_ENTRIES)

    def find(self, prompt: list[int]) -> tuple[int, Any]:
        """The number of tokens of `prompt` that are already processed, and the state after them (`None` after 0).

        The last token is always left, since processing it gives the first token of the answer.
        """
        text = prompt[:-1]
        known = [(len(beginning), state) for beginning, state in self._states if text[: len(beginning)] == beginning]
        length, state = max(known, key=itemgetter(0), default=(0, None))
        shared = max((len(commonprefix([text, other])) for other in self._recent), default=0)  # noqa: RUF071  (of lists)
        self._recent.append(prompt)
        if shared >= length + _MIN_SHARED_TOKENS:
            length, state = shared, self._process(prompt[:shared])
            self._states.append((prompt[:shared], state))
        return length, state

    def _process(self, tokens: list[int]) -> Any:
        """The state of the model after `tokens`."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        state = make_prompt_cache(self._model)
        for start in range(0, len(tokens), PREFILL_TOKENS):
            self._model(mx.array(tokens[start : start + PREFILL_TOKENS])[None], cache=state)
            mx.eval([layer.state for layer in state])
        return state
