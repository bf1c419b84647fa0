"""As many threads as have a processor for themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ondine_core.providers.processors import brief_spinning, core_count, measure_shares, thread_count


def machine(processors: float, others: int = 0) -> Callable[[int], list[float]]:
    """A measurement on a machine where so many other threads are always ready to run, and time is shared evenly."""
    return lambda threads: [min(1.0, processors / (threads + others))] * threads


@pytest.mark.parametrize(
    ("cores", "measure", "threads"),
    [
        (2, machine(2), 2),
        (2, machine(2, others=1), 1),
        (2, machine(2, others=5), 1),
        (8, machine(8), 8),
        (8, machine(8, others=2), 6),
        (64, machine(2), 2),  # a container that may use two of many processors
        (64, machine(0.5), 1),
        (1, machine(1, others=1), 1),
    ],
)
def test_each_thread_has_a_processor_for_itself(
    cores: int, measure: Callable[[int], list[float]], threads: int
) -> None:
    """All of a quiet machine, the rest of a busy one, and no more than a container is given."""
    assert thread_count(cores, measure) == threads


def test_one_thread_that_shares_its_processor_is_enough_to_take_fewer() -> None:
    """All would wait for it."""
    shares = {4: [0.5, 1.0, 1.0, 1.0], 3: [1.0, 1.0, 1.0]}
    assert thread_count(4, shares.__getitem__) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="The system cannot confine a thread to a processor.")
def test_threads_on_one_processor_are_measured_as_sharing_it() -> None:
    """The measurement is real: two busy threads that may only use one processor run for half of the time each."""

    def confined() -> tuple[int, list[float], int]:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return core_count(), measure_shares(2), thread_count(2, measure_shares)

    with ThreadPoolExecutor(1) as pool:
        cores, shares, threads = pool.submit(confined).result()
    assert cores == 1
    assert max(shares) < 0.8
    assert sum(shares) < 1.1
    assert threads == 1


@pytest.mark.slow
def test_the_library_spins_briefly_unless_the_user_chose() -> None:
    """OpenMP itself says what it read, and the variable is gone afterwards."""
    pytest.importorskip("xllamacpp", reason="the extra 'local' is not installed")
    assert openmp_says({}) == "10000"
    assert openmp_says({"GOMP_SPINCOUNT": "5"}) == "5"
    assert openmp_says({"OMP_WAIT_POLICY": "passive"}) == "0"


def openmp_says(chosen: dict[str, str]) -> str:
    """How often GNU's OpenMP spins in a process that loads the library as the provider does."""
    code = """
import os
from ondine_core.providers.processors import brief_spinning
before = dict(os.environ)
with brief_spinning(os.environ):
    import xllamacpp
assert dict(os.environ) == before
"""
    environment = os.environ | chosen | {"OMP_DISPLAY_ENV": "verbose"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lines = [line for line in said.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not lines:
        pytest.skip("The library does not use GNU's OpenMP here.")
    return lines[0].partition("=")[2].strip(" '")


def test_what_the_user_chose_is_left_alone() -> None:
    """A variable of OpenMP's that is set stays as it is, and none is added."""
    chosen = {"OMP_WAIT_POLICY": "active"}
    with brief_spinning(chosen):
        assert chosen == {"OMP_WAIT_POLICY": "active"}
    assert chosen == {"OMP_WAIT_POLICY": "active"}
