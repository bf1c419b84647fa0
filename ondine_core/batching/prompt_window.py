"""Finds prompts that do not fit into a model's window, and replies to prompts that a server cut silently.

Ollama and LM Studio cut a prompt that does not fit and answer with an ordinary finish reason; only the prompt tokens
that they report show it. Counts are rather too low here, since no answer must be lost because of an estimate.
"""

from __future__ import annotations

from ondine_core.providers.context_window import get_context_limit
from ondine_core.providers.tokenizer import min_tokens
from ondine_core.types.media import remove_media
from ondine_core.types.values import Call, Failure, ModelSpec, Usage

_CUTTING = ("ollama", "ollama_chat", "lm_studio")
_SMALLEST_WINDOW = 512
"""No server has a smaller window by default, so smaller figures prove nothing."""
_SMALLEST_SHARE = 0.5
"""Of the counted tokens: other vocabularies take as few as 0.7 of the tokens of OpenAI's (Chinese, DeepSeek)."""


def find_window(model: ModelSpec) -> int | None:
    """The listed window of `model` in tokens; `None` if unknown, or for a server on which the user sets it."""
    return None if model.provider in _CUTTING else get_context_limit(model.listed_as)


def find_oversize(call: Call, window: int | None, reserved: int) -> Failure | None:
    """A failure if `call` does not fit into `window` tokens, of which the request reserves `reserved` for the reply."""
    texts = [remove_media(message.content, call.media) for message in call.messages]
    if window is None or sum(len(text.encode()) for text in texts) + reserved <= window:
        return None  # no vocabulary in use has more tokens than bytes
    tokens = sum(map(min_tokens, texts))
    if tokens + reserved <= window:
        return None
    reply = f" with the {reserved:,} of max_output_tokens" if reserved else ""
    return Failure(
        "prompt", f"the prompt of about {tokens:,} tokens{reply} does not fit into the window of {window:,}; shorten it"
    )


def find_cut_prompt(call: Call, usage: Usage, provider: str, window: int | None) -> Failure | None:
    """A failure if the server read only a part of `call`, judged by the tokens that it reports.

    At any server, a count that is exactly a window (usually a power of two) and less than was sent proves it. At a
    server that is known to cut, less than half of what was sent proves it.
    """
    # Some servers do not include cached tokens in the input.
    cached = usage.cached_input_tokens
    read = usage.input_tokens + (cached if cached > usage.input_tokens else 0)
    is_window = read == window or (read & (read - 1) == 0 and read > _SMALLEST_WINDOW)
    if read < _SMALLEST_WINDOW or not (is_window or provider in _CUTTING):
        return None
    sent = sum(min_tokens(remove_media(message.content, call.media)) for message in call.messages)
    if read < sent * _SMALLEST_SHARE or (is_window and read < sent):
        return Failure(
            "truncated",
            f"the server read {read:,} of about {sent:,} tokens of the prompt; raise its window (Ollama: num_ctx or "
            "OLLAMA_CONTEXT_LENGTH), and set context_window to it",
        )
    return None
