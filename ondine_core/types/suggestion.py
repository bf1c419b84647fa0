"""Suggests known names that are close to an unknown one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """Ask in an error message whether one of the `most` names closest to `name` was meant; empty if none is close."""
    near = get_close_matches(name, list(known), most)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
