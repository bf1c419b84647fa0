"""The purse: nothing leaves that could break a cap, and nothing that fits is kept back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

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
    """Remembers the most that was ever charged under each name, and how often it was asked.

    Args:
        takes_s: Seconds of an update; it is made half-way.
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
        """What is charged and what is settled in every purse."""
        purses = [numbers for name, numbers in self.numbers.items() if name.startswith("budget:")]
        return [(usd_of(charged), usd_of(settled)) for charged, settled, *_ in purses]


# -- the law of solvency, through the engine ------------------------------------------------------------------------


def spend(texts: list[str], model: UnreliableModel, cap: Decimal, policy: Policy = POLICY) -> WatchedStore:
    """One run with a cap on virtual time; running out of money or patience is no failure here."""
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
    """Charged never exceeds the cap; what the provider bills, and may have billed unseen, is within what is charged."""
    model = UnreliableModel(schedule)
    store = spend(texts, model, cap, policy)
    assert max(store.most_charged.values(), default=Decimal(0)) <= cap
    (charged, settled), *others = store.charged or [(Decimal(0), Decimal(0))]
    assert not others
    assert charged == settled, "something is still held after the run"
    assert (len(model.replies) + model.lost) * A_REPLY <= settled
    if not model.lost:
        assert settled == len(model.replies) * A_REPLY


def test_a_cap_of_ten_calls_pays_for_ten_at_any_concurrency() -> None:
    """Two hundred workers at once cannot outspend the purse; nor is it left full."""
    model = UnreliableModel(((), "none"), lanes=200)
    texts = [f"{number:03d}" for number in range(500)]
    policy = replace(POLICY, max_concurrency=200)
    store = spend(texts, model, 10 * A_REPLY, policy)
    (batch,) = pack([Item(b"", "Say: 000")], 1, 0)
    one = CostTracker(PRICE, 64).bound(ONE_PER_CALL.encode(batch, QUESTION))
    assert one > A_REPLY, "the worst case is worse than what happens"
    assert len(model.sizes) <= 10
    assert max(store.most_charged.values(), default=Decimal(0)) <= 10 * A_REPLY


def test_money_comes_back_and_is_used() -> None:
    """Calls wait for the difference between worst case and cost, and go on until not even one would fit."""
    model = UnreliableModel(((), "none"))
    cap = Decimal(2)
    spend([f"{number:03d}" for number in range(500)], model, cap)
    (batch,) = pack([Item(b"", "Say: 000")], 1, 0)
    one = CostTracker(PRICE, 64).bound(ONE_PER_CALL.encode(batch, QUESTION))
    assert cap - one < len(model.replies) * A_REPLY <= cap


def test_running_out_keeps_the_answers_and_resumes() -> None:
    """The error names the cap; a run with more money asks only the rest."""
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
        run("0.5", "first")  # a retried step has the same purse
    assert len(store.answers) == kept
    assert len(run("9", "second").asked) == 60 - kept


@given(st.text(max_size=200), st.integers(0, 1000))
def test_the_bound_grows_with_every_byte_and_token(text: str, longest: int) -> None:
    """At least a token a byte of input, and the longest reply."""
    call = Call((Message("user", text),), b"{}")
    assert CostTracker(PRICE, longest).bound(call) >= len(text.encode()) * PRICE.input + longest * PRICE.output


@pytest.mark.parametrize(
    ("model", "price", "message"),
    [
        ("openai_compatible/unheard-of", None, "needs the price of 'openai_compatible/unheard-of'"),
        ("openai_compatible/unheard-of", PRICE, "set max_output_tokens"),
    ],
)
def test_a_cap_that_cannot_be_computed_is_refused(model: str, price: Price | None, message: str) -> None:
    """Without a price or a bound on the reply there is no cap; the error says what to set."""
    spec = ModelSpec(model, base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match=message):
        enrich_sync([{"a": 1}], prompt="{a}", output="b", model=spec, options=Options(max_cost_usd=1, price=price))


@pytest.mark.parametrize("cap", [0, -1])
def test_a_cap_must_be_more_than_nothing(cap: int) -> None:
    """Zero dollars are a mistake, not a dry run."""
    with pytest.raises(ConfigError, match="must be more than 0"):
        enrich_sync(
            [{"a": 1}], prompt="{a}", output="b", model=ScriptedModel({"": "x"}), options=Options(max_cost_usd=cap)
        )


