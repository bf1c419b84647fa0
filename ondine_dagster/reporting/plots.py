"""Draws how often each value of the output columns occurs, as a small SVG inside Markdown.

The SVG is written here and short: Dagster shows Markdown in place up to 999 characters, and a plotting package would
cost every step half a second. Its colours are readable on light and dark pages.
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
    """A picture of the values of `columns` as Markdown; `None` if no column can be drawn.

    A column of texts is drawn if it has at most eight different ones, a column of numbers always, in ranges if it has
    more. Failed and skipped rows, which `failed` and `skipped` count, and answers without a value have bars of their
    own. Of the first four columns that can be drawn, the picture has as many as Dagster shows without a click.
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
    """The bars of a column; empty if it cannot be drawn."""
    bars = [(label, count, _FILL) for label, count in _count(values)]
    if not bars:
        return []
    missing = sum(value is None for value in values) - failed - skipped
    others = [("(no value)", missing, _NO_VALUE), ("(skipped)", skipped, _NO_VALUE), ("(failed)", failed, _FAILED)]
    return [*bars, *(bar for bar in others if bar[1] > 0)]


def _count(values: Sequence[Any]) -> list[tuple[str, int]]:
    """Labels and counts of the bars of a column's values; empty if they cannot be drawn."""
    drawable = [value for value in values if value is not None and not _is_unbounded(value)]
    if not all(isinstance(value, str | int | float | bool) for value in drawable):
        return []
    counts = Counter(drawable)
    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in counts)
    if len(counts) <= _MAX_VALUES:
        pairs = sorted(counts.items()) if are_numbers else counts.most_common()
        return [(_label(value), count) for value, count in pairs]
    return _ranges(counts) if are_numbers else []


def _is_unbounded(value: Any) -> bool:
    """Whether `value` is an infinite or huge number, or not a number (NaN), which have no place in a picture."""
    return isinstance(value, int | float) and not abs(value) < _HUGE


def _ranges(counts: Mapping[float, int]) -> list[tuple[str, int]]:
    """Labels and counts of eight ranges of equal width."""
    low, high = min(counts), max(counts)
    width = (high - low) / _BINS
    bins = [0] * _BINS
    for value, count in counts.items():
        bins[min(_BINS - 1, int((value - low) / width))] += count
    return [(f"{low + number * width:.4g} to {low + (number + 1) * width:.4g}", n) for number, n in enumerate(bins)]


def _label(value: Any) -> str:
    text = "".join(character if character.isprintable() else " " for character in str(value))  # XML refuses others
    return text if len(text) <= _LABEL_LENGTH else f"{text[: _LABEL_LENGTH - 1]}…"
