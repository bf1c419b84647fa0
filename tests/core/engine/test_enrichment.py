from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from ondine_core import (
    Answer,
    Call,
    ConfigError,
    ModelSpec,
    Options,
    Origin,
    Policy,
    Price,
    Reply,
    Report,
    ScriptedModel,
    Usage,
    enrich,
    enrich_sync,
)
from ondine_core.engine.in_thread import run_in_thread
from ondine_core.store import Store, open_store
from ondine_core.types.ledger import CallStarted
from ondine_core.types.values import Key
from tests.support.asking import PROMPT, QUICK, ask, options, texts
from tests.support.provider import (
    Provider,
    after,
    echo,
    first,
    matching,
    slow,
    status,
)

# -- tables --------------------------------------------------------------------------------------------------------

VALUES = ["b", "a", None, "b"]


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"text": VALUES, "other": range(4)}, index=[7, 7, 3, 0]),
        pl.DataFrame({"text": VALUES, "other": range(4)}),
        pa.table({"text": VALUES, "other": range(4)}),
        {"text": VALUES, "other": range(4)},
        {"text": tuple(VALUES)},
        [{"text": value, "other": 1} for value in VALUES],
        [{"text": "b"}, {"text": "a"}, {"other": 1}, {"text": "b"}],
    ],
    ids=["pandas", "polars", "pyarrow", "lists", "tuples", "mappings", "uneven mappings"],
)
def test_every_kind_of_table_is_read_alike(table: Any) -> None:
    """Frames, columns and records give the same prompts, row by row; a missing value is an empty text."""
    model = ScriptedModel(echo)
    asking = Options(policy=Policy(on_missing="ask"))
    report = enrich_sync(table, prompt=PROMPT, output={"answer": "string"}, model=model, options=asking)
    assert report.column("answer") == ["b", "a", "", "b"]
    assert report.errors() == [None] * 4
    assert sorted(call.messages[-1].content for call in model.calls) == ["Repeat: ", "Repeat: a", "Repeat: b"]


@pytest.mark.parametrize(
    "table", [pd.DataFrame({"text": []}), pl.DataFrame({"text": []}), pa.table({"text": []}), {"text": []}]
)
def test_empty_table_has_an_empty_report(table: Any) -> None:
    """A table without rows is not an error; no call is made."""
    model = ScriptedModel(echo)
    report = enrich_sync(table, prompt=PROMPT, output="answer", model=model)
    assert (report.outcomes, report.column("answer"), report.error_rate, model.calls) == ([], [], 0.0, [])


def test_column_that_is_the_index_of_pandas_is_named() -> None:
    """As after a `groupby`; otherwise the error would only say that there is no such column."""
    table = pd.DataFrame({"text": ["a"], "n": [1]}).set_index("text")
    with pytest.raises(ConfigError, match=r"'text' is the index .*reset_index\(\)"):
        enrich_sync(table, prompt="Shout: {text}", output="loud", model=ScriptedModel({"": "HEY"}))


@pytest.mark.parametrize("table", [42, "text", ["a", "b"], object(), pl.LazyFrame({"text": ["a"]}), pd.Series(["a"])])
def test_non_table_is_refused_by_type(table: Any) -> None:
    """An object that is not a table is refused before any call; the error names its type and the valid kinds."""
    model = ScriptedModel(echo)
    with pytest.raises(ConfigError, match=f"{type(table).__name__} is not a table"):
        enrich_sync(table, prompt=PROMPT, output="answer", model=model)
    assert model.calls == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"table": {"text": 7}}, "they are 'text': int"),
        ({"table": {"text": "a", "id": [1]}}, "they are 'text': str, 'id': 1"),
        ({"table": [{"text": "a"}, None]}, "a list of mappings; item 1 of yours is a NoneType"),
        ({"model": ScriptedModel}, "model=ScriptedModel is a class; give an instance"),
        ({"options": {"store": "answers.db"}}, "options is a dict; give options=Options"),
        ({"zebra": 1}, "enrich has no argument 'zebra'.$"),
        ({"outptu": 1}, "enrich has no argument 'outptu'. Did you mean 'output'"),
        ({"max_cost_usd": 1}, "no argument 'max_cost_usd'. It belongs to Options"),
        ({"temperature": 1}, "no argument 'temperature'. It belongs to ModelSpec"),
        ({"batch_size": 1}, "no argument 'batch_size'. It belongs to Policy"),
    ],
)
def test_argument_of_another_type_is_an_error_in_words(wrong: dict[str, Any], message: str) -> None:
    """Before any call."""
    with pytest.raises(ConfigError, match=message):
        enrich_sync(
            **{"table": {"text": ["a"]}, "prompt": PROMPT, "output": "answer", "model": ScriptedModel(echo), **wrong}
        )


