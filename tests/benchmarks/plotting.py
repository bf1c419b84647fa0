"""Draw rows a second for each client as SVG: a few rectangles, so no library is needed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from tests.benchmarks.scenarios import Measured

__all__ = ["plot"]

_WIDTH, _BAR, _GAP, _LEFT = 640, 22, 14, 130
_OURS, _OTHERS = "#3d6fd9", "#9aa3ad"


def plot(runs: Sequence[Measured]) -> str:
    """SVG of the comparison: a bar for each client's median, and a line from its slowest to its fastest run."""
    compared = [run for run in runs if run["scenario"] == "one row a call"]
    clients = list(dict.fromkeys(run["client"] for run in compared))
    most = max((run["rows_per_s"] for run in compared), default=1.0)
    scale = (_WIDTH - _LEFT - 90) / most
    parts = []
    for number, client in enumerate(clients):
        values = [run["rows_per_s"] for run in compared if run["client"] == client]
        y, middle = _GAP + number * (_BAR + _GAP), median(values) * scale
        colour = _OURS if client in ("ondine", "step") else _OTHERS
        low, high = (_LEFT + extreme * scale for extreme in (min(values), max(values)))
        parts += [
            f'<text x="{_LEFT - 8}" y="{y + 16}" text-anchor="end">{client}</text>',
            f'<rect x="{_LEFT}" y="{y}" width="{middle:.1f}" height="{_BAR}" fill="{colour}"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 11}" y2="{y + 11}" stroke="black"/>',
            f'<text x="{high + 8:.1f}" y="{y + 16}">{median(values):,.0f} rows/s</text>',
        ]
    height = _GAP + len(clients) * (_BAR + _GAP)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif"'
    return "\n".join([f'{head} font-size="14">', '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])
