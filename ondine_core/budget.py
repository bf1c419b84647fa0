"""Caps on cost that hold at every instant: the worst case is charged before a call, the difference given back after.

Charged is what has been spent and what calls in flight may yet cost; settled is what is known to be spent. A call
leaves only if charged stays within the cap. One that does not fit now may fit when calls in flight come back cheaper,
so it waits; one that would not fit even then ends the run. A call whose outcome was never seen stays charged at its
worst case. The numbers live in the store, so all processes draw from one purse, and a retried step from its own.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

from ondine_core.errors import BudgetExhaustedError, ConfigError
from ondine_core.pricing import Price
from ondine_core.values import AnswerStore, Call, Numbers

__all__ = ["Budget", "Cap", "Hold", "Period", "Purse"]

Period = Literal["run", "day", "month", "ever"]

_UNIT = Decimal("1e-9")
_MOST_UNITS = 2**53
"""Amounts are kept as whole nano-dollars, which a float holds exactly up to nine million dollars."""
_TOKENS_A_MESSAGE = 16
"""More than any chat format adds around a message."""
_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
"""Seconds between two looks at what other processes have given back."""


@dataclass(frozen=True, slots=True)
class Cap:
    """How much may be spent, and by whom in what time.

    Args:
        max_cost_usd: USD, more than 0.
        name: Everybody who names it so, on the same store, draws from one purse; empty for a run's own.
        period: What the amount is for: one run, one day or month (UTC), or all time.
        warn_at: Shares of it, 0 to 1, at which a warning is given once.
    """

    max_cost_usd: Decimal
    name: str = ""
    period: Period = "run"
    warn_at: tuple[float, ...] = (0.75, 0.9)

    def __post_init__(self) -> None:
        if not 0 < self.max_cost_usd < _MOST_UNITS * _UNIT:
            raise ConfigError(f"max_cost_usd={str(self.max_cost_usd)!r} must be more than 0 and less than 9 million.")
        if self.period not in get_args(Period):
            raise ConfigError(f"period={self.period!r}; valid are {', '.join(map(repr, get_args(Period)))}.")
        if self.period != "run" and not self.name:
            raise ConfigError(f"A budget for period={self.period!r} needs a name, by which others find it.")
        if not all(0 < share <= 1 for share in self.warn_at):
            raise ConfigError(f"warn_at={self.warn_at!r} holds shares of the budget, more than 0 and at most 1.")

    def __str__(self) -> str:
        if not self.name:
            return f"max_cost_usd={self.max_cost_usd:f}"
        scope = {"run": "a run", "day": "a day", "month": "a month", "ever": "in all"}[self.period]
        return f"the budget {self.name!r} (max_cost_usd={self.max_cost_usd:f} {scope})"

    def cell(self, run: str, now: float) -> str:
        """Where the store keeps its numbers at the instant `now` (seconds since the epoch)."""
        today = dt.datetime.fromtimestamp(now, dt.UTC)
        period = {"run": run, "day": f"{today:%Y-%m-%d}", "month": f"{today:%Y-%m}", "ever": ""}[self.period]
        return f"budget:{self.name}:{period}"


@dataclass(frozen=True, slots=True)
class Hold:
    """An amount that is charged until it is settled, and where; midnight in between does not matter."""

    cell: str
    units: int


class Budget:
    """The purse of a cap.

    Args:
        cap: How much there is in it.
        run: The run that draws from it.
        store: Keeps the numbers.
        now: Wall clock in seconds, which says what day it is.
        sleep: Waits for seconds.
        on_threshold: Told once, among all processes, that a share of the cap is spent.
        patience_s: How long to wait for other processes to give something back before what they hold counts as lost.
    """

    def __init__(  # noqa: PLR0913  (by keyword)
        self,
        cap: Cap,
        run: str,
        store: AnswerStore,
        *,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        on_threshold: Callable[[str], None] = lambda _: None,
        patience_s: float = 60.0,
    ) -> None:
        self.cap, self._run, self._store = cap, run, store
        self._now, self._sleep, self._on_threshold, self._patience_s = now, sleep, on_threshold, patience_s
        self._most = int(cap.max_cost_usd / _UNIT)
        self._queue = asyncio.Lock()  # of those that did not fit at once
        self._returned = asyncio.Event()
        self._in_flight = 0

    async def hold(self, amount: Decimal) -> Hold:
        """Charge `amount`, as soon as it fits.

        Raises:
            BudgetExhaustedError: It will not fit, whatever the calls in flight turn out to cost.
        """
        units = _units(amount)
        if not self._queue.locked():
            hold, _ = await self._try(units)
            if hold:
                return hold
        async with self._queue:
            return await self._wait_for(units)

    async def settle(self, hold: Hold, cost: Decimal | None) -> None:
        """Replace a charge by what the call cost; `None` if that is not known, 0 if it was refused."""
        spent = hold.units if cost is None else _units(cost)
        passed = 0.0

        def step(state: Numbers | None) -> Numbers:
            nonlocal passed
            charged, settled, told = state or (0.0, 0.0, 0.0)
            settled += spent
            passed = max((share for share in self.cap.warn_at if told < share <= settled / self._most), default=0.0)
            return (charged - hold.units + spent, settled, max(told, passed))

        _, settled, _ = await self._store.update(hold.cell, step)
        self._in_flight -= 1
        self._returned.set()
        if passed:
            self._on_threshold(f"${int(settled) * _UNIT:.4f} of {self.cap} is spent, more than {passed:.0%}.")

    async def charged(self) -> Decimal:
        """USD spent, and what calls in flight may yet cost."""
        charged, *_ = await self._read()
        return int(charged) * _UNIT

    async def remaining(self) -> Decimal:
        """USD that are neither spent nor held."""
        return self.cap.max_cost_usd - await self.charged()

    async def usage_percentage(self) -> float:
        """What is charged, in per cent of the cap."""
        return float(100 * await self.charged() / self.cap.max_cost_usd)

    async def can_afford(self, amount: Decimal) -> bool:
        """Whether `amount` would fit at once."""
        charged, *_ = await self._read()
        return int(charged) + _units(amount) <= self._most

    async def _wait_for(self, units: int) -> Hold:
        pause_s, seen, changed_at = _PAUSE_S, None, self._now()
        while True:
            self._returned.clear()
            hold, numbers = await self._try(units)
            if hold:
                return hold
            charged, settled, *_ = numbers
            if numbers != seen:
                seen, changed_at, pause_s = numbers, self._now(), _PAUSE_S
            lost = not self._in_flight and self._now() - changed_at >= self._patience_s
            if settled + units > self._most or lost:
                raise BudgetExhaustedError(
                    f"{self.cap} is used up: ${int(settled) * _UNIT:.4f} is spent, ${int(charged) * _UNIT:.4f} with "
                    f"what calls of unknown outcome may cost, and the next call may cost ${units * _UNIT:.4f}. "
                    "Raise it and run again; what is answered is kept."
                )
            if self._in_flight:
                await self._returned.wait()
            else:
                await self._sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _try(self, units: int) -> tuple[Hold | None, Numbers]:
        hold = Hold(self.cap.cell(self._run, self._now()), units)
        charging = asyncio.ensure_future(self._charge(hold))
        try:
            fits, numbers = await asyncio.shield(charging)
        except asyncio.CancelledError:
            # The store does not stop half-way: what was charged unheard is given back.
            fits, _ = await charging
            if fits:
                self._in_flight += 1
                await self.settle(hold, Decimal(0))
            raise
        self._in_flight += fits
        return (hold if fits else None), numbers

    async def _charge(self, hold: Hold) -> tuple[bool, Numbers]:
        fits = False

        def step(state: Numbers | None) -> Numbers:
            nonlocal fits
            charged, settled, told = state or (0.0, 0.0, 0.0)
            fits = charged + hold.units <= self._most
            return (charged + hold.units * fits, settled, told)

        numbers = await self._store.update(hold.cell, step)
        return fits, numbers

    async def _read(self) -> Numbers:
        cell = self.cap.cell(self._run, self._now())
        return await self._store.update(cell, lambda state: state or (0.0, 0.0, 0.0))


@dataclass(frozen=True, slots=True)
class Purse:
    """All budgets that a call must fit into, and what is needed to say how much it can cost at most."""

    budgets: tuple[Budget, ...]
    price: Price
    max_output_tokens: int

    def bound(self, call: Call) -> Decimal:
        """The most USD that `call` can cost.

        No token of a byte-level tokenizer is shorter than a byte, so a text has at most as many tokens as bytes.
        """
        texts = sum(len(message.content.encode()) + _TOKENS_A_MESSAGE for message in call.messages)
        return self.price.at_most(texts + len(call.json_schema or b""), self.max_output_tokens)

    async def hold(self, call: Call) -> tuple[Hold, ...]:
        """Charge the most that `call` can cost to every budget, or to none.

        Raises:
            BudgetExhaustedError: It will not fit into one of them.
        """
        holds: list[Hold] = []
        amount = self.bound(call)
        try:
            for budget in self.budgets:
                holds.append(await budget.hold(amount))  # noqa: PERF401  (what was held is needed when one fails)
        except BaseException:
            await self.settle(tuple(holds), Decimal(0))
            raise
        return tuple(holds)

    async def settle(self, holds: tuple[Hold, ...], cost: Decimal | None) -> None:
        """Replace the charges by what the call cost; `None` if that is not known, 0 if it was refused."""
        for budget, hold in zip(self.budgets, holds, strict=False):
            await budget.settle(hold, cost)


def _units(amount: Decimal) -> int:
    # Rounded up: a purse may be a nano-dollar stricter than asked, never looser.
    return int((amount / _UNIT).to_integral_value(rounding="ROUND_CEILING"))
