"""What a failed row took: its number of attempts and its share of their cost."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ondine_core.api import enrich_sync
from ondine_core.engine.options import Options
from ondine_core.engine.policy import Policy
from ondine_core.engine.report import Report
from ondine_core.errors import ConfigError, RefusedError, TransientError
from ondine_core.limits.retry import RetryPolicy
from ondine_core.prompts.template import Prompt
from ondine_core.providers.pricing import Price
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.store import open_store
from ondine_core.types.ledger import CallFinished
from ondine_core.types.values import Failure, Reply, Usage
from tests.support.ledger import KINDS, call_to, fresh_place, key_of
from tests.support.old_store import make_old_store

PRICE = Price(Decimal("0.003"), Decimal("0.007"), Decimal("0.001"))


def ask(script, *, rows: int = 6, batch_size: int = 1, store: str | Path = ":memory:", **policy) -> Report:  # noqa: ANN001, ANN003
    model = ScriptedModel(script, max_batch_size=None)
    chosen = Policy(batch_size=batch_size, retry=RetryPolicy(max_attempts=2, max_wait_s=0.01), **policy)
    table = {"text": [f"row {number}" for number in range(rows)]}
    options = Options(store=store, policy=chosen, price=PRICE)
    return enrich_sync(table, prompt="Repeat: {text}", output={"answer": str}, model=model, options=options)


def billed(text: str) -> Reply:
    return Reply(text, Usage(input_tokens=7, output_tokens=3))


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("max_repairs", [0, 2])
def test_failures_carry_the_cost_of_their_calls(batch_size: int, max_repairs: int) -> None:
    """If no row is answered, the failures together cost what the run spent, repairs and splits included."""
    report = ask(lambda _: billed("nonsense"), batch_size=batch_size, max_repairs=max_repairs)
    failures = [failure for failure in report.outcomes.failures() if failure]
    assert len(failures) == 6
    assert sum(failure.cost_usd for failure in failures) == pytest.approx(report.spend.usd)
    assert {failure.model for failure in failures} == {"scripted/ScriptedModel"}
    if batch_size == 1:
        assert {failure.attempts for failure in failures} == {max_repairs + 1}
        each = (max_repairs + 1) * PRICE.cost(Usage(input_tokens=7, output_tokens=3))
        assert {failure.cost_usd for failure in failures} == {each}


def test_failed_row_bears_its_share_of_a_shared_call() -> None:
    """Of a call that answers all rows but one, the failed row bears its share, and all of its later calls alone."""

    def script(prompt: str) -> Reply:
        if "row 2" in prompt and '"id"' not in prompt:
            return billed("nonsense")
        found = [number for number in range(3) if f"row {number}" in prompt and number != 2]
        return billed(str([{"id": id_of(number, prompt), "answer": "x"} for number in found]).replace("'", '"'))

    def id_of(number: int, prompt: str) -> int:
        (found,) = (row["id"] for row in json.loads(prompt) if row["x"] == f"row {number}")
        return int(found)

    report = ask(script, rows=3, batch_size=3, max_repairs=1)
    (failure,) = [failure for failure in report.outcomes.failures() if failure]
    call = PRICE.cost(Usage(input_tokens=7, output_tokens=3))
    assert failure.cost_usd == pytest.approx(call / 3 + (report.spend.calls - 1) * call)
    assert failure.attempts == report.spend.calls == 3


def test_row_without_a_prompt_cost_nothing() -> None:
    """A row whose prompt cannot be rendered was never asked."""
    options = Options(price=PRICE)
    model = ScriptedModel({"": {"answer": "x"}})
    prompt = Prompt("{{ 1 / n }}", syntax="jinja2")
    report = enrich_sync({"n": [1, 0]}, prompt=prompt, output={"answer": str}, model=model, options=options)
    failure = report.outcomes[1]
    assert isinstance(failure, Failure)
    assert (failure.model, failure.attempts, failure.cost_usd) == ("", 0, 0)


@pytest.mark.parametrize(("lost", "cost"), [(True, None), (False, 0)])
def test_lost_call_leaves_the_cost_unknown(lost: bool, cost: int | None) -> None:
    """An unreachable row cost nothing if all its calls were refused; otherwise its cost is unknown."""

    def script(prompt: str) -> Reply:
        if "row 1" in prompt:
            raise TransientError("gone", cost_unknown=lost)
        return billed('{"answer": "x"}')

    failure = ask(script, rows=2).outcomes[1]
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.attempts, failure.cost_usd) == ("unreachable", 1, cost)


def test_stored_failures_keep_attempts_and_cost(tmp_path: Path) -> None:
    """A later run that does not retry failed rows reports the same attempts and costs."""
    store = tmp_path / "answers.db"
    first = ask(lambda _: billed("nonsense"), store=store)
    second = ask(lambda _: billed("nonsense"), store=store, retry_failed_rows=False)
    assert second.spend.calls == 0
    took = [
        [(one.model, one.attempts, one.cost_usd) for one in run.outcomes.failures() if one] for run in (first, second)
    ]
    assert took[0] == took[1]


@pytest.mark.parametrize(
    ("retry_failed_rows", "asked"),
    [
        (True, {"invalid", "truncated", "refused"}),
        (False, set()),
        ((), set()),
        (["invalid", "truncated"], {"invalid", "truncated"}),
        (("refused",), {"refused"}),
    ],
)
def test_failed_rows_are_asked_again_by_reason(retry_failed_rows: Any, asked: set[str], tmp_path: Path) -> None:
    """Rows that failed for another reason stay failed, without a call."""
    store = tmp_path / "answers.db"
    reasons = {"row 1": "invalid", "row 2": "truncated", "row 3": "refused"}

    def script(text: str) -> Reply:
        match reasons.get(text.removeprefix("Repeat: ")):
            case "refused":
                raise RefusedError("no")
            case "truncated":
                return Reply('{"answer', Usage(7, 0, 3), finish_reason="length")
            case "invalid":
                return billed("nonsense")
        return billed('{"answer": "good"}')

    first = ask(script, rows=4, store=store, max_repairs=0)
    assert [failure and failure.reason for failure in first.outcomes.failures()] == [None, *reasons.values()]
    again = ask(script, rows=4, store=store, max_repairs=0, retry_failed_rows=retry_failed_rows)
    assert again.spend.calls == len(asked)
    assert again.errors() == first.errors()
    mended = ask(
        lambda _: billed('{"answer": "new"}'), rows=4, store=store, max_repairs=0, retry_failed_rows=retry_failed_rows
    )
    assert mended.column("answer") == ["good", *("new" if reason in asked else None for reason in reasons.values())]


@pytest.mark.parametrize("value", ["invalid", ["unreachable"], ["refused", "no"], None, 1])
def test_only_stored_reasons_can_be_retried_by_name(value: Any) -> None:
    """Unreachable rows are retried anyway, so their reason is refused."""
    with pytest.raises(ConfigError, match="a list of reasons, of 'invalid', 'truncated' and 'refused'"):
        Policy(retry_failed_rows=value)


@pytest.mark.parametrize("kind", KINDS)
def test_row_that_fails_in_a_full_refresh_has_failed(kind: str, tmp_path: Path) -> None:
    """The older answer is not reused: the row stays failed or is retried, as any failed row."""
    store = fresh_place(kind, tmp_path)

    def run(word: str, **policy) -> tuple[list[str | None], int]:  # noqa: ANN003
        report = ask(
            lambda text: billed(word if "row 1" in text else '{"answer": "good"}'), rows=2, store=store, **policy
        )
        return [*report.values()["answer"]], report.spend.calls

    assert run('{"answer": "old"}') == (["good", "old"], 2)
    assert run("nonsense", reuse_since=time.time(), max_repairs=0) == (["good", None], 2)
    assert run("nonsense", retry_failed_rows=False) == (["good", None], 0)
    assert run('{"answer": "new"}') == (["good", "new"], 1)
    assert run("nonsense") == (["good", "new"], 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cost", [None, Decimal(0), Decimal("0.0000000000000000000001")])
def test_store_keeps_the_cost_of_a_failure_exactly(kind: str, cost: Decimal | None, tmp_path: Path) -> None:
    """Also an unknown cost, in both databases."""

    async def main() -> Failure:
        sent = call_to(key_of(1))
        failure = Failure("invalid", "why", "openai/m", 4, cost)
        with open_store(fresh_place(kind, tmp_path)) as store:
            await store.send(sent)
            await store.settle(CallFinished(sent, "answered", failures=((key_of(1), failure),)))
            return (await store.get_failures([key_of(1)]))[key_of(1)]

    found = asyncio.run(main())
    assert (found.model, found.attempts, found.cost_usd) == ("openai/m", 4, cost)


def test_store_of_format_2_is_migrated(tmp_path: Path) -> None:
    """Its failures are kept; their attempts and costs are unknown."""
    path = tmp_path / "answers.db"
    make_old_store(path, 2)
    database = sqlite3.connect(path)
    database.execute("INSERT INTO failures VALUES (?, 'invalid', 'why', 9.5)", [key_of(1)])
    database.commit()
    database.close()
    with open_store(path) as store:
        (found,) = asyncio.run(store.get_failures([key_of(1)])).values()
    assert (found, found.attempts, found.cost_usd) == (Failure("invalid", "why"), 0, None)
