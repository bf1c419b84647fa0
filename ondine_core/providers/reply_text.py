"""Removes the model's thoughts before an answer in a reply, and the code fence around it.

Reasoning models write their thoughts into the reply unless the server removes them. Only a block at the very beginning
counts as thoughts; the same marks later are part of the answer. A reply whose thoughts do not end was cut before its
answer.
"""

from __future__ import annotations

import re
from typing import Final

from ondine_core.providers.finish_reasons import finish_kind
from ondine_core.types.values import Reply

THOUGHTS_ONLY: Final = "the reply holds the model's thoughts and no answer"

_PAIRS = (
    # Qwen, DeepSeek R1 and most others; instruction-tuned imitations of them; Gemini by OpenAI's dialect.
    *((rf"<{name}(?:\s[^<>]*)?>", rf"</{name}>") for name in ("think", "thinking", "reasoning", "thought", "thoughts")),
    (r"<seed:think>", r"</seed:think>"),  # Seed-OSS
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    (r"◁think▷", r"◁/think▷"),  # Kimi
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # OpenThinker
    (r"<\|channel>thought", r"<channel\|>"),  # Gemma 4
)
_OPENED = tuple((re.compile(rf"\s*{start}", re.IGNORECASE), re.compile(end, re.IGNORECASE)) for start, end in _PAIRS)
# The chat templates of some models end with the opening mark, so the reply has only the closing one. Such a mark ends
# its line or precedes the answer directly; within a sentence or in quotes it is part of the text.
_OPENING = re.compile(r"<(?:think|thinking|reasoning|thought|thoughts)\b", re.IGNORECASE)
_UNOPENED = re.compile(
    r"(?:(?<=[^`'\"\s])|(?<=\s))</(?:think|thinking|reasoning|thought|thoughts)>(?=[ \t]*\r?\n|[\w{\[`<#*])"
    r"|(?:\A|\n)[ \t]*</(?:think|thinking|reasoning|thought|thoughts)>\s*\Z",
    re.IGNORECASE,
)

# OpenAI's harmony format (gpt-oss), with its special tokens, and without them from servers that drop them.
_CHANNELS = re.compile(r"\s*(?:<\|start\|>\s*assistant\s*)?<\|channel\|>")
_FINAL = re.compile(r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_END_OF_MESSAGE = re.compile(r"<\|(?:return|end|call)\|>\s*\Z")
_BARE_CHANNELS = re.compile(r"\s*analysis(?=[^\sa-z]|\s*[A-Z]).*?assistant\s?final(?=\S)", re.DOTALL)


def strip_reasoning(text: str, asked: str = "") -> str | None:
    """`text` without the thoughts at its beginning; `None` if there is nothing else, or if they do not end.

    `asked` is the text of the rows, since an answer may repeat marks from it.
    """
    if text.lstrip().startswith("{"):  # no mark does
        return text
    if _CHANNELS.match(text):
        finals = list(_FINAL.finditer(text))
        return _END_OF_MESSAGE.sub("", text[finals[-1].end() :]) if finals else None
    bare = _BARE_CHANNELS.match(text)
    if bare:
        return text[bare.end() :]
    stripped = text
    while opening := _find_opening(stripped):
        start, closing = opening
        end = closing.search(stripped, start.end())
        if end is None:
            return None
        stripped = stripped[end.end() :]
    if stripped is not text:
        return stripped if stripped.strip() else None
    return _strip_unopened(text, asked)


def _find_opening(text: str) -> tuple[re.Match[str], re.Pattern[str]] | None:
    """The match of an opening mark at the beginning of `text`, and the pattern of its closing mark."""
    for start, closing in _OPENED:
        opening = start.match(text)
        if opening:
            return opening, closing
    return None


def _strip_unopened(text: str, asked: str) -> str | None:
    if "</" not in text or text.lstrip()[:1] in ("{", "["):
        return text
    end = _UNOPENED.search(text)
    if end is None or _OPENING.search(text, 0, end.start()) or end.group().strip() in asked:
        return text
    answer = text[end.end() :]
    return answer if answer.strip() else None


_FENCE = re.compile(r"\A\s*```[\w-]*[ \t]*\r?\n(.*?)\r?\n?[ \t]*```\s*\Z", re.DOTALL)


def strip_fence(text: str) -> str:
    """`text` without the code fence around it, if there is one, and without surrounding space."""
    fenced = _FENCE.match(text)
    return (fenced.group(1) if fenced else text).strip()


def follows_schema(reply: Reply) -> bool | None:
    """Whether the reply to a call with a schema follows it, as far as its first character shows.

    Returns `None` for a reply that is cut or has no answer. A server that replies with plain text ignores schemas.
    """
    if finish_kind(reply.finish_reason) != "whole":
        return None
    text = strip_fence(strip_reasoning(reply.text) or "")
    return text.startswith("{") if text else None
