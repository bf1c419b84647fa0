"""The spend report against ledgers written by real runs, on both databases."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import narwhals as nw
import pytest

from ondine_core.errors import ConfigError
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.store import open_store
from ondine_core.types.ledger import CallFinished, Origin
from ondine_core.types.values import Usage
from ondine_dagster import LLMResource, spend_report
from tests.support import instances
from tests.support.ledger import KINDS, call_to, fresh_place, key_of
from tests.support.provider import Canned, Provider, ReceivedRequest
from tests.support.review_assets import answer, metadata_of, moods_of, run


def write(place: str, *calls: tuple[str, str, int, Decimal | None]) -> dt.date:
    """Write a ledger of calls (asset, model, days ago, USD); returns the day from which the days are counted."""
    today = dt.datetime.now(dt.UTC).date()

    async def main() -> None:
        for number, (asset, model, ago, usd) in enumerate(calls):
            noon = dt.datetime.combine(today - dt.timedelta(days=ago), dt.time(12), dt.UTC).timestamp()
            sent = call_to(key_of(number), origin=Origin("run-1", asset))._replace(model=model, sent_at=noon)
            await store.send(sent)
            await store.settle(CallFinished(sent, "answered", Usage(100, 40, 10, 5), usd))
        lost = call_to(key_of(99), origin=Origin("run-1", "moods"))._replace(model="openai/m", at_most_usd=Decimal(3))
        await store.send(lost._replace(sent_at=noon))

    with open_store(place) as store:
        asyncio.run(main())
    return today


CALLS = (
    ("moods", "openai/m", 1, Decimal("0.25")),
    ("moods", "openai/m", 1, Decimal("0.5")),
    ("moods", "openai/n", 1, None),
    ("topics", "openai/m", 40, Decimal(2)),
    ("moods", "openai/m", 0, Decimal(1)),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frame", ["pandas", "polars", "pyarrow"])
def test_spend_by_asset_model_and_day(kind: str, frame: Any, tmp_path: Path) -> None:
    """One row for each, with unpriced and lost calls separate; sums are exact."""
    place = fresh_place(kind, tmp_path)
    today = write(place, *CALLS)
    result = run(spend_report(store=place, frame=frame, group_name="money"))
    table = nw.from_native(result.output_for_node("llm_spend"), eager_only=True)
    assert table.implementation is nw.Implementation.from_backend(frame)
    rows = {(row["asset"], row["model"], str(row["day"])[:10]): row for row in table.rows(named=True)}
    day = {ago: (today - dt.timedelta(days=ago)).isoformat() for ago in (0, 1, 40)}
    assert set(rows) == {
        ("moods", "openai/m", day[0]),
        ("moods", "openai/m", day[1]),
        ("moods", "openai/n", day[1]),
        ("topics", "openai/m", day[40]),
    }
    first, unpriced, last = (
        rows["moods", "openai/m", day[1]],
        rows["moods", "openai/n", day[1]],
        rows["moods", "openai/m", day[0]],
    )
    assert (first["calls"], first["cost_usd"], first["input_tokens"], first["reasoning_tokens"]) == (2, 0.75, 200, 10)
    assert unpriced["unpriced_calls"] == 1
    assert unpriced["cost_usd"] is None or unpriced["cost_usd"] != unpriced["cost_usd"]  # pandas: NaN
    assert (last["unknown_calls"], last["unknown_at_most_usd"]) == (1, 3.0)
    found = metadata_of(result, "llm_spend")
    assert (found["ondine/cost_usd"], found["ondine/requests"]) == (3.75, 5)
    assert (found["ondine/requests_unknown"], found["ondine/requests_unpriced"]) == (1, 1)


def test_requests_of_batch_jobs_are_under_way_and_not_lost(tmp_path: Path) -> None:
    """They have columns of their own until they are answered, and count as calls in the plot."""
    place = str(tmp_path / "answers.db")
    write(place, *CALLS[:1])
    with open_store(place) as store:
        sent = call_to(key_of(7), origin=Origin("run-2", "moods"))._replace(at_most_usd=Decimal(2), batch=b"[]")
        asyncio.run(store.send(sent))
    result = run(spend_report(store=place))
    table = nw.from_native(result.output_for_node("llm_spend"), eager_only=True)
    ((first, *_),) = [table.filter(nw.col("requests_in_jobs") > 0).rows(named=True)]
    assert (first["requests_in_jobs"], first["in_jobs_at_most_usd"], first["unknown_calls"]) == (1, 2.0, 0)
    found = metadata_of(result, "llm_spend")
    assert found["ondine/requests_unknown"] == 1
    assert "| moods | 3 | $0.2500 |" in found["ondine/spend_by_asset"]


def test_report_is_a_text_plot(tmp_path: Path) -> None:
    """The dearest and the latest first, with bars proportional to the longest."""
    place = str(tmp_path / "answers.db")
    today = write(place, *CALLS)
    found = metadata_of(run(spend_report(store=place)), "llm_spend")
    by_asset, by_model, by_day = (found[f"ondine/spend_by_{name}"].splitlines() for name in ("asset", "model", "day"))
    assert next(iter(found.items())) == ("ondine/summary", "5 calls, $3.7500")
    assert by_asset == [
        "| asset | calls | USD |  |",
        "| --- | --- | --- | --- |",
        f"| topics | 1 | $2.0000 | {'█' * 20} |",
        f"| moods | 5 | $1.7500 | {'█' * 18} |",
    ]
    assert by_model[3] == "| openai/n | 1 | $0.0000 |  |"
    assert [line.split()[1] for line in by_day[2:]] == [
        (today - dt.timedelta(days=ago)).isoformat() for ago in (0, 1, 40)
    ]


def test_the_tables_of_a_long_report_are_shown_without_a_click(tmp_path: Path) -> None:
    """Lines of the cheapest assets and earliest days are left out."""
    place = str(tmp_path / "answers.db")
    today = write(place, *((f"asset_{number}", "openai/m", number, Decimal(50 - number)) for number in range(40)))
    found = metadata_of(run(spend_report(store=place)), "llm_spend")
    for name, first in (("asset", "asset\\_0"), ("day", today.isoformat())):
        table = found[f"ondine/spend_by_{name}"]
        assert len(table) < 1000
        assert 10 < len(table.splitlines()) - 2 < 40
        assert table.splitlines()[2].split()[1] == first


def test_the_last_days_only(tmp_path: Path) -> None:
    """The current day is one of them."""
    place = str(tmp_path / "answers.db")
    write(place, *CALLS)

    def spent(days: int) -> float:
        found: float = metadata_of(run(spend_report(store=place, days=days)), "llm_spend")["ondine/cost_usd"]
        return found

    assert [spent(days) for days in (1, 2, 40, 41)] == [1.0, 1.75, 1.75, 3.75]


def test_by_default_the_store_of_the_resource_is_read(tmp_path: Path) -> None:
    """The report equals the provider's bill of an asset that used the resource."""
    report = spend_report(name="bill")
    with Provider(answer) as provider:
        llm = LLMResource(model="openai/gpt-4o-mini", base_url=provider.base_url, store=str(tmp_path / "answers.db"))
        result = run(moods_of("good", "bad"), llm=llm)
        assert result.success
        bill = metadata_of(run(report, llm=llm), "bill")
        ledger = provider.ledger
    assert bill["ondine/cost_usd"] == pytest.approx((ledger.input_tokens * 0.15 + ledger.output_tokens * 0.60) / 1e6)
    assert bill["ondine/requests"] == 2


