"""Picks the next token of one text in MLX.

mlx-lm's filters are used. Its sampler is not, since it draws all texts of a batch from one stream of random numbers:
with a seed, a text has random numbers of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

from ondine_core.providers.mlx.parameters import Options

Sampler: TypeAlias = Callable[[Any], Any]
"""From log-probabilities, a row a text, to a token a text."""


def make_sampler(options: Options, vocabulary: int) -> Sampler:
    """What picks the tokens of one text among `vocabulary` of them.

    Without a seed it is one object for equal options: mlx-lm then picks for all texts of a batch at once.
    """
    return _shared_sampler(options, vocabulary) if options.params.seed is None else _sampler(options, vocabulary)


def _sampler(options: Options, vocabulary: int) -> Sampler:
    import mlx.core as mx
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, greedy_sampler

    if not options.temperature:
        greedy: Sampler = greedy_sampler
        return greedy
    params = options.params
    key = None if params.seed is None else mx.random.key(params.seed)

    def pick(logprobs: Any) -> Any:
        nonlocal key
        if params.top_p < 1:
            logprobs = apply_top_p(logprobs, params.top_p)
        if params.min_p:
            logprobs = apply_min_p(logprobs, params.min_p)
        if 0 < params.top_k < vocabulary:  # others leave nothing out, and are an error in mlx-lm
            logprobs = apply_top_k(logprobs, params.top_k)
        now = None
        if key is not None:
            key, now = mx.random.split(key)
        return mx.random.categorical(logprobs / options.temperature, key=now)

    return pick


_shared_sampler = lru_cache(maxsize=64)(_sampler)
