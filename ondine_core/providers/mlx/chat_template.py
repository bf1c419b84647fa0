"""What an MLX model is told, in its own tokens, and what its tokens say.

A model with a chat template is asked through that, any other by continuation. The template writes turns with special
tokens; a row that contains their names must not end its turn and speak as somebody else, so such names are broken up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from jinja2 import TemplateError

from ondine_core.providers.llama_cpp import continuation
from ondine_core.types.values import Call, Message

__all__ = ["decode", "encode", "has_chat_template"]

_SCHEMA = "Reply with JSON that follows this JSON schema, and with nothing else:\n"


def has_chat_template(folder: Path) -> bool:
    """Whether the model in `folder` is made for conversations, as far as can be told without loading it."""
    if any(folder.glob("chat_template.*")) or (folder / "additional_chat_templates").is_dir():
        return True
    try:
        config = orjson.loads((folder / "tokenizer_config.json").read_bytes())
        return not config.keys().isdisjoint(("chat_template", "chat_template_type"))
    except (OSError, orjson.JSONDecodeError, AttributeError):
        return False


def encode(tokenizer: Any, call: Call, *, think: bool) -> list[int]:
    """The prompt of `call` as tokens; a model that chats is told of the JSON schema, too.

    Args:
        tokenizer: mlx-lm's for the model.
        call: What to say.
        think: Whether a model that can think before it answers does so; in front of JSON there is no room for it.
    """
    said, json_schema = _defuse(tokenizer, call.messages), call.json_schema
    if not tokenizer.has_chat_template:
        tokens: list[int] = tokenizer.encode(continuation(said))
        return tokens
    instruction = "" if json_schema is None else _SCHEMA + json_schema.decode()
    system = "\n\n".join(filter(None, (*(turn.content for turn in said if turn.role == "system"), instruction)))
    turns = [{"role": turn.role, "content": turn.content} for turn in said if turn.role != "system"]
    try:
        first = [{"role": "system", "content": system}] if system else []
        return _apply_template(tokenizer, [*first, *turns], think=think and json_schema is None)
    except TemplateError:
        if not (system and turns):
            raise
    # Some families (Gemma 2, the first Mistrals) know no system message.
    first = [{"role": turns[0]["role"], "content": f"{system}\n\n{turns[0]['content']}"}]
    return _apply_template(tokenizer, [*first, *turns[1:]], think=think and json_schema is None)


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of `tokens`."""
    # Cleaning up would take the space before a full stop out of an answer.
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _apply_template(tokenizer: Any, turns: Sequence[Mapping[str, str]], *, think: bool) -> list[int]:
    tokens: list[int] = tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, enable_thinking=think)
    return tokens


def _defuse(tokenizer: Any, messages: Sequence[Message]) -> list[Message]:
    special = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not special:
        return list(messages)
    named = re.compile("|".join(special))
    return [
        Message(turn.role, named.sub(lambda found: f"{found[0][0]} {found[0][1:]}", turn.content)) for turn in messages
    ]
