from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondine_core.batching.batch_size import AdaptiveSize, adapt, start_size, take_rows
from ondine_core.errors import ConfigError

Unanswered = Callable[[int], int]
Latency = Callable[[int], float]


def sizes(
    calls: int, unanswered: Unanswered, latency_s: Latency = lambda _: 1.0, in_flight: int = 1, **start: float
) -> list[int]:
    """The sizes of successive calls to a model with `in_flight` calls in flight, which end in the order they began."""
    size: AdaptiveSize = start_size(**start)
    taken: list[int] = []
    under_way: deque[int] = deque()
    while len(taken) < calls:
        while len(under_way) < in_flight:
            rows, size = take_rows(size)
            under_way.append(rows)
            taken.append(rows)
        rows = under_way.popleft()
        size = adapt(size, rows=rows, unanswered=unanswered(rows), latency_s=latency_s(rows))
    return taken


def healthy(_: int) -> int:
    return 0


def fails_above(limit: int) -> Unanswered:
    return lambda rows: rows if rows > limit else 0


WORKERS = st.sampled_from([1, 2, 8, 32])
REPLIES = st.lists(st.tuples(st.integers(1, 120), st.floats(0, 1), st.floats(0, 200)), max_size=80)


@given(st.integers(1, 120), st.floats(1, 100), REPLIES)
def test_size_stays_between_one_and_the_maximum(
    max_rows: int, timeout_s: float, replies: list[tuple[int, float, float]]
) -> None:
    """For any outcomes, also of calls that never left, the next size is at least 1 and at most the maximum."""
    size = start_size(max_rows, timeout_s)
    for rows, share, latency_s in replies:
        taken, size = take_rows(size)
        assert 1 <= taken <= max_rows
        size = adapt(size, rows=rows, unanswered=round(rows * share), latency_s=latency_s)


@settings(deadline=None)
@given(WORKERS, st.integers(1, 100))
def test_healthy_model_soon_gets_the_maximum(in_flight: int, max_rows: int) -> None:
    """From ten rows to a hundred it takes five sequential calls, or six rounds of concurrent calls."""
    taken = sizes(8 * in_flight, healthy, in_flight=in_flight, max_rows=max_rows)
    assert all(rows == max_rows for rows in taken[5 if in_flight == 1 else 7 * in_flight :])
    assert taken == sorted(taken) or in_flight > 1


@settings(deadline=None)
@given(WORKERS, st.integers(1, 99))
def test_size_settles_below_a_models_limit(in_flight: int, limit: int) -> None:
    """A model that fails above k rows gets between k/2 and k of them in all but a few calls."""
    taken = sizes(40 * in_flight + 400, fails_above(limit), in_flight=in_flight)
    settled = taken[6 * in_flight :]
    assert sum(limit / 2 <= rows <= limit for rows in settled) >= 0.95 * len(settled)


@settings(deadline=None)
@given(WORKERS, st.integers(1, 99))
def test_at_most_one_row_in_twenty_is_in_a_failing_call(in_flight: int, limit: int) -> None:
    """Once the size has settled, at most every twentieth row is in a call that is too large."""
    settled = sizes(40 * in_flight + 400, fails_above(limit), in_flight=in_flight)[6 * in_flight :]
    assert sum(rows for rows in settled if rows > limit) <= 0.05 * sum(settled)


@settings(deadline=None)
@given(WORKERS, st.integers(10, 99))
def test_one_call_at_a_time_probes_a_larger_size(in_flight: int, limit: int) -> None:
    """However many calls are in flight, at most one of them is larger than the proven size."""
    size = start_size()
    under_way: deque[int] = deque()
    for _ in range(300):
        while len(under_way) < in_flight:
            rows, size = take_rows(size)
            under_way.append(rows)
        assert sum(rows > size.rows for rows in under_way) <= 1
        rows = under_way.popleft()
        size = adapt(size, rows=rows, unanswered=fails_above(limit)(rows), latency_s=1.0)


@settings(deadline=None)
@given(WORKERS, st.floats(0, 10), st.floats(0.01, 2), st.floats(30, 300))
def test_latency_stays_under_its_bound(in_flight: int, fixed_s: float, row_s: float, timeout_s: float) -> None:
    """If more rows take longer, no call but the first ones takes more than half the time-out."""
    taken = sizes(30 * in_flight, healthy, lambda rows: fixed_s + rows * row_s, in_flight, timeout_s=timeout_s)
    slow = [rows for rows in taken[6 * in_flight :] if fixed_s + rows * row_s > timeout_s / 2]
    assert not slow


@settings(deadline=None)
@given(WORKERS, st.floats(0, 5), st.floats(0.1, 2))
def test_allowed_latency_is_used(in_flight: int, fixed_s: float, row_s: float) -> None:
    """The bound on latency costs at most a fifth of the rows that would fit within it."""
    taken = sizes(40 * in_flight, healthy, lambda rows: fixed_s + rows * row_s, in_flight, timeout_s=120)
    assert taken[-1] >= 0.8 * min(100, int((60 - fixed_s) / row_s)) - 1


@pytest.mark.parametrize("in_flight", [1, 8, 32])
@pytest.mark.parametrize("share", [0.01, 0.02, 0.03])
def test_random_failures_do_not_shrink_the_size(in_flight: int, share: float) -> None:
    """A model that spoils a few replies, whatever their size, still gets many rows a call."""
    rng = random.Random(in_flight)
    taken = sizes(3000, lambda rows: rows if rng.random() < share else 0, in_flight=in_flight)
    assert sum(taken) / len(taken) >= 80


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_bad_rows_do_not_shrink_the_size(share: float) -> None:
    """A row whose answer is invalid at any size does not change the size."""
    rng = random.Random(1)
    taken = sizes(1000, lambda rows: sum(rng.random() < share for _ in range(rows)))
    assert sum(taken) / len(taken) >= 95


@pytest.mark.parametrize("in_flight", [1, 8])
def test_size_recovers_after_an_outage(in_flight: int) -> None:
    """After an outage that reduced it to one row the size is at its maximum again within sixty calls a worker."""
    replies = 0

    def outage(rows: int) -> int:
        nonlocal replies
        replies += 1
        return rows if 100 < replies <= 200 else 0

    taken = sizes(200 + 60 * in_flight, outage, in_flight=in_flight)
    assert taken[200] == 1
    assert taken[-1] == 100


def test_probe_without_an_outcome_is_repeated() -> None:
    """A larger batch may have been cut down to fit the window; when there is room again, the size grows again."""
    size = adapt(start_size(), rows=10, unanswered=0)
    rows, size = take_rows(size)
    assert rows == 20
    for _ in range(100):
        assert take_rows(size)[0] == 10
        size = adapt(size, rows=10, unanswered=0)
    assert take_rows(size)[0] == 20


def test_success_of_smaller_calls_does_not_grow_the_size() -> None:
    """A success with few rows proves nothing about more."""
    size = start_size()
    for _ in range(50):
        size = adapt(size, rows=9, unanswered=0)
    assert take_rows(size)[0] == 10


def test_calls_sent_before_a_reduction_do_not_reduce_again() -> None:
    """Thirty calls that fail together count as one failure."""
    size = start_size()
    for _ in range(30):
        size = adapt(size, rows=10, unanswered=10)
    assert size.rows == 5


def test_size_below_one_is_refused() -> None:
    """The error says so."""
    with pytest.raises(ConfigError, match="is 0; it must be at least 1"):
        start_size(0)