def test_default_store_is_that_of_the_instance() -> None:
    """A model without a resource stores its answers there, too."""
    with instances.ephemeral() as instance:
        run(moods_of("good", "bad", "good"), llm=ScriptedModel(answer), instance=instance)
        table = run(spend_report(), instance=instance).output_for_node("llm_spend")
    assert table[["asset", "model", "calls"]].to_numpy().tolist() == [["moods", "scripted/ScriptedModel", 2]]


def test_nothing_spent_is_an_empty_table(tmp_path: Path) -> None:
    """With all columns, and zero dollars."""
    with open_store(tmp_path / "answers.db"):
        pass
    result = run(spend_report(store=str(tmp_path / "answers.db")))
    table = result.output_for_node("llm_spend")
    assert (len(table), str(table["calls"].dtype)) == (0, "int64")
    assert metadata_of(result, "llm_spend")["ondine/cost_usd"] == 0.0


def test_report_before_the_first_asset_is_empty() -> None:
    """The store of the instance or of the resource is made by the first asset, which a schedule may run later."""
    with instances.ephemeral() as instance:
        result = run(spend_report(), instance=instance)
    assert metadata_of(result, "llm_spend")["ondine/cost_usd"] == 0.0


def test_missing_store_is_an_error(tmp_path: Path) -> None:
    """If it is named: not an empty report, and no file is created."""
    result = run(spend_report(store=str(tmp_path / "none.db")))
    (event,) = [event for event in result.all_events if event.is_step_failure]
    assert "none.db" in str(event.step_failure_data.user_failure_data.description)
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"days": 0}, "days=0"),
        ({"days": 10**9}, "days=1000000000 must be a whole number from 1 to 100,000"),
        ({"days": "7"}, "days='7'"),
        ({"days": 1.5}, "days=1.5"),
        ({"frame": "list"}, "frame='list'"),
        ({"resource_key": ["llm"]}, "must be the key of a resource"),
    ],
)
def test_arguments_are_checked_when_the_definitions_load(arguments: Any, complaint: str) -> None:
    """With what is valid."""
    with pytest.raises(ConfigError, match=complaint):
        spend_report(**arguments)


