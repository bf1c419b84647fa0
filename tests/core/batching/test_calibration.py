from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.batching.agreement import Agreement, Calibration, Values, compare, wilson
from ondine_core.batching.calibration import CalibrationPlan, CalibrationResult, calibrate, next_size, sample
from ondine_core.errors import ConfigError
from ondine_core.prompts.output_schema import Column, compile_schema
from ondine_core.types.values import Json, Key

KEYS = [number.to_bytes(16) for number in range(200)]
LABEL = compile_schema({"label": {"enum": ["a", "b"]}}).columns


# -- the interval --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agreed", "compared", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3; and the figures of the module's docstring.
    [
        *((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)),
        *((49, 50, 0.8950, 0.9965), (189, 189, 0.9801, 1.0)),
    ],
)
def test_interval_is_wilsons(agreed: int, compared: int, low: float, high: float) -> None:
    """It agrees with published figures to four places."""
    assert wilson(agreed, compared) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 500), st.integers(0, 500))
def test_interval_contains_the_share(agreed: int, more: int) -> None:
    """It lies within 0 and 1, contains the share, and is mirrored for the share of disagreeing rows."""
    compared = agreed + more
    low, high = wilson(agreed, compared)
    assert 0 <= low <= (agreed / compared if compared else 0.5) <= high <= 1
    assert low < high
    assert (1 - high, 1 - low) == pytest.approx(wilson(more, compared))


# -- the sample ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(1, 300), st.integers())
def test_sample_has_the_requested_size(keys: int, n: int, seed: int) -> None:
    """Its keys are distinct and in order, and the same for the same random seed."""
    chosen = sample(KEYS[:keys], n, random.Random(seed))
    assert len(chosen) == min(n, keys)
    assert chosen == [key for key in KEYS if key in set(chosen)]
    assert chosen == sample(KEYS[:keys], n, random.Random(seed))


# -- comparing -----------------------------------------------------------------------------------------------------


def agreements(
    alone: Sequence[Values], batched: Sequence[Values], columns: Sequence[Column]
) -> Mapping[str, Agreement]:
    found = compare(dict(zip(KEYS, alone, strict=False)), dict(zip(KEYS, batched, strict=False)), columns, 5)
    return {column.column: column for column in found.columns}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        *((1, 1, True), (1, 2, False), (1, 1.0, True), (0.1 + 0.2, 0.3, True), (1.0, 1.00001, False)),
        *((10**15, 10**15 + 1, False), (True, 1, False), (False, False, True), (0, None, False), (None, None, True)),
        *((" a\n", "a", True), ("a", "A", False), ("1", 1, False), ("", None, False)),
        *(([1, "a "], [1.0, "a"], True), ([1], [1, 1], False), ([1, 2], [2, 1], False)),
        *(({"x": [0.3]}, {"x": [0.1 + 0.2]}, True), ({"x": 1}, {"y": 1}, False), ({"x": 1}, {}, False)),
    ],
)
def test_values_that_agree(one: Json, other: Json, same: bool) -> None:
    """Numbers may differ in the last digits of a float, texts in surrounding space; any other difference disagrees."""
    columns = [Column("x", {"type": "integer"})]
    assert agreements([{"x": one}], [{"x": other}], columns)["x"].agreed == same
    assert agreements([{"x": other}], [{"x": one}], columns)["x"].agreed == same


def test_row_that_failed_in_one_of_the_two_disagrees() -> None:
    """A row answered only alone or only in a batch disagrees; a row without any answer does not count."""
    a: Values = {"label": "a"}
    found = agreements([a, a, None, None], [a, None, a, None], LABEL)["label"]
    assert (found.agreed, found.compared) == (1, 3)


MIXED = compile_schema(
    {
        "label": {"enum": ["a", "b"]},
        "day": {"type": "string", "format": "date"},
        "code": {"type": "string", "pattern": "^[A-Z]$"},
        "stars": "integer",
        "why": str,
        "topic": {"type": "string", "nullable": True},
        "tags": list[str],
        "parts": {"type": "array", "items": {"type": "object", "properties": {"name": "string"}}},
    }
).columns


def test_free_text_does_not_decide() -> None:
    """Free texts are reported but not decisive; columns with one right answer decide."""
    found = agreements([], [], MIXED)
    assert [name for name, column in found.items() if column.decides] == ["label", "day", "code", "stars"]


@pytest.mark.parametrize("output", ["summary", {"why": str, "tags": list[str]}])
def test_free_text_decides_if_there_is_no_other_column(output: Any) -> None:
    """Otherwise every batch size would pass unchecked."""
    found = agreements([], [], compile_schema(output).columns)
    assert all(column.decides for column in found.values())


# -- deciding ------------------------------------------------------------------------------------------------------


def calibration(agreed: int, compared: int, batch_size: int = 20) -> Calibration:
    other = Agreement("why", 0, compared, 0, 1, decides=False)
    good = Agreement("good", compared, compared, 0, 1)
    return Calibration(compared, batch_size, (other, Agreement("x", agreed, compared, 0, 1), good))


