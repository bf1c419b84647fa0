"""The number of threads that have a processor each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ondine_core.providers.processors import brief_spinning, core_count, measure_shares, thread_count


def machine(processors: float, others: int = 0) -> Callable[[int], list[float]]:
    """A measurement on a machine where `others` threads are always ready to run, and time is shared evenly."""
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
def test_threads_are_as_many_as_free_processors(
    cores: int, measure: Callable[[int], list[float]], threads: int
) -> None:
    """All of an idle machine, the rest of a busy one, and at most a container's share."""
    assert thread_count(cores, measure) == threads


def test_one_shared_processor_reduces_the_threads() -> None:
    """All other threads would wait for the slow one."""
    shares = {4: [0.5, 1.0, 1.0, 1.0], 3: [1.0, 1.0, 1.0]}
    assert thread_count(4, shares.__getitem__) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="The system cannot confine a thread to a processor.")
def test_threads_on_one_processor_are_measured_as_sharing_it() -> None:
    """With real threads: two on one processor are measured at half of the time each."""

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
def test_openmp_spins_briefly_by_default() -> None:
    """OpenMP reports the value it read, and the variable is removed afterwards."""
    pytest.importorskip("xllamacpp", reason="the extra 'local' is not installed")
    assert openmp_spin_count({}) == "10000"
    assert openmp_spin_count({"GOMP_SPINCOUNT": "5"}) == "5"
    assert openmp_spin_count({"OMP_WAIT_POLICY": "passive"}) == "0"


def openmp_spin_count(chosen: dict[str, str]) -> str:
    """GNU OpenMP's spin count in a process that loads the library as the provider does."""
    code = """
import os
from ondine_core.providers.processors import brief_spinning
before = dict(os.environ)
with brief_spinning(os.environ):
    import xllamacpp
assert dict(os.environ) == before
"""
    environment = os.environ | chosen | {"OMP_DISPLAY_ENV": "verbose"}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lines = [line for line in output.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not lines:
        pytest.skip("The library does not use GNU's OpenMP here.")
    return lines[0].partition("=")[2].strip(" '")


def test_openmp_variables_of_the_user_are_kept() -> None:
    """A variable that is set stays, and none is added."""
    chosen = {"OMP_WAIT_POLICY": "active"}
    with brief_spinning(chosen):
        assert chosen == {"OMP_WAIT_POLICY": "active"}
    assert chosen == {"OMP_WAIT_POLICY": "active"}
