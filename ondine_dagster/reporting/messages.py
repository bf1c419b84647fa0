"""Messages of calls as Markdown, sanitized as they are sent, for people to read in Dagster's UI."""

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
"""Characters around a message, at the most usual."""
_CUT = " […] "


def shown_messages(calls: Sequence[Call]) -> str:
    """The messages of `calls`, what all of them begin with once, as short as Dagster shows without a click.

    Texts that are too long are cut in the middle; of many examples the first are shown.
    """
    if not calls:
        return ""
    head = [_describe_media(message, calls[0]) for message in calls[0].messages[:-1]]
    own = [_describe_media(call.messages[-1], call) for call in calls]
    most = _MAX_SHOWN - len(own)
    left_out = len(head) - most
    shown = [*head[:most], *own]
    # The short ones leave their room to the long ones.
    room, lengths = SHOWN_IN_PLACE - _FRAME * (len(shown) + 1), sorted(len(message.content) for message in shown)
    max_length = 0
    for number, length in enumerate(lengths):
        max_length = room // (len(lengths) - number)
        if length <= max_length:
            room -= length
    parts = [_block(message, max(max_length, len(_CUT) + 2)) for message in shown]
    if left_out > 0:
        parts.insert(len(head[:most]), f"(and {left_out} messages of examples)")
    return "\n".join(parts)


def _describe_media(message: Message, call: Call) -> Message:
    """`message` with a few words in the place of each image and document."""
    if not call.media:
        return message
    parts = split_media(message.content, call.media)
    return replace(
        message, content="".join(f"[{describe(part)}]" if isinstance(part, Media) else part for part in parts)
    )


def _block(message: Message, max_length: int) -> str:
    text = _cut(message.content, max_length)
    # Longer than any in the text, so that nothing in it ends the block.
    fence = "~" * max([3, *(len(found) + 1 for found in re.findall("~+", text))])
    return f"**{message.role}**\n{fence}text\n{text}\n{fence}"


def _cut(text: str, max_length: int) -> str:
    if len(text) <= max_length:
        return text
    kept = max_length - len(_CUT)
    return f"{text[: kept - kept // 3]}{_CUT}{text[len(text) - kept // 3 :]}"
