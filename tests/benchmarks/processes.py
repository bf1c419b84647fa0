"""Start the provider and the clients, each in a process of its own and, where the system allows it, on its own core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.workload import Workload

__all__ = ["Server", "run_client", "serving"]

ROOT = Path(__file__).parents[2]
_MAX_S = 1800


def pinned_core(wanted: int) -> int:
    """One of the cores that this process may use, or -1 if there are too few or they are unknown."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores[wanted] if len(cores) > 1 else -1


@dataclass(frozen=True)
class Server:
    """A running provider."""

    base_url: str

    def stats(self) -> dict[str, Any]:
        """The server's figures since the last call of this method."""
        address = self.base_url.removesuffix("/v1")
        with urllib.request.urlopen(f"{address}/reset") as response:  # noqa: S310  (our own, on the loopback)
            found: dict[str, Any] = json.load(response)
        return found


@contextmanager
def serving(latency_ms: float, **limits: float) -> Iterator[Server]:
    """A provider that runs until the block ends."""
    settings = {"latency_ms": latency_ms, "core": pinned_core(0), **limits}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "tests.benchmarks.provider", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield Server(f"http://127.0.0.1:{int(process.stdout.readline())}/v1")
        finally:
            process.stdin.close()
            process.wait(10)


def run_client(name: str, work: Workload, server: Server | None = None, *, pinned: bool = True) -> dict[str, Any]:
    """Run a client in a fresh process and return its measurements, with the provider's under `server`.

    Args:
        name: Name of the client.
        work: What it is to do.
        server: The provider, if the client needs one.
        pinned: Whether the client is pinned to one core.

    Raises:
        RuntimeError: The client failed, or gave a row another row's answer.
    """
    if server:
        server.stats()
    given = {"work": asdict(work), "core": pinned_core(-1) if pinned else -1, "started": time.time()}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.client", name],
        cwd=ROOT,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=_MAX_S,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"The client {name!r} failed: {ran.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    if result["wrong"]:
        raise RuntimeError(f"The client {name!r} has {result['wrong']} wrong answers of {work.rows}.")
    return result | {"server": server.stats() if server else {}}
