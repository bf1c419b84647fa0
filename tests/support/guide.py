"""The code blocks of the guide to scale-out, so that tests execute the code that a reader copies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dagster as dg

_GUIDE = Path(__file__).parents[2] / "docs" / "scale-out.md"


def blocks(language: str, marker: str = "") -> list[str]:
    """The blocks in a language that contain `marker`, in order."""
    found = re.findall(rf"^```{language}\n(.*?)^```", _GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [block for block in found if marker in block]


def executor(marker: str) -> dg.ExecutorDefinition:
    """The executor of the definitions in the block that contains `marker`."""
    (block,) = blocks("python", marker)
    names: dict[str, Any] = {"dg": dg, "llm": None}
    exec(compile(block, "scale-out.md", "exec", dont_inherit=True), names)  # noqa: S102
    found = names["defs"].executor
    assert isinstance(found, dg.ExecutorDefinition)
    return found
