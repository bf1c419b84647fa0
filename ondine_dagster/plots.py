"""A small picture of what a run wrote: how often each value occurs, column by column, as an SVG inside Markdown.

It is drawn by hand, because a plotting package would cost every step half a second. Its colours can be read on a light
and on a dark page.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["distributions"]

_MOST_VALUES = 8
_MOST_COLUMNS = 6
_BINS = 8
_LABEL_LENGTH = 24
_HUGE = 1e300

_ROW, _TITLE, _LEFT, _BAR, _WIDTH = 20, 30, 180, 260, 520
_INK, _FILL = "#8a94a6", "#5b8def"


def distributions(columns: Mapping[str, Sequence[Any]]) -> str | None:
    """A picture of the values of `columns` as Markdown; `None` when no column repeats its values.

    A column of texts is drawn if it has few different ones, a column of numbers always, in ranges where there are many.
    Missing values are not counted.

    Args:
        columns: Values by name; at most six are drawn.
    """
    counted = {name: _count(values) for name, values in columns.items()}
    shown = [(name, bars) for name, bars in counted.items() if bars][:_MOST_COLUMNS]
    if not shown:
        return None
    parts, top = [], 0
    for name, bars in shown:
        parts.append(_column(name, bars, top))
        top += _TITLE + _ROW * len(bars) + 10
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" font-family="sans-serif" '
        f'font-size="12">{"".join(parts)}</svg>'
    )
    data = base64.b64encode(svg.encode("utf-8", "replace")).decode()
    return f"![How often each value occurs](data:image/svg+xml;base64,{data})"


def _count(values: Sequence[Any]) -> list[tuple[str, int]]:
    """Labels and counts; none for a column that is not worth a picture."""
    # A number without bounds has no place in a picture.
    known = [
        value
        for value in values
        if value is not None and not (isinstance(value, int | float) and not abs(value) < _HUGE)
    ]
    scalars = all(isinstance(value, str | int | float | bool) for value in known)
    found = Counter(known) if scalars else Counter[Any]()
    if not found:
        return []
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
    if len(found) <= _MOST_VALUES:
        pairs = sorted(found.items()) if numbers else found.most_common()
        return [(_label(value), count) for value, count in pairs]
    return _ranges(found) if numbers else []


def _ranges(found: Mapping[float, int]) -> list[tuple[str, int]]:
    low, high = min(found), max(found)
    width = (high - low) / _BINS
    bins = [0] * _BINS
    for value, count in found.items():
        bins[min(_BINS - 1, int((value - low) / width))] += count
    return [(f"{low + number * width:.4g} to {low + (number + 1) * width:.4g}", n) for number, n in enumerate(bins)]


def _label(value: Any) -> str:
    text = "".join(sign if sign.isprintable() else " " for sign in str(value))  # XML takes no others
    return text if len(text) <= _LABEL_LENGTH else f"{text[: _LABEL_LENGTH - 1]}…"


def _column(name: str, bars: Sequence[tuple[str, int]], top: int) -> str:
    most, total = max(count for _, count in bars), sum(count for _, count in bars)
    drawn = [f'<text x="4" y="{top + 18}" fill="{_INK}" font-weight="bold">{escape(_label(name))}</text>']
    for number, (label, count) in enumerate(bars):
        y = top + _TITLE + number * _ROW
        width = max(1, round(_BAR * count / most)) if count else 0
        drawn.append(
            f'<text x="{_LEFT - 8}" y="{y + 12}" fill="{_INK}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{_LEFT}" y="{y}" width="{width}" height="{_ROW - 5}" rx="2" fill="{_FILL}"/>'
            f'<text x="{_LEFT + width + 6}" y="{y + 12}" fill="{_INK}">{count:,} ({count / total:.0%})</text>'
        )
    return "".join(drawn)
