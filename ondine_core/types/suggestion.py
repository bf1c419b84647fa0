"""Suggests the name that was perhaps meant where one is not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The one of the `known` names that is closest to `name`, as a question to put into an error; empty if none is."""
    return "".join(f" Did you mean {near!r}?" for near in get_close_matches(name, list(known), 1))
