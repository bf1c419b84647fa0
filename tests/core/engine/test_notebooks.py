"""The terminal and the notebook: the progress bar, the report, and frames made of it."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, TextIO, cast

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pydantic import BaseModel, field_serializer

from ondine_core import ConfigError, Options, Report, ScriptedModel, enrich, enrich_sync
from ondine_core.engine.progress_bar import progress_bar, progress_figures
from ondine_core.types.progress import Progress, Spend
from tests.support.provider import echo

PROMPT = "Repeat: {text}"
OUTPUT = {"answer": str, "count": int}
ROWS = {"text": ["a", "b", "refuse me"], "id": [1, 2, 3]}
Make = Callable[[dict[str, Any]], Any]
FRAMES = pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table], ids=["pandas", "polars", "pyarrow"])


def reply(prompt: str) -> Any:
    text = prompt.removeprefix("Repeat: ")
    return "no JSON" if text.startswith("refuse") else {"answer": f"<{text}>", "count": 7}


def ask(table: Any, **more: Any) -> Report:
    return enrich_sync(table, prompt=PROMPT, output=OUTPUT, model=ScriptedModel(reply), **more)


def columns(frame: Any) -> dict[str, list[Any]]:
    """A frame as lists, every kind of missing value as `None`."""
    table = pa.Table.from_pandas(frame) if isinstance(frame, pd.DataFrame) else pa.table(frame)
    return {name: table[name].to_pylist() for name in table.column_names}


# -- the report ----------------------------------------------------------------------------------------------------


def test_report_prints_as_a_short_summary() -> None:
    """A cell that ends in a report shows some lines, not a list of 20,000 latencies."""
    report = enrich_sync(
        {"text": [f"row {number}" for number in range(2_000)]},
        prompt=PROMPT,
        output="answer",
        model=ScriptedModel(echo),
    )
    assert "rows 2,000;" in repr(report)
    assert "columns answer;" in repr(report)
    assert len(repr(report)) < 300
    assert len(report._repr_html_()) < 3_000


def test_report_counts_failed_and_reused_rows(tmp_path: Any) -> None:
    """The summary counts failed rows, and rows that needed no call."""
    options = Options(store=tmp_path / "answers.db")
    assert "rows 3, 1 failed;" in repr(ask(ROWS, options=options))
    again = ask({"text": ["a", "b"]}, options=options)
    assert "rows 2 (2 known before);" in repr(again)
    assert "all known" in repr(again)


def test_html_of_a_report_escapes_replies() -> None:
    """The table shows rows and reasons; a model's reply is text, never markup of the notebook."""
    html = ask(ROWS)._repr_html_()
    assert "&lt;a&gt;" in html
    assert "<a>" not in html
    assert "the reply is not the JSON asked for" in html


def test_report_converts_to_a_pandas_frame() -> None:
    """`pd.DataFrame(report)` has the output columns and one row for each row."""
    frame = pd.DataFrame(ask(ROWS))  # type: ignore[arg-type]
    assert list(frame.columns) == ["answer", "count"]
    assert frame["answer"].tolist()[:2] == ["<a>", "<b>"]
    assert frame["answer"].isna().tolist() == [False, False, True]


# -- frames --------------------------------------------------------------------------------------------------------


@FRAMES
def test_to_frame_adds_the_outputs(make: Make) -> None:
    """The same kind of frame, with typed output columns and the reason where a row failed."""
    table = make(ROWS)
    frame = ask(table).to_frame(table)
    assert type(frame) is type(table)
    found = columns(frame)
    assert list(found) == ["text", "id", "answer", "count", "error"]
    assert found["answer"] == ["<a>", "<b>", None]
    assert found["count"] == [7, 7, None]
    assert found["error"][:2] == [None, None]
    assert found["error"][2].startswith("invalid: ")
    assert list(columns(ask(table).to_frame(table, error_column=None))) == ["text", "id", "answer", "count"]


class Due(BaseModel):
    """Serializers that do not say what they return."""

    day: dt.date
    tags: list[int]
    size: str

    @field_serializer("day")
    def _written_day(self, day: dt.date):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return f"{day:%d.%m.%Y}"

    @field_serializer("tags")
    def _written_tags(self, tags: list[int]):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return ",".join(map(str, tags))

    @field_serializer("size")
    def _written_size(self, size: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return {"long": len(size) > 3} if size else None


@FRAMES
def test_column_of_a_serializer_that_gives_another_type_has_texts(make: Make) -> None:
    """Pydantic knows only the declared type of such a field; the paid answers become a table all the same."""
    table = make({"text": ["a", "b"]})
    model = ScriptedModel({"": {"day": "2026-01-31", "tags": [1, 23], "size": "large"}})
    found = columns(enrich_sync(table, prompt=PROMPT, output=Due, model=model).to_frame(table))
    assert (found["day"], found["tags"]) == (["31.01.2026"] * 2, ["1,23"] * 2)
    assert found["size"] in (['{"long": true}'] * 2, [{"long": True}] * 2)


@pytest.mark.parametrize("kind", ["pandas", "pyarrow"])
def test_two_columns_of_one_name_are_an_error(kind: str) -> None:
    """Which of them is meant is not guessed."""
    names = ["text", "text"]
    table: Any = pa.table([["a"], [1]], names)
    if kind == "pandas":
        table = pd.DataFrame([["a", 1]], columns=names)
    with pytest.raises(ConfigError, match="two columns of one name"):
        ask(table)


@FRAMES
def test_overwrite_lets_a_cell_run_twice(make: Make) -> None:
    """The second run finds its columns in the table; `overwrite` replaces them, and without it the error says so."""
    table = make(ROWS)
    once = ask(table).to_frame(table)
    with pytest.raises(ConfigError, match=r"'answer' is already a column .*overwrite=True"):
        ask(once)
    report = ask(once, overwrite=True)
    assert columns(report.to_frame(once)) == columns(once)
    with pytest.raises(ConfigError, match=r"has a column 'answer' already; give overwrite=True"):
        report.to_frame(once, overwrite=False)


def test_to_frame_keeps_a_user_column_named_error() -> None:
    """The reasons of failed rows do not overwrite a column of the user's."""
    table = pd.DataFrame({"text": ["a"], "error": ["mine"]})
    report = ask(table)
    with pytest.raises(ConfigError, match=r"'error' already.*error_column="):
        report.to_frame(table)
    assert columns(report.to_frame(table, error_column="why"))["error"] == ["mine"]


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (pd.DataFrame({"text": ["a"]}), "has 1 rows, but 3 were asked"),
        (ROWS, "A dict is not a pandas, polars or pyarrow"),
    ],
)
def test_to_frame_refuses_other_tables(table: Any, complaint: str) -> None:
    """Answers belong to the rows that were asked about."""
    with pytest.raises(ConfigError, match=complaint):
        ask(ROWS).to_frame(table)


