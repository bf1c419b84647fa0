"""Run third-party servers as processes on the loopback."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["free_port", "run_server"]

_START_TIMEOUT_S = 600.0


def free_port() -> int:
    """A port of the loopback without a listener."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def run_server(
    command: Sequence[str], ready_url: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run `command` until the block ends; the block begins when `ready_url` responds.

    Args:
        command: The command to run.
        ready_url: An address to which the server responds once it is up.
        log: A file for its output.
        environment: Its variables; by default those of this process.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent, env=environment)
    try:
        _wait_for(ready_url, process, log)
        yield
    finally:
        process.kill()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310
        except OSError:
            assert process.poll() is None, f"the server ended: {log.read_text(errors='replace')[-2000:]}"
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.2)
        else:
            return
