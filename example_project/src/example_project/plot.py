"""Plot of labels against answers."""

import base64
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

_ORDER = ["positive", "neutral", "negative", "no answer"]


def draw(confusion: pd.DataFrame, title: str, file: Path) -> str:
    """Plot a table of labels (rows) by answers (columns) to `file`; returns the PNG as base64."""
    table = confusion.reindex(
        index=[name for name in _ORDER if name in confusion.index],
        columns=[name for name in _ORDER if name in confusion.columns],
    )
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(table, cmap="Blues", vmin=0)
    axes.set(title=title, xlabel="model", ylabel="human label")
    axes.set_xticks(range(len(table.columns)), table.columns)
    axes.set_yticks(range(len(table.index)), table.index)
    dark = table.to_numpy().max() / 2
    for row, counts in enumerate(table.to_numpy()):
        for column, count in enumerate(counts):
            axes.text(column, row, count, ha="center", va="center", color="white" if count > dark else "black")
    picture = BytesIO()
    with mpl.rc_context({"font.family": "DejaVu Sans"}):
        figure.savefig(picture, format="png", dpi=110)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(picture.getvalue())
    return base64.b64encode(picture.getvalue()).decode()
