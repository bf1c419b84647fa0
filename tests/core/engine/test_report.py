from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.engine.cost_tracker import CostTracker
from ondine_core.engine.outcomes import Outcomes
from ondine_core.engine.report import Report
from ondine_core.engine.run_state import RunState
from ondine_core.errors import FatalError, OndineError
from ondine_core.providers.pricing import Price
from ondine_core.types.ledger import Audit
from ondine_core.types.progress import Progress, Spend
from ondine_core.types.values import Answer, Failure, Outcome, Usage

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text("abé ☃", max_size=3), values, max_size=4),
    max_leaves=10,
)
ANSWERS = st.builds(
    Answer,
    st.dictionaries(st.text("abc", min_size=1, max_size=2), JSON, max_size=3),
    st.text("abc/-", max_size=10),
    st.integers(1, 99),
    st.integers(1, 99),
    st.none() | st.decimals(0, 10**6, allow_nan=False),
    st.none() | st.text("abc-", max_size=10),
    st.floats(0, 1e10),
)
FAILURES = st.builds(
    Failure, st.sampled_from(["prompt", "invalid", "truncated", "refused", "unreachable"]), st.text(max_size=10)
)


def exactly(value: Any) -> Any:
    """A value in a form in which 1, 1.0 and True, -0.0 and 0.0, 2.50 and 2.5 differ."""
    if isinstance(value, dict):
        return [(name, exactly(item)) for name, item in value.items()]
    if isinstance(value, list):
        return [exactly(item) for item in value]
    if isinstance(value, Answer):
        how = value.model, value.attempts, value.batch_size, value.cost_usd, value.request_id, value.answered_at
        return exactly(dict(value.values)), [exactly(item) for item in how]
    return type(value), repr(value)


def run_state_of(outcomes: Sequence[Outcome], first: int = 0, price: Price | None = None) -> RunState:
    """The state of a run with these outcomes, whose keys count from `first`."""
    keys = [(first + number).to_bytes(16) for number in range(len(outcomes))]
    run_state = RunState(len(keys), {}, CostTracker(price), lambda: 2.0, lambda _: None)
    run_state.settle(list(zip(keys, outcomes, strict=True)))
    return run_state


def report_of(outcomes: Sequence[Outcome], first: int = 0, stopped_by: OndineError | None = None) -> Report:
    """The report of that run, of which the output columns are a and b."""
    run_state = run_state_of(outcomes, first)
    kept = Outcomes(list(run_state.outcomes), run_state.outcomes)
    return Report(kept, ("a", "b"), run_state.progress, 1, (), (), Audit(), None, stopped_by)


# -- outcomes ------------------------------------------------------------------------------------------------------


@given(st.lists(ANSWERS | FAILURES, max_size=8))
def test_outcomes_are_kept_exactly(outcomes: list[Outcome]) -> None:
    """Every value, cost and time of every answer is kept exactly, whatever JSON can carry, in row order."""
    kept = report_of(outcomes).outcomes
    assert exactly(list(kept)) == exactly(outcomes)
    assert exactly([kept[number] for number in range(len(kept))]) == exactly(outcomes)
    assert len(kept) == len(outcomes)
    assert list(kept.failures()) == [found if isinstance(found, Failure) else None for found in outcomes]


@given(st.lists(ANSWERS | FAILURES, max_size=8), st.slices(8))
def test_outcomes_are_a_sequence(outcomes: list[Outcome], part: slice) -> None:
    """They can be sliced, indexed from the end, searched and compared."""
    kept = report_of(outcomes).outcomes
    assert exactly(kept[part]) == exactly(outcomes[part])
    assert kept == outcomes
    assert kept != [*outcomes, Failure("refused", "one more")]
    if outcomes:
        assert exactly(kept[-1]) == exactly(outcomes[-1])
        assert kept.index(outcomes[0]) == 0
    with pytest.raises(IndexError):
        kept[len(outcomes)]


def test_rows_with_one_prompt_share_its_outcome() -> None:
    """Many rows may point to one answer; it is kept once and shown for each."""
    answer, failure = Answer({"a": 1}, "m"), Failure("prompt", "no text")
    outcomes = Outcomes([bytes(16), failure, bytes(16)], run_state_of([answer]).outcomes)
    assert list(outcomes) == [answer, failure, answer]
    assert list(outcomes.failures()) == [None, failure, None]


