import datetime as dt
import os
import subprocess
import sys
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ondine_core.errors import ConfigError
from ondine_core.limits.budget_limit import BudgetLimit, Period
from ondine_core.store.budget_state import units_of, usd_of

EVE = dt.datetime(2026, 11, 30, 23, 59, 59, tzinfo=dt.UTC).timestamp()


def cap(period: Period, name: str = "team") -> BudgetLimit:
    return BudgetLimit(Decimal(5), name, period)


@pytest.mark.parametrize(
    ("cap", "cell"),
    [
        (cap("run", ""), "budget:run:7f3:"),
        (cap("run"), "budget:run:7f3:team"),
        (cap("day"), "budget:day:2026-11-30:team"),
        (cap("month"), "budget:month:2026-11:team"),
        (cap("ever"), "budget:ever::team"),
    ],
)
def test_store_name_of_a_budget(cap: BudgetLimit, cell: str) -> None:
    """The numbers of a budget are stored under its name and its run or period."""
    assert cap.cell("7f3", EVE) == cell


def test_days_are_utc() -> None:
    """A day is a UTC day, whatever the time zone of the machine."""
    code = (
        f"from ondine_core.limits.budget_limit import BudgetLimit; print(BudgetLimit(5, 'team', 'day').cell('', {EVE}))"
    )
    far_away = {**os.environ, "TZ": "Asia/Tokyo"}
    output = subprocess.run([sys.executable, "-c", code], env=far_away, check=True, capture_output=True, text=True)
    assert output.stdout.strip() == cap("day").cell("", EVE)


def test_new_day_and_month_have_new_numbers() -> None:
    """One second after midnight the day's and the month's names are new; those of a run and of all time are not."""
    changed = {
        period: cap(period).cell("r", EVE) != cap(period).cell("r", EVE + 1)
        for period in ("run", "day", "month", "ever")
    }  # type: ignore[arg-type]
    assert changed == {"run": False, "day": True, "month": True, "ever": False}


NAMES = st.text(":/%ab", max_size=4)


@example("a:b", "c", "a", "c:b")
@example("a", "b:c", "c:a", "b")
@given(NAMES, NAMES, NAMES, NAMES)
def test_names_of_budgets_never_collide(one: str, run: str, other: str, other_run: str) -> None:
    """Whatever characters the names of budgets and runs contain."""
    if (one, run) != (other, other_run):
        assert cap("run", one).cell(run, EVE) != cap("run", other).cell(other_run, EVE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_cost_usd": Decimal(0)}, "max_cost_usd='0' must be more than 0"),
        ({"max_cost_usd": Decimal("1e-10")}, "max_cost_usd='1E-10' must be more than 0"),
        ({"max_cost_usd": Decimal(-1)}, "max_cost_usd='-1' must be more than 0"),
        ({"max_cost_usd": Decimal("nan")}, "max_cost_usd='NaN' must be more than 0"),
        (
            {"max_cost_usd": Decimal("Infinity")},
            "max_cost_usd='Infinity' must be more than 0 and less than nine million",
        ),
        ({"max_cost_usd": Decimal(10_000_000)}, "less than nine million"),
        ({"max_cost_usd": Decimal(5), "name": "team", "period": "week"}, "period='week'; valid are 'run', 'day', 'mon"),
        ({"max_cost_usd": Decimal(5), "period": "month"}, "A budget with period='month' needs a name"),
        ({"max_cost_usd": Decimal(5), "warn_at": (0.5, 90)}, r"warn_at=\(0.5, 90\) must be shares of the cap"),
        ({"max_cost_usd": Decimal(5), "warn_at": (0.0,)}, "warn_at="),
        ({"max_cost_usd": Decimal(5), "warn_at": ("half",)}, r"warn_at=\('half',\) must be shares of the cap"),
        ({"max_cost_usd": Decimal(5), "warn_at": 0.5}, r"warn_at=0.5 must be shares of the cap"),
        ({"max_cost_usd": "five"}, "max_cost_usd='five' is not a number of USD"),
        ({"max_cost_usd": True}, "max_cost_usd=True is not a number of USD"),
    ],
)
def test_invalid_cap_is_refused(arguments: dict, message: str) -> None:
    """The error names the setting, its value, and what is valid."""
    with pytest.raises(ConfigError, match=message):
        BudgetLimit(**arguments)


def test_description_of_a_cap() -> None:
    """It names the setting and, for a shared budget, its name."""
    assert str(cap("run", "")) == "max_cost_usd=5"
    assert str(cap("month")) == "max_cost_usd=5 a month of the budget 'team'"
    assert str(cap("ever")) == "max_cost_usd=5 in all of the budget 'team'"


def test_float_is_read_as_its_decimal_text() -> None:
    """0.1 means exactly a tenth."""
    assert BudgetLimit(0.1) == BudgetLimit(Decimal("0.1"))  # type: ignore[arg-type]


USD = st.decimals("1e-9", "1e6", places=15)


@given(USD)
def test_rounding_never_loosens_a_cap(usd: Decimal) -> None:
    """Amounts paid are rounded up and caps down, both by less than a nano-dollar."""
    assert usd <= usd_of(units_of(usd)) < usd + Decimal("1e-9")
    assert usd - Decimal("1e-9") < usd_of(BudgetLimit(usd).units) <= usd


@given(st.integers(0, 2**53))
def test_a_float_holds_every_amount_exactly(units: int) -> None:
    """Every amount that a cap can have is stored to the nano-dollar."""
    assert units_of(usd_of(float(units))) == units