@pytest.mark.parametrize(
    ("agreed", "compared", "batch_size", "size"),
    [(49, 50, 20, None), (48, 50, 20, 10), (0, 50, 3, 1), (0, 50, 1, None), (0, 0, 20, None)],
)
def test_the_worst_column_decides(agreed: int, compared: int, batch_size: int, size: int | None) -> None:
    """If too few rows agree in any deciding column, half the size is tried next, down to 1."""
    assert next_size(calibration(agreed, compared, batch_size), 0.98) == size


def run(
    answers: Any, batch_size: int, plan: CalibrationPlan, keys: Sequence[Key] = KEYS
) -> tuple[CalibrationResult, list[int]]:
    """The result of calibrating with scripted answers, and the sizes that were asked."""
    sizes: list[int] = []

    async def ask(asked: Sequence[Key], size: int) -> Mapping[Key, Values]:
        sizes.append(size)
        return {key: answers(key, size) for key in asked if answers(key, size) is not None}

    chosen = sample(keys, max(plan.rows, batch_size), random.Random(0))
    found = asyncio.run(calibrate(ask, chosen, batch_size, LABEL, plan))
    return found, sizes


@given(st.integers(1, 120), st.integers(1, 60), st.integers(0, 200), st.integers(1, 100))
def test_calibrated_size_is_one_at_which_rows_agree(size: int, limit: int, keys: int, rows: int) -> None:
    """With answers that change above a limit, the size is at most the limit and at least half of it."""
    found, sizes = run(lambda _, at: {"label": "a" if at <= limit else "b"}, size, CalibrationPlan(rows), KEYS[:keys])
    largest_call = min(size, keys)
    assert found.batch_size <= size
    assert min(found.batch_size, largest_call) <= max(1, limit)
    if largest_call <= limit:
        assert found == CalibrationResult(size, found.calibrations)
    else:
        assert found.batch_size >= limit / 2
        assert found.complaint
        assert not found.stop
    assert sizes == sorted(sizes[:1]) + sorted(sizes[1:], reverse=True)
    assert [made.batch_size for made in found.calibrations] == sizes[1:]
    assert all(made.rows == min(keys, max(rows, size)) for made in found.calibrations)


def test_agreeing_size_costs_one_comparison() -> None:
    """Each sampled row is asked twice: alone and in a batch."""
    found, sizes = run(lambda *_: {"label": "a"}, 20, CalibrationPlan(50))
    assert sizes == [1, 20]
    assert found == CalibrationResult(20, (Calibration(50, 20, (Agreement("label", 50, 50, *wilson(50, 50)),)),))


def test_batch_size_of_one_is_not_calibrated() -> None:
    """There is nothing to compare."""
    assert run(lambda *_: {"label": "a"}, 1, CalibrationPlan(50)) == (CalibrationResult(1), [])


def test_run_without_rows_is_not_calibrated() -> None:
    """Its batch size is kept."""
    assert run(lambda *_: {"label": "a"}, 20, CalibrationPlan(50), []) == (CalibrationResult(20), [])


def test_on_disagreement_stop_raises() -> None:
    """With `"stop"` no smaller size is tried; the error says what was found and what to do."""
    plan = CalibrationPlan(50, on_disagreement="stop")
    found, sizes = run(lambda key, at: {"label": "b" if at > 1 and key[-1] % 2 else "a"}, 20, plan, KEYS[:50])
    assert found.stop
    assert sizes == [1, 20]
    assert found.complaint == (
        "With batch_size=20, column 'label' agrees in 25 of 50 rows (0.50, 95 % interval 0.37 to 0.63), which is less "
        "than min_agreement=0.98; lower batch_size or min_agreement, or set on_disagreement='lower'."
    )


def test_answers_missing_from_batches_count_as_disagreement() -> None:
    """A row that is answered alone and not in a batch disagrees, and the size goes down."""
    found, _ = run(lambda _, at: {"label": "a"} if at <= 5 else None, 20, CalibrationPlan(50))
    assert found.batch_size == 5
    assert found.complaint is not None
    assert found.complaint.endswith("batch_size=5 is used instead.")


def test_share_may_be_a_decimal() -> None:
    """As in the arguments of an asset."""
    assert CalibrationPlan(5, min_agreement=Decimal("0.9")).min_agreement == Decimal("0.9")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"rows": 0}, "calibrate=0 must be a whole number of at least 1"),
        ({"rows": "30"}, "calibrate='30' must be a whole number of at least 1"),
        ({"rows": 5, "min_agreement": "0.9"}, "min_agreement='0.9' is a share"),
        ({"rows": 5, "min_agreement": 98}, "min_agreement=98 is a share"),
        ({"rows": 5, "on_disagreement": "halt"}, "'halt'; valid are 'lower' and 'stop'"),
    ],
)
def test_invalid_plan_is_refused(plan: Mapping[str, Any], message: str) -> None:
    """The message names the setting and what is valid."""
    with pytest.raises(ConfigError, match=message):
        CalibrationPlan(**plan)