def test_outcomes_of_a_fallback_replace_failures() -> None:
    """The fallback's outcomes replace those of the first model; the first report stays unchanged."""
    answer, gone = Answer({"a": 1}, "m"), Failure("unreachable", "down")
    first, rest = [answer, gone, gone], [Failure("refused", "no"), Answer({"a": 2}, "other")]
    outcomes = report_of(first).outcomes
    assert list(outcomes.with_others([1, 2], report_of(rest, 100).outcomes)) == [answer, *rest]
    assert list(outcomes) == first


# -- report --------------------------------------------------------------------------------------------------------


def test_values_are_columns_in_row_order() -> None:
    """Each output column has one value for each row; failed rows and missing fields are None."""
    report = report_of([Answer({"a": 1, "b": "x"}, "m"), Failure("refused", "no"), Answer({"b": None, "c": 7}, "m")])
    assert report.values() == {"a": [1, None, None], "b": ["x", None, None]}
    assert report.column("a") == [1, None, None]
    with pytest.raises(KeyError):
        report.column("c")
    assert report_of([]).values() == {"a": [], "b": []}


def test_errors_have_reason_and_detail() -> None:
    """Equal errors are counted together."""
    failures = [Failure("refused", "filter"), Failure("invalid", "a: missing"), Failure("refused", "filter")]
    report = report_of([failures[0], Answer({}, "m"), *failures[1:]])
    assert report.errors() == ["refused: filter", None, "invalid: a: missing", "refused: filter"]
    assert report.failures == {"refused: filter": 2, "invalid: a: missing": 1}
    assert report.error_rate == 0.75
    assert report_of([]).error_rate == 0


def test_models_are_counted_by_rows() -> None:
    """The report counts the rows that each model answered, without failures."""
    answers = [Answer({}, "small"), Failure("refused", "no"), Answer({}, "large"), Answer({}, "small")]
    assert report_of(answers).models == {"small": 2, "large": 1}


def test_run_with_fallback_is_reported_as_one() -> None:
    """Rows, spend and time of both parts are added; rows that the fallback answered have not failed."""
    answers, gone = [Answer({"a": 1}, "m"), Answer({"a": 2}, "n")], Failure("unreachable", "down")
    first = report_of([answers[0], gone, gone], stopped_by=FatalError("gone"))
    report = first.merge_rest([1, 2], report_of([answers[1], Failure("refused", "no")], 100))
    progress = report.progress
    assert report.column("a") == [1, 2, None]
    assert (progress.rows_total, progress.rows_done, progress.rows_failed, progress.elapsed_s) == (3, 3, 1, 4.0)
    assert report.stopped_by is None


# -- progress ------------------------------------------------------------------------------------------------------


def progress(total: int, done: int, *, reused: int = 0, unaskable: int = 0, usd: str | None = "1") -> Progress:
    """Progress ten seconds into a run."""
    spend = Spend(usd=None if usd is None else Decimal(usd))
    return Progress(total, done, reused, unaskable, spend, 10.0, unaskable)


def test_total_cost_is_spent_plus_reused() -> None:
    """It is never less than the spend, includes failed rows, and is unknown if a part of it is."""
    run_state = run_state_of([])
    run_state.reuse({bytes([1] * 16): Answer({"a": 1}, "m", cost_usd=Decimal("0.25"))})
    run_state.reuse({bytes([2] * 16): Failure("invalid", "no", cost_usd=Decimal("0.5"))})
    assert (run_state.progress.reused_usd, run_state.progress.cost_usd_total) == (Decimal("0.75"), Decimal("0.75"))
    paid = replace(run_state.progress, spend=Spend(calls=3, usd=Decimal(2)))
    assert paid.cost_usd_total == Decimal("2.75")
    assert paid.merge_rest(paid).cost_usd_total == Decimal("5.5")
    assert replace(paid, spend=Spend(calls=3)).cost_usd_total is None
    run_state.reuse({bytes([3] * 16): Answer({"a": 1}, "m")})
    assert run_state.progress.cost_usd_total is None


def test_forecast_extrapolates_the_cost_per_row() -> None:
    """A quarter of the rows at 1 USD forecasts 4 USD in the end."""
    assert progress(100, 25).forecast_usd == 4
    assert progress(100, 100).forecast_usd == 1
    assert progress(100, 25, usd="0").forecast_usd == 0


