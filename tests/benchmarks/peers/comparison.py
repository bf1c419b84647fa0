"""Measure each client in the same situations, and make one table of the results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from tests.benchmarks.peers.environments import REQUIREMENTS, EnvironmentMissingError, python_of
from tests.benchmarks.peers.job import Job
from tests.benchmarks.processes import ROOT, Server, pinned_core, serving

__all__ = ["PEER_SCALES", "SITUATIONS", "Client", "Figures", "PeerScale", "clients", "compare_peers", "peers_table"]

_LATENCY_MS, _CONCURRENCY = 50.0, 50
_WITHOUT_ENVIRONMENT = ("aiohttp", "Ondine")
_MAX_S = 240
_VARIABLES = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NEMO_TELEMETRY_ENABLED": "false",
    "TELEMETRY_ENABLED": "false",
    "OPENAI_API_KEY": "no-key",
    "TIKTOKEN_CACHE_DIR": str(ROOT / "ondine_core" / "providers" / "model_data" / "encodings"),
    # No server listens there, so requests to other machines fail at once.
    "HTTPS_PROXY": "http://127.0.0.1:9",
}
"""Telemetry off, no downloads, and an invalid key."""


@dataclass(frozen=True)
class PeerScale:
    """Number of rows and repetitions.

    Args:
        rows: Rows of a timed run.
        few_rows: Rows of a run whose calls are counted.
        repetitions: Repetitions of the timed run.
    """

    rows: int
    few_rows: int
    repetitions: int


PEER_SCALES = {"tiny": PeerScale(200, 100, 1), "quick": PeerScale(2_000, 600, 1), "full": PeerScale(5_000, 2_000, 5)}


@dataclass(frozen=True)
class Client:
    """A client and the Python that runs it, or the reason why it could not be installed."""

    name: str
    python: Path | None
    reason: str = ""


Measured: TypeAlias = dict[str, Any]


@dataclass
class Figures:
    """The measurements of a client: the runs of each situation, and the reason of each failure."""

    runs: dict[str, list[Measured]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, situation: str, run: Measured | str) -> None:
        """Record a measurement of a situation, or the reason of its failure."""
        if isinstance(run, str):
            self.failures[situation] = run
        else:
            self.runs.setdefault(situation, []).append(run)

    def median(self, situation: str, name: str) -> float | None:
        """The median of a figure."""
        values = [run[name] for run in self.runs.get(situation, ())]
        return median(values) if values else None

    def shown(self, situation: str, name: str, form: str = ",.0f") -> str:
        """The median of a figure as the table shows it."""
        value = self.median(situation, name)
        if value is not None:
            return format(value, form)
        return "failed" if situation in self.failures else "-"


def clients(folder: Path, requirements: Mapping[str, Sequence[str]] = REQUIREMENTS) -> Iterator[Client]:
    """The bare loop, Ondine, and each peer; the peers' environments are made in `folder` unless they exist."""
    for name in _WITHOUT_ENVIRONMENT:
        yield Client(name, Path(sys.executable))
    for name, wanted in requirements.items():
        try:
            yield Client(name, python_of(name, wanted, folder))
        except EnvironmentMissingError as error:
            yield Client(name, None, str(error))


class _ClientError(Exception):
    """A client failed; the text is the last line of its output."""


