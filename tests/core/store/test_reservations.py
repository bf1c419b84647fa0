"""Budget reservations of a killed process: settled at their bound once its end is seen, and listed by a command."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.errors import BudgetExhaustedError
from ondine_core.limits.budget import Budget
from ondine_core.limits.budget_limit import BudgetLimit
from ondine_core.store import Store, open_store
from ondine_core.store.__main__ import main
from ondine_core.store.budget_state import BudgetState, charge, read_state, settle, settle_holdings, usd_of, write_state
from ondine_core.types.processes import Process, this_process
from tests.support.ledger import KINDS, fresh_place, look, read_budget

CAP = BudgetLimit(Decimal(1), "team", "ever")
HOLDER = """
import asyncio, sys, time
from decimal import Decimal
from ondine_core.limits.budget import Budget
from ondine_core.limits.budget_limit import BudgetLimit
from ondine_core.store import open_store

async def hold():
    with open_store(sys.argv[1]) as store:
        budget = Budget(BudgetLimit(Decimal(1), "team", "ever"), "r", store)
        await budget.hold(Decimal(sys.argv[2]))
        await budget.settle(await budget.hold(Decimal("0.1")), Decimal("0.05"))
        print("held", flush=True)
        await asyncio.Event().wait()

asyncio.run(hold())
"""


def start_holder(place: str, usd: str) -> subprocess.Popen[str]:
    """A process that reserves `usd`, and has spent 0.05."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, place, usd], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def budget_in(store: Store) -> Budget:
    return Budget(CAP, "r", store)


@pytest.mark.parametrize("kind", KINDS)
def test_reservation_of_a_killed_process_is_settled_without_a_wait(kind: str, tmp_path: Path) -> None:
    """Other calls are admitted or refused at once, and no reservation is left."""
    place = fresh_place(kind, tmp_path)
    holder = start_holder(place, "0.6")
    assert read_budget(place, "team") == (Decimal("0.65"), Decimal("0.05"))
    kill(holder)

    async def use() -> None:
        with open_store(place) as store:
            budget = budget_in(store)
            with pytest.raises(BudgetExhaustedError, match=r"\$0.650000 is spent, and the next"):
                await budget.hold(Decimal("0.4"))
            await budget.settle(await budget.hold(Decimal("0.3")), Decimal("0.1"))

    asyncio.run(use())
    assert read_budget(place, "team") == (Decimal("0.75"), Decimal("0.75"))


def test_reservation_of_a_living_process_is_kept(tmp_path: Path) -> None:
    """Also while it is suspended: it may continue, and then refunds the difference."""
    place = str(tmp_path / "answers.db")
    holder = start_holder(place, "0.6")
    try:
        os.kill(holder.pid, signal.SIGSTOP)

        async def remaining() -> Decimal:
            with open_store(place) as store:
                return await budget_in(store).remaining()

        assert asyncio.run(remaining()) == Decimal("0.35")
        assert read_budget(place, "team") == (Decimal("0.65"), Decimal("0.05"))
        assert main([place, "settle"]) == 0
        assert read_budget(place, "team") == (Decimal("0.65"), Decimal("0.05"))
    finally:
        kill(holder)


def test_reservations_are_listed_and_settled_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With budget, amount and holder; only those of ended processes are settled, once."""
    place = str(tmp_path / "answers.db")
    dead, living = start_holder(place, "0.2"), start_holder(place, "0.3")
    try:
        kill(dead)
        assert main([place, "reservations"]) == 0
        output = capsys.readouterr().out
        assert "team ever  0.200000" in output
        assert f"process {dead.pid}, which has ended" in output
        assert f"process {living.pid}, running" in output
        assert main([place, "settle"]) == 0
        assert "$0.200000 that was held counts as spent now" in capsys.readouterr().out
        assert read_budget(place, "team") == (Decimal("0.6"), Decimal("0.3"))
        assert main([place, "settle", "--older-than", "0h"]) == 0
        assert "$0.000000" in capsys.readouterr().out
    finally:
        kill(living)


def test_holders_of_other_machines_are_settled_by_their_age(tmp_path: Path) -> None:
    """Whether they live cannot be seen here, so a person decides by age."""
    place, elsewhere = str(tmp_path / "answers.db"), Process(5.0, 7.0, 9.0)

    def write(store: Store, name: str, state: BudgetState) -> None:
        asyncio.run(store.update(f"budget:ever::{name}", lambda _: write_state(state)))

    with open_store(place) as store:
        write(store, "old", charge(BudgetState(), elsewhere, 1e9, time.time() - 7200))
        write(store, "new", charge(BudgetState(), elsewhere, 1e9, time.time()))
    assert main([place, "settle"]) == 0
    assert [read_budget(place, name)[1] for name in ("old", "new")] == [0, 0]
    assert main([place, "settle", "--older-than", "1h"]) == 0
    assert [read_budget(place, name)[1] for name in ("old", "new")] == [1, 0]


def test_prune_keeps_records_that_budgets_are_charged_with(tmp_path: Path) -> None:
    """At any age."""
    place = str(tmp_path / "answers.db")
    kill(start_holder(place, "0.6"))
    before = look(place, "SELECT name, numbers FROM ondine.numbers WHERE name LIKE 'budget:%'")
    assert main([place, "prune", "--older-than", "0h"]) == 0
    assert look(place, "SELECT name, numbers FROM ondine.numbers WHERE name LIKE 'budget:%'") == before


ME, OTHER = this_process(), Process(5.0, 7.0, 9.0)
STEPS = st.lists(
    st.tuples(st.sampled_from(["charge", "settle", "end"]), st.sampled_from([ME, OTHER]), st.integers(0, 100)),
    max_size=30,
)


@given(STEPS)
def test_charged_is_spent_plus_reserved(steps: list[tuple[str, Process, int]]) -> None:
    """In any order of charging, settling, ending and late settling no sum is lost or negative."""
    state, open_ = BudgetState(), {ME: list[int](), OTHER: list[int]()}
    spent = unsettled = 0
    for kind, process, units in steps:
        if kind == "charge":
            state = charge(state, process, units, 1.0)
            open_[process].append(units)
            unsettled += units
        elif kind == "settle" and open_[process]:
            held = open_[process].pop()
            state = settle(state, process, held, min(held, units), 2.0)
            spent, unsettled = spent + min(held, units), unsettled - held
        elif kind == "end":
            ended = process
            state = settle_holdings(state, lambda holding, ended=ended: holding.process.id == ended.id)
        state = read_state(write_state(state))
        assert state.charged == spent + unsettled
        assert state.charged == state.settled + sum(holding.units for holding in state.holdings)
        assert 0 <= state.settled <= state.charged
    assert usd_of(state.charged) >= usd_of(spent)