@pytest.mark.parametrize(
    ("prompt", "output", "hint"),
    [
        ("Repeat: {txt}", "answer", "Did you mean 'text'"),
        ("Repeat: {zebra}", "answer", "columns are 'text', 'other'"),
        (PROMPT, "other", "already a column"),
        (PROMPT, "text", "another name"),
    ],
)
def test_prompt_output_and_table_must_fit(prompt: str, output: str, hint: str) -> None:
    """Unknown placeholders (with the nearest name) and outputs that overwrite a column are refused before any call."""
    model = ScriptedModel(echo)
    with pytest.raises(ConfigError, match=hint):
        enrich_sync({"text": ["a"], "other": ["b"]}, prompt=prompt, output=output, model=model)
    assert model.calls == []


def test_columns_of_a_mapping_are_read_by_position() -> None:
    """A mapping of column to pandas Series is read in the order of its values, whatever its index."""
    column = pd.Series(["zero", "one", "two"]).sort_values()
    report = enrich_sync(
        {"text": column}, prompt=PROMPT, output={"answer": "string"}, model=ScriptedModel(echo), options=options()
    )
    assert report.column("answer") == list(column) == ["one", "two", "zero"]


UNSOUND = [
    pytest.param({"other": ["a", "b"], "text": ["a"]}, {}, id="columns of different lengths"),
    pytest.param({"text": "hello"}, {}, id="a text for a column"),
    pytest.param(pd.DataFrame([["a"]]), {}, id="columns named by numbers"),
    pytest.param(texts(1), {"max_concurrency": 0}, id="no concurrency"),
]


@pytest.mark.parametrize(("table", "policy"), UNSOUND)
def test_invalid_table_or_policy_is_refused(table: Any, policy: dict[str, Any]) -> None:
    """A table or a setting that cannot work is a ConfigError before anything is asked."""
    model = ScriptedModel(echo)
    with pytest.raises(ConfigError):
        enrich_sync(table, prompt=PROMPT, output="answer", model=model, options=options(**policy))
    assert model.calls == []


# -- every row once ------------------------------------------------------------------------------------------------


def test_two_thousand_rows_are_answered_in_order_and_paid_once() -> None:
    """Each of 2,000 rows has its own answer, in row order; duplicates are asked once; the report equals the bill."""
    table = {"text": [f"row {number % 1500}" for number in range(2000)]}
    random.Random(7).shuffle(table["text"])
    with Provider() as provider:
        report = ask(provider, table, options(max_concurrency=32))
    ledger = provider.ledger
    assert report.column("answer") == table["text"]
    assert all(isinstance(outcome, Answer) for outcome in report.outcomes)
    assert set(ledger.calls_by_prompt.values()) == set(ledger.billed_by_prompt.values()) == {1}
    assert report.prompts == report.spend.calls == report.spend.answered == len(ledger.requests) == 1500
    assert report.spend.usage.input_tokens == ledger.input_tokens
    assert report.spend.usage.output_tokens == ledger.output_tokens
    assert (report.spend.unknown, len(report.latencies_s)) == (0, 1500)
    assert (report.progress.rows_done, report.progress.rows_failed, report.progress.rows_reused) == (2000, 0, 0)


@pytest.mark.parametrize(
    ("change", "prompt", "calls"),
    [
        (list, PROMPT, 0),
        (lambda rows: rows[::-1] + rows, PROMPT, 0),
        (lambda rows: ["new", *rows[1:]], PROMPT, 1),
        (list, "Say it again: {text}", 20),
    ],
    ids=["unchanged", "reordered and repeated", "one row changed", "prompt changed"],
)
def test_second_run_asks_only_what_is_new(
    change: Callable[[list[str]], list[str]], prompt: str, calls: int, tmp_path: Path
) -> None:
    """A second run over the same store asks no row that has an answer, whatever its position."""
    table, chosen = texts(20), options(tmp_path / "answers.db")
    with Provider() as provider:
        ask(provider, table, chosen)
        again = {"text": change(table["text"])}
        report = ask(provider, again, chosen, prompt)
    assert len(provider.ledger.requests) - 20 == report.spend.calls == calls
    assert report.column("answer") == again["text"]
    assert report.progress.rows_reused == len(again["text"]) - calls