def test_a_free_model_never_runs_out() -> None:
    """What runs in this process costs nothing."""
    options = Options(max_cost_usd=0.01, price=FREE)
    report = enrich_sync(
        [{"a": n} for n in range(50)], prompt="{a}", output="b", model=ScriptedModel({"": "x"}), options=options
    )
    assert report.failures == {}


# -- the law of solvency, many processes and caps --------------------------------------------------------------------

CENT = Price(Decimal("0.01"), Decimal(0), Decimal(0))
Outcome = Literal["cheaper", "exact", "refused", "unknown", "crashed", "cancelled"]


@dataclass(frozen=True)
class Ask:
    """A call to be made: after how many seconds, by which process, how long its prompt is, and what becomes of it."""

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
    """The most that a call with a prompt of so many letters can cost."""
    bound = CostTracker(CENT, 0).bound(Call((Message("user", "x" * length),)))
    assert bound is not None
    return bound


def budget(cap: BudgetLimit, store: MemoryStore, clock: Clock, told: Callable[[str], None] = lambda _: None) -> Budget:
    return Budget(cap, "run", store, now=clock.now, sleep=clock.sleep, on_threshold=told)


@settings(deadline=None)
@given(ASKS, CAPS, st.sampled_from([0.0, 0.3]))
def test_solvent_across_processes_and_caps(asks: list[Ask], caps: tuple[BudgetLimit, ...], store_s: float) -> None:
    """At every instant charged is within every cap; in the end exactly what was spent and may have been is charged."""
    store, expected, lost = WatchedStore(store_s), 0, 0

    async def main(clock: Clock) -> None:
        def process() -> BudgetSet:
            return BudgetSet(tuple(budget(cap, store, clock) for cap in caps))

        purses = [process() for _ in range(3)]

        async def make(ask: Ask) -> None:
            nonlocal expected, lost
            budgets = process() if ask.outcome == "crashed" else purses[ask.process]
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
def test_a_purse_is_used_to_the_end(caps: tuple[BudgetLimit, ...], length: int, share: Decimal, processes: int) -> None:
    """Calls that cost less than their worst case go on, in all processes, until not one more would fit."""
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

        purses = [BudgetSet(tuple(budget(cap, store, clock) for cap in caps)) for _ in range(processes)]
        await asyncio.gather(*(keep_calling(budgets) for budgets in purses for _ in range(4)))

    run_virtually(main)
    worst = bound_of(length)
    cap = min(cap.max_cost_usd for cap in caps)
    for charged, settled in store.charged:
        assert charged == settled <= cap < settled + worst + Decimal("1e-9")


# -- waiting ---------------------------------------------------------------------------------------------------------

ONE = BudgetLimit(Decimal(1), "team", "ever")
SIXTY = Decimal("0.6")


def test_what_a_crashed_process_held_stays_charged() -> None:
    """Nobody knows whether its call was billed, so nobody may spend that money, and nobody waits for it for ever."""

    async def main(clock: Clock) -> None:
        store = WatchedStore()
        await budget(ONE, store, clock).hold(SIXTY)
        explained = (
            r"max_cost_usd=1 in all of the budget 'team' is used up: \$0\.000000 is spent, \$0\.600000 is held for "
            r"calls in flight and in 60 s nothing of it came back, and the next call may cost \$0\.600000\. Raise max_c"
        )
        mine = budget(ONE, store, clock)
        with pytest.raises(BudgetExhaustedError, match=explained):
            await mine.hold(SIXTY)
        assert 60 <= clock.now() <= 63
        # Whoever comes next does not wait all that time again.
        with pytest.raises(BudgetExhaustedError):
            await mine.hold(SIXTY)
        assert clock.now() <= 63
        assert store.updates < 60, "the store is asked a few times a second at most, and ever less often"

    run_virtually(main)


def test_what_will_never_fit_is_not_waited_for() -> None:
    """Once so much is spent that the call would not fit even if nothing were in flight, the error comes at once."""

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


