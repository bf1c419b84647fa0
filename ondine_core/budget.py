"""A cap on cost that holds at every instant: the worst case is charged before a call, the difference given back after.

Charged is what has been spent and what calls in flight may yet cost; settled is what is known to be spent. A call
leaves only if charged stays within the cap. One that does not fit now may fit when calls in flight come back cheaper,
so it waits; one that would not fit even then ends the run. A call whose outcome was never seen stays charged at its
worst case. The numbers live in the store, so a step that is retried goes on with the same purse.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal

from ondine_core.errors import BudgetExhaustedError, ConfigError
from ondine_core.pricing import Price
from ondine_core.values import AnswerStore, Call, Numbers

__all__ = ["Budget", "bound"]

_UNIT = Decimal("1e-9")
"""Amounts are kept as whole nano-dollars, which a float holds exactly up to nine million dollars."""
_TOKENS_A_MESSAGE = 16
"""More than any chat format adds around a message."""


def bound(call: Call, price: Price, max_output_tokens: int) -> Decimal:
    """The most USD that `call` can cost.

    No token of a byte-level tokenizer is shorter than a byte, so a text has at most as many tokens as bytes.
    """
    texts = sum(len(message.content.encode()) + _TOKENS_A_MESSAGE for message in call.messages)
    return (texts + len(call.json_schema or b"")) * price.input + max_output_tokens * price.output


class Budget:
    """A purse of `cap` USD.

    Args:
        name: Whose purse it is; everybody who uses this name and store draws from it.
        cap: USD, more than 0.
        store: Keeps the numbers.

    Raises:
        ConfigError: The cap is not more than 0.
    """

    def __init__(self, name: str, cap: Decimal, store: AnswerStore) -> None:
        if not cap > 0:
            raise ConfigError(f"max_cost_usd={str(cap)!r} must be more than 0.")
        self.cap = cap
        self._name, self._store = f"budget:{name}", store
        self._returned = asyncio.Condition()
        self._in_flight = 0

    async def hold(self, amount: Decimal) -> None:
        """Charge `amount`, as soon as it fits.

        Raises:
            BudgetExhaustedError: It will not fit, whatever the calls in flight turn out to cost.
        """
        cost, cap = _units(amount), _units(self.cap)
        async with self._returned:
            while True:
                charged, settled, fits = await self._try(cost, cap)
                if fits:
                    self._in_flight += 1
                    return
                # Nobody in this process can give anything back: what is charged beyond it was lost with a crash.
                if settled + cost > cap or not self._in_flight:
                    raise BudgetExhaustedError(
                        f"max_cost_usd={self.cap:f} is used up: ${charged * _UNIT:.4f} is charged, "
                        f"and the next call may cost ${amount:.4f}."
                    )
                await self._returned.wait()

    async def settle(self, amount: Decimal, cost: Decimal | None) -> None:
        """Replace a charge of `amount` by what the call cost; `None` if that is not known, 0 if it was refused."""
        held = _units(amount)
        spent = held if cost is None else _units(cost)
        await self._store.update(self._name, lambda state: _settled(state or (0, 0), held, spent))
        async with self._returned:
            self._in_flight -= 1
            self._returned.notify_all()

    async def _try(self, cost: int, cap: int) -> tuple[int, int, bool]:
        fits = False

        def step(state: Numbers | None) -> Numbers:
            nonlocal fits
            charged, settled = state or (0, 0)
            fits = charged + cost <= cap
            return (charged + cost, settled) if fits else (charged, settled)

        charged, settled = await self._store.update(self._name, step)
        return int(charged), int(settled), fits


def _settled(state: Numbers, held: int, spent: int) -> Numbers:
    charged, settled = state
    return charged - held + spent, settled + spent


def _units(amount: Decimal) -> int:
    # Rounded up: a purse may be a nano-dollar stricter than asked, never looser.
    return int((amount / _UNIT).to_integral_value(rounding="ROUND_CEILING"))
