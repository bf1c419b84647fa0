"""The numbers of one budget as the store keeps them, and how they change: pure, so that any process can compute it.

What a process holds for its calls in flight stands under its identity. So when it is known to have ended, what it held
is settled at its bound: its calls may have been billed, and nobody will ever say what they cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ondine_core.ports import Numbers
from ondine_core.processes import Process

__all__ = [
    "BudgetState",
    "Holding",
    "charge",
    "read_state",
    "settle",
    "settle_holdings",
    "settle_unattributed",
    "write_state",
]

_HEAD = 3
_WIDTH = 5
"""Numbers before the holdings, and of each."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What one process holds of a budget, and when that last changed (seconds since the epoch)."""

    process: Process
    units: float
    changed_at: float


@dataclass(frozen=True, slots=True)
class BudgetState:
    """The numbers of a budget, in whole units.

    Args:
        charged: Spent, and held for calls in flight.
        settled: Spent.
        warned: The highest threshold that was warned of.
        holdings: Who holds the difference, as far as it was written down.
    """

    charged: float = 0.0
    settled: float = 0.0
    warned: float = 0.0
    holdings: tuple[Holding, ...] = ()

    @property
    def unattributed(self) -> float:
        """Held by processes of earlier versions, which did not say who they are."""
        return self.charged - self.settled - sum(holding.units for holding in self.holdings)


def read_state(numbers: Numbers | None) -> BudgetState:
    """The state in the numbers of a store."""
    if numbers is None:
        return BudgetState()
    rest = numbers[_HEAD:]
    parts = (rest[at : at + _WIDTH] for at in range(0, len(rest), _WIDTH))
    holdings = tuple(Holding(Process(*part[2:]), part[0], part[1]) for part in parts)
    charged, settled, warned = numbers[:_HEAD]
    return BudgetState(charged, settled, warned, holdings)


def write_state(state: BudgetState) -> Numbers:
    """The numbers of a state."""
    parts = ((one.units, one.changed_at, *one.process[: _WIDTH - 2]) for one in state.holdings)
    return (state.charged, state.settled, state.warned, *(number for part in parts for number in part))


def charge(state: BudgetState, process: Process, units: float, now: float) -> BudgetState:
    """Charge `units`, held by `process`."""
    held = _held_by(state, process) + units
    return replace(_with_holding(state, process, held, now), charged=state.charged + units)


def settle(state: BudgetState, process: Process, units: float, spent: float, now: float) -> BudgetState:
    """Replace `units` that `process` holds by what was spent.

    What it holds no more, because somebody settled it at its bound, is corrected to what was spent.
    """
    held = _held_by(state, process)
    released = min(held, units)
    return replace(
        _with_holding(state, process, held - released, now),
        charged=state.charged - units + spent,
        settled=state.settled + spent - (units - released),
    )


def settle_holdings(state: BudgetState, is_over: Callable[[Holding], bool]) -> BudgetState:
    """Settle at its bound what is held by each process of which `is_over` says that it will not do so."""
    over = [holding for holding in state.holdings if is_over(holding)]
    kept = tuple(holding for holding in state.holdings if holding not in over)
    return replace(state, settled=state.settled + sum(holding.units for holding in over), holdings=kept)


def settle_unattributed(state: BudgetState) -> BudgetState:
    """Settle at its bound what nobody is known to hold."""
    return replace(state, settled=state.settled + state.unattributed)


def _held_by(state: BudgetState, process: Process) -> float:
    return sum(holding.units for holding in state.holdings if _is_same(holding.process, process))


def _with_holding(state: BudgetState, process: Process, units: float, now: float) -> BudgetState:
    others = tuple(holding for holding in state.holdings if not _is_same(holding.process, process))
    return replace(state, holdings=(*others, Holding(process, units, now)) if units else others)


def _is_same(one: Process, other: Process) -> bool:
    return one[: _WIDTH - 2] == other[: _WIDTH - 2]
