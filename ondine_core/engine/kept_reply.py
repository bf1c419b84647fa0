"""What a model replied to a prompt that failed, as it may be kept: without personal data, keys, and undue length."""

from __future__ import annotations

from ondine_core.preprocessing.sanitizer import Sanitizer, redact
from ondine_core.prompts.task import Task

_KEYS = Sanitizer(rules=("api_key",))
_MAX_KEPT = 20_000
_MAX_READ = 100_000
_EDGE = 200
"""Where a text is cut, what the rules would have found may be cut, too."""


def kept_reply(text: str, task: Task) -> str:
    """`text` without the key of the provider and what the sanitizer of `task` finds, cut if it is long."""
    is_cut = len(text) > _MAX_READ
    text = text[:_MAX_READ]
    key = task.model.api_key
    if key:
        text = text.replace(key, "***")
    text = redact(text, _KEYS)
    preparation = task.prompt.preparation
    if preparation is not None and preparation.sanitizer is not None:
        text = redact(text, preparation.sanitizer)
    if is_cut:
        text = text[:-_EDGE]
    return f"{text[:_MAX_KEPT]} […]" if is_cut or len(text) > _MAX_KEPT else text
