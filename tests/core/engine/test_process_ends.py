"""What can be known about the end of a process, with real ones."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ondine_core.types.processes import Process, has_ended, this_process

TELL = "from ondine_core.types.processes import this_process; print(*this_process(), flush=True); input()"


@pytest.fixture
def child() -> Iterator[tuple[subprocess.Popen[str], Process]]:
    """A process that waits, and how it calls itself."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", TELL], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield process, Process(*map(float, process.stdout.readline().split()))
        process.kill()


def test_process_ends_when_it_is_killed(child: tuple[subprocess.Popen[str], Process]) -> None:
    """It runs, also while it is suspended; killed it has ended, before and after its parent took notice."""
    process, told = child
    assert told != this_process()
    assert not has_ended(told)
    os.kill(process.pid, signal.SIGSTOP)
    assert not has_ended(told)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(told)
    process.wait()
    assert has_ended(told)


def test_id_that_is_used_again_is_another_process(child: tuple[subprocess.Popen[str], Process]) -> None:
    """Whoever has the id now was started at another time."""
    _, told = child
    assert has_ended(told._replace(started_at=told.started_at - 1))


def test_process_out_of_sight_has_never_ended() -> None:
    """On another machine, or at a place that is not known, the same id means nothing."""
    gone = this_process()._replace(id=2**22 + 1)
    assert has_ended(gone)
    assert not has_ended(gone._replace(place=gone.place + 2))
    assert not has_ended(gone._replace(place=0.0))


def test_process_knows_itself() -> None:
    """The same numbers each time, and it runs."""
    assert this_process() == this_process()
    assert not has_ended(this_process())
