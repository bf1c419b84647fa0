"""Writes the messages of calls as Markdown for Dagster's UI, sanitized as they are sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ondine_core.types.media import Media, split_media
from ondine_core.types.values import Call, Message
from ondine_dagster.reporting.markdown import SHOWN_IN_PLACE
from ondine_dagster.reporting.thumbnails import describe

_MAX_SHOWN = 5
_FRAME = 40
"""Characters that the Markdown around a message usually takes, at most."""
_CUT = " […] "


def shown_messages(calls: Sequence[Call]) -> str:
    """The messages of `calls`, with their common beginning once, short enough for Dagster to show without a click.

    Long texts are cut in the middle; of many examples only the first are shown.
    """
    if not calls:
        return ""
    head = [_describe_media(message, calls[0]) for message in calls[0].messages[:-1]]
    own = [_describe_media(call.messages[-1], call) for call in calls]
    most = _MAX_SHOWN - len(own)
    left_out = len(head) - most
    shown = [*head[:most], *own]
    max_length = max(_max_length(shown), len(_CUT) + 2)
    parts = [_block(message, max_length) for message in shown]
    if left_out > 0:
        parts.insert(len(head[:most]), f"(and {left_out} messages of examples)")
    return "\n".join(parts)


def _max_length(messages: Sequence[Message]) -> int:
    """The length to which long messages are cut; they share the room that short messages leave."""
    room = SHOWN_IN_PLACE - _FRAME * (len(messages) + 1)
    lengths = sorted(len(message.content) for message in messages)
    max_length = 0
    for number, length in enumerate(lengths):
        max_length = room // (len(lengths) - number)
        if length <= max_length:
            room -= length
    return max_length


def _describe_media(message: Message, call: Call) -> Message:
    """`message` with a description in the place of each image and document."""
    if not call.media:
        return message
    parts = split_media(message.content, call.media)
    return replace(
        message, content="".join(f"[{describe(part)}]" if isinstance(part, Media) else part for part in parts)
    )


def _block(message: Message, max_length: int) -> str:
    text = _cut(message.content, max_length)
    # Longer than all runs of `~` in the text, so that none of them ends the block.
    fence = "~" * max([3, *(len(run) + 1 for run in re.findall("~+", text))])
    return f"**{message.role}**\n{fence}text\n{text}\n{fence}"


def _cut(text: str, max_length: int) -> str:
    if len(text) <= max_length:
        return text
    kept = max_length - len(_CUT)
    return f"{text[: kept - kept // 3]}{_CUT}{text[len(text) - kept // 3 :]}"
