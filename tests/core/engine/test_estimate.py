"""Estimates, compared with what the run then takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core import (
    BudgetExhaustedError,
    ConfigError,
    MediaOptions,
    Options,
    Policy,
    Price,
    Prompt,
    ScriptedModel,
    enrich_sync,
)
from ondine_core.api import answer, spec_of
from ondine_core.batching.calibration import CalibrationPlan
from ondine_core.engine.estimate import Estimate, estimate
from ondine_core.limits.rates import Rates
from ondine_core.prompts.task import compile_task
from ondine_core.providers.context_window import USUAL_TOKENS_A_MESSAGE, make_up_answer
from ondine_core.providers.media_tokens import max_media_tokens
from ondine_core.providers.pricing import find_price
from ondine_core.providers.tokenizer import counter
from ondine_core.store import open_store
from ondine_core.types.media import Media
from ondine_core.types.values import Call, ModelSpec, Reply, Usage
from tests.support.pictures import picture

PROMPT = Prompt("Shout: {text}", system="Be loud.")
PRICE = Price(Decimal("0.001"), Decimal("0.002"), Decimal("0.001"))


class Words(ScriptedModel):
    """Counts, and charges for, words."""

    def __init__(self, max_batch_size: int | None = 1, loud: str = "HEY") -> None:
        super().__init__(lambda _: {"loud": loud}, max_batch_size=max_batch_size)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    async def __call__(self, call: Call) -> Reply:
        reply = await super().__call__(call)
        texts = [message.content for message in call.messages] + [(call.json_schema or b"").decode()]
        sent = sum(await self.count_tokens(texts)) + USUAL_TOKENS_A_MESSAGE * len(texts)
        return replace(reply, usage=Usage(sent, 0, *await self.count_tokens([reply.text])))


def estimated(rows: list[dict[str, Any]], model: ScriptedModel, options: Options) -> Estimate:
    task = compile_task(PROMPT, {"loud": str}, spec_of(model))
    return asyncio.run(estimate(rows, task, options, model))


TEXTS = st.lists(st.sampled_from(["a", "b c", "d e f", "g"]), max_size=12)


@given(TEXTS, TEXTS)
def test_estimate_is_what_the_run_then_takes(before: list[str], texts: list[str]) -> None:
    """Rows, reused rows, prompts, calls and input tokens equal those of the run; the estimate makes no call."""
    model = Words()
    with open_store(":memory:") as store:
        options = Options(store=store, price=PRICE)
        enrich_sync(
            [{"text": text} for text in before], prompt=PROMPT, output={"loud": str}, model=model, options=options
        )
        calls, rows = len(model.calls), [{"text": text} for text in texts]
        expected = estimated(rows, model, options)
        assert len(model.calls) == calls
        report = enrich_sync(rows, prompt=PROMPT, output={"loud": str}, model=model, options=options)
    assert expected.rows == len(texts)
    assert expected.rows_reused == report.progress.rows_reused
    assert expected.prompts == report.prompts
    assert expected.calls == expected.prompts_left == report.spend.calls
    assert expected.input_tokens == report.spend.usage.input_tokens
    assert expected.usd is not None
    least, likely, most = expected.usd
    assert least <= likely <= most
    assert (least > 0) == bool(expected.calls)


@pytest.mark.parametrize(("batch_size", "calls"), [(1, 30), (10, 3), ("auto", 3)])
def test_calls_are_counted_as_they_would_be_packed(batch_size: Any, calls: int) -> None:
    """With the batch size, instructions counted once a call, and `auto` starting small."""
    rows = [{"text": f"row {number}"} for number in range(30)]
    model = Words(max_batch_size=None)
    options = Options(policy=Policy(batch_size=batch_size))
    expected = estimated(rows, model, options)
    assert expected.calls == calls
    alone = estimated(rows, model, Options())
    assert (expected.input_tokens < alone.input_tokens) == (calls < 30)


@pytest.mark.parametrize(
    ("rates", "least_s"),
    [
        (Rates(), lambda _: 0),
        (Rates(requests_per_minute=60), lambda _: 30),
        (Rates(tokens_per_minute=60), lambda found: found.input_tokens + found.output_tokens[0]),
    ],
)
def test_time_follows_from_the_rates(rates: Rates, least_s: Callable[[Estimate], float]) -> None:
    """Thirty calls at one a second take half a minute; a token rate may be the tighter bound."""
    rows = [{"text": f"row {number}"} for number in range(30)]
    found = estimated(rows, Words(), Options(rates=rates))
    assert found.least_s == least_s(found)


def test_unknown_price_is_not_zero_and_unaskable_rows_are_counted() -> None:
    """Without a price there is no figure; rows without a prompt cost nothing and are counted."""
    model = Words()
    task = compile_task(Prompt("{{ text.upper() }}", syntax="jinja2"), "loud", ModelSpec("test/unlisted"))
    found = asyncio.run(estimate([{"text": "a"}, {"text": 3}], task, Options(), model))
    assert found.usd is None
    assert (found.rows, found.rows_unaskable, found.calls) == (2, 1, 1)


def test_known_answers_narrow_the_estimated_reply_length() -> None:
    """A free-text schema gives a wide range; ten known answers give a narrower one around their mean."""
    model = Words(loud="THIS IS WHAT YOU SAID. " * 20)
    task = compile_task(PROMPT, {"loud": str}, spec_of(model))
    rows = [{"text": f"row {number}"} for number in range(40)]
    with open_store(":memory:") as store:
        options = Options(store=store, price=PRICE)
        unknown = asyncio.run(estimate(rows, task, options, model))
        enrich_sync(rows[:10], prompt=PROMPT, output={"loud": str}, model=model, options=options)
        known = asyncio.run(estimate(rows, task, options, model))
        usage = enrich_sync(rows, prompt=PROMPT, output={"loud": str}, model=model, options=options).spend.usage
    assert (unknown.rows_reused, known.rows_reused) == (0, 10)
    assert unknown.output_tokens[2] < usage.output_tokens
    assert known.output_tokens[1] == pytest.approx(usage.output_tokens, rel=0.15)
    assert known.output_tokens[0] < usage.output_tokens < known.output_tokens[2]


def test_estimate_writes_nothing_to_the_store(tmp_path: Path) -> None:
    """No call in the ledger, and no answer."""
    model, options = Words(), Options(store=tmp_path / "answers.db", price=PRICE)
    estimated([{"text": "a"}], model, options)
    report = enrich_sync([{"text": "b"}], prompt=PROMPT, output={"loud": str}, model=model, options=options)
    assert report.audit.sent == 1
    assert len(model.calls) == 1


def test_estimate_raises_the_errors_of_a_run() -> None:
    """A missing column or a cap without a price is the same error as in a run."""
    with pytest.raises(ConfigError, match="text"):
        estimated([{"txt": "a"}], Words(), Options())


# -- packing -------------------------------------------------------------------------------------------------------

MOODS: dict[str, Any] = {"mood": {"enum": ["good", "poor"]}}
NOTES = {"note": str}
LONG = "x" * 60


class Batches(ScriptedModel):
    """Answers rows alone and in batches of JSON, all alike; tokens are those that an estimate counts."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(self._reply, max_batch_size=None)
        self._values, self._count = values, counter("scripted/batches", cautious=False)

    def _reply(self, text: str) -> Reply:
        values: Any = self._values
        if text.startswith("["):
            values = {"answers": [{"id": row["id"], **self._values} for row in json.loads(text)]}
        text = orjson.dumps(values).decode()
        return Reply(text, Usage(10, 0, self._count(text)))


