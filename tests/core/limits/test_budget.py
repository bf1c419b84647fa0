"""Budgets: no call is sent that could exceed a cap, and no call that fits is held back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondine_core.api import answer, enrich_sync
from ondine_core.batching.packing import pack
from ondine_core.batching.strategy import ONE_PER_CALL
from ondine_core.engine.cost_tracker import CostTracker
from ondine_core.engine.options import Options
from ondine_core.engine.policy import Policy
from ondine_core.errors import BudgetExhaustedError, ConfigError, StoreError, TransientError
from ondine_core.limits.budget import Budget, BudgetSet
from ondine_core.limits.budget_limit import BudgetLimit, Reservation
from ondine_core.limits.retry import RetryPolicy
from ondine_core.prompts.task import compile_task
from ondine_core.providers.pricing import FREE, Price
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.store.budget_state import units_of, usd_of
from ondine_core.types.clock import Clock
from ondine_core.types.ledger import Origin
from ondine_core.types.protocols import Numbers
from ondine_core.types.values import Call, Item, Message, ModelSpec
from tests.support.unreliable import MemoryStore, UnreliableModel, schedules
from tests.support.virtual_clock import run_virtually

# A reply of the unreliable model: 6 fresh input tokens, 4 cached, 3 of output.
PRICE = Price(Decimal("0.001"), Decimal("0.002"), Decimal("0.0005"))
A_REPLY = 6 * PRICE.input + 4 * PRICE.cached_input + 3 * PRICE.output
QUESTION = compile_task("Say: {text}", {"answer": str}, ModelSpec("test/unreliable", max_output_tokens=64))
POLICY = Policy(max_concurrency=4, max_repairs=1, retry=RetryPolicy(max_attempts=3))
NOTHING: Numbers = (0.0, 0.0, 0.0)


class WatchedStore(MemoryStore):
    """Records the highest amount ever charged under each name, and how often it was asked.

    Args:
        takes_s: Seconds that an update takes; the change is made half-way.
    """

    def __init__(self, takes_s: float = 0.0) -> None:
        super().__init__()
        self._takes_s = takes_s
        self.most_charged: dict[str, Decimal] = {}
        self.updates = 0

    async def update(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
        if self._takes_s:
            await asyncio.sleep(self._takes_s / 2)
        numbers = await super().update(name, step)
        self.updates += 1
        if name.startswith("budget:"):
            charged, settled, *_ = numbers
            assert charged >= settled >= 0
            self.most_charged[name] = max(self.most_charged.get(name, Decimal(0)), usd_of(charged))
        if self._takes_s:
            await asyncio.sleep(self._takes_s / 2)
        return numbers

    @property
    def charged(self) -> list[tuple[Decimal, Decimal]]:
        """What is charged and what is settled in every budget."""
        shared = [numbers for name, numbers in self.numbers.items() if name.startswith("budget:")]
        return [(usd_of(charged), usd_of(settled)) for charged, settled, *_ in shared]


# -- the law of solvency, through the engine ------------------------------------------------------------------------


def spend(texts: list[str], model: UnreliableModel, cap: Decimal, policy: Policy = POLICY) -> WatchedStore:
    """One run with a cap on virtual time; an exhausted budget or wait time-out is not a failure here."""
    store = WatchedStore()

    async def main(clock: Clock) -> None:
        options = Options(store=store, policy=policy, clock=clock, price=PRICE, max_cost_usd=cap)
        with suppress(BudgetExhaustedError, TransientError):
            await answer({"text": texts}, QUESTION, options, model)

    run_virtually(main)
    return store


@pytest.mark.parametrize("policy", [POLICY, replace(POLICY, batch_size=5)], ids=["alone", "batched"])
@given(
    st.lists(st.text("abc", min_size=1, max_size=2), min_size=1, max_size=30),
    schedules,
    st.decimals("0.001", "3", places=3),
)
def test_solvent(policy: Policy, texts: list[str], schedule: tuple, cap: Decimal) -> None:
    """The amount charged never exceeds the cap, and covers what the provider billed or may have billed unseen."""
    model = UnreliableModel(schedule)
    store = spend(texts, model, cap, policy)
    assert max(store.most_charged.values(), default=Decimal(0)) <= cap
    (charged, settled), *others = store.charged or [(Decimal(0), Decimal(0))]
    assert not others
    assert charged == settled, "something is still held after the run"
    assert (len(model.replies) + model.lost) * A_REPLY <= settled
    if not model.lost:
        assert settled == len(model.replies) * A_REPLY


def test_cap_for_ten_calls_pays_for_exactly_ten_at_any_concurrency() -> None:
    """With 200 concurrent workers a cap that pays for ten calls is spent completely and never exceeded."""
    model = UnreliableModel(((), "none"), parallel_limit=200)
    texts = [f"{number:03d}" for number in range(500)]
    policy = replace(POLICY, max_concurrency=200)
    store = spend(texts, model, 10 * A_REPLY, policy)
    (batch,) = pack([Item(b"", "Say: 000")], 1, 0)
    one = CostTracker(PRICE, 64).bound(ONE_PER_CALL.encode(batch, QUESTION))
    assert one > A_REPLY, "the worst case is worse than what happens"
    assert len(model.sizes) <= 10
    assert max(store.most_charged.values(), default=Decimal(0)) <= 10 * A_REPLY


def test_difference_between_reservation_and_cost_is_reused() -> None:
    """Calls wait for the difference between worst case and cost, and continue until not even one more would fit."""
    model = UnreliableModel(((), "none"))
    cap = Decimal(2)
    spend([f"{number:03d}" for number in range(500)], model, cap)
    (batch,) = pack([Item(b"", "Say: 000")], 1, 0)
    one = CostTracker(PRICE, 64).bound(ONE_PER_CALL.encode(batch, QUESTION))
    assert cap - one < len(model.replies) * A_REPLY <= cap


def test_exhausted_budget_keeps_answers_and_a_higher_cap_resumes() -> None:
    """The error names the cap; a run with a higher cap asks only the remaining rows."""
    store = WatchedStore()
    texts = [f"{number:03d}" for number in range(60)]

    def run(cap: str, name: str) -> UnreliableModel:
        model = UnreliableModel(((), "none"))

        async def main(clock: Clock) -> None:
            options = Options(
                store=store, policy=POLICY, clock=clock, price=PRICE, max_cost_usd=Decimal(cap), origin=Origin(name)
            )
            await answer({"text": texts}, QUESTION, options, model)

        run_virtually(main)
        return model

    with pytest.raises(BudgetExhaustedError, match=r"max_cost_usd=0\.5 is used up"):
        run("0.5", "first")
    kept = len(store.answers)
    assert 0 < kept < 60
    with pytest.raises(BudgetExhaustedError):
        run("0.5", "first")  # a retried step has the same budget
    assert len(store.answers) == kept
    assert len(run("9", "second").asked) == 60 - kept


@given(st.text(max_size=200), st.integers(0, 1000))
def test_worst_case_cost_is_one_input_token_a_byte_and_the_longest_reply(text: str, longest: int) -> None:
    """The reserved cost counts at least one token for each byte of input, and a reply of the maximum length."""
    call = Call((Message("user", text),), b"{}")
    assert CostTracker(PRICE, longest).bound(call) >= len(text.encode()) * PRICE.input + longest * PRICE.output


@pytest.mark.parametrize(
    ("model", "price", "message"),
    [
        ("openai_compatible/unheard-of", None, "needs the price of 'openai_compatible/unheard-of'"),
        ("openai_compatible/unheard-of", PRICE, "set max_output_tokens"),
    ],
)
def test_cap_without_price_or_reply_bound_is_a_config_error(model: str, price: Price | None, message: str) -> None:
    """Without a price or a bound on the reply a cap is refused; the error says what to set."""
    spec = ModelSpec(model, base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match=message):
        enrich_sync([{"a": 1}], prompt="{a}", output="b", model=spec, options=Options(max_cost_usd=1, price=price))


@pytest.mark.parametrize("cap", [0, -1])
def test_cap_must_be_positive(cap: int) -> None:
    """A cap of zero dollars is an error: it is a mistake, not a dry run."""
    with pytest.raises(ConfigError, match="must be more than 0"):
        enrich_sync(
            [{"a": 1}], prompt="{a}", output="b", model=ScriptedModel({"": "x"}), options=Options(max_cost_usd=cap)
        )


def test_free_model_never_exhausts_a_cap() -> None:
    """A model that runs in this process costs nothing, so no cap stops it."""
    options = Options(max_cost_usd=0.01, price=FREE)
    report = enrich_sync(
        [{"a": n} for n in range(50)], prompt="{a}", output="b", model=ScriptedModel({"": "x"}), options=options
    )
    assert report.failures == {}


# -- solvency across many processes and caps -------------------------------------------------------------------------

CENT = Price(Decimal("0.01"), Decimal(0), Decimal(0))
Outcome = Literal["cheaper", "exact", "refused", "unknown", "crashed", "cancelled"]


@dataclass(frozen=True)
class Ask:
    """A call to make: after how many seconds, by which process, with how long a prompt, and how it ends."""

    after_s: float
    process: int
    length: int
    outcome: Outcome
    takes_s: float
    share: Decimal


ASKS = st.lists(
    st.builds(
        Ask,
        st.floats(0, 2),
        st.integers(0, 2),
        st.integers(0, 100),
        st.sampled_from(["cheaper", "cheaper", "cheaper", "exact", "refused", "unknown", "crashed", "cancelled"]),
        st.floats(0, 5),
        st.decimals("0", "1", places=12),
    ),
    min_size=1,
    max_size=30,
)
CAPS = st.lists(st.decimals("0.5", "20", places=10), min_size=1, max_size=3).map(
    lambda amounts: tuple(BudgetLimit(usd, str(number), "ever") for number, usd in enumerate(amounts))
)


def bound_of(length: int) -> Decimal:
    """The worst-case cost of a call whose prompt has `length` letters."""
    bound = CostTracker(CENT, 0).bound(Call((Message("user", "x" * length),)))
    assert bound is not None
    return bound


def budget(
    cap: BudgetLimit, store: MemoryStore, clock: Clock, on_threshold: Callable[[str], None] = lambda _: None
) -> Budget:
    return Budget(cap, "run", store, clock, on_threshold)


@settings(deadline=None)
@given(ASKS, CAPS, st.sampled_from([0.0, 0.3]))
def test_solvent_across_processes_and_caps(asks: list[Ask], caps: tuple[BudgetLimit, ...], store_s: float) -> None:
    """Charged amounts are within every cap at every instant, and in the end equal what was or may have been spent."""
    store, expected, lost = WatchedStore(store_s), 0, 0

    async def main(clock: Clock) -> None:
        def process() -> BudgetSet:
            return BudgetSet(tuple(budget(cap, store, clock) for cap in caps))

        shared = [process() for _ in range(3)]

        async def make(ask: Ask) -> None:
            nonlocal expected, lost
            budgets = process() if ask.outcome == "crashed" else shared[ask.process]
            bound = bound_of(ask.length)
            with suppress(BudgetExhaustedError, TimeoutError):
                async with asyncio.timeout(ask.takes_s if ask.outcome == "cancelled" else None):
                    holds = await budgets.hold(bound)
                    if ask.outcome == "cancelled":
                        with suppress(asyncio.CancelledError):
                            await asyncio.Event().wait()
                await clock.sleep(ask.takes_s)
                cost = {"cheaper": bound * ask.share, "exact": bound, "unknown": None}.get(ask.outcome, Decimal(0))
                if ask.outcome == "crashed":
                    lost += units_of(bound)
                    return
                expected += units_of(bound if cost is None else cost)
                await budgets.settle(holds, cost)

        async with asyncio.TaskGroup() as group:
            for ask in asks:
                await clock.sleep(ask.after_s)
                group.create_task(make(ask))

    run_virtually(main)
    assert all(store.most_charged.get(cap.cell("run", 0), 0) <= cap.max_cost_usd for cap in caps)
    assert all(budgets == (usd_of(expected + lost), usd_of(expected)) for budgets in store.charged)


@settings(deadline=None, max_examples=30)
@given(CAPS, st.integers(0, 30), st.decimals("0", "0.9", places=6), st.integers(1, 3))
def test_shared_budget_is_spent_to_the_end(
    caps: tuple[BudgetLimit, ...], length: int, share: Decimal, processes: int
) -> None:
    """Calls that cost less than their worst case continue, in all processes, until not one more fits."""
    store, calls = WatchedStore(0.01), 0

    async def main(clock: Clock) -> None:
        async def keep_calling(budgets: BudgetSet) -> None:
            nonlocal calls
            bound = bound_of(length)
            with suppress(BudgetExhaustedError):
                while calls < 2000:
                    holds = await budgets.hold(bound)
                    calls += 1
                    await clock.sleep(0.1)
                    await budgets.settle(holds, max(bound * share, Decimal("0.02")))

        shared = [BudgetSet(tuple(budget(cap, store, clock) for cap in caps)) for _ in range(processes)]
        await asyncio.gather(*(keep_calling(budgets) for budgets in shared for _ in range(4)))

    run_virtually(main)
    worst = bound_of(length)
    cap = min(cap.max_cost_usd for cap in caps)
    for charged, settled in store.charged:
        assert charged == settled <= cap < settled + worst + Decimal("1e-9")


# -- waiting ---------------------------------------------------------------------------------------------------------

ONE = BudgetLimit(Decimal(1), "team", "ever")
SIXTY = Decimal("0.6")


def test_reservation_of_a_crashed_process_stays_charged() -> None:
    """Its call may have been billed, so the amount is never spent again, and waiting for it ends with a time-out."""

    async def main(clock: Clock) -> None:
        store = WatchedStore()
        await budget(ONE, store, clock).hold(SIXTY)
        explained = (
            r"max_cost_usd=1 in all of the budget 'team' is used up: \$0\.000000 is spent, \$0\.600000 is held for "
            r"calls in flight and in 60 s none of them ended, and the next call may cost \$0\.600000\. Raise max_c"
        )
        mine = budget(ONE, store, clock)
        with pytest.raises(BudgetExhaustedError, match=explained):
            await mine.hold(SIXTY)
        assert 60 <= clock.now() <= 63
        # The next call does not wait all that time again.
        with pytest.raises(BudgetExhaustedError):
            await mine.hold(SIXTY)
        assert clock.now() <= 63
        assert store.updates < 60, "the store is asked a few times a second at most, and ever less often"

    run_virtually(main)


def test_call_that_can_never_fit_fails_at_once() -> None:
    """A call that would not fit even with nothing in flight fails without waiting."""

    async def main(clock: Clock) -> None:
        store = WatchedStore()
        theirs, mine = budget(ONE, store, clock), budget(ONE, store, clock)
        await theirs.settle(await theirs.hold(SIXTY), SIXTY)
        await theirs.hold(Decimal("0.2"))
        with pytest.raises(
            BudgetExhaustedError, match=r"\$0\.600000 is spent, \$0\.200000 is held for calls in flight, and"
        ):
            await mine.hold(SIXTY)
        assert clock.now() == 0

    run_virtually(main)


def test_call_waits_while_other_processes_give_back() -> None:
    """A call waits for as long as other processes keep releasing money from time to time."""

    async def main(clock: Clock) -> None:
        store = WatchedStore()
        theirs, mine = budget(ONE, store, clock), budget(ONE, store, clock)
        holds = [await theirs.hold(Decimal("0.2")) for _ in range(5)]
        waiting = asyncio.ensure_future(mine.hold(SIXTY))
        for hold in holds[:3]:
            await clock.sleep(50)
            assert not waiting.done()
            await theirs.settle(hold, Decimal(0))
        await waiting
        assert 150 <= clock.now() <= 153

    run_virtually(main)


def test_wait_timeout_restarts_after_progress() -> None:
    """The wait time-out counts from the last release, not from an earlier standstill."""

    async def main(clock: Clock) -> None:
        store = WatchedStore()
        theirs, mine = budget(ONE, store, clock), budget(ONE, store, clock)
        hold = await theirs.hold(SIXTY)
        waiting = asyncio.ensure_future(mine.hold(SIXTY))
        await clock.sleep(40)
        await theirs.settle(hold, Decimal(0))
        await mine.settle(await waiting, Decimal(0))
        await theirs.hold(SIXTY)
        began = clock.now()
        with pytest.raises(BudgetExhaustedError):
            await mine.hold(SIXTY)
        assert 60 <= clock.now() - began <= 63

    run_virtually(main)


def test_smaller_later_call_does_not_overtake() -> None:
    """Calls are admitted in order of arrival, so a large call is not starved by small ones."""

    async def main(clock: Clock) -> None:
        mine, done = budget(ONE, WatchedStore(), clock), []

        async def call(amount: str, settled_after_s: float) -> None:
            hold = await mine.hold(Decimal(amount))
            done.append(amount)
            await clock.sleep(settled_after_s)
            await mine.settle(hold, Decimal(0))

        async with asyncio.TaskGroup() as group:
            for amount in ("0.5", "0.9", "0.1"):
                group.create_task(call(amount, 10))
                await clock.sleep(1)
        assert done == ["0.5", "0.9", "0.1"]

    run_virtually(main)


def test_calls_of_the_same_process_are_waited_for_without_time_out() -> None:
    """Their release is certain, and wakes the waiting call immediately."""

    async def main(clock: Clock) -> None:
        mine = budget(ONE, WatchedStore(), clock)
        hold = await mine.hold(SIXTY)
        waiting = asyncio.ensure_future(mine.hold(SIXTY))
        await clock.sleep(500)
        assert not waiting.done()
        await mine.settle(hold, Decimal("0.1"))
        await waiting
        assert clock.now() == 500

    run_virtually(main)


def test_many_waiting_calls_poll_the_store_as_often_as_one() -> None:
    """One waiting call polls; the others wait their turn and are admitted in order of arrival."""

    async def main(clock: Clock) -> None:
        store = WatchedStore()
        mine, done = budget(ONE, store, clock), []

        async def call(number: int) -> None:
            hold = await mine.hold(SIXTY)
            done.append(number)
            await clock.sleep(20)
            await mine.settle(hold, Decimal(0))

        calls = [asyncio.ensure_future(call(number)) for number in range(30)]
        await clock.sleep(19)
        assert store.updates < 30 + 20
        await asyncio.gather(*calls)
        assert done == list(range(30))
        assert store.updates < 30 * 20

    run_virtually(main)


def test_call_that_waits_for_one_budget_reserves_nothing_of_another() -> None:
    """A call that does not fit into the day's budget reserves nothing in the month's."""

    async def main(clock: Clock) -> None:
        store = WatchedStore()
        day, month = BudgetLimit(Decimal(1), "team", "day"), BudgetLimit(Decimal(1), "team", "month")
        mine = BudgetSet((budget(month, store, clock), budget(day, store, clock)))
        theirs = budget(day, store, clock)
        hold = await theirs.hold(SIXTY)
        waiting = asyncio.ensure_future(mine.hold(bound_of(44)))
        await clock.sleep(1)
        assert await mine.budgets[0].charged() == 0
        assert await mine.budgets[0].can_afford(Decimal(1))
        await theirs.settle(hold, Decimal(0))
        assert [hold.units for hold in await waiting] == [units_of(SIXTY)] * 2

    run_virtually(main)


def test_same_budget_given_twice_is_a_config_error() -> None:
    """Each call would be charged twice."""

    async def main(clock: Clock) -> None:
        twice = [budget(BudgetLimit(Decimal(usd), "team", "day"), MemoryStore(), clock) for usd in (1, 2)]
        with pytest.raises(ConfigError, match="A budget is named twice: max_cost_usd=1 a day of the budget 'team', "):
            BudgetSet(tuple(twice))

    run_virtually(main)


# -- cancellation and failure ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_s", [0.01, 0.03, 0.06, 0.11, 0.14, 0.16])
@pytest.mark.parametrize("times", [1, 2])
def test_cancelled_call_releases_its_reservation(after_s: float, times: int) -> None:
    """Whether one budget or both had been charged, and even if it is cancelled again during the release."""
    store = WatchedStore(0.05)

    async def main(clock: Clock) -> None:
        caps = (BudgetLimit(Decimal(1), "a", "ever"), BudgetLimit(Decimal(1), "b", "ever"))
        budgets = BudgetSet(tuple(budget(cap, store, clock) for cap in caps))

        async def hold_and_settle() -> None:
            await budgets.settle(await budgets.hold(bound_of(0)), Decimal(0))

        call = asyncio.ensure_future(hold_and_settle())
        await clock.sleep(after_s)
        for _ in range(times):
            call.cancel()
            await clock.sleep(0.005)
        with suppress(asyncio.CancelledError):
            await call
        await clock.sleep(1)

    run_virtually(main)
    assert store.charged == [(0, 0)] * len(store.charged)


def test_settling_completes_before_a_cancellation() -> None:
    """A call that is cancelled while it settles is cancelled after the settlement."""

    async def main(clock: Clock) -> None:
        store = WatchedStore(0.05)
        mine = budget(ONE, store, clock)
        settling = asyncio.ensure_future(mine.settle(await mine.hold(SIXTY), Decimal("0.5")))
        await clock.sleep(0.01)
        settling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await settling
        assert store.charged == [(Decimal("0.5"), Decimal("0.5"))]

    run_virtually(main)


def test_cancelled_waiting_call_leaves_the_queue() -> None:
    """The next call takes its turn, and no reservation stays behind."""

    async def main(clock: Clock) -> None:
        store = WatchedStore(0.05)
        mine = budget(ONE, store, clock)
        hold = await mine.hold(SIXTY)
        first, second = (asyncio.ensure_future(mine.hold(SIXTY)) for _ in "ab")
        await clock.sleep(1)
        first.cancel()
        await clock.sleep(1)
        await mine.settle(hold, Decimal(0))
        await second
        assert store.charged == [(SIXTY, 0)]

    run_virtually(main)


class HalfBroken(WatchedStore):
    """Fails to write the numbers named b."""

    async def update(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
        if name.endswith("b"):
            raise StoreError("disk full")
        return await super().update(name, step)


def test_store_failure_half_way_leaves_no_charge() -> None:
    """If the second budget cannot be read, the first is refunded; if it cannot be settled, the first still is."""

    async def main(clock: Clock) -> None:
        store = HalfBroken(0.05)
        budgets = BudgetSet(tuple(budget(BudgetLimit(Decimal(1), name, "ever"), store, clock) for name in "ab"))
        with pytest.raises(StoreError, match="disk full"):
            await budgets.hold(bound_of(0))
        assert store.charged == [(0, 0)]
        hold = await budgets.budgets[0].hold(SIXTY)
        with pytest.raises(StoreError, match="disk full"):
            await budgets.settle((Reservation("b", 1), hold)[::-1], Decimal("0.1"))
        assert store.charged == [(Decimal("0.1"), Decimal("0.1"))]

    run_virtually(main)


# -- periods, warnings, figures --------------------------------------------------------------------------------------

DAY_S = 86_400


@pytest.mark.parametrize(("period", "over_s"), [("day", DAY_S), ("month", 31 * DAY_S)])
def test_new_period_starts_a_new_budget(period: Literal["day", "month"], over_s: float) -> None:
    """A call of the old period is settled there; a waiting call has room at midnight."""

    async def main(clock: Clock) -> None:
        store = WatchedStore()
        cap = BudgetLimit(Decimal(1), "team", period)
        mine, theirs = budget(cap, store, clock), budget(cap, store, clock)
        await clock.sleep(over_s - 10)
        hold = await theirs.hold(SIXTY)
        waited = await mine.hold(SIXTY)
        assert over_s <= clock.now() <= over_s + 3
        await theirs.settle(hold, Decimal("0.5"))
        assert await mine.charged() == SIXTY
        await mine.settle(waited, Decimal("0.25"))
        assert store.charged == [(Decimal("0.5"),) * 2, (Decimal("0.25"),) * 2]
        message = f"Raise max_cost_usd, or wait until the {period} is over \\(UTC\\), and run again"
        with pytest.raises(BudgetExhaustedError, match=message):
            await mine.hold(Decimal("0.8"))

    run_virtually(main)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=40))
def test_each_threshold_warns_once(costs: list[tuple[int, int]]) -> None:
    """The process that passes a threshold first warns, no other does, and none before the share is spent."""
    warnings: list[str] = []
    store = WatchedStore()

    async def main(clock: Clock) -> None:
        cap = replace(ONE, warn_at=(0.9, 0.25, 0.5))
        budgets = [budget(cap, store, clock, warnings.append) for _ in range(3)]
        for number, cents in costs:
            with suppress(BudgetExhaustedError):
                hold = await budgets[number].hold(Decimal(cents) / 100)
                await budgets[number].settle(hold, Decimal(cents) / 100)
            spent = sum((settled for _, settled in store.charged), Decimal(0))
            expected = [share for share in ("25%", "50%", "90%") if spent * 100 >= int(share[:2])]
            assert [sentence.split()[0] for sentence in warnings] == expected

    run_virtually(main)


def test_threshold_warns_again_when_the_cap_is_raised() -> None:
    """The warning is per amount, and names the budget."""
    warnings: list[str] = []

    async def main(clock: Clock) -> None:
        store = WatchedStore()
        for usd in (1, 1, 2):
            mine = budget(BudgetLimit(Decimal(usd), "team", "month"), store, clock, warnings.append)
            await mine.settle(await mine.hold(Decimal("0.4")), Decimal("0.8") if usd == 2 else Decimal("0.4"))

    run_virtually(main)
    assert warnings == [
        "75% of max_cost_usd=1 a month of the budget 'team' is spent: $0.800000.",
        "75% of max_cost_usd=2 a month of the budget 'team' is spent: $1.600000.",
    ]


@pytest.mark.parametrize("usd", [Decimal(-1), Decimal("NaN"), Decimal("Infinity"), 0.5, "1", True, None])
def test_no_amount_is_refused_and_changes_nothing(usd: Any) -> None:
    """A negative one would raise the cap of all who share it."""

    async def main(clock: Clock) -> None:
        mine = budget(BudgetLimit(Decimal(1)), WatchedStore(), clock)
        hold = await mine.hold(Decimal("0.4"))
        for act in (mine.hold, mine.can_afford, *([] if usd is None else [partial(mine.settle, hold)])):
            with pytest.raises(ConfigError, match="is not an amount of USD; give a Decimal, 0 or more"):
                await act(usd)
        assert await mine.remaining() == Decimal("0.6")

    run_virtually(main)


def test_reservation_is_settled_once() -> None:
    """Settling it again would return what others have reserved, and the cap would not hold."""

    async def main(clock: Clock) -> None:
        mine = budget(BudgetLimit(Decimal(1), "team", "ever"), WatchedStore(), clock)
        hold = await mine.hold(Decimal("0.4"))
        await mine.settle(hold, Decimal("0.3"))
        with pytest.raises(ConfigError, match="settled already"):
            await mine.settle(hold, None)
        wrong: Any = await mine.charged()
        with pytest.raises(ConfigError, match="A Decimal cannot be settled; give the reservation"):
            await mine.settle(wrong, None)
        assert await mine.charged() == Decimal("0.3")

    run_virtually(main)


def test_figures_of_a_budget() -> None:
    """`charged` includes calls in flight, `remaining` does not; percentages are of what is spent, as in warnings."""

    async def main(clock: Clock) -> None:
        store = WatchedStore()
        mine = budget(BudgetLimit(Decimal(4), "team", "ever"), store, clock)
        await mine.settle(await mine.hold(Decimal(1)), Decimal("0.5"))
        await mine.settle(await mine.hold(Decimal(1)), None)
        await mine.settle(await mine.hold(Decimal(1)), Decimal(0))
        await mine.hold(Decimal(2))
        assert await mine.charged() == Decimal("3.5")
        assert await mine.remaining() == Decimal("0.5")
        assert await mine.usage_percentage() == 37.5
        assert await mine.can_afford(Decimal("0.5"))
        assert not await mine.can_afford(Decimal("0.500000001"))

    run_virtually(main)
