"""The page on metadata keys is complete, and names no unknown key."""

from __future__ import annotations

import ast
import re
from decimal import Decimal
from pathlib import Path
from typing import get_args, get_type_hints

from ondine_core.types.progress import Progress, Spend
from ondine_core.types.values import Failure
from ondine_dagster.reporting.metadata import progress_metadata

ROOT = Path(__file__).parents[2]
KEY = re.compile(r"ondine/[a-z0-9_/]+")


def test_every_key_is_on_the_page_and_no_other() -> None:
    """Keys in the source, keys made of a prefix, and those of each reason of a failed row."""
    page = (ROOT / "docs" / "metadata.md").read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| (`ondine/[^|]*) \|", page, re.MULTILINE)
    explained = [key for cell in first_cells for key in re.findall(rf"`({KEY.pattern})`", cell)]
    assert len(explained) == len(set(explained))
    assert set(explained) == written_keys()


def written_keys() -> set[str]:
    """The keys of metadata that `ondine_dagster` writes."""
    found: set[str] = set()
    for file in (ROOT / "ondine_dagster").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found |= made_of(node)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and KEY.fullmatch(node.value):
                found.add(node.value)
    return found - PREFIXES.keys()


EVERYTHING = Progress(1, 1, 0, 0, Spend(calls=2, unknown=1, usd=Decimal(1), unknown_usd=Decimal(1)), 1.0)
"""A run with a value for each key."""
PREFIXES = {
    "ondine/progress/": [key.removeprefix("ondine/progress/") for key in progress_metadata(EVERYTHING)],
    "ondine/trial/": ("rows_available", "rows_total"),
    "ondine/rows_failed_": get_args(get_type_hints(Failure)["reason"]),
    "ondine/spend_by_": ("asset", "model", "day"),
}
"""Endings of the keys that the source composes."""


def made_of(composed: ast.JoinedStr) -> set[str]:
    """The keys that a literal with a value in it can be."""
    first = composed.values[0]
    if not (isinstance(first, ast.Constant) and str(first.value).startswith("ondine/")):
        return set()
    return {f"{first.value}{end}" for end in PREFIXES[str(first.value)]}