@pytest.mark.parametrize("rows", [1, 57, 600])
@pytest.mark.parametrize(
    ("policy", "bounds", "output"),
    [
        ({"batch_size": 1}, {}, MOODS),
        ({"batch_size": 20}, {}, MOODS),
        ({"batch_size": 20}, {"max_output_tokens": 100}, MOODS),
        ({"batch_size": 50}, {"max_output_tokens": 400}, NOTES),
        ({"batch_size": 50, "max_concurrency": 2}, {"max_output_tokens": 400}, NOTES),
        ({"batch_size": 50, "context_window": 1500}, {}, MOODS),
        ({"batch_size": "auto", "max_concurrency": 2}, {}, MOODS),
        ({"batch_size": "auto", "max_concurrency": 2}, {"max_output_tokens": 400}, NOTES),
        ({"batch_size": 20, "calibration": CalibrationPlan(50)}, {}, MOODS),
        ({"batch_size": 20, "calibration": CalibrationPlan(50)}, {"max_output_tokens": 100}, MOODS),
    ],
)
def test_calls_planned_are_calls_made(
    policy: dict[str, Any], bounds: dict[str, int], output: dict[str, Any], rows: int
) -> None:
    """What changes batch sizes during a run does so in the estimate; planned and made calls differ by at most 5 %."""
    table = {"text": [f"{LONG} {number}" for number in range(rows)]}
    task = compile_task("Mood of {text}", output, ModelSpec("scripted/batches", **bounds))
    schema = task.schema.json_schema
    model = Batches({name: json.loads(make_up_answer(schema))[name] for name in output})
    options = Options(policy=Policy(**policy))
    expected = asyncio.run(estimate(table, task, options, model))
    report = asyncio.run(answer(table, task, options, model))
    assert report.progress.rows_failed == 0
    assert expected.calls == pytest.approx(report.spend.calls, rel=0.05, abs=2)