@contextmanager
def _started(client: Client, job: Job) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Start a client; yields its process and output file, and kills it at the end of the block."""
    command = [str(client.python), "-m", "tests.benchmarks.peers.peer_client", client.name]
    printed = Path(job.folder) / "printed.txt"
    with (
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile("w+") as errors,
        printed.open("w", encoding="utf-8") as output,
    ):
        json.dump({"job": asdict(job), "core": pinned_core(-1)}, given)
        given.seek(0)
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **_VARIABLES, "HOME": job.folder},
            stdin=given,
            stdout=output,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            yield process, printed
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        errors.seek(0)
        lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
        if process.returncode not in (0, -signal.SIGKILL):
            raise _ClientError(lines[-1] if lines else f"it ended with {process.returncode}")


def _run(client: Client, job: Job, server: Server) -> Measured:
    server.stats()
    with _started(client, job) as (process, printed):
        try:
            process.wait(timeout=_MAX_S)
        except subprocess.TimeoutExpired:
            raise _ClientError(f"it took more than {_MAX_S} s") from None
    result: Measured = json.loads(printed.read_text(encoding="utf-8").strip().splitlines()[-1])
    if result["wrong"]:
        raise _ClientError(f"{result['wrong']} rows of {job.rows} have a wrong answer")
    stats = server.stats()
    result["calls"] = stats["requests"] - stats["refused"]
    result["rows_per_s"] = job.rows / result["took_s"]
    result["cpu_ms_per_row"] = 1000 * result["cpu_s"] / job.rows
    return result | {"peak_in_flight": stats["peak_in_flight"], "refused": stats["refused"]}


@contextmanager
def _job(server: Server, rows: int, **more: Any) -> Iterator[Job]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        store = str(Path(folder) / "answers.db")
        yield Job(server.base_url, rows, _CONCURRENCY, store=store, folder=folder, **more)


def _speed(client: Client, scale: PeerScale) -> Measured:
    with serving(_LATENCY_MS) as server, _job(server, scale.rows) as job:
        return _run(client, job, server)


def _duplicates(client: Client, scale: PeerScale) -> Measured:
    with serving(_LATENCY_MS) as server, _job(server, scale.few_rows, distinct=scale.few_rows // 2) as job:
        return _run(client, job, server)


def _changed(client: Client, scale: PeerScale) -> Measured:
    with serving(_LATENCY_MS) as server, _job(server, scale.few_rows) as job:
        _run(client, job, server)
        return _run(client, replace(job, changed=True), server)


def _refused(client: Client, scale: PeerScale) -> Measured:
    with serving(_LATENCY_MS, refuse_each=100) as server, _job(server, scale.few_rows) as job:
        return _run(client, job, server)


def _killed(client: Client, scale: PeerScale) -> Measured:
    """Kill the client when 60 % of the calls are sent, then run it again."""
    with serving(_LATENCY_MS) as server, _job(server, scale.few_rows) as job:
        server.stats()
        with _started(client, job) as (process, _):
            while process.poll() is None and _requests(server) < 0.6 * job.rows:
                time.sleep(0.005)
        time.sleep(4 * _LATENCY_MS / 1000)  # the replies in flight are discarded
        before = _requests(server)
        result = _run(client, job, server)
    return result | {"paid_again": before + result["calls"] - job.rows}


def _requests(server: Server) -> int:
    with urllib.request.urlopen(f"{server.base_url}/stats") as response:  # noqa: S310  (our own, on the loopback)
        return int(json.load(response)["requests"])


SITUATIONS: dict[str, Callable[[Client, PeerScale], Measured]] = {
    "speed": _speed,
    "refused": _refused,
    "duplicates": _duplicates,
    "changed": _changed,
    "killed": _killed,
}
"""`speed` is shown as the median of several runs, the others as one run."""


def compare_peers(
    found: Sequence[Client], scale: PeerScale, situations: Sequence[str] = tuple(SITUATIONS)
) -> Iterator[tuple[str, str, Measured | str]]:
    """Measure the clients in turn; yields client, situation, and the measurement or the reason of its failure."""
    for situation in situations:
        for _ in range(scale.repetitions if situation == "speed" else 1):
            for client in found:
                if client.python is None:
                    continue
                try:
                    yield client.name, situation, SITUATIONS[situation](client, scale)
                except _ClientError as error:
                    yield client.name, situation, str(error)


_HEADER = (
    "client",
    "rows/s",
    "relative to aiohttp",
    "CPU ms/row",
    "peak MiB",
    "calls for {few} rows, {half} different",
    "calls after one row changed",
    "rows/s, 1 % refused",
    "rows lost, 1 % refused",
    "paid again after `kill -9`",
)


def peers_table(found: Sequence[Client], figures: Mapping[str, Figures], scale: PeerScale) -> str:
    """A Markdown table with a line for each client, followed by missing and failed measurements with their reasons."""
    header = [head.format(few=f"{scale.few_rows:,}", half=f"{scale.few_rows // 2:,}") for head in _HEADER]
    bare = figures["aiohttp"].median("speed", "rows_per_s") if "aiohttp" in figures else None
    lines = [header, ["---"] * len(header)]
    notes = []
    for client in found:
        if client.python is None:
            notes.append(f"- {client.name} is left out because it cannot be installed: {client.reason}")
            continue
        known = figures.get(client.name, Figures())
        lines.append(_line(client.name, known, bare))
        notes += [f"- {client.name} failed ({situation}): {why}" for situation, why in known.failures.items()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, "\n".join(notes)]) if notes else table


def _line(name: str, known: Figures, bare: float | None) -> list[str]:
    rate = known.median("speed", "rows_per_s")
    versions = {run["version"] for runs in known.runs.values() for run in runs}
    changed = known.shown("changed", "calls")
    return [
        " ".join([name, *sorted(versions)]),
        known.shown("speed", "rows_per_s"),
        f"{rate / bare:.2f}" if rate and bare else "-",
        known.shown("speed", "cpu_ms_per_row", ".2f"),
        known.shown("speed", "peak_rss_mib"),
        known.shown("duplicates", "calls"),
        f"{changed}, with the old row" if known.median("changed", "lost") else changed,
        known.shown("refused", "rows_per_s"),
        known.shown("refused", "lost"),
        known.shown("killed", "paid_again"),
    ]
