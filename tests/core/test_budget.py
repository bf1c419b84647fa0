"""The purse: nothing leaves that could break the cap, and nothing that fits is kept back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.batching import ONE_PER_CALL, pack
from ondine_core.budget import Budget, bound
from ondine_core.enrichment import Options, answer, enrich_sync
from ondine_core.errors import BudgetExhaustedError, ConfigError, TransientError
from ondine_core.policy import Clock, Policy
from ondine_core.pricing import FREE, Price
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.question import compile_question
from ondine_core.retry import RetryPolicy
from ondine_core.values import Call, Item, Message, ModelSpec, Numbers
from tests.support.unreliable import MemoryStore, UnreliableModel, schedules
from tests.support.virtual_clock import run_virtually

# A reply of the unreliable model: 6 fresh input tokens, 4 cached, 3 of output.
PRICE = Price(Decimal("0.001"), Decimal("0.002"), Decimal("0.0005"))
A_REPLY = 6 * PRICE.input + 4 * PRICE.cached_input + 3 * PRICE.output
QUESTION = compile_question("Say: {text}", {"answer": str}, ModelSpec("test/unreliable", max_output_tokens=64))
POLICY = Policy(max_concurrency=4, max_repairs=1, retry=RetryPolicy(max_attempts=3))
UNIT = Decimal("1e-9")


class WatchedStore(MemoryStore):
    """Remembers the most that was ever charged."""

    most_charged = Decimal(0)

    async def update(self, name: str, step):  # noqa: ANN001, ANN201
        numbers: Numbers = await super().update(name, step)
        self.most_charged = max(self.most_charged, int(numbers[0]) * UNIT)
        return numbers


def spend(texts: list[str], model: UnreliableModel, cap: Decimal, policy: Policy = POLICY) -> WatchedStore:
    """One run with a cap on virtual time; running out of money or patience is no failure here."""
    store = WatchedStore()

    async def main(clock: Clock) -> None:
        options = Options(store=store, policy=policy, clock=clock, price=PRICE, max_cost_usd=cap, purse="p")
        with suppress(BudgetExhaustedError, TransientError):
            await answer({"text": texts}, QUESTION, options, model)

    run_virtually(main)
    return store


def lost_calls(schedule: tuple, calls: int) -> int:
    faults = [*schedule[0], *[schedule[1]] * calls][:calls]
    return faults.count("lost")


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
    assert store.most_charged <= cap
    charged, settled = (int(number) * UNIT for number in store.numbers.get("budget:p", (0, 0)))
    assert charged == settled, "something is still held after the run"
    assert len(model.replies) * A_REPLY <= settled
    if not lost_calls(schedule, len(model.sizes)):
        assert settled == len(model.replies) * A_REPLY


def test_a_cap_of_ten_calls_pays_for_ten_at_any_concurrency() -> None:
    """Two hundred workers at once cannot outspend the purse; nor is it left full."""
    model = UnreliableModel(((), "none"), lanes=200)
    texts = [f"{number:03d}" for number in range(500)]
    policy = replace(POLICY, max_concurrency=200)
    store = spend(texts, model, 10 * A_REPLY, policy)
    (batch,) = pack([Item(b"", "Say: 000")], 1, 0)
    one = bound(ONE_PER_CALL.encode(batch, QUESTION), PRICE, 64)
    assert one > A_REPLY, "the worst case is worse than what happens"
    assert len(model.sizes) <= 10
    assert store.most_charged <= 10 * A_REPLY


def test_money_comes_back_and_is_used() -> None:
    """Calls wait for the difference between worst case and cost, and go on until not even one would fit."""
    model = UnreliableModel(((), "none"))
    cap = Decimal(2)
    spend([f"{number:03d}" for number in range(500)], model, cap)
    (batch,) = pack([Item(b"", "Say: 000")], 1, 0)
    one = bound(ONE_PER_CALL.encode(batch, QUESTION), PRICE, 64)
    assert cap - one < len(model.replies) * A_REPLY <= cap


def test_running_out_keeps_the_answers_and_resumes() -> None:
    """The error names the cap; a run with more money asks only the rest."""
    store = WatchedStore()
    texts = [f"{number:03d}" for number in range(60)]

    def run(cap: str, purse: str) -> UnreliableModel:
        model = UnreliableModel(((), "none"))

        async def main(clock: Clock) -> None:
            options = Options(
                store=store, policy=POLICY, clock=clock, price=PRICE, max_cost_usd=Decimal(cap), purse=purse
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
    assert bound(call, PRICE, longest) >= len(text.encode()) * PRICE.input + longest * PRICE.output


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


def test_what_a_crashed_process_held_stays_charged() -> None:
    """Nobody knows whether its call was billed, so nobody may spend that money, and nobody waits for it for ever."""

    async def main() -> None:
        store = MemoryStore()
        await Budget("p", Decimal(1), store).hold(Decimal("0.6"))
        with pytest.raises(BudgetExhaustedError):
            await Budget("p", Decimal(1), store).hold(Decimal("0.6"))

    asyncio.run(main())