def test_known_answers_give_the_rows_per_reply() -> None:
    """After a trial with short answers, the estimate plans more rows a call."""
    table = {"text": [f"{LONG} {number}" for number in range(600)]}
    task = compile_task("Note on {text}", NOTES, ModelSpec("scripted/batches", max_output_tokens=400))
    model = Batches({"note": "fine"})
    with open_store(":memory:") as store:
        options = Options(store=store, policy=Policy(batch_size=50, max_concurrency=2))
        before = asyncio.run(estimate(table, task, options, model))
        asyncio.run(answer({"text": table["text"][:10]}, task, options, model))
        known = asyncio.run(estimate(table, task, options, model))
        report = asyncio.run(answer(table, task, options, model))
    assert known.calls == pytest.approx(report.spend.calls, rel=0.05)
    assert known.calls < before.calls


def test_reply_bound_that_shrinks_batches_is_reported() -> None:
    """With the bound and the rows a call; nothing is reported if the configured size is reached."""
    table = {"text": [f"row {number}" for number in range(100)]}

    def limit(max_output_tokens: int) -> str | None:
        task = compile_task("Note on {text}", NOTES, ModelSpec("scripted/x", max_output_tokens=max_output_tokens))
        options = Options(policy=Policy(batch_size=20))
        return asyncio.run(estimate(table, task, options, Batches({}))).limited_by

    assert limit(100_000) is None
    warning = limit(200) or ""
    assert warning.startswith("batch_size=20 exceeds the size of one reply (max_output_tokens=200), at ")
    assert warning.endswith(" rows on average.")


def test_prompt_beyond_the_window_is_no_call() -> None:
    """A run fails its row without a call."""
    table = {"text": ["short", "long " * 5000]}
    task = compile_task("{text}", MOODS, ModelSpec("scripted/x"))
    model, options = Batches({"mood": "good"}), Options(policy=Policy(context_window=1000))
    found = asyncio.run(estimate(table, task, options, model))
    report = asyncio.run(answer(table, task, options, model))
    assert (found.calls, found.prompts_left, found.rows_unaskable) == (1, 1, 1) == (report.spend.calls, 1, 1)


# -- reasoning -----------------------------------------------------------------------------------------------------


def thinking(model: str = "openai/gpt-5.4", **spec: Any) -> Estimate:
    task = compile_task(PROMPT, {"loud": str}, ModelSpec(model, api_key="k", **spec))
    return asyncio.run(estimate([{"text": str(n)} for n in range(10)], task, Options(store=":memory:")))


