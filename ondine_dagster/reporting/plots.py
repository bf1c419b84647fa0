"""A small picture of what a run wrote: how often each value occurs, column by column, as an SVG inside Markdown.

It is short and written by hand: Dagster shows Markdown in place up to 999 characters, and a plotting package would cost
every step half a second. Its colours can be read on a light and on a dark page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, TypeAlias
from urllib.parse import quote

from ondine_dagster.reporting.markdown import SHOWN_IN_PLACE

_MAX_VALUES = 8
_MAX_COLUMNS = 4
_BINS = 8
_LABEL_LENGTH = 24
_HUGE = 1e300

_ROW = 18
_LEFT = 190
_BAR = 220
_INK = "#8a94a6"
_FILL = "#5b8def"
_NO_VALUE = "#b0b7c3"
_FAILED = "#d9534f"

_Bar: TypeAlias = tuple[str, int, str]
"""Label, rows and colour."""


def distributions(columns: Mapping[str, Sequence[Any]], failed: int = 0, skipped: int = 0) -> str | None:
    """A picture of the values of `columns` as Markdown; `None` when no column repeats its values.

    A column of texts is drawn if it has few different ones, a column of numbers always, in ranges where there are many.
    Rows that failed or were skipped and answers without a value have bars of their own.

    Of the first four columns that can be drawn, it has as many as Dagster shows without a click. `failed` and `skipped`
    count the rows that have no value for that reason.
    """
    counted = {name: _bars(values, failed, skipped) for name, values in columns.items()}
    shown = [(name, bars) for name, bars in counted.items() if bars][:_MAX_COLUMNS]
    while len(shown) > 1 and len(_picture(shown)) > SHOWN_IN_PLACE:
        shown.pop()
    return _picture(shown) if shown else None


def _picture(columns: Sequence[tuple[str, Sequence[_Bar]]]) -> str:
    texts, y = [], 0
    lines: dict[str, str] = {}
    for name, bars in columns:
        most, total = max(count for _, count, _ in bars), sum(count for _, count, _ in bars)
        y += _ROW
        texts.append(f"<text y='{y}' font-weight='bold'>{escape(_label(name))}</text>")
        for label, count, colour in bars:
            y += _ROW
            texts.append(f"<text y='{y}'>{escape(label)}: {count:,} ({count / total:.0%})</text>")
            lines[colour] = f"{lines.get(colour, '')}M{_LEFT} {y - 4}h{_BAR * count // most}"
    paths = "".join(f"<path d='{path}' stroke='{colour}'/>" for colour, path in lines.items())
    svg = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_LEFT + _BAR}' height='{y + 6}' font-family='sans-serif' "
        f"font-size='12' fill='{_INK}'><g stroke-width='12'>{paths}</g>{''.join(texts)}</svg>"
    )
    return f"![How often each value occurs](<data:image/svg+xml,{quote(svg, safe=_PLAIN, errors='replace')}>)"


_PLAIN = " !$&()*+,-./:;=@_~'"
"""Characters that need no escape in the address of a picture."""


def _bars(values: Sequence[Any], failed: int, skipped: int) -> list[_Bar]:
    """The bars of a column; empty if a plot of it would show nothing."""
    bars = [(label, count, _FILL) for label, count in _count(values)]
    if not bars:
        return []
    missing = sum(value is None for value in values) - failed - skipped
    others = [("(no value)", missing, _NO_VALUE), ("(skipped)", skipped, _NO_VALUE), ("(failed)", failed, _FAILED)]
    return [*bars, *(bar for bar in others if bar[1] > 0)]


def _count(values: Sequence[Any]) -> list[tuple[str, int]]:
    """Labels and counts; empty for a column whose plot would show nothing."""
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
    if len(found) <= _MAX_VALUES:
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
