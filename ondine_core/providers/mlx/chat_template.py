"""Encodes the prompt of an MLX model.

A model with a chat template is asked through that, any other one by a text to continue. The template separates turns by
special tokens. Their names in a row are broken up, since they would end the turn and start another one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from ondine_core.providers.llama_cpp import continuation
from ondine_core.providers.request_form import fold_system, with_schema_in_prompt
from ondine_core.types.values import Call, Message


def has_chat_template(name: str) -> bool:
    """Whether the model `name`, a folder or a repository of Hugging Face, has a chat template.

    A model that is not on this machine yet is assumed to have one.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "tokenizer_config.json")
        if not isinstance(cached, str):
            return True
        folder = Path(cached).parent
    config = folder / "tokenizer_config.json"
    return any(folder.glob("*chat_template*")) or (config.is_file() and b'"chat_template' in config.read_bytes())


def encode(tokenizer: Any, call: Call, *, think: bool) -> list[int]:
    """The prompt of `call` as tokens; for a chat model it includes the JSON schema.

    With `think`, a model that can think does so before it answers, except if the call has a JSON schema.
    """
    think = think and call.json_schema is None
    call = replace(call, messages=_break_up_special_tokens(tokenizer, call.messages))
    if not tokenizer.has_chat_template:
        tokens: list[int] = tokenizer.encode(continuation(call.messages))
        return tokens
    call = with_schema_in_prompt(call)
    try:
        return _apply_template(tokenizer, call.messages, think=think)
    except TemplateError:
        # Some families (Gemma 2, the first Mistrals) have no system messages.
        return _apply_template(tokenizer, fold_system(call).messages, think=think)


def _apply_template(tokenizer: Any, messages: Sequence[Message], *, think: bool) -> list[int]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    tokens: list[int] = tokenizer.apply_chat_template(turns, add_generation_prompt=True, enable_thinking=think)
    return tokens


def _break_up_special_tokens(tokenizer: Any, messages: Sequence[Message]) -> tuple[Message, ...]:
    """`messages` with a blank after the first character of each name of a special token."""
    special = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not special:
        return tuple(messages)
    name = re.compile("|".join(special))
    return tuple(
        replace(message, content=name.sub(lambda match: f"{match[0][0]} {match[0][1:]}", message.content))
        for message in messages
    )
