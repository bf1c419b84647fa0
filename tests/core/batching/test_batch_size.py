from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondine_core.batching.batch_size import AdaptiveSize, adapt, start_size, take_rows
from ondine_core.errors import ConfigError

Owed = Callable[[int], int]
Latency = Callable[[int], float]


def sizes(calls: int, owed: Owed, latency_s: Latency = lambda _: 1.0, in_flight: int = 1, **start: float) -> list[int]:
    """The sizes of calls to a model, in order, with so many in flight, first out as first in."""
    size: AdaptiveSize = start_size(**start)
    taken: list[int] = []
    under_way: deque[int] = deque()
    while len(taken) < calls:
        while len(under_way) < in_flight:
            rows, size = take_rows(size)
            under_way.append(rows)
            taken.append(rows)
        rows = under_way.popleft()
        size = adapt(size, rows=rows, owed=owed(rows), latency_s=latency_s(rows))
    return taken


def healthy(_: int) -> int:
    return 0


def fails_above(limit: int) -> Owed:
    return lambda rows: rows if rows > limit else 0


WORKERS = st.sampled_from([1, 2, 8, 32])
REPLIES = st.lists(st.tuples(st.integers(1, 120), st.floats(0, 1), st.floats(0, 200)), max_size=80)


@given(st.integers(1, 120), st.floats(1, 100), REPLIES)
def test_it_stays_within_bounds(most: int, timeout_s: float, replies: list[tuple[int, float, float]]) -> None:
    """Whatever is told of calls, also such that never left, the next has at least one row and at most the most."""
    size = start_size(most, timeout_s)
    for rows, share, latency_s in replies:
        taken, size = take_rows(size)
        assert 1 <= taken <= most
        size = adapt(size, rows=rows, owed=round(rows * share), latency_s=latency_s)


@settings(deadline=None)
@given(WORKERS, st.integers(1, 100))
def test_a_healthy_model_soon_gets_the_most(in_flight: int, most: int) -> None:
    """From ten rows to a hundred it takes five calls in turn, or six rounds of calls at once."""
    taken = sizes(8 * in_flight, healthy, in_flight=in_flight, most=most)
    assert all(rows == most for rows in taken[5 if in_flight == 1 else 7 * in_flight :])
    assert taken == sorted(taken) or in_flight > 1


@settings(deadline=None)
@given(WORKERS, st.integers(1, 99))
def test_it_settles_below_what_a_model_can_take(in_flight: int, limit: int) -> None:
    """A model that fails above k rows gets between k/2 and k of them in all but a few calls."""
    taken = sizes(40 * in_flight + 400, fails_above(limit), in_flight=in_flight)
    settled = taken[6 * in_flight :]
    assert sum(limit / 2 <= rows <= limit for rows in settled) >= 0.95 * len(settled)


@settings(deadline=None)
@given(WORKERS, st.integers(1, 99))
def test_few_rows_are_asked_in_vain(in_flight: int, limit: int) -> None:
    """Once the size has settled, at most every twentieth row is asked in a call that is too large."""
    settled = sizes(40 * in_flight + 400, fails_above(limit), in_flight=in_flight)[6 * in_flight :]
    assert sum(rows for rows in settled if rows > limit) <= 0.05 * sum(settled)


@settings(deadline=None)
@given(WORKERS, st.integers(10, 99))
def test_only_one_call_at_a_time_tries_more(in_flight: int, limit: int) -> None:
    """However many calls are in flight, at most one of them is larger than what has proved itself."""
    size = start_size()
    under_way: deque[int] = deque()
    for _ in range(300):
        while len(under_way) < in_flight:
            rows, size = take_rows(size)
            under_way.append(rows)
        assert sum(rows > size.rows for rows in under_way) <= 1
        rows = under_way.popleft()
        size = adapt(size, rows=rows, owed=fails_above(limit)(rows), latency_s=1.0)


@settings(deadline=None)
@given(WORKERS, st.floats(0, 10), st.floats(0.01, 2), st.floats(30, 300))
def test_latency_stays_under_its_bound(in_flight: int, fixed_s: float, row_s: float, timeout_s: float) -> None:
    """With a model that takes longer for more rows, no call but the first ones takes more than half the time-out."""
    taken = sizes(30 * in_flight, healthy, lambda rows: fixed_s + rows * row_s, in_flight, timeout_s=timeout_s)
    slow = [rows for rows in taken[6 * in_flight :] if fixed_s + rows * row_s > timeout_s / 2]
    assert not slow


@settings(deadline=None)
@given(WORKERS, st.floats(0, 5), st.floats(0.1, 2))
def test_latency_that_is_allowed_is_used(in_flight: int, fixed_s: float, row_s: float) -> None:
    """The bound on latency costs at most a fifth of the rows that could travel within it."""
    taken = sizes(40 * in_flight, healthy, lambda rows: fixed_s + rows * row_s, in_flight, timeout_s=120)
    assert taken[-1] >= 0.8 * min(100, int((60 - fixed_s) / row_s)) - 1


@pytest.mark.parametrize("in_flight", [1, 8, 32])
@pytest.mark.parametrize("share", [0.01, 0.02, 0.03])
def test_chance_does_not_shrink_it(in_flight: int, share: float) -> None:
    """A model that spoils a few replies, however many rows they have, still gets many of them."""
    rng = random.Random(in_flight)
    taken = sizes(3000, lambda rows: rows if rng.random() < share else 0, in_flight=in_flight)
    assert sum(taken) / len(taken) >= 80


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_rows_that_are_at_fault_themselves_do_not_shrink_it(share: float) -> None:
    """A row whose answer is not valid whatever the size is no reason for another size."""
    rng = random.Random(1)
    taken = sizes(1000, lambda rows: sum(rng.random() < share for _ in range(rows)))
    assert sum(taken) / len(taken) >= 95


@pytest.mark.parametrize("in_flight", [1, 8])
def test_it_recovers(in_flight: int) -> None:
    """After an outage that brought it down to one row it is back at the most within sixty calls a worker."""
    replies = 0

    def outage(rows: int) -> int:
        nonlocal replies
        replies += 1
        return rows if 100 < replies <= 200 else 0

    taken = sizes(200 + 60 * in_flight, outage, in_flight=in_flight)
    assert taken[200] == 1
    assert taken[-1] == 100


def test_a_probe_that_is_never_heard_of_is_tried_again() -> None:
    """A larger batch may have been cut down by the window; when there is room again, the size grows again."""
    size = adapt(start_size(), rows=10, owed=0)
    rows, size = take_rows(size)
    assert rows == 20
    for _ in range(100):
        assert take_rows(size)[0] == 10
        size = adapt(size, rows=10, owed=0)
    assert take_rows(size)[0] == 20


def test_replies_to_smaller_calls_do_not_make_it_grow() -> None:
    """What went well with few rows says nothing about more."""
    size = start_size()
    for _ in range(50):
        size = adapt(size, rows=9, owed=0)
    assert take_rows(size)[0] == 10


def test_calls_that_left_before_it_shrank_do_not_shrink_it_again() -> None:
    """Thirty calls that fail together are one piece of evidence."""
    size = start_size()
    for _ in range(30):
        size = adapt(size, rows=10, owed=10)
    assert size.rows == 5


def test_there_is_no_size_below_one() -> None:
    """The error says so."""
    with pytest.raises(ConfigError, match="is 0; it must be at least 1"):
        start_size(0)
