"""How MLX picks the next token: the usual parameters, and a JSON schema that a reply cannot leave.

mlx-lm has no grammars, so llguidance says which tokens may come next; it is 8 MB and brings nothing along. A schema it
cannot follow is no error, nor is a tokenizer: the prompt carries the schema, and the reply is checked and repaired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

__all__ = ["Grammars", "Picker", "Rule", "Sampling", "make_picker", "make_rules"]

Picker: TypeAlias = Callable[[Any], Any]
"""From log-probabilities, a row a text, to a token a text."""

Rule: TypeAlias = Callable[[Any, Any], Any]
"""From the tokens of one text so far and the logits of its next token to other logits."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the next token is picked by.

    Args:
        temperature: 0 takes the likeliest.
        top_p: Only the likeliest tokens that have this probability together.
        top_k: Only the likeliest tokens, this many; 0 for all.
        min_p: Only tokens that have this part of the likeliest one's probability.
        seed: The same prompt gives the same reply again, whatever else is asked meanwhile.
        repetition_penalty: What a token's likelihood is divided by if it was there before.
        repetition_context_size: How many tokens back that looks.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float | None = None
    repetition_context_size: int = 20


def make_picker(sampling: Sampling, vocabulary: int) -> Picker:
    """What picks the tokens of one text, by `sampling`, among `vocabulary` of them."""
    # MLX takes only a top_k that leaves something out.
    top_k = sampling.top_k if sampling.top_k < vocabulary else 0
    drawn = (float(sampling.temperature), float(sampling.top_p), float(sampling.min_p), top_k)
    if sampling.seed is None or not sampling.temperature:
        return _shared_picker(*drawn)
    return _seeded_picker(sampling.seed, *drawn)


@lru_cache(maxsize=64)
def _shared_picker(temperature: float, top_p: float, min_p: float, top_k: int) -> Picker:
    """One object for equal parameters: MLX then picks for all texts of a batch at once."""
    from mlx_lm.sample_utils import make_sampler

    sampler: Picker = make_sampler(temp=temperature, top_p=top_p, min_p=min_p, top_k=top_k)
    return sampler


def _seeded_picker(seed: int, temperature: float, top_p: float, min_p: float, top_k: int) -> Picker:
    """Chance of this text's own: MLX has one stream of it, of which every text in a batch would take a share."""
    import mlx.core as mx
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

    key = mx.random.key(seed)

    def pick(logprobs: Any) -> Any:
        nonlocal key
        if 0 < top_p < 1:
            logprobs = apply_top_p(logprobs, top_p)
        if min_p:
            logprobs = apply_min_p(logprobs, min_p)
        if top_k:
            logprobs = apply_top_k(logprobs, top_k)
        key, now = mx.random.split(key)
        return mx.random.categorical(logprobs / temperature, key=now)

    return pick


def make_rules(sampling: Sampling) -> list[Rule]:
    """What changes the likelihood of tokens before one is picked."""
    from mlx_lm.sample_utils import make_logits_processors

    rules: list[Rule] = make_logits_processors(
        repetition_penalty=sampling.repetition_penalty, repetition_context_size=sampling.repetition_context_size
    )
    return rules


# -- grammars ------------------------------------------------------------------------------------------------------


class Grammars:
    """JSON schemas as rules, for one tokenizer.

    Args:
        tokenizer: The model's; one of Hugging Face's slow kind knows no grammars.
        ends: The tokens that end a reply.
    """

    def __init__(self, tokenizer: Any, ends: list[int]) -> None:
        self._tokenizer, self._ends = tokenizer, ends
        self._vocabulary: Any = None  # takes a second to build, so not before it is needed
        self._known: dict[bytes, Any] = {}

    def rule(self, json_schema: bytes) -> Rule | None:
        """A rule for one text that follows `json_schema`; `None` if it cannot be held to it."""
        if json_schema not in self._known:
            self._known[json_schema] = self._compile(json_schema)
        matcher = self._known[json_schema]
        return None if matcher is None else _hold_to(matcher.deep_copy(), self._ends)

    def _compile(self, json_schema: bytes) -> Any:
        try:
            from llguidance import LLMatcher, LLTokenizer

            if self._vocabulary is None:
                self._vocabulary = LLTokenizer(self._tokenizer.backend_tokenizer.to_str(), eos_token=self._ends)
            # Were any white space allowed, a small model might write nothing else. Keywords that are not known are
            # left out (`lenient`): the reply is checked against all of the schema anyway.
            style: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}
            grammar = LLMatcher.grammar_from_json_schema(json_schema.decode(), overrides=style)
            matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        except (ImportError, AttributeError, ValueError):  # AttributeError: a tokenizer of the slow kind
            return None
        return None if matcher.is_error() else matcher


def _hold_to(matcher: Any, ends: list[int]) -> Rule:
    import mlx.core as mx
    import numpy as np

    started = False

    def rule(tokens: Any, logits: Any) -> Any:
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

    return rule
