"""Encodes the prompt of an MLX model.

A model with a chat template is asked through that, any other by continuation. The template writes turns with special
tokens; a row that contains their names must not end its turn and start another one, so such names are broken up.
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
    """Whether the model `name`, a folder or a repository of Hugging Face, is made for conversations.

    A model that is not on this machine yet is taken to be.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "tokenizer_config.json")
        if not isinstance(found, str):
            return True
        folder = Path(found).parent
    config = folder / "tokenizer_config.json"
    return any(folder.glob("*chat_template*")) or (config.is_file() and b'"chat_template' in config.read_bytes())


def encode(tokenizer: Any, call: Call, *, think: bool) -> list[int]:
    """The prompt of `call` as tokens; for a chat model it includes the JSON schema.

    With `think`, a model that can think before it answers does so; in front of JSON there is no room for it.
    """
    call, think = replace(call, messages=_defuse(tokenizer, call.messages)), think and call.json_schema is None
    if not tokenizer.has_chat_template:
        tokens: list[int] = tokenizer.encode(continuation(call.messages))
        return tokens
    call = with_schema_in_prompt(call)
    try:
        return _apply_template(tokenizer, call.messages, think=think)
    except TemplateError:
        # Some families (Gemma 2, the first Mistrals) know no system message.
        return _apply_template(tokenizer, fold_system(call).messages, think=think)


def _apply_template(tokenizer: Any, messages: Sequence[Message], *, think: bool) -> list[int]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    tokens: list[int] = tokenizer.apply_chat_template(turns, add_generation_prompt=True, enable_thinking=think)
    return tokens


def _defuse(tokenizer: Any, messages: Sequence[Message]) -> tuple[Message, ...]:
    special = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not special:
        return tuple(messages)
    name = re.compile("|".join(special))
    return tuple(
        replace(message, content=name.sub(lambda found: f"{found[0][0]} {found[0][1:]}", message.content))
        for message in messages
    )
