"""Cleans texts of rows: markup, invisible characters, blanks, length.

Steps are functions from text to text, applied in the order in which they are written; by default there are none. A row
is cleaned before it is sanitized and rendered, so its answer is stored under the cleaned text, and rows that differ in
markup only are asked once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from ondine_core.errors import ConfigError
from ondine_core.preprocessing.cleaning.characters import (
    collapse_punctuation,
    collapse_whitespace,
    normalize_unicode,
    strip_control,
)
from ondine_core.preprocessing.cleaning.markup import strip_html, strip_markdown
from ondine_core.preprocessing.cleaning.truncation import Truncation, truncate

__all__ = [
    "Clean",
    "Step",
    "Truncation",
    "collapse_punctuation",
    "collapse_whitespace",
    "find_steps",
    "name_of",
    "normalize_unicode",
    "strip_control",
    "strip_html",
    "strip_markdown",
    "truncate",
]

Step: TypeAlias = Callable[[str], str]

Clean: TypeAlias = Sequence[str | Mapping[str, Any] | Step]
"""How a user writes steps: names, functions, and `{"truncate": 500}` for a step with arguments."""

_STEPS: Mapping[str, Step] = {
    "unicode": normalize_unicode,
    "nfkc": partial(normalize_unicode, form="NFKC"),
    "control": strip_control,
    "html": strip_html,
    "markdown": strip_markdown,
    "whitespace": collapse_whitespace,
    "punctuation": collapse_punctuation,
}


def find_steps(clean: Clean | str) -> tuple[Step, ...]:
    """The functions for the steps that a user wrote, in order."""
    steps = [clean] if isinstance(clean, str | Mapping) or callable(clean) else clean
    if not isinstance(steps, Sequence):
        raise ConfigError(f"clean={clean!r}; give a list of steps, such as ['html', 'whitespace'].")
    return tuple(map(_find, steps))


def name_of(step: Step) -> str:
    """The name of a step, with its arguments, for people and for code versions."""
    for name, known in _STEPS.items():
        if known is step:
            return name
    if isinstance(step, Truncation):
        return f"truncate({step.max_tokens}, {step.model}, {step.mark!r})"
    named = step if hasattr(step, "__qualname__") else type(step)
    return ".".join(filter(None, (getattr(named, "__module__", None), named.__qualname__)))


def _find(step: Any) -> Step:
    match step:
        case str() if step in _STEPS:
            return _STEPS[step]
        case {"truncate": value, **others} if not others:
            arguments = value if isinstance(value, Mapping) else {"max_tokens": value}
            try:
                return truncate(**arguments)
            except TypeError:
                raise ConfigError(f"{step!r} is not understood; truncate takes max_tokens, model and mark.") from None
        case _ if callable(step):
            return step  # type: ignore[no-any-return]
    valid = ", ".join(map(repr, _STEPS))
    raise ConfigError(
        f"There is no cleaning step {step!r}; valid are {valid}, {{'truncate': 500}} and functions from text to text."
    )
