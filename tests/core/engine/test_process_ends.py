"""Detection of a process's end, with real processes."""

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
    """A process that waits, and its own identity."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", TELL], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield process, Process(*map(float, process.stdout.readline().split()))
        process.kill()


def test_process_ends_when_it_is_killed(child: tuple[subprocess.Popen[str], Process]) -> None:
    """A suspended process runs; a killed one has ended, before and after its parent reaped it."""
    process, identity = child
    assert identity != this_process()
    assert not has_ended(identity)
    os.kill(process.pid, signal.SIGSTOP)
    assert not has_ended(identity)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(identity)
    process.wait()
    assert has_ended(identity)


def test_reused_process_id_is_another_process(child: tuple[subprocess.Popen[str], Process]) -> None:
    """The process with a reused id was started at another time."""
    _, identity = child
    assert has_ended(identity._replace(started_at=identity.started_at - 1))


def test_process_on_another_host_never_counts_as_ended() -> None:
    """On another machine or at an unknown place the same id proves nothing."""
    gone = this_process()._replace(id=2**22 + 1)
    assert has_ended(gone)
    assert not has_ended(gone._replace(host=gone.host + 2))
    assert not has_ended(gone._replace(host=0.0))


def test_process_identity_is_stable() -> None:
    """A process's own identity is the same each time, and counts as running."""
    assert this_process() == this_process()
    assert not has_ended(this_process())