def test_options_that_are_used_again_are_for_another_run(tmp_path: Path) -> None:
    """Each call has its own ledger and its own cap, as if the options were written again."""
    price = Price(*[Decimal("0.001")] * 3)
    chosen = replace(options(tmp_path / "answers.db"), price=price, max_cost_usd=0.34)  # the bound of one call
    with Provider() as provider:
        runs = [ask(provider, {"text": [f"{number}"]}, chosen, max_output_tokens=200) for number in range(6)]
    assert [run.audit.answered.calls for run in runs] == [1] * 6


def test_enrich_sync_works_under_a_running_event_loop() -> None:
    """In a notebook or a coroutine `enrich_sync` works as elsewhere; `enrich` can be awaited."""
    model = ScriptedModel(echo)

    async def main() -> tuple[Report, Report]:
        inside = enrich_sync(texts(3), prompt=PROMPT, output={"answer": "string"}, model=model)
        return inside, await enrich(texts(3), prompt=PROMPT, output={"answer": "string"}, model=model)

    for report in asyncio.run(main()):
        assert report.column("answer") == ["row 0", "row 1", "row 2"]


def test_calls_in_flight_are_bounded() -> None:
    """At most `max_concurrency` calls are in flight, and as many as that while there is work."""
    with Provider(latency_s=0.02) as provider:
        ask(provider, texts(40), options(max_concurrency=4))
    assert provider.ledger.peak_in_flight == 4


def test_progress_is_reported_to_the_end() -> None:
    """Progress never decreases, ends complete, and agrees with the report."""
    seen: list[Any] = []
    chosen = Options(on_progress=seen.append, policy=Policy(retry=QUICK, max_repairs=0))
    with Provider(fault=matching("row 3", status(400))) as provider:
        report = ask(provider, texts(10), chosen)
    done = [progress.rows_done for progress in seen]
    assert done == sorted(done)
    assert (seen[-1].rows_done, seen[-1].rows_failed, seen[-1].remaining_s) == (10, 1, 0.0)
    assert seen[-1].spend == report.spend


# -- interrupts ----------------------------------------------------------------------------------------------------


