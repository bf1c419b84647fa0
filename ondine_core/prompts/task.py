"""The task, which is everything that decides what an answer means, and the keys of its answers.

A task is compiled once, where it is declared, so mistakes are found there and not at the ten-thousandth row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

from ondine_core.errors import ConfigError
from ondine_core.preprocessing.cleaning import Clean
from ondine_core.preprocessing.preprocess import find_preprocessing
from ondine_core.preprocessing.sanitizer import Sanitize
from ondine_core.prompts.output_schema import Output, OutputSchema, compile_schema
from ondine_core.prompts.system_message import compile_system
from ondine_core.prompts.template import CompiledPrompt, Prompt, compile_prompt
from ondine_core.providers.media_limits import check_media
from ondine_core.types.suggestion import did_you_mean
from ondine_core.types.values import Json, Key, ModelSpec

_KEY_FORMAT = b"ondine-1"
"""Part of every key. Another value makes all stored answers unknown, so it changes only with the meaning of keys."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Everything that decides what an answer means, except the row. Tasks are equal only if they are one object."""

    prompt: CompiledPrompt
    schema: OutputSchema
    model: ModelSpec


def compile_task(
    prompt: str | Prompt,
    output: Output,
    model: ModelSpec,
    *,
    clean: Clean | str = (),
    sanitize: Sanitize | None = None,
) -> Task:
    """Compile `prompt` and `output` into a task.

    Raises:
        ConfigError: One of them is not valid, they have a column in common, or the model does not take the prompt's
            images or documents.
    """
    schema = compile_schema(output)
    compiled = compile_prompt(prompt, schema.dump, find_preprocessing(clean, sanitize))
    check_media_model(compiled, model)
    common = [name for name in schema.names if name in compiled.columns]
    if common:
        raise ConfigError(
            f"{common[0]!r} is an output column and also a column the prompt reads; give the output another name."
        )
    return Task(compiled, schema, model)


def check_media_model(prompt: CompiledPrompt, model: ModelSpec) -> None:
    """Refuse a model that does not take the images or documents of `prompt`, as far as the price list knows."""
    if prompt.reader is None:
        return
    options = prompt.reader.options
    kinds = {kind for kind in prompt.media_columns.values() if not (kind == "document" and options.as_text)}
    if options.check_model or model.model.startswith(("llama_cpp/", "mlx/")):
        check_media(model, kinds)


def check_columns(task: Task, names: Sequence[str], *, overwrite: bool = False) -> None:
    """Refuse a table whose columns `names` do not fit `task`.

    Raises:
        ConfigError: A column of the prompt is missing, the system message has a placeholder of another column, or an
            output column exists already and `overwrite` is not set.
    """
    columns = task.prompt.columns
    for column in columns:
        if column not in names:
            meant = did_you_mean(column, [name for name in names if isinstance(name, str)])
            known = f"The columns are {', '.join(map(repr, names))}." if names else "They have no columns at all."
            raise ConfigError(f"The prompt reads column {column!r}, which the rows do not have.{meant} {known}")
    # For the prompt's own columns the system message was checked when it was compiled.
    compile_system(task.prompt.system or "", task.prompt.syntax, [name for name in names if name not in columns])
    for output in task.schema.names:
        if output in names and not overwrite:
            raise ConfigError(
                f"The output column {output!r} is already a column of the rows; rename one of the two, or replace "
                "it (in enrich: overwrite=True; in an asset, leave the column out of the rows)."
            )


def cache_key(task: Task) -> Callable[[str], Key]:
    """A function that returns the key of a rendered prompt.

    Options that cannot change a valid answer (batch size, time-outs, retries, the limit on output tokens) are not part
    of the key, so changing them asks nothing again. The server is, since a model's name may mean another model there.
    """
    return key_from_parts(hashed_parts(task))


def hashed_parts(task: Task) -> tuple[bytes, bytes]:
    """The bytes that are hashed into every key of `task` before the text of the row."""
    model = task.model
    url = model.base_url and model.base_url.rstrip("/")
    temperature = None if model.temperature is None else float(model.temperature)
    settings: dict[str, Json] = {
        "model": model.model,
        "url": url,
        "temperature": temperature,
        "params": model.request_params,
    }
    if task.prompt.reader is not None and task.prompt.reader.options.identity:
        settings["media"] = task.prompt.reader.options.identity
    head = [[message.role, message.content] for message in task.prompt.head]
    try:
        settings_and_head = orjson.dumps([settings, head], option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise ConfigError(f"params={model.params!r} cannot be written as JSON: {error}.") from None
    return settings_and_head, task.schema.identity


def key_from_parts(parts: tuple[bytes, bytes]) -> Callable[[str], Key]:
    """A function that returns the key of a rendered prompt; `parts` come from `hashed_parts`."""
    start = hashlib.blake2b(digest_size=16, person=_KEY_FORMAT)
    for part in parts:
        start.update(len(part).to_bytes(8, "big") + part)

    def key(text: str) -> Key:
        digest = start.copy()
        digest.update(text.encode())
        return digest.digest()

    return key
