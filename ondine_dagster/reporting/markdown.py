"""Writes rows as Markdown tables for metadata in Dagster's UI."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ondine_dagster.frames import frame_of

SHOWN_IN_PLACE = 999
"""The longest Markdown, in characters, that Dagster shows without a click."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in a cell.

    `url` is a `data:` URL of ours, without characters of Markdown's syntax; `alt` is the alternative text.
    """

    url: str
    alt: str


def preview(
    table: Any,
    names: Sequence[str],
    rows: int = 10,
    *,
    in_full: bool = False,
    described: Mapping[str, Callable[[Any], Any]] | None = None,
) -> str:
    """The first rows of `table` as a Markdown table of the columns `names`; fewer if they are long, unless `in_full`.

    `described` has functions that describe the cells of some columns, which are shown instead.
    """
    columns = []
    for name in names:
        column = frame_of(table).get_column(name).head(rows).to_list()
        columns.append(list(map(described[name], column)) if described and name in described else column)
    cells = list(zip(*columns, strict=True))
    return markdown(names, cells) if in_full else in_place(names, cells)


def in_place(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table of the first `rows`, at least one, as many as Dagster shows without a click."""
    text = markdown(header, rows)
    while len(text) > SHOWN_IN_PLACE and text.count("\n") > _LINES_OF_ONE_ROW:
        text = text.rpartition("\n")[0]
    return text


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table whose cells are escaped."""
    lines = [_line(map(_cell, row)) for row in rows]
    return "\n".join([_line(map(_cell, header)), _line("---" for _ in header), *lines])


def _line(cells: Iterable[str]) -> str:
    """A line of a table, with pipes on both sides: without them an empty cell at either end would be lost."""
    return f"| {' | '.join(cells)} |"


_CELL_LENGTH = 160
_LINKED = re.compile(r"(?:https?|ftp|mailto|xmpp):|www(?=\.)|[\w.+-](?=@)", re.IGNORECASE)
"""Text that GitHub's Markdown turns into a link without markup, which escaping does not prevent."""
_WORD_JOINER = "\u2060"
"""A character without width, which ends an address."""
_LINES_OF_ONE_ROW = 2


def _cell(value: Any) -> str:
    if isinstance(value, Picture):
        return f"![{_escape(value.alt)}]({value.url})"
    if isinstance(value, list) and any(isinstance(item, Picture) for item in value):
        return " ".join(map(_cell, value))
    text = str(_without_bytes(value))
    if not isinstance(value, str) and text in ("None", "nan", "NaT", "<NA>"):
        return ""
    text = " ".join(text.split())
    shown = _escape(text[: _CELL_LENGTH - 1])
    return shown if len(text) < _CELL_LENGTH else f"{shown}…"


def _escape(text: str) -> str:
    """Text of a row, escaped so that it makes no link, picture or other markup."""
    return _LINKED.sub(f"\\g<0>{_WORD_JOINER}", re.sub(r"([\\`*_\[\]<>|!~#])", r"\\\1", text))


def _without_bytes(value: Any) -> Any:
    """`value` with the number of bytes in the place of bytes, which are contents of files and not texts."""
    if isinstance(value, bytes | bytearray | memoryview):
        return _Unquoted(f"{len(value):,} bytes")
    if isinstance(value, dict):
        return {name: _without_bytes(item) for name, item in value.items()}
    return [_without_bytes(item) for item in value] if isinstance(value, list | tuple) else value


class _Unquoted(str):
    """A text that is written without quotes inside a list."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