# -- the progress bar ----------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A text stream that is a terminal."""

    def isatty(self) -> bool:
        return True


HALF = Progress(10, 5, 1, 0, Spend(), 2.0)


@pytest.mark.parametrize(
    ("wanted", "stream", "in_jupyter", "is_shown"),
    [
        (None, io.StringIO(), False, False),
        (None, Terminal(), False, True),
        (None, io.StringIO(), True, True),
        (False, Terminal(), True, False),
        (True, io.StringIO(), False, True),
    ],
)
def test_progress_bar_is_shown_on_terminals_and_in_jupyter(
    wanted: bool | None, stream: io.StringIO, in_jupyter: bool, is_shown: bool
) -> None:
    """There it is on unless it is switched off, elsewhere only if it is switched on."""
    with progress_bar(wanted, stream, in_jupyter=in_jupyter) as show:
        show(HALF)
    assert ("5/10 rows" in stream.getvalue()) == is_shown


@pytest.mark.parametrize(
    ("progress", "figures"),
    [
        (HALF, "2.0 rows/s, 0:02 left"),
        (Progress(10_000, 10, 0, 2, Spend(), 10.0), "1.0 rows/s, 2:46:30 left, 2 failed"),
        (Progress(2, 2, 2, 0, Spend(), 1.0), "all known"),
        (Progress(0, 0, 0, 0, Spend(), 1.0), "nothing to ask"),
    ],
)
def test_progress_bar_shows_rate_time_left_and_failures(progress: Progress, figures: str) -> None:
    """If no call was made it shows no rate of 0.0 rows/s."""
    assert progress_figures(progress) == figures


@pytest.mark.parametrize("door", ["enrich", "enrich_sync"])
def test_enrich_and_enrich_sync_show_progress_of_the_whole_run(
    door: Literal["enrich", "enrich_sync"], capfd: Any
) -> None:
    """From the first to the last row, with the caller's own `on_progress` called as well."""
    seen: list[Progress] = []
    options = Options(on_progress=seen.append, progress_bar=True)
    table = {"text": [f"row {number}" for number in range(50)]}
    model = ScriptedModel(echo)
    if door == "enrich":
        asyncio.run(enrich(table, prompt=PROMPT, output="answer", model=model, options=options))
    else:
        enrich_sync(table, prompt=PROMPT, output="answer", model=model, options=options)
    shown = capfd.readouterr().err
    assert "100%" in shown
    assert "50/50 rows" in shown
    assert (seen[0].rows_done, seen[-1].rows_done) == (0, 50)


def test_pseudo_terminal_counts_as_a_terminal() -> None:
    """The terminal that a shell gives a script is recognized."""
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w", encoding="utf-8") as stream, progress_bar(None, stream, in_jupyter=False) as show:
        show(HALF)
    shown = b""
    with suppress(OSError):  # Linux's error at the end, since there is no writer any more
        while some := os.read(reader, 10_000):
            shown += some
    os.close(reader)
    assert b"5/10 rows" in shown


def test_run_without_standard_error_has_no_bar() -> None:
    """Where it is closed, as under some service managers, a bar that is requested is not drawn."""
    program = """
from ondine_core import Options, ScriptedModel, enrich_sync
model, options = ScriptedModel({"": {"a": "x"}}), Options(store=":memory:", progress_bar=True)
print(enrich_sync({"t": ["1"]}, prompt="{t}", output={"a": str}, model=model, options=options).column("a"))
"""
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(program)} 2>&-"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, timeout=60)  # noqa: S602
    assert ended.stdout == "['x']\n"


def test_run_goes_on_without_its_bar_when_the_terminal_is_gone() -> None:
    """As when a session is closed while a script runs, or the reader of a pipe ends."""

    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    shown = []
    with progress_bar(True, Gone(), in_jupyter=False) as show:
        for done in range(3):
            show(Progress(10, done, 0, 0, Spend(), 2.0))
            shown.append(done)
    assert shown == [0, 1, 2]


def test_standard_error_may_be_an_object_that_can_only_be_written_to() -> None:
    """Programs replace it by a log, for instance; then there is no bar unless one is requested."""

    class Log:
        written = ""

        def write(self, text: str) -> None:
            self.written += text

        def flush(self) -> None:
            """Nothing is kept back."""

    silent, shown = Log(), Log()
    for wanted, log in ((None, silent), (True, shown)):
        with progress_bar(wanted, cast("TextIO", log), in_jupyter=False) as show:
            show(HALF)
    assert silent.written == ""
    assert "5/10 rows" in shown.written
