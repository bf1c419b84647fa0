"""A parsed template of either syntax, and the functions that both syntaxes use."""

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
    """A parsed template.

    Args:
        columns: The columns that it reads, in order of first use.
        render: Returns the text for a row.
        hoisted: The template with `{column}` for each placeholder, to be sent once for many rows; `None` if its logic
            depends on the row.
        needed: The columns that it reads in every row: all except those that a Jinja2 template reads in conditions and
            defaults only.
        lead: The text before the first column, with which the prompt of every row begins.
        rest: The fixed text after the first column.
        media_columns: The columns with images or documents, and which of the two.
    """

    columns: tuple[str, ...]
    render: Render = field(repr=False, compare=False)
    hoisted: str | None
    needed: tuple[str, ...]
    lead: str
    rest: str
    media_columns: Mapping[str, MediaKind]


def find_media_columns(used: Iterable[tuple[str, str | None]]) -> dict[str, MediaKind]:
    """The columns with images or documents; `used` has each use of a column with its kind, `None` or `""` for text."""
    kinds_of: dict[str, set[str]] = {}
    for name, kind in used:
        kinds_of.setdefault(name, set()).add(kind or "text")
    for name, kinds in kinds_of.items():
        if len(kinds) > 1:
            both = " and as ".join(sorted(kinds))
            raise ConfigError(f"The prompt reads {name!r} as {both}; give each a column of its own.")
    return {name: kind for name, kinds in kinds_of.items() for kind in MEDIA_KINDS if kind in kinds}


def split_fixed(literals: Sequence[str | None]) -> tuple[str, str]:
    """The fixed text before the first piece of a template that depends on the row, and all fixed text after it.

    `None` stands for a piece that depends on the row.
    """
    first = literals.index(None) if None in literals else len(literals)
    return "".join(filter(None, literals[:first])), "".join(filter(None, literals[first:]))


def write_beside_media(value: Any) -> str:
    """A value as text of a prompt with images; text of a row cannot refer to an image, since marks are escaped."""
    return str(value) if isinstance(value, Media | Gallery) else escape_marks(write_cell(value))
