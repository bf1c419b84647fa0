"""The definition of a task in the store, without rows: enough to compute the key of a row or of a text.

A definition must hold no secret. Parameters and addresses that may hold one are left out; then no key can be computed,
and the user has to give it. The user's salt and patterns and the code of cleaning functions are left out, too; then a
key can be computed only from the rendered text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from ondine_core.engine.steps import render
from ondine_core.errors import ConfigError
from ondine_core.preprocessing.cleaning import Step, Truncation, find_steps, name_of
from ondine_core.preprocessing.media import MediaOptions
from ondine_core.preprocessing.preprocess import Preprocessing, find_preprocessing
from ondine_core.prompts.task import Task, hashed_parts, key_from_parts
from ondine_core.prompts.template import CompiledPrompt, Prompt, compile_prompt
from ondine_core.types.values import Json, Key

_PLAIN_TEXTS = frozenset({"reasoning_effort", "service_tier", "stop", "truncation", "type", "verbosity"})
"""Parameters whose texts are not secret."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What was asked.

    `parts` is what is hashed before the text of a row, `None` if it may hold a secret. `is_whole` says that rows can be
    prepared as they were in the run.
    """

    model: str
    parts: tuple[bytes, bytes] | None
    prompt: CompiledPrompt
    is_whole: bool


def write_definition(task: Task) -> bytes:
    """Convert `task` to its definition as JSON."""
    asked, identity = hashed_parts(task)
    url = task.model.base_url
    has_no_secret = (url is None or _is_plain_url(url)) and _is_plain(task.model.params, "")
    preparation = _write_preparation(task.prompt.preparation)
    definition = {
        "model": task.model.model,
        "parts": [asked.decode(), identity.decode()] if has_no_secret else None,
        "template": task.prompt.source,
        "syntax": task.prompt.syntax,
        "preparation": preparation or {},
        "is_whole": preparation is not None,
    }
    reader = task.prompt.reader
    if reader is not None and reader.options.identity:
        definition["media"] = reader.options.identity
    return orjson.dumps(definition)


def read_definition(text: bytes) -> Definition:
    """Parse a definition that `write_definition` wrote.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        fields = orjson.loads(text)
        parts = None if fields["parts"] is None else (fields["parts"][0].encode(), fields["parts"][1].encode())
        media = MediaOptions(**fields.get("media", {}))
        preparation = find_preprocessing(fields["preparation"].get("clean", ()), fields["preparation"].get("sanitize"))
        template = Prompt(fields["template"], syntax=fields["syntax"], media=media)
        prompt = compile_prompt(template, lambda _: "", preparation)
        return Definition(fields["model"], parts, prompt, fields["is_whole"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(f"The definition that the store has of this asset is damaged ({error}).") from error


def keys_of_text(definition: Definition, text: str) -> list[Key]:
    """The keys of `text` as a rendered prompt, and as the value of the column if the prompt reads only one."""
    keys = [_key(definition, text)]
    columns = definition.prompt.columns
    if len(columns) == 1 and definition.is_whole:
        keys += keys_of_row(definition, {columns[0]: text})
    return keys


def keys_of_row(definition: Definition, row: Mapping[str, Any]) -> list[Key]:
    """The key of a row."""
    columns = definition.prompt.columns
    missing = [name for name in columns if name not in row]
    if missing:
        raise ConfigError(f"The row lacks {missing[0]!r}; the prompt reads {', '.join(map(repr, columns))}.")
    if not definition.is_whole:
        raise ConfigError(
            "Rows of this asset are cleaned by functions of yours, or sanitized with a salt or patterns, which the "
            "store does not have. Give the text as it was sent with --text (a dry run shows it), or the key with --key."
        )
    (text,) = render(definition.prompt, {name: [row[name]] for name in columns}, [0], on_missing="ask")
    if not isinstance(text, str):
        raise ConfigError(f"The row cannot be asked: {text}.")
    return [_key(definition, text)]


def _key(definition: Definition, text: str) -> Key:
    if definition.parts is None:
        raise ConfigError(
            "The key of a text is not known here: params or base_url of this asset may hold a secret, so the store "
            "does not have them. Give the key with --key; `failures` lists those of failed prompts."
        )
    return key_from_parts(definition.parts)(text)


def _is_plain_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return not (parts.username or parts.password or parts.query or parts.fragment)


def _is_plain(value: Json, name: str) -> bool:
    if isinstance(value, str):
        return name in _PLAIN_TEXTS
    if isinstance(value, Mapping):
        return all(_is_plain(child, key) for key, child in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(child, name) for child in value)
    return value is None or isinstance(value, bool | int | float)


def _write_preparation(preparation: Preprocessing | None) -> Mapping[str, Json] | None:
    """The preprocessing of rows as a user would write it; `None` if that needs code or secrets."""
    if preparation is None:
        return {}
    steps = _write_steps(preparation.steps)
    sanitizer = preparation.sanitizer
    if steps is None:
        return None
    if sanitizer is None:
        return {"clean": steps}
    if sanitizer.patterns or sanitizer.salt is not None:
        return None
    return {"clean": steps, "sanitize": {"mode": sanitizer.mode, "rules": list(sanitizer.rules)}}


def _write_steps(steps: Sequence[Step]) -> list[Json] | None:
    written: list[Json] = []
    for step in steps:
        if isinstance(step, Truncation):
            written.append({"truncate": {"max_tokens": step.max_tokens, "model": step.model, "mark": step.mark}})
            continue
        try:
            find_steps([name_of(step)])
        except ConfigError:
            return None
        written.append(name_of(step))
    return written
