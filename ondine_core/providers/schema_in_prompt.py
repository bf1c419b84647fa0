"""Calls for servers that lack a part of the dialect: the schema, or the system message, as words of the conversation.

A reply is checked against the schema either way, so what is lost is only that fewer replies are right at once. The
schema is part of the fixed beginning of a call, where a provider's cache finds it.
"""

from __future__ import annotations

from dataclasses import replace

from ondine_core.types.values import Call, Message

__all__ = ["fold_system", "with_schema_in_prompt"]


def with_schema_in_prompt(call: Call) -> Call:
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


def fold_system(call: Call) -> Call:
    """The same call with its system message at the beginning of the first user message."""
    if len(call.messages) < 2 or call.messages[0].role != "system" or call.messages[1].role != "user":  # noqa: PLR2004
        return call
    system, user, *rest = call.messages
    return replace(call, messages=(replace(user, content=f"{system.content}\n\n{user.content}"), *rest))
