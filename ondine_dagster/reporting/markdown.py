"""Rows as Markdown, for the metadata that people read in Dagster's UI."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ondine_dagster.frames import frame_of

__all__ = ["SHOWN_IN_PLACE", "in_place", "markdown", "preview"]

SHOWN_IN_PLACE = 999
"""The longest Markdown, in characters, that Dagster shows without a click."""


def preview(table: Any, names: Sequence[str], rows: int = 10, *, in_full: bool = False) -> str:
    """The first rows of `table` as a Markdown table of `names`; fewer if they are long, unless `in_full`."""
    columns = [frame_of(table).get_column(name).head(rows).to_list() for name in names]
    cells = list(zip(*columns, strict=True))
    return markdown(names, cells) if in_full else in_place(names, cells)


def in_place(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table of at least one and as many of `rows` as Dagster shows without a click."""
    text = markdown(header, rows)
    while len(text) > SHOWN_IN_PLACE and text.count("\n") > _LINES_OF_ONE_ROW:
        text = text.rpartition("\n")[0]
    return text


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; whatever its cells hold is shown as it stands."""
    lines = [_line(map(_cell, row)) for row in rows]
    return "\n".join([_line(map(_cell, header)), _line("---" for _ in header), *lines])


def _line(cells: Iterable[str]) -> str:
    """A line of a table, with pipes on both sides: without them an empty cell at either end would be lost."""
    return f"| {' | '.join(cells)} |"


_CELL_LENGTH = 160
_LINKED = re.compile(r"(?:https?|ftp|mailto|xmpp):|www(?=\.)|[\w.+-](?=@)", re.IGNORECASE)
"""What GitHub's Markdown makes a link of although nothing marks it as one; escapes do not keep it from that."""
_WORD_JOINER = "\u2060"
"""Has no width, and ends what would be an address."""
_LINES_OF_ONE_ROW = 2


def _cell(value: Any) -> str:
    text = str(value)
    if not isinstance(value, str) and text in ("None", "nan", "NaT", "<NA>"):
        return ""
    text = " ".join(text.split())
    # What a row writes is shown as it stands: no link, no picture, no markup.
    shown = re.sub(r"([\\`*_\[\]<>|!~#])", r"\\\1", text[: _CELL_LENGTH - 1])
    shown = _LINKED.sub(f"\\g<0>{_WORD_JOINER}", shown)
    return shown if len(text) < _CELL_LENGTH else f"{shown}…"
