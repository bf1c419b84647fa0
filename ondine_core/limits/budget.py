"""Caps on cost that hold at every instant: the maximum cost of a call is charged before it leaves and corrected later.

`settled` is what was spent; `charged` is that plus the maximum cost of the calls in flight. A call leaves only if
`charged` stays within every cap that applies to it. A call that does not fit waits, without a reservation, while it may
still fit: other calls, here or in other processes, may cost less than reserved. Otherwise it ends the run. A call of
unknown outcome stays charged at its maximum cost, and so do the calls of a process that has ended. Where the end of a
process cannot be seen, its calls are waited for no longer than `wait_timeout_s`. The numbers are in the store, so all
processes share one budget, and a step that is retried continues with its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ondine_core.errors import BudgetExhaustedError, ConfigError, StoreError
from ondine_core.limits.budget_limit import BudgetLimit, Reservation
from ondine_core.store.budget_state import (
    BudgetState,
    charge,
    read_state,
    settle,
    settle_holdings,
    units_of,
    usd_of,
    write_state,
)
from ondine_core.types.clock import Clock
from ondine_core.types.field_types import check_types
from ondine_core.types.processes import Process, has_ended, this_process
from ondine_core.types.protocols import AnswerStore, Numbers

_PAUSE_S, _MAX_PAUSE_S = 0.25, 2.0
"""The first and the longest pause between two reads of the numbers, while a call waits for room."""


def _checked(usd: Any) -> Decimal:
    """Return `usd` as a Decimal; a negative amount would raise the cap for all processes."""
    if not isinstance(usd, Decimal | int) or isinstance(usd, bool) or not Decimal(usd).is_finite() or usd < 0:
        raise ConfigError(f"{usd!r} is not an amount of USD; give a Decimal, 0 or more.")
    return Decimal(usd)


@dataclass(slots=True, eq=False)
class Budget:
    """What is spent and reserved of one `BudgetLimit`, shared by all processes on the store.

    Args:
        cap: The limit.
        run: Id of the run; a limit per run has a budget for each.
        store: Keeps the numbers.
        clock: Its wall clock decides the day and month.
        on_threshold: Called with a sentence, once among all processes, when a share of the cap is spent.
        wait_timeout_s: Seconds without a change after which the calls in flight of other processes count as lost.
    """

    cap: BudgetLimit
    run: str
    store: AnswerStore
    clock: Clock = field(default_factory=Clock)
    on_threshold: Callable[[str], None] = lambda _: None
    wait_timeout_s: float = 60.0
    # Held by the first of the callers that did not fit, while it waits for room; the others wait for the lock.
    turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False, repr=False)
    _returned: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)
    _in_flight: int = field(default=0, init=False, repr=False)
    _seen: tuple[BudgetState, float] | None = field(default=None, init=False, repr=False)  # latest state, and its time
    _max_units: int = field(init=False, repr=False)
    _process: Process = field(default_factory=this_process, init=False, repr=False)

    def __post_init__(self) -> None:
        check_types(self, ConfigError)
        self._max_units = self.cap.units

    async def hold(self, amount: Decimal) -> Reservation:
        """Charge `amount` USD, as soon as it fits.

        Raises:
            BudgetExhaustedError: It would not fit even if the calls in flight cost nothing.
            ConfigError: `amount` is not an amount of USD.
        """
        return (await BudgetSet((self,)).hold(_checked(amount)))[0]

    async def settle(self, hold: Reservation, cost: Decimal | None) -> None:
        """Replace a charge by what the call cost in USD; `None` if that is unknown, 0 if it was refused.

        Raises:
            ConfigError: `hold` was settled before, which would return the charges of others, or `cost` is not an
                amount of USD.
        """
        if not isinstance(hold, Reservation):
            raise ConfigError(f"A {type(hold).__name__} cannot be settled; give the reservation that `hold` returned.")
        spent = None if cost is None else _checked(cost)
        if hold.is_settled:
            raise ConfigError("The reservation is settled already; settle each one once.")
        await BudgetSet((self,)).settle((hold,), spent)

    async def charged(self) -> Decimal:
        """USD spent, plus the maximum cost of the calls in flight."""
        return usd_of((await self._read()).charged)

    async def remaining(self) -> Decimal:
        """USD that are neither spent nor reserved."""
        return usd_of(max(0, self._max_units - (await self._read()).charged))

    async def can_afford(self, amount: Decimal) -> bool:
        """Whether `amount` would fit at once."""
        return units_of(_checked(amount)) <= self._max_units - (await self._read()).charged

    async def usage_percentage(self) -> float:
        """Per cent of the cap that are spent, by which warnings are given."""
        return 100 * (await self._read()).settled / self._max_units

    @property
    def cell(self) -> tuple[str, int]:
        """The present name of its numbers in the store, and the maximum of charged units."""
        return self.cap.cell(self.run, self.clock.now()), self._max_units

    async def charge(self, units: int) -> Reservation | None:
        """Charge `units` if they fit now."""
        hold = Reservation(self.cap.cell(self.run, self.clock.now()), units)
        fits = False

        def step(numbers: Numbers | None) -> Numbers:
            nonlocal fits
            state = read_state(numbers)
            fits = state.charged + units <= self._max_units
            return write_state(charge(state, self._process, units, self.clock.now()) if fits else state)

        await self.store.update(hold.cell, step)
        self._in_flight += fits
        return hold if fits else None

    async def replace(self, hold: Reservation, spent: int) -> None:
        """Replace a charge by the units that were spent, and report the thresholds that this passes."""
        passed: list[float] = []

        def step(numbers: Numbers | None) -> Numbers:
            nonlocal passed
            state = read_state(numbers)
            if numbers is None:  # the store lost the charge
                state = charge(state, self._process, hold.units, self.clock.now())
            state = settle(state, self._process, hold.units, spent, self.clock.now())
            # `warned` is an amount, not a share, so the shares of a raised cap are reported again.
            units_at = {share: share * self._max_units for share in sorted(self.cap.warn_at)}
            passed = [share for share, units in units_at.items() if state.warned < units <= state.settled]
            return write_state(state._replace(warned=units_at[passed[-1]]) if passed else state)

        _, settled, *_ = await self.store.update(hold.cell, step)
        hold.is_settled = True
        self._in_flight -= 1
        self._returned.set()
        for share in passed:
            self.on_threshold(f"{share:.0%} of {self.cap} is spent: ${usd_of(settled):.6f}.")

    async def wait_for_room(self, units: int) -> None:
        """Return when `units` would fit; the caller holds the lock `turn`.

        Raises:
            BudgetExhaustedError: They would not fit even if the calls in flight cost nothing, or these count as lost.
        """
        pause_s = _PAUSE_S
        while True:
            self._returned.clear()
            state = await self._read()
            if state.charged + units <= self._max_units:
                self._seen = None
                return
            if self._seen is None or self._seen[0] != state:
                self._seen = (state, self.clock.now())
                pause_s = _PAUSE_S
            unchanged_s = self.clock.now() - self._seen[1]
            lost = not self._in_flight and unchanged_s >= self.wait_timeout_s
            if lost or state.settled + units > self._max_units:
                raise BudgetExhaustedError(self._explain(state, units, lost=lost))
            await self._pause(pause_s)
            pause_s = min(1.5 * pause_s, _MAX_PAUSE_S)

    def _explain(self, state: BudgetState, units: int, *, lost: bool) -> str:
        settled, held = state.settled, state.charged - state.settled
        in_flight = f", ${usd_of(held):.6f} is held for calls in flight" if held > 0 else ""
        in_vain = f" and in {self.wait_timeout_s:g} s none of them ended" if lost else ""
        until = f", or wait until the {self.cap.period} is over (UTC)," if self.cap.period in ("day", "month") else ""
        return (
            f"{self.cap} is used up: ${usd_of(settled):.6f} is spent{in_flight}{in_vain}, and the next call may cost "
            f"${usd_of(units):.6f}. Raise max_cost_usd{until} and run again; what is answered is kept."
        )

    async def _pause(self, seconds: float) -> None:
        waits = [asyncio.ensure_future(self.clock.sleep(seconds)), asyncio.ensure_future(self._returned.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _read(self) -> BudgetState:
        """Read the numbers, after the charges of processes that have ended are settled at their maximum."""

        def step(numbers: Numbers | None) -> Numbers:
            return write_state(settle_holdings(read_state(numbers), lambda holding: has_ended(holding.process)))

        return read_state(await self.store.update(self.cap.cell(self.run, self.clock.now()), step))


@dataclass(frozen=True, slots=True)
class BudgetSet:
    """All budgets that a call is charged to."""

    budgets: tuple[Budget, ...]

    def __post_init__(self) -> None:
        if len({(budget.cap.name, budget.cap.period) for budget in self.budgets}) < len(self.budgets):
            raise ConfigError(f"A budget is named twice: {', '.join(str(budget.cap) for budget in self.budgets)}.")

    async def hold(self, amount: Decimal) -> tuple[Reservation, ...]:
        """Charge `amount` USD to every budget or to none, as soon as it fits.

        Raises:
            BudgetExhaustedError: It will not fit into one of them.
        """
        units = units_of(amount)
        # First in, first out: a call waits behind those that wait already.
        full = next((budget for budget in self.budgets if budget.turn.locked()), None)
        holds = full or await self._take(units)
        while isinstance(holds, Budget):
            full = holds
            async with full.turn:
                while holds is full:
                    await full.wait_for_room(units)
                    holds = await self._take(units)
        return holds

    async def settle(self, holds: Sequence[Reservation], cost: Decimal | None) -> None:
        """Replace the charges by what the call cost in USD; `None` if that is unknown, 0 if it was refused.

        Every charge is replaced, also when replacing one fails or the caller is cancelled.
        """
        spent = [hold.units if cost is None else units_of(cost) for hold in holds]
        settling = asyncio.gather(*map(Budget.replace, self.budgets, holds, spent), return_exceptions=True)
        try:
            results = await asyncio.shield(settling)
        except asyncio.CancelledError:
            await asyncio.wait({settling})
            raise
        for error in filter(None, results):
            raise error

    @property
    def cells(self) -> dict[str, int]:
        """The maximum of charged units of each budget, by the present name of its numbers in the store."""
        return dict(budget.cell for budget in self.budgets)

    async def _take(self, units: int) -> tuple[Reservation, ...] | Budget:
        """Charge all budgets, or return the first that has no room."""
        taking = asyncio.ensure_future(self._charge_all(units))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # The store may have charged it already. The refund is a task, which a second cancellation does not stop.
            await asyncio.shield(asyncio.ensure_future(self._give_back(taking)))
            raise

    async def _charge_all(self, units: int) -> tuple[Reservation, ...] | Budget:
        holds: list[Reservation] = []
        try:
            for budget in self.budgets:
                hold = await budget.charge(units)
                if hold is None:
                    return budget
                holds.append(hold)
            return tuple(holds)
        finally:
            if len(holds) < len(self.budgets):
                await self.settle(holds, Decimal(0))

    async def _give_back(self, taking: asyncio.Future[tuple[Reservation, ...] | Budget]) -> None:
        with suppress(StoreError):
            holds = await taking
            if not isinstance(holds, Budget):
                await self.settle(holds, Decimal(0))
