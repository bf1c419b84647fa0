"""A small picture of what a run wrote: how often each value occurs, column by column, as an SVG inside Markdown.

It is written by hand and short. Dagster shows Markdown in place up to 999 characters, and a plotting package would cost
every step half a second. Its colours can be read on a light and on a dark page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

__all__ = ["distributions"]

_MOST_VALUES = 8
_MOST_COLUMNS = 4
_BINS = 8
_LABEL_LENGTH = 24
_HUGE = 1e300

_ROW, _LEFT, _BAR = 18, 190, 220
_INK, _FILL = "#8a94a6", "#5b8def"


def distributions(columns: Mapping[str, Sequence[Any]]) -> str | None:
    """A picture of the values of `columns` as Markdown; `None` when no column repeats its values.

    A column of texts is drawn if it has few different ones, a column of numbers always, in ranges where there are many.
    Missing values are not counted.

    Args:
        columns: Values by name; the first four that can be drawn are.
    """
    counted = {name: _count(values) for name, values in columns.items()}
    shown = [(name, bars) for name, bars in counted.items() if bars][:_MOST_COLUMNS]
    if not shown:
        return None
    texts, lines, y = [], [], 0
    for name, bars in shown:
        most, total = max(count for _, count in bars), sum(count for _, count in bars)
        y += _ROW
        texts.append(f"<text y='{y}' font-weight='bold'>{escape(_label(name))}</text>")
        for label, count in bars:
            y += _ROW
            texts.append(f"<text y='{y}'>{escape(label)}: {count:,} ({count / total:.0%})</text>")
            lines.append(f"M{_LEFT} {y - 4}h{_BAR * count // most}")
    svg = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_LEFT + _BAR}' height='{y + 6}' font-family='sans-serif' "
        f"font-size='12' fill='{_INK}'><path d='{''.join(lines)}' stroke='{_FILL}' stroke-width='12'/>"
        f"{''.join(texts)}</svg>"
    )
    return f"![How often each value occurs](<data:image/svg+xml,{quote(svg, safe=_PLAIN, errors='replace')}>)"


_PLAIN = " !$&()*+,-./:;=@_~'"
"""What may stand in the address of a picture as it is."""


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
