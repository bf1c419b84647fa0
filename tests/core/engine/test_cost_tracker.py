from dataclasses import replace
from decimal import Decimal
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from ondine_core.engine.cost_tracker import CostTracker
from ondine_core.providers.charges import Charge
from ondine_core.providers.pricing import FREE, Price
from ondine_core.types.ledger import CallReason, UsageTotals
from ondine_core.types.progress import Spend
from ondine_core.types.values import Usage

PRICE = Price(Decimal("3e-6"), Decimal("15e-6"), Decimal("0.3e-6"))
USAGES = st.builds(lambda fresh, cached, output: Usage(fresh + cached, cached, output), *[st.integers(0, 10**7)] * 3)


def test_spend_starts_at_zero() -> None:
    """Before the first call the spend is 0; in dollars only if the price is known."""
    assert CostTracker(PRICE).spend == Spend(usd=Decimal(0))
    assert CostTracker(None).spend == Spend()


@given(st.lists(USAGES), st.integers(0, 5))
def test_calls_and_costs_add_up(usages: list[Usage], lost: int) -> None:
    """The cost of a run is the exact sum of its calls' costs; a lost call is counted, its cost not guessed."""
    tracker = CostTracker(PRICE)
    costs = []
    for usage in usages:
        tracker.sent()
        costs.append(tracker.answered("ask", usage).usd)
    for _ in range(lost):
        tracker.sent()
        tracker.lost(Decimal(2))
    total = sum(usages, Usage())
    stages = {"ask": UsageTotals(len(usages), total, PRICE.cost(total))} if usages else {}
    usd, lost_usd = PRICE.cost(total), Decimal(2 * lost)
    saved = total.cached_input_tokens * (PRICE.input - PRICE.cached_input)
    expected = Spend(len(usages) + lost, len(usages), lost, total, usd, stages, unknown_usd=lost_usd)
    assert tracker.spend == replace(expected, cache_saved_usd=saved)
    assert sum((cost for cost in costs if cost is not None), Decimal(0)) == tracker.spend.usd


TIERED = Price(*[Decimal(n) for n in (1, 2, 1)], beyond=((100, Price(*[Decimal(n) for n in (10, 20, 10)])),))


def test_long_context_price_applies_per_call() -> None:
    """Many short prompts cost the short-prompt price, however many tokens they have in total."""
    tracker = CostTracker(TIERED)
    assert [tracker.answered("ask", Usage(60, 0, 1)).usd for _ in range(3)] == [62, 62, 62]
    assert tracker.answered("retry", Usage(101, 0, 1)).usd == 1030
    assert tracker.spend.usd == 3 * 62 + 1030
    assert tracker.spend.usd != TIERED.cost(tracker.spend.usage)
    assert {stage: line.usd for stage, line in tracker.spend.stages.items()} == {"ask": 186, "retry": 1030}


@given(st.lists(st.integers(0, 300)))
def test_cost_is_the_sum_of_calls_in_any_order(lengths: list[int]) -> None:
    """The sum of the calls is the cost of the run, and none of it depends on their order."""
    there, back = CostTracker(TIERED), CostTracker(TIERED)
    for tracker, order in ((there, lengths), (back, lengths[::-1])):
        for length in order:
            tracker.answered("ask", Usage(length, 0, 1))
    assert there.spend == back.spend
    assert there.spend.usd == sum((TIERED.cost(Usage(length, 0, 1)) for length in lengths), Decimal(0))


def test_an_unknown_price_is_never_zero() -> None:
    """Without a price, tokens are counted and dollars stay unknown, for the call and for the run."""
    tracker = CostTracker(None)
    tracker.sent()
    assert tracker.answered("ask", Usage(10, 0, 5)) == Charge(None)
    assert tracker.spend == Spend(1, 1, 0, Usage(10, 0, 5), None, {"ask": UsageTotals(1, Usage(10, 0, 5), None)})


def test_free_model_costs_a_known_zero() -> None:
    """A model without cost differs from one without a known price."""
    tracker = CostTracker(FREE)
    assert tracker.answered("ask", Usage(10, 0, 5)) == Charge(Decimal(0))
    assert tracker.spend.usd == Decimal(0)


def test_calls_are_answered_lost_or_refused() -> None:
    """Every request sent is counted in exactly one of the three."""
    tracker = CostTracker(None)
    for _ in range(6):
        tracker.sent()
    tracker.lost(None)
    tracker.answered("ask", Usage())
    tracker.answered("split", Usage())
    spend = tracker.spend
    assert (spend.calls, spend.answered, spend.unknown, spend.refused) == (6, 2, 1, 3)


def test_spend_is_a_snapshot() -> None:
    """A value read from a tracker does not change with later calls."""
    tracker = CostTracker(PRICE)
    before = tracker.spend
    tracker.sent()
    tracker.answered("ask", Usage(1))
    assert before == Spend(usd=Decimal(0))
    assert tracker.spend.calls == 1


@given(st.lists(st.tuples(st.sampled_from(get_args(CallReason)), USAGES)))
def test_spend_by_reason_adds_up_to_the_total(calls: list[tuple[CallReason, Usage]]) -> None:
    """First asks, repairs, splits, retries and calibration add up to the total."""
    tracker = CostTracker(PRICE)
    for stage, usage in calls:
        tracker.answered(stage, usage)
    whole = sum(tracker.spend.stages.values(), UsageTotals())
    assert (whole.calls, whole.usage, whole.usd) == (len(calls), tracker.spend.usage, tracker.spend.usd)


def test_sum_of_spends_is_unknown_if_one_is() -> None:
    """Two runs together cost the sum; if one cost is unknown, so is the sum."""
    known, free = (
        Spend(2, 1, 1, Usage(5), Decimal(3), {"ask": UsageTotals(1, Usage(5), Decimal(3))}),
        Spend(usd=Decimal(0)),
    )
    assert known + free == known
    assert (known + known).stages == {"ask": UsageTotals(2, Usage(10), Decimal(6))}
    assert (known + Spend()).usd is None