def test_reused_and_unaskable_rows_do_not_affect_the_forecast() -> None:
    """They cost neither money nor time, and say nothing about others."""
    assert progress(100, 75, reused=50).forecast_usd == 2
    assert progress(100, 75, unaskable=50).forecast_usd == 2
    assert progress(100, 75, unaskable=50).rows_per_s == 2.5
    assert progress(100, 75, reused=50).remaining_s == 10
    assert progress(100, 75, unaskable=50).remaining_s == 10


def test_no_forecast_before_the_first_row() -> None:
    """Without a row, a price or time there is no forecast."""
    assert progress(100, 0).forecast_usd is None
    assert progress(100, 50, reused=50).forecast_usd is None
    assert progress(100, 50, unaskable=50).forecast_usd is None
    assert progress(100, 25, usd=None).forecast_usd is None
    assert progress(100, 0).remaining_s is None
    assert Progress(1, 1, 0, 0, Spend(), 0.0).rows_per_s == 0


@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_forecast_is_exact_for_equal_rows(asked: int, rest: int, reused: int, unaskable: int) -> None:
    """Rows at a cent each are forecast at a cent each, however many were reused or cannot be asked."""
    total, done = asked + rest + reused + unaskable, asked + reused + unaskable
    forecast = progress(total, done, reused=reused, unaskable=unaskable, usd=f"{asked / 100:.2f}").forecast_usd
    assert forecast == pytest.approx(Decimal(asked + rest) / 100)


@given(st.lists(st.tuples(st.sampled_from(["ask", "reuse", "unaskable"]), ANSWERS | FAILURES), max_size=20))
def test_run_state_counts_every_row_once(happened: list[tuple[str, Outcome]]) -> None:
    """Done, reused, failed and left add up to the rows; duplicates count as often as they occur."""
    copies = {number.to_bytes(16): number % 3 + 1 for number in range(len(happened))}
    unaskable = sum(what == "unaskable" for what, _ in happened)
    rows = sum(copies[n.to_bytes(16)] for n, (what, _) in enumerate(happened) if what != "unaskable") + unaskable
    reported: list[Progress] = []
    run_state = RunState(rows, copies, CostTracker(None), lambda: 1.0, reported.append, unaskable=unaskable)
    for number, (what, outcome) in enumerate(happened):
        key = number.to_bytes(16)
        if what == "reuse":
            run_state.reuse({key: outcome})
        elif what == "ask":
            run_state.settle([(key, outcome)])
        run_state.report_progress()
    assert run_state.rows_left == 0
    counts = run_state.progress
    asked = [(copies[n.to_bytes(16)], what, found) for n, (what, found) in enumerate(happened) if what != "unaskable"]
    assert counts.rows_done == rows
    assert counts.rows_unaskable == unaskable
    assert counts.rows_reused == sum(rows for rows, what, _ in asked if what == "reuse")
    assert counts.rows_failed == unaskable + sum(rows for rows, _, found in asked if isinstance(found, Failure))
    assert run_state.any_answer == any(isinstance(found, Answer) for *_, found in asked)
    done = [progress.rows_done for progress in reported]
    assert done == sorted(done)


# -- memory --------------------------------------------------------------------------------------------------------


def test_100_000_rows_take_350_bytes_each() -> None:
    """A row whose answer is 130 bytes of JSON takes less than 350, its key included; reading all adds nothing."""
    rows, rng = 100_000, random.Random(1)
    labels = ["positive", "negative", "neutral"]
    tracemalloc.start()
    try:
        run_state = RunState(rows, {}, CostTracker(None), lambda: 1.0, lambda _: None)
        for _ in range(rows // 100):
            answer = Answer({"label": rng.choice(labels), "why": "x" * 60}, "openai/gpt-4o-mini", request_id="req-1")
            run_state.settle([(rng.randbytes(16), answer) for _ in range(100)])
        outcomes = Outcomes(list(run_state.outcomes), run_state.outcomes)
        kept, _ = tracemalloc.get_traced_memory()
        for outcome in outcomes:
            assert isinstance(outcome, Answer)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 350 * rows
    assert after - kept < 100_000
    assert peak - kept < 100_000


def test_progress_shows_the_spend_of_the_tracker() -> None:
    """Progress shows what the calls have cost so far."""
    run_state = run_state_of([Answer({}, "m")], price=Price(Decimal(1), Decimal(1), Decimal(1)))
    run_state.tracker.sent()
    run_state.tracker.answered("ask", Usage(3, 0, 4))
    assert run_state.progress.spend.usd == 7
    assert run_state.progress.rows_per_s == 0.5