def test_missing_package_of_the_frame_is_an_error_when_the_definitions_load() -> None:
    """With the command that installs it."""
    code = "import sys; sys.modules['polars'] = None; import ondine_dagster as od; od.spend_report(frame='polars')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigError: frame='polars' needs the package polars: pip install polars" in done.stderr


def test_upper_bounds_of_cost_are_marked_everywhere(tmp_path: Path) -> None:
    """Without usage, metadata, log, spend report and command line show the cost as "at most"."""

    def without_usage(asked: ReceivedRequest) -> Canned:
        message = {"role": "assistant", "content": json.dumps(answer(asked.prompt))}
        choice = {"message": message, "finish_reason": "stop"}
        return Canned(200, json.dumps({"choices": [choice]}).encode(), {"Content-Type": "application/json"})

    place = str(tmp_path / "answers.db")
    with Provider(fault=without_usage) as provider:
        llm = LLMResource(model="openai/gpt-4o-mini", base_url=provider.base_url, store=place, max_output_tokens=50)
        result = run(moods_of("good", "bad"), llm=llm)
        assert result.success
        bill = run(spend_report(name="bill", store=place))
    found, total = metadata_of(result, "moods"), metadata_of(bill, "bill")
    assert found["ondine/cost_known"] is False
    assert found["ondine/cost_is_upper_bound"] is total["ondine/cost_is_upper_bound"] is True
    assert isinstance(found["ondine/cost_usd"], float)
    assert found["ondine/cost_usd"] == pytest.approx(total["ondine/cost_usd"])
    assert found["ondine/cost_usd"] > 2 * 50 * 0.60 / 1e6
    assert found["ondine/cost"].startswith("at most $")
    assert "at most $" in total["ondine/spend_by_asset"]
    assert "at most $" in total["ondine/summary"]
    assert bill.output_for_node("bill")["at_most_calls"].tolist() == [2]
    output = subprocess.run(
        [sys.executable, "-m", "ondine_core.store", place, "spend"], check=True, capture_output=True, text=True
    )
    assert "<= 0.000" in output.stdout
    assert "In all at most $" in output.stdout


def test_exact_cost_is_not_marked_as_a_bound(tmp_path: Path) -> None:
    """With consistent usage."""
    with Provider(answer) as provider:
        llm = LLMResource(model="openai/gpt-4o-mini", base_url=provider.base_url, store=str(tmp_path / "answers.db"))
        found = metadata_of(run(moods_of("good", "bad"), llm=llm), "moods")
    assert (found["ondine/cost_known"], found["ondine/cost_is_upper_bound"]) == (True, False)
    assert found["ondine/cost"].startswith("$")
