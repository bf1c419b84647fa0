"""A user's code, for type checkers to read; nothing here is run.

A line with two ignores is one that both checkers must reject: each complains of an ignore that it does not need.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import assert_type

import dagster as dg
import polars as pl
from pydantic import BaseModel

from ondine_core import (
    Answer,
    BudgetLimit,
    Call,
    ChatModel,
    Failure,
    ModelSpec,
    Options,
    Policy,
    Rates,
    Reply,
    Report,
    Skipped,
    Usage,
    enrich,
    enrich_sync,
    preset,
)
from ondine_dagster import (
    LLMAssetConfig,
    LLMResource,
    Prompt,
    ScriptedModel,
    SharedBudget,
    build_llm_asset,
    llm_asset,
)


class Label(BaseModel):
    """An output."""

    label: str


ROWS: Sequence[dict[str, object]] = [{"text": "a"}]

# -- assets ------------------------------------------------------------------------------------------------------------


@llm_asset(prompt="Label {text}", output=Label, batch_size="auto", max_cost_usd=5, group_name="enrich")
def labels(rows: object) -> object:
    """All keyword arguments of `@dg.asset` pass through."""
    return rows


assert_type(labels, dg.AssetsDefinition)
assert_type(build_llm_asset(name="b", upstream="rows", prompt=Prompt("{text}"), output={"x": int}), dg.AssetsDefinition)

build_llm_asset(name="b", upstream="rows", prompt="{text}", output="x", batch_size=20, model=ScriptedModel({"": "x"}))

llm = LLMResource(model="openai/gpt-4o-mini", budgets=[SharedBudget(name="all", max_cost_usd=200)])
assert_type(llm.spec(), ModelSpec)
assert_type(LLMResource.from_spec(preset("gpt-4o-mini"), requests_per_minute=500), LLMResource)
definitions = dg.Definitions(assets=[labels], resources={"llm": llm})
run_config = dg.RunConfig(ops={"labels": LLMAssetConfig(max_rows=10, sample="random", tier="flex", prompt_cache="1h")})

llm_asset("Label {text}", output=Label)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
llm_asset(prompt="Label {text}")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
llm_asset(prompt=7, output=Label)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
llm_asset(prompt="", output=Label, batch_size="big")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
llm_asset(prompt="", output=Label, max_cost=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
build_llm_asset(name="b", upstream="r", prompt="", output="x", cap=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
llm_asset(prompt="", output=Label, group_name=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
llm_asset(prompt="", output=Label, on_row_error="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
LLMResource()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

# -- the core ----------------------------------------------------------------------------------------------------------


class Echo:
    """A user's model has these four attributes; no base class."""

    max_concurrency: int | None = None
    max_batch_size: int | None = None

    async def __call__(self, call: Call) -> Reply:
        """Repeat the text."""
        return Reply(call.messages[-1].content, Usage(1, 0, 1))

    async def aclose(self) -> None:
        """Nothing to close."""


model: ChatModel = Echo()
scripted: ChatModel = ScriptedModel({"": "x"}, name="mine")
wrong: ChatModel = object()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

options = Options(
    store="answers.db",
    policy=Policy(max_concurrency=8),
    rates=Rates(500, 200_000),
    max_cost_usd=Decimal(5),
    caps=(BudgetLimit(Decimal(200), "all", "month"),),
)
report = enrich_sync(ROWS, prompt="Label {text}", output=Label, model=model, options=options)
assert_type(report, Report)
assert_type(report.to_frame(pl.DataFrame({"text": ["a"]})), pl.DataFrame)
for outcome in report.outcomes:
    assert_type(outcome, Answer | Failure | Skipped)

Options(stores="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
options.store = "y"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
enrich_sync(ROWS, prompt="", output=Label)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def ask() -> Report:
    """The coroutine has the same signature."""
    return await enrich(ROWS, prompt="Label {text}", output="label", model="openai/gpt-4o-mini", options=options)
