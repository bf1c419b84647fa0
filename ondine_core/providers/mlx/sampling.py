"""Chooses the next token of one text in MLX.

It uses mlx-lm's filters but not its sampler, which draws random numbers for all texts of a batch from one stream: here
each text with a seed has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

from ondine_core.providers.mlx.parameters import Options

Sampler: TypeAlias = Callable[[Any], Any]
"""Returns a token for each text, from a matrix of log-probabilities with a row for each text."""


def make_sampler(options: Options, vocabulary: int) -> Sampler:
    """A sampler for the tokens of one text; `vocabulary` is the number of different tokens.

    Without a seed, equal options have the same sampler object: mlx-lm then samples for all texts of a batch at once.
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
        if 0 < params.top_k < vocabulary:  # a larger one would change nothing, and is an error in mlx-lm
            logprobs = apply_top_k(logprobs, params.top_k)
        token_key = None
        if key is not None:
            key, token_key = mx.random.split(key)
        return mx.random.categorical(logprobs / options.temperature, key=token_key)

    return pick


_shared_sampler = lru_cache(maxsize=64)(_sampler)
