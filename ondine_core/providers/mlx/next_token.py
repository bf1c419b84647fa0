"""Chooses the next token of one text in MLX: a sampler, and the tokens that a JSON schema allows.

The sampler uses mlx-lm's filters but not its own sampler, which draws random numbers for all texts of a batch from one
stream: here each text with a seed has its own. mlx-lm has no grammars, so llguidance says which tokens may come next. A
schema or a tokenizer that it does not support is no error: the prompt has the schema, and the reply is checked.
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


LogitsProcessor: TypeAlias = Callable[[Any, Any], Any]
"""Returns changed logits of the next token, from the tokens of one text so far and the logits."""


class Grammars:
    """Makes logits processors of JSON schemas, for one tokenizer and the tokens that end a reply."""

    def __init__(self, tokenizer: Any, ends: list[int]) -> None:
        self._tokenizer, self._ends = tokenizer, ends
        self._vocabulary: Any = None  # built when it is needed, since that takes a second
        self._matchers: dict[bytes, Any] = {}

    def processor(self, json_schema: bytes) -> LogitsProcessor | None:
        """A processor that restricts one text to `json_schema`; `None` if that is not supported."""
        if json_schema not in self._matchers:
            self._matchers[json_schema] = self._compile(json_schema)
        matcher = self._matchers[json_schema]
        return None if matcher is None else _constrain(matcher.deep_copy(), self._ends)

    def _compile(self, json_schema: bytes) -> Any:
        try:
            from llguidance import LLMatcher, LLTokenizer

            if self._vocabulary is None:
                self._vocabulary = LLTokenizer(self._tokenizer.backend_tokenizer.to_str(), eos_token=self._ends)
            # With flexible white space, a small model may write nothing else. Unknown keywords are ignored
            # (`lenient`), as the reply is checked against the whole schema anyway.
            style: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}
            grammar = LLMatcher.grammar_from_json_schema(json_schema.decode(), overrides=style)
            matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        except (ImportError, AttributeError, ValueError):  # AttributeError: a tokenizer of the slow kind
            return None
        return None if matcher.is_error() else matcher


def _constrain(matcher: Any, ends: list[int]) -> LogitsProcessor:
    import mlx.core as mx
    import numpy as np

    started = False

    def process(tokens: Any, logits: Any) -> Any:
        nonlocal started
        if started and not matcher.is_stopped():
            matcher.consume_token(int(tokens[-1].item()))
        started = True
        allowed = np.zeros(logits.shape[-1], dtype=bool)
        if matcher.is_stopped():
            allowed[ends] = True
        else:
            # A model may have more logits than its tokenizer has tokens.
            bias = np.frombuffer(matcher.compute_logit_bias(), dtype=np.uint8)[: allowed.size]
            allowed[: bias.size] = bias > 0
        return mx.where(mx.array(allowed), logits, -mx.inf)

    return process
