"""Batch jobs with a kill between any two steps and with every fault: each row is answered and paid once."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ondine_core.engine.report import Report
from ondine_core.errors import InvalidReplyError, ProviderError, RefusedError, TransientError
from ondine_core.store import job_tables
from ondine_core.store.budget_state import BudgetState, read_state, usd_of
from ondine_core.store.database import Database
from ondine_core.store.queries import read_spending
from ondine_core.types.clock import Clock
from ondine_core.types.values import Reply, Usage
from tests.support.job_runs import JobWorld, words
from tests.support.simulated_jobs import KillPoint, reply_to
from tests.support.virtual_clock import run_virtually


def read_budgets(database: Database) -> list[BudgetState]:
    found = database.select("SELECT name, numbers FROM ondine.numbers ORDER BY name")
    return [read_state(tuple(json.loads(numbers))) for name, numbers in found if name.startswith("budget:")]


async def check_ledger(world: JobWorld) -> None:
    """The ledger and the budgets equal the provider's bill, and nothing is open."""
    spent = (await world.read(lambda database: read_spending(database, "asset")))["asset",]
    assert spent.usd == world.provider.usd
    assert (spent.unknown, spent.paid_twice) == (0, 0)
    budgets = await world.read(read_budgets)
    assert sum(usd_of(state.settled) for state in budgets) == world.provider.usd
    assert all(state.charged == state.settled and not state.holdings for state in budgets)
    assert await world.read(job_tables.read_jobs) == []
    assert await world.read(job_tables.read_waits) == []


@given(deaths=st.lists(st.integers(0, 120), max_size=4), rows=st.integers(1, 12), cuts=st.integers(0, 2))
@example(deaths=[38], rows=3, cuts=1)  # while it is not known whether the job was created
@settings(max_examples=80, deadline=None)
def test_each_row_is_answered_and_paid_once_whenever_the_process_is_killed(
    deaths: list[int], rows: int, cuts: int
) -> None:
    """Killed before or after any write of the store or any request to the provider, each row is paid once."""

    async def main(clock: Clock) -> None:
        with TemporaryDirectory() as folder:
            world = JobWorld(clock, Path(folder) / "answers.db")
            world.provider.cut_create = cuts
            for steps in deaths:
                await world.run(words(rows), kill_point=KillPoint(steps), batch_wait_s=7200.0)
                await clock.sleep(100.0)
            report = await world.finish(words(rows))
            assert report.column("said") == words(rows)
            live = rows < 3
            assert max(world.provider.billed.values()) == 1 or live
            # A job in preparation whose process is not known to be dead is given up after an hour.
            await clock.sleep(3700.0)
            await world.finish(words(rows))
            if not live:
                assert sum(world.provider.billed.values()) == rows
                await check_ledger(world)

    run_virtually(main)


GOOD, CUT, WRONG, REFUSED, BROKEN, UNRUN, UNREADABLE = (
    "good",
    "cut",
    "wrong",
    "refused",
    "broken",
    "unrun",
    "unreadable",
)
ANSWERS = st.sampled_from((GOOD, GOOD, CUT, WRONG, REFUSED, BROKEN, UNRUN, UNREADABLE))


def fault_result(kind: str, text: str) -> Reply | ProviderError | None:
    usage = Usage(20, output_tokens=9)
    special: dict[str, Reply | ProviderError | None] = {
        CUT: Reply("w", usage, finish_reason="length"),
        WRONG: Reply("", usage),
        REFUSED: RefusedError("No."),
        BROKEN: TransientError("The server failed."),
        UNREADABLE: InvalidReplyError("The reply is not JSON.", Reply("")),
        UNRUN: None,
    }
    return special[kind] if kind in special else reply_to(text)


@given(
    kinds=st.lists(st.lists(ANSWERS, min_size=1, max_size=3), min_size=1, max_size=12),
    takes_h=st.sampled_from((0.0, 1.0, 30.0)),
    deaths=st.lists(st.integers(0, 200), max_size=2),
    wait_s=st.sampled_from((0.0, 7200.0)),
)
@settings(max_examples=80, deadline=None)
def test_each_row_has_one_outcome_and_the_ledger_is_the_bill_whatever_results_a_job_has(
    kinds: list[list[str]], takes_h: float, deaths: list[int], wait_s: float
) -> None:
    """With cut, empty, refused, broken and missing replies, partly expired jobs, and kills."""

    async def main(clock: Clock) -> None:
        with TemporaryDirectory() as folder:
            world = JobWorld(clock, Path(folder) / "answers.db")
            world.provider.takes_s = takes_h * 3600
            left = {f"Say {word}": list(kind) for word, kind in zip(words(len(kinds)), kinds, strict=True)}

            def answer(text: str) -> Reply | ProviderError | None:
                kinds_left = left[text.partition("\n")[0]]
                return fault_result(kinds_left.pop(0) if kinds_left else GOOD, text)

            world.provider.answer = answer
            rows = words(len(kinds))
            for steps in deaths:
                await world.run(rows, kill_point=KillPoint(steps), batch_wait_s=wait_s, batch_min_rows=1)
                await clock.sleep(100.0)
            report = await world.finish(rows, batch_wait_s=wait_s, batch_min_rows=1)
            assert isinstance(report, Report)
            for word, value, error in zip(rows, report.column("said"), report.errors(), strict=True):
                assert value == word or (value is None and error), (word, value, error)
            await clock.sleep(3700.0)
            await world.run(rows, retry_failed_rows=False, batch_wait_s=wait_s, batch_min_rows=10**6)
            (spent,) = (await world.read(lambda database: read_spending(database, "asset"))).values()
            unreadable = "unreadable" in str(kinds)
            assert spent.usd >= world.provider.usd if unreadable else spent.usd == world.provider.usd
            states = await world.read(read_budgets)
            assert all(state.charged == state.settled and not state.holdings for state in states)

    run_virtually(main)
