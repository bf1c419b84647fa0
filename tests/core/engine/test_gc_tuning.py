from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from ondine_core.engine.gc_tuning import rare_garbage_collection


@pytest.fixture(autouse=True)
def threshold() -> Iterator[None]:
    """Restore the thresholds after each test."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_gc_thresholds_are_restored_after_the_last_run() -> None:
    """During runs the collector runs rarely; after the last of several, in any order, the thresholds are as before."""
    gc.set_threshold(700, 11, 12)
    first, second = rare_garbage_collection(), rare_garbage_collection()
    first.__enter__()
    assert gc.get_threshold()[0] > 5_000
    assert gc.get_threshold()[1:] == (11, 12)
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold()[0] > 5_000
    second.__exit__(None, None, None)
    assert gc.get_threshold() == (700, 11, 12)


@pytest.mark.parametrize("own", [0, 1_000_000])
def test_gc_set_less_eager_by_the_user_is_kept(own: int) -> None:
    """A collector that is off, or set to run even less often, stays so during a run and after an error."""
    gc.set_threshold(own, 10, 10)
    seen = []

    def fail() -> None:
        with rare_garbage_collection():
            seen.append(gc.get_threshold())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [*seen, gc.get_threshold()] == [(own, 10, 10)] * 2
