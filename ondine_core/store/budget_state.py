"""The numbers of one budget in the store, and pure functions that change them.

What a process holds for its calls in flight is kept under its identity. When the process is known to have ended, its
holding is settled at its bound: its calls may have been billed, and their cost will never be known.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_CEILING, Decimal
from typing import NamedTuple

from ondine_core.types.processes import Process
from ondine_core.types.protocols import Numbers

UNIT_USD = Decimal("1e-9")
"""The unit of all amounts."""
_HEAD, _WIDTH = 3, 5
"""Count of the numbers before the holdings, and of the numbers of each holding."""


class Holding(NamedTuple):
    """What one process holds of a budget, when this last changed (seconds since the epoch), and its identity."""

    units: float
    changed_at: float
    host: float
    id: float
    started_at: float

    @property
    def process(self) -> Process:
        """The process that holds it."""
        return Process(self.host, self.id, self.started_at)


class BudgetState(NamedTuple):
    """The numbers of a budget, in whole units.

    `settled` is what was spent, `charged` is what was spent or is held for calls in flight, `holdings` are what each
    process holds, and `warned` is the highest threshold that was reported.
    """

    charged: float = 0.0
    settled: float = 0.0
    warned: float = 0.0
    holdings: tuple[Holding, ...] = ()


def read_state(numbers: Numbers | None) -> BudgetState:
    """Convert the numbers in the store to a state."""
    if numbers is None:
        return BudgetState()
    charged, settled, warned = numbers[:_HEAD]
    holdings = tuple([Holding(*numbers[at : at + _WIDTH]) for at in range(_HEAD, len(numbers), _WIDTH)])
    return BudgetState(charged, settled, warned, holdings)


def write_state(state: BudgetState) -> Numbers:
    """Convert a state to the numbers in the store."""
    return sum(state.holdings, (state.charged, state.settled, state.warned))


def charge(state: BudgetState, process: Process, units: float, now: float) -> BudgetState:
    """Charge `units`, held by `process`."""
    held, others = _split(state, process)
    holdings = (*others, _holding(process, held + units, now))
    return BudgetState(state.charged + units, state.settled, state.warned, holdings)


def settle(state: BudgetState, process: Process, units: float, spent: float, now: float) -> BudgetState:
    """Replace `units` that `process` holds by the units `spent`, also if they were settled at their bound before."""
    held, others = _split(state, process)
    released = min(held, units)
    left = held - released
    return BudgetState(
        state.charged - units + spent,
        state.settled + spent - (units - released),
        state.warned,
        (*others, _holding(process, left, now)) if left else others,
    )


def settle_holdings(state: BudgetState, is_over: Callable[[Holding], bool]) -> BudgetState:
    """Settle the holdings for which `is_over` is true at their bound."""
    over = [holding for holding in state.holdings if is_over(holding)]
    kept = tuple(holding for holding in state.holdings if holding not in over)
    return state._replace(settled=state.settled + sum(holding.units for holding in over), holdings=kept)


def end_holding(state: BudgetState, process: Process, *, spent: bool) -> BudgetState:
    """Remove what `process` holds; it counts as spent, or is given back."""
    held, others = _split(state, process)
    if spent:
        return state._replace(settled=state.settled + held, holdings=others)
    return state._replace(charged=state.charged - held, holdings=others)


def _split(state: BudgetState, process: Process) -> tuple[float, tuple[Holding, ...]]:
    """The units that `process` holds, and the holdings of all others."""
    held, others = 0.0, []
    for holding in state.holdings:
        if holding.id == process.id and holding.host == process.host and holding.started_at == process.started_at:
            held += holding.units
        else:
            others.append(holding)
    return held, tuple(others)


def _holding(process: Process, units: float, now: float) -> Holding:
    return Holding(units, now, process.host, process.id, process.started_at)


def units_of(usd: Decimal) -> int:
    """Convert USD to whole units, rounded up."""
    return int((usd / UNIT_USD).to_integral_value(rounding=ROUND_CEILING))


def usd_of(units: float) -> Decimal:
    """Convert units to USD."""
    return int(units) * UNIT_USD
