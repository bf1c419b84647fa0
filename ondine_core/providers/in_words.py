"""For servers that cannot hold a model to a JSON schema: the model is told the schema, at the end of the instructions.

The reply is checked against the schema either way, so what is lost is only that fewer replies are right at once. The
schema is part of the fixed beginning of a call, where a provider's cache finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ondine_core.providers.openai_http import chat_body
from ondine_core.values import Call, Message

__all__ = ["chat_body_in_words", "in_words"]


def in_words(call: Call) -> Call:
    """The same call with its schema in the system message."""
    if call.json_schema is None:
        return call
    told = f"Reply only with JSON that follows this JSON schema:\n{call.json_schema.decode()}"
    messages = call.messages
    if messages and messages[0].role == "system":
        messages = (replace(messages[0], content=f"{messages[0].content}\n\n{told}"), *messages[1:])
    else:
        messages = (Message("system", told), *messages)
    return replace(call, messages=messages, json_schema=None)


def chat_body_in_words(fixed: Mapping[str, Any], call: Call, *, json_object: bool) -> bytes:
    """A chat-completions request; with `json_object` the server is asked to allow nothing but some JSON object."""
    mode = {"response_format": {"type": "json_object"}} if json_object and call.json_schema is not None else {}
    return chat_body({**mode, **fixed}, in_words(call))
