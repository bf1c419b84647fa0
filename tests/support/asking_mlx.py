"""Helpers that send calls to tiny MLX models. A test module that imports this one is skipped without MLX."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytest

pytest.importorskip("mlx.core", exc_type=ImportError)
if find_spec("mlx_lm") is None:
    pytest.skip("mlx-lm is not installed", allow_module_level=True)
os.environ["HF_HUB_OFFLINE"] = "1"

from tokenizers import Tokenizer

from ondine_core.providers import connect
from ondine_core.providers.mlx import MlxModel
from ondine_core.types.values import Call, Message, ModelSpec, Reply
from tests.support.tiny_mlx import END, write_tiny_model

__all__ = [
    "ENDLESS",
    "MOOD",
    "ask",
    "ask_in_turn",
    "ask_together",
    "ask_with",
    "count",
    "task",
    "texts",
    "use",
    "write_models",
]

T = TypeVar("T")
ENDLESS = dict.fromkeys((END, "<|user|>", "<|system|>", "<|assistant|>", "<think>", "</think>"), -1000.0)
"""The biases of a model that writes characters and never the end-of-turn token."""

MOOD = json.dumps(
    {
        "type": "object",
        "properties": {"mood": {"type": "string", "enum": ["good", "bad"]}, "stars": {"enum": [1, 2, 3]}},
        "required": ["mood", "stars"],
        "additionalProperties": False,
    }
).encode()


def write_models(folder: Path) -> Path:
    """Write a chat model, one that never ends its reply, a base model, and one that writes only line feeds."""
    write_tiny_model(folder / "chat")
    write_tiny_model(folder / "endless", token_biases=ENDLESS)
    write_tiny_model(folder / "base", chat_template=None, token_biases=ENDLESS)
    write_tiny_model(folder / "blank", chat_template=None, token_biases={"\n": 1000})
    return folder


def task(text: str, schema: bytes | None = None) -> Call:
    """A call of one user message."""
    return Call((Message("user", text),), schema)


def use(folder: Path, action: Callable[[MlxModel], Awaitable[T]], **spec: Any) -> T:
    """Connect to the model in `folder`, run `action` with it, close it, and return the result."""

    async def main() -> T:
        model = connect(ModelSpec(f"mlx/{folder}", **{"max_output_tokens": 40, **spec}))
        assert isinstance(model, MlxModel)
        try:
            return await action(model)
        finally:
            await model.aclose()

    return asyncio.run(main())


def ask(folder: Path, call: Call | str, **spec: Any) -> Reply:
    """The reply to one call."""
    call = task(call) if isinstance(call, str) else call
    return use(folder, lambda model: model(call), **spec)


async def ask_with(folder: Path, text: str, **spec: Any) -> Reply:
    """The reply to one text, over a connection of its own."""
    model = connect(ModelSpec(f"mlx/{folder}", **spec))
    try:
        return await model(task(text))
    finally:
        await model.aclose()


async def ask_together(model: MlxModel, calls: Sequence[Call]) -> list[Reply]:
    """The replies to concurrent calls."""
    return await asyncio.gather(*map(model, calls))


async def ask_in_turn(model: MlxModel, calls: Sequence[Call]) -> list[Reply]:
    """The replies to sequential calls."""
    return [await model(call) for call in calls]


def texts(replies: Sequence[Reply]) -> list[str]:
    """The texts of the replies."""
    return [reply.text for reply in replies]


def count(folder: Path, text: str) -> int:
    """The number of tokens of `text`, counted by the tokenizer's own library."""
    return len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)
