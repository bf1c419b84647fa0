"""The stored definition of a task with images, and the keys computed from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ondine_core import MediaOptions, ModelSpec, Prompt
from ondine_core.engine.definition import keys_of_row, read_definition, write_definition
from ondine_core.engine.steps import items
from ondine_core.prompts.task import cache_key, compile_task
from tests.support.pictures import picture


@pytest.mark.parametrize("options", [{}, {"detail": "low", "max_side_px": 10}, {"keep_metadata": True}], ids=str)
@pytest.mark.parametrize("syntax", ["braces", "jinja2"])
def test_key_of_an_image_row_is_computed_from_the_definition(
    options: dict[str, Any], syntax: Any, tmp_path: Path
) -> None:
    """From the stored definition and the row, wherever the image is by then."""
    text = "What is {name}? {photo:image}" if syntax == "braces" else "What is {{ name }}? {{ photo | image }}"
    prompt = Prompt(text, syntax=syntax, media=MediaOptions(**options))
    task = compile_task(prompt, "a", ModelSpec("openai/gpt-4o-mini"))
    prepared = task.prompt.prepare({"name": "it", "photo": picture(3)}).values
    key = cache_key(task)(task.prompt.render(prepared))
    (tmp_path / "p.png").write_bytes(picture(3))
    definition = read_definition(write_definition(task))
    assert keys_of_row(definition, {"name": "it", "photo": tmp_path / "p.png"}) == [key]
    (item,) = items(task, {"name": ["it"], "photo": [picture(3)]}, [(key, 0)], with_fields=True)
    assert item.key == key
    assert item.media
    assert b"PNG" not in write_definition(task)