class Slow(Store):
    """A store that is interrupted when calls are recorded and have not left."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.has_recorded = asyncio.Event()

    async def send(self, sent: CallStarted) -> frozenset[Key] | None:
        await super().send(sent)
        self.has_recorded.set()
        return await asyncio.Future[None]()


def test_interrupted_call_that_never_left_is_no_call_of_unknown_cost() -> None:
    """The ledger of a run that was interrupted names no cost that there cannot be."""

    async def main() -> tuple[int, int]:
        store = Slow()
        chosen = replace(options(), store=store, origin=Origin("run"))
        asking = enrich(texts(3), prompt=PROMPT, output="answer", model=ScriptedModel({"": "x"}), options=chosen)
        run = asyncio.create_task(asking)
        await store.has_recorded.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        audit = await store.audit("run")
        store.close()
        return audit.sent, audit.unknown.calls

    sent, unknown = asyncio.run(main())
    assert sent > 0
    assert unknown == 0


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_interrupt_stops_calls_and_keeps_answers(interrupt: type[BaseException], tmp_path: Path) -> None:
    """An interrupt of the waiting thread cancels calls in flight, starts no other, and keeps the answers."""
    store = tmp_path / "answers.db"

    def tick() -> None:
        provider.ledger.wait_for(lambda ledger: ledger.answered == 5 and ledger.in_flight == 4)
        raise interrupt

    with Provider(fault=after(5, first(4, slow(30)))) as provider:
        model = ModelSpec("openai_compatible/m", base_url=provider.base_url)
        asked = {"prompt": PROMPT, "output": {"answer": "string"}, "model": model}
        chosen = options(store, max_concurrency=4)
        with pytest.raises(interrupt):
            run_in_thread(lambda: enrich(texts(50), **asked, options=chosen), tick)
        provider.ledger.wait_for(lambda ledger: ledger.in_flight == 0)
        assert (len(provider.ledger.requests), provider.ledger.client_gone) == (9, 4)
        report = enrich_sync(texts(50), **asked, options=chosen)
    assert (report.spend.calls, report.progress.rows_reused) == (45, 5)
    assert report.column("answer") == texts(50)["text"]


def test_error_of_the_coroutine_is_raised_as_it_is() -> None:
    """run_in_thread returns what the coroutine returns and raises what it raises, time-outs included."""

    async def fail(error: BaseException) -> None:
        raise error

    for error_ in (TimeoutError("mine"), asyncio.CancelledError(), ConfigError("x")):
        with pytest.raises(type(error_)):
            run_in_thread(lambda: fail(error_))  # noqa: B023  (called before the next turn)
    assert run_in_thread(lambda: asyncio.sleep(0, "done")) == "done"


def test_one_open_store_serves_several_threads(tmp_path: Path) -> None:
    """Runs in different threads, each with an event loop of its own, share a store without deadlock."""
    with open_store(tmp_path / "answers.db") as store, ThreadPoolExecutor(4) as threads:

        def run(name: str) -> Report:
            rows = [{"text": f"{name} {number}"} for number in range(200)]
            model = ScriptedModel({"": {"answer": "x"}})
            return enrich_sync(rows, prompt="{text}", output={"answer": str}, model=model, options=Options(store=store))

        reports = list(threads.map(run, "abcd", timeout=60))
    assert [report.progress.rows_done for report in reports] == [200] * 4


def test_object_that_is_no_model_is_refused() -> None:
    """An object without the protocol's attributes is refused before any call, and named."""
    with pytest.raises(ConfigError, match="lacks 'max_concurrency'"):
        enrich_sync([{"a": 1}], prompt="{a}", output="b", model=object())


class OwnModel:
    """A model of the user's that returns always the same."""

    max_concurrency = max_batch_size = None

    def __init__(self, reply: Any) -> None:
        self.reply, self.calls = reply, 0

    async def __call__(self, _: Call) -> Any:
        self.calls += 1
        return self.reply

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("positive", "The model returned a str instead of a Reply"),
        (Reply(cast("str", None)), "text of Reply is a NoneType; give a text"),
        (Reply("x", finish_reason=cast("str", None)), "finish_reason of Reply is a NoneType; give a text"),
        (Reply("x", cast("Usage", {"input_tokens": 3})), "usage of Reply is a dict; give Usage"),
    ],
    ids=str,
)
def test_own_model_that_returns_no_reply_is_an_error_in_words(reply: Any, message: str) -> None:
    """The first call ends the run; a reply without usage is one."""
    model: Any = OwnModel(reply)
    with pytest.raises(ConfigError, match=message):
        enrich_sync([{"a": 1}], prompt="{a}", output="b", model=model)
    assert model.calls == 1
    fine: Any = OwnModel(Reply("x", cast("Usage", None)))
    assert enrich_sync([{"a": 1}], prompt="{a}", output="b", model=fine).column("b") == ["x"]


def test_scripted_models_of_different_names_share_no_answers(tmp_path: Path) -> None:
    """A scripted model is identified by its name; another name is another model."""

    def answer_of(text: str, name: str) -> list[str]:
        options = Options(store=tmp_path / "answers.db")
        model = ScriptedModel({"": text}, name=name)
        return enrich_sync([{"a": 1}], prompt="{a}", output="b", model=model, options=options).column("b")

    assert [answer_of("one", "first"), answer_of("two", "second"), answer_of("three", "first")] == [
        ["one"],
        ["two"],
        ["one"],
    ]


def test_no_thread_is_left_when_a_run_returns() -> None:
    """A process that forks next, as `multiprocessing` does, does not copy a thread that holds locks."""
    before = threading.enumerate()
    for number in range(50):
        model = ScriptedModel({"": {"answer": "x"}})
        enrich_sync({"text": [f"{number}"]}, prompt="{text}", output={"answer": str}, model=model)
        assert threading.enumerate() == before
