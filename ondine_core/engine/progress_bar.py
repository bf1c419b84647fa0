"""A progress bar for scripts and notebooks: rows, rows a second, remaining time, and USD."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from math import inf
from shutil import get_terminal_size
from time import monotonic
from typing import Any, TextIO

from ondine_core.types.progress import Progress

_REDRAWN_S = 0.1
_GONE = (OSError, ValueError)
"""Errors of drawing when the terminal or the reader of a pipe is gone, or the stream is closed; the run continues."""
_FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} rows [{elapsed}{postfix}]"


@contextmanager
def progress_bar(
    wanted: bool | None, stream: TextIO | None = None, *, in_jupyter: bool | None = None
) -> Iterator[Callable[[Progress], None]]:
    """Yield a function that draws the progress of a run; it does nothing if no bar is wanted.

    With `wanted=None`, there is a bar if `stream` (by default stderr) is a terminal, and in Jupyter.
    """
    stream = sys.stderr if stream is None else stream
    notebook = _is_jupyter() if in_jupyter is None else in_jupyter
    if wanted is None:
        wanted = notebook or _is_terminal(stream)
    if stream is None or not wanted:  # Python sets stderr to None if it has none
        yield lambda _: None
        return
    bar: Any = None
    drawn = -inf

    def show(progress: Progress) -> None:
        nonlocal bar, drawn
        if drawn == inf:
            return
        try:
            if bar is None:
                bar = _new_bar(progress.rows_total, stream, notebook=notebook)
            bar.set_postfix_str(progress_figures(progress), refresh=False)
            bar.n = progress.rows_done
            if monotonic() - drawn >= _REDRAWN_S:
                bar.refresh()
                drawn = monotonic()
        except _GONE:
            drawn = inf

    try:
        yield show
    finally:
        if bar is not None:
            with suppress(*_GONE):
                bar.refresh()
            with suppress(*_GONE):
                bar.close()


def progress_figures(progress: Progress) -> str:
    """The text after the bar."""
    parts = [progress.pace]
    if progress.remaining_s:
        minutes, seconds = divmod(round(progress.remaining_s), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(f"{f'{hours}:{minutes:02}' if hours else minutes}:{seconds:02} left")
    if progress.rows_failed:
        parts.append(f"{progress.rows_failed:,} failed")
    if progress.spend.usd is not None:
        parts.append(f"{'at most ' if progress.spend.at_most_calls else ''}${progress.spend.usd:.4f}")
    return ", ".join(parts)


def _is_terminal(stream: Any) -> bool:
    """Whether `stream` is an open terminal; a program may have replaced stderr by an object without `isatty`."""
    try:
        return bool(stream.isatty())
    except (AttributeError, *_GONE):
        return False


def _new_bar(rows: int, stream: TextIO, *, notebook: bool) -> Any:
    if notebook and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as notebook_tqdm

        return notebook_tqdm(total=rows, bar_format=_FORMAT)
    from tqdm.std import tqdm

    # Without a size, tqdm draws nothing on a terminal that does not report one, as in a container.
    size = get_terminal_size()
    return tqdm(total=rows, bar_format=_FORMAT, file=stream, ncols=size.columns, nrows=size.lines)


def _is_jupyter() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config