def test_reasoning_tokens_are_in_output_and_cost() -> None:
    """More effort takes more tokens and money; the estimate is the likely figure of a range."""
    none, low, high = (thinking(reasoning_effort=effort) for effort in ("none", "low", "high"))
    assert none.reasoning_tokens == (0, 0, 0)
    for some in (low, high):
        assert some.output_tokens == tuple(map(sum, zip(none.output_tokens, some.reasoning_tokens, strict=True)))
        assert some.usd is not None
    assert low.reasoning_tokens[1] < high.reasoning_tokens[1]
    assert none.usd is not None
    price = find_price("openai/gpt-5.4")
    assert price is not None
    assert high.usd is not None
    assert high.usd[1] - none.usd[1] == high.reasoning_tokens[1] * price.output


@pytest.mark.parametrize(
    ("model", "spec", "likely"),
    [
        ("openai/gpt-5-mini", {}, True),
        ("openai/gpt-5.4", {}, False),
        ("openai/gpt-4o-mini", {}, False),
        ("openai/gpt-5.5", {}, True),
        ("openai/gpt-6-luna", {}, True),
        ("openai/gpt-6-luna", {"reasoning_effort": "none"}, False),
        ("anthropic/claude-opus-5-5", {}, True),
        ("gemini/gemini-2.5-flash", {}, True),
        ("gemini/gemini-2.5-flash-lite", {}, False),
        ("gemini/gemini-3.8-flash", {}, True),
        ("gemini/gemini-3.8-flash", {"reasoning_effort": "none"}, False),
        ("together_ai/moonshotai/Kimi-K3", {}, True),
        ("mistral/mistral-large-4", {}, False),
        ("anthropic/claude-haiku-5-5", {}, True),
        ("anthropic/claude-haiku-5-5", {"reasoning_effort": "none"}, False),
        ("anthropic/claude-sonnet-4-5", {"params": {"thinking": {"type": "enabled", "budget_tokens": 4000}}}, True),
        ("anthropic/claude-sonnet-4-5", {"params": {"reasoning_effort": "low"}}, True),
    ],
)
def test_models_that_reason_by_default_are_estimated_so(model: str, spec: dict[str, Any], likely: bool) -> None:
    """Models that always reason or do so by default, and those that the settings make reason."""
    assert (thinking(model, **spec).reasoning_tokens[1] > 0) is likely


def test_output_bound_includes_reasoning() -> None:
    """The bound on output tokens includes reasoning."""
    assert thinking(reasoning_effort="high", max_output_tokens=300).reasoning_tokens == (2000, 3000, 3000)


# -- images --------------------------------------------------------------------------------------------------------


def test_images_are_in_the_estimate(tmp_path: Path) -> None:
    """Each image is counted by its model's rule, once however many rows name it, and not once it is answered."""
    (tmp_path / "p.png").write_bytes(picture(1, size=(640, 480)))
    media = MediaOptions(root=tmp_path)
    spec = ModelSpec("openai/gpt-4o", api_key="k", max_output_tokens=16)
    task = compile_task(Prompt("What is it? {photo:image}", media=media), {"thing": str}, spec)
    options = Options(store=tmp_path / "answers.db", progress_bar=False)
    rows = {"photo": ["p.png", "p.png", picture(2, size=(2000, 2000))]}
    found = asyncio.run(estimate(rows, task, options))
    images = sum(
        max_media_tokens("openai/gpt-4o", Media("image", "", "", 0, *size)) for size in ((640, 480), (2000,) * 2)
    )
    assert images < found.input_tokens < images + 200
    assert (found.prompts, found.calls) == (2, 2)
    assert found.usd is not None
    assert found.usd[1] >= images * PRICE.input / 10**6


def test_a_cap_holds_for_images(tmp_path: Path) -> None:
    """A run stops before an image that no longer fits into its cap."""
    model = ScriptedModel({"": {"thing": "cup"}})
    price = Price(Decimal(1), Decimal(0), Decimal(1))
    rows = {"photo": [picture(number, size=(320, 320)) for number in range(5)]}
    options = Options(store=tmp_path / "answers.db", price=price, max_cost_usd=1, progress_bar=False)
    with pytest.raises(BudgetExhaustedError):
        enrich_sync(rows, prompt="{photo:image}", output={"thing": str}, model=model, options=options)
    assert model.calls == []
