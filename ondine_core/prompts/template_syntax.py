"""A template that parsed, whatever its syntax, and what both syntaxes share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, get_args

from ondine_core.errors import ConfigError
from ondine_core.preprocessing.media import Gallery
from ondine_core.types.cell_text import write_cell
from ondine_core.types.media import Media, MediaKind, escape_marks

Render: TypeAlias = Callable[[Mapping[str, Any]], str]
MEDIA_KINDS: tuple[MediaKind, ...] = get_args(MediaKind)


@dataclass(frozen=True, slots=True)
class Template:
    """A template that parsed.

    Args:
        columns: Columns it reads, in order of first use.
        render: Row to text.
        hoisted: It with `{column}` for each placeholder, to be sent once for many rows; `None` if its logic depends on
            the row.
        needed: Columns that it reads in every row: all of them, but for those that a Jinja2 template reads in
            conditions and defaults only.
        lead: Text before the first column: the prompt of every row begins with it.
        rest: Text after it, as far as it is the same for every row.
        media_columns: Columns whose cells hold or name images or documents, and which of the two.
    """

    columns: tuple[str, ...]
    render: Render = field(repr=False, compare=False)
    hoisted: str | None
    needed: tuple[str, ...]
    lead: str
    rest: str
    media_columns: Mapping[str, MediaKind]


def find_media_columns(used: Iterable[tuple[str, str | None]]) -> dict[str, MediaKind]:
    """Which columns hold images or documents, from each use of a column and what it is used as."""
    found: dict[str, set[str]] = {}
    for name, kind in used:
        found.setdefault(name, set()).add(kind or "text")
    for name, uses in found.items():
        if len(uses) > 1:
            both = " and as ".join(sorted(uses))
            raise ConfigError(f"The prompt reads {name!r} as {both}; give each a column of its own.")
    return {name: kind for name, uses in found.items() for kind in MEDIA_KINDS if kind in uses}


def split_fixed(literals: Sequence[str | None]) -> tuple[str, str]:
    """The text before the first piece of a template that depends on the row, and the text between the others.

    `None` stands for a piece that depends on the row.
    """
    first = next((at for at, literal in enumerate(literals) if literal is None), len(literals))
    return "".join(filter(None, literals[:first])), "".join(filter(None, literals[first:]))


def write_beside_media(value: Any) -> str:
    """A value as it stands in a prompt with images, of which no text of a row may name one."""
    return str(value) if isinstance(value, Media | Gallery) else escape_marks(write_cell(value))