def test_what_other_processes_give_back_is_used() -> None:
    """However long they take, as long as something comes back now and then."""

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


def test_patience_begins_anew_when_room_was_found() -> None:
    """What stood still long ago says nothing of now."""

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


def test_who_comes_later_and_asks_for_less_does_not_push_in() -> None:
    """Otherwise a long call would wait for as long as there are short ones."""

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


def test_calls_of_this_process_are_waited_for_as_long_as_they_take() -> None:
    """They are sure to come back; and who waits learns of it at once."""

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


def test_many_that_wait_ask_the_store_as_often_as_one() -> None:
    """One looks for room, the others wait for their turn, and get it in the order they came."""

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


def test_what_waits_for_one_purse_holds_nothing_of_another() -> None:
    """A call that the day's budget has no room for does not keep the month's from others."""

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


def test_a_budget_named_twice_is_refused() -> None:
    """It would be charged twice for each call."""

    async def main(clock: Clock) -> None:
        twice = [budget(BudgetLimit(Decimal(usd), "team", "day"), MemoryStore(), clock) for usd in (1, 2)]
        with pytest.raises(ConfigError, match="A budget is named twice: max_cost_usd=1 a day of the budget 'team', "):
            BudgetSet(tuple(twice))

    run_virtually(main)


# -- cancellation and failure ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_s", [0.01, 0.03, 0.06, 0.11, 0.14, 0.16])
@pytest.mark.parametrize("times", [1, 2])
def test_a_call_that_is_cancelled_holds_nothing(after_s: float, times: int) -> None:
    """Whether it was charged already, in one purse or in both, and even if it is cancelled once more meanwhile."""
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


def test_settling_is_not_cut_short() -> None:
    """Who is cancelled while he settles a call is cancelled when that is done."""

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


def test_a_call_that_waits_and_is_cancelled_lets_the_next_one_wait() -> None:
    """Its place is free, and nothing of it stays behind."""

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
    """Cannot write what is called b."""

    async def update(self, name: str, step: Callable[[Numbers | None], Numbers]) -> Numbers:
        if name.endswith("b"):
            raise StoreError("disk full")
        return await super().update(name, step)


def test_a_store_that_fails_half_way_keeps_no_money() -> None:
    """What the first purse was charged is given back when the second cannot be read; and settled when it cannot be."""

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
def test_a_new_period_is_a_new_purse(period: Literal["day", "month"], over_s: float) -> None:
    """A call of the old one is settled there; whoever waited for room has it at midnight."""

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
def test_each_threshold_is_told_once(costs: list[tuple[int, int]]) -> None:
    """By whoever passes it first, and by nobody before so much is spent."""
    told: list[str] = []
    store = WatchedStore()

    async def main(clock: Clock) -> None:
        cap = replace(ONE, warn_at=(0.9, 0.25, 0.5))
        budgets = [budget(cap, store, clock, told.append) for _ in range(3)]
        for number, cents in costs:
            with suppress(BudgetExhaustedError):
                hold = await budgets[number].hold(Decimal(cents) / 100)
                await budgets[number].settle(hold, Decimal(cents) / 100)
            spent = sum((settled for _, settled in store.charged), Decimal(0))
            expected = [share for share in ("25%", "50%", "90%") if spent * 100 >= int(share[:2])]
            assert [sentence.split()[0] for sentence in told] == expected

    run_virtually(main)


def test_a_threshold_is_told_again_when_the_cap_is_raised() -> None:
    """It is the amount that is told, with whose it is."""
    told: list[str] = []

    async def main(clock: Clock) -> None:
        store = WatchedStore()
        for usd in (1, 1, 2):
            mine = budget(BudgetLimit(Decimal(usd), "team", "month"), store, clock, told.append)
            await mine.settle(await mine.hold(Decimal("0.4")), Decimal("0.8") if usd == 2 else Decimal("0.4"))

    run_virtually(main)
    assert told == [
        "75% of max_cost_usd=1 a month of the budget 'team' is spent: $0.800000.",
        "75% of max_cost_usd=2 a month of the budget 'team' is spent: $1.600000.",
    ]


def test_the_figures_of_a_purse() -> None:
    """Charged counts calls in flight, what is left does not; per cent are of what is spent, as warnings are."""

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
