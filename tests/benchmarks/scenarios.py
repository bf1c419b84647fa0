"""The scenarios. In each repetition all clients run one after another, so that a disturbance affects all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from tests.benchmarks.processes import Server, run_client, serving
from tests.benchmarks.workload import Workload
from tests.support.latency import latency_proxy
from tests.support.postgres import server as database_server

__all__ = ["SCENARIOS", "Measured", "Scale"]

LATENCY_MS = 50.0


@dataclass(frozen=True)
class Scale:
    """Number of rows and repetitions.

    Args:
        rows: Rows of a run.
        slow_rows: Rows of a run of a client that is ten times slower.
        many_rows: Rows of the long run.
        repetitions: Repetitions of each scenario.
        limit: Requests a second in the scenarios with a limit.
    """

    rows: int
    slow_rows: int
    many_rows: int
    repetitions: int
    limit: int = 300


Measured: TypeAlias = dict[str, Any]
"""One run: `scenario`, `client`, `repetition`, and the figures."""


@contextmanager
def _fresh_store() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "answers.db")


def _run(name: str, work: Workload, server: Server | None = None) -> Measured:
    with _fresh_store() as store:
        return run_client(name, replace(work, store=store), server)


def compare(scale: Scale) -> Iterator[Measured]:
    """All clients with 256 calls in flight, one row a call and structured output; Ondine with a store."""
    yield from _in_turn(scale, "one row a call", ("aiohttp", "ondine", "step", "openai", "litellm"), 256)


def compare_few(scale: Scale) -> Iterator[Measured]:
    """The bare loop and Ondine with 50 calls in flight, where latency limits the speed to 1,000 rows a second."""
    yield from _in_turn(scale, "50 in flight", ("aiohttp", "ondine"), 50)


def _in_turn(scale: Scale, scenario: str, clients: tuple[str, ...], concurrency: int) -> Iterator[Measured]:
    with serving(LATENCY_MS) as server:
        for repetition in range(scale.repetitions):
            for client in clients:
                rows = scale.slow_rows if client.startswith(("openai", "litellm")) else scale.rows
                found = _run(client, Workload(server.base_url, rows, concurrency), server)
                yield {"scenario": scenario, "client": client, "repetition": repetition, **found}


def anthropic(scale: Scale) -> Iterator[Measured]:
    """Anthropic's messages API, by our own client and by litellm, with 256 calls in flight."""
    yield from _in_turn(scale, "Anthropic", ("ondine to Claude", "litellm to Claude"), 256)


def observers(scale: Scale) -> Iterator[Measured]:
    """Ondine with all observers, and without any."""
    yield from _in_turn(scale, "observers", ("ondine", "observed"), 256)


def batches(scale: Scale) -> Iterator[Measured]:
    """Twenty rows a call and one row a call, at the same concurrency."""
    with serving(LATENCY_MS) as server:
        for repetition in range(scale.repetitions):
            for size in (1, 20):
                work = Workload(server.base_url, scale.rows // 20 * size, 32, size)
                found = _run("ondine", work, server)
                yield {"scenario": "batches", "client": f"{size} a call", "repetition": repetition, **found}


def cached(scale: Scale) -> Iterator[Measured]:
    """A run that finds all its answers in the store."""
    with serving(1) as server:
        for repetition in range(scale.repetitions):
            with _fresh_store() as store:
                work = Workload(server.base_url, 20 * scale.rows, 64, 50, store)
                run_client("ondine", work, server)
                found = run_client("ondine", work, server)
            yield {"scenario": "cached", "client": "ondine", "repetition": repetition, **found}


def stores(scale: Scale) -> Iterator[Measured]:
    """The store alone, with one answer a call and with twenty."""
    for repetition in range(scale.repetitions):
        for size in (1, 20):
            found = _run("store", Workload("", 2 * scale.rows * size, 256, size))
            yield {"scenario": "store", "client": f"{size} a call", "repetition": repetition, **found}


def distant_store(scale: Scale) -> Iterator[Measured]:
    """Answers stored in a local Postgres, and in one that is 20 ms away."""
    with serving(LATENCY_MS) as provider:
        for repetition in range(scale.repetitions):
            for client, round_trip_s in (("local Postgres", 0.0), ("Postgres 20 ms away", 0.02)):
                with latency_proxy(database_server().port, round_trip_s) as proxy:
                    url = database_server().new_database().replace(f":{database_server().port}/", f":{proxy.port}/")
                    found = run_client("ondine", Workload(provider.base_url, scale.rows, 256, store=url), provider)
                yield {"scenario": "distant store", "client": client, "repetition": repetition, **found}


def limits(scale: Scale) -> Iterator[Measured]:
    """A limit that the provider enforces, configured for the client or not."""
    rows = max(scale.limit, min(scale.rows, 20 * scale.limit))
    for repetition in range(scale.repetitions):
        for client, configured, in_flight in (
            ("configured", scale.limit, 256),
            ("unconfigured", None, 256),
            ("unconfigured, 50 in flight", None, 50),
        ):
            with serving(LATENCY_MS, limit=scale.limit) as server:
                found = _run("ondine", Workload(server.base_url, rows, in_flight, requests_per_s=configured), server)
            yield {"scenario": "limit", "client": client, "repetition": repetition, **found}
        yield from _refusals(scale, repetition)


def _refusals(scale: Scale, repetition: int) -> Iterator[Measured]:
    """50 calls in flight, with all answered, and with one in a hundred refused with `Retry-After: 1`."""
    for client, refuse_each in (("all answered", 0), ("1 % refused", 100)):
        with serving(LATENCY_MS, refuse_each=refuse_each) as server:
            found = _run("ondine", Workload(server.base_url, scale.rows, 50), server)
        yield {"scenario": "refusals", "client": client, "repetition": repetition, **found}


def long_run(scale: Scale) -> Iterator[Measured]:
    """A run of few rows and one of very many, to compare rows a second and memory."""
    with serving(LATENCY_MS) as server:
        for client, rows in (("few rows", scale.rows), ("many rows", scale.many_rows)):
            found = _run("ondine", Workload(server.base_url, rows, 256), server)
            yield {"scenario": "many rows", "client": client, "repetition": 0, "rows": rows, **found}


def step_overhead(scale: Scale) -> Iterator[Measured]:
    """One row in an enrichment step and in a plain one, each as the first in its process and again as the second."""
    with serving(0) as server:
        for repetition in range(scale.repetitions):
            for client in ("plain step", "step twice"):
                found = _run(client, Workload(server.base_url, 1, 4), server)
                yield {"scenario": "step", "client": client, "repetition": repetition, **found}


def embedded(scale: Scale) -> Iterator[Measured]:
    """A model inside the process, compared with llama.cpp's own server; both use all processors."""
    rows = max(8, min(128, scale.rows // 100))
    for repetition in range(scale.repetitions):
        for client in ("llama.cpp", "embedded"):
            with _fresh_store() as store:
                found = run_client(client, Workload("", rows, 8, store=store), pinned=False)
            yield {"scenario": "embedded", "client": client, "repetition": repetition, **found}


SCENARIOS: dict[str, Callable[[Scale], Iterator[Measured]]] = {
    "compare": compare,
    "few": compare_few,
    "anthropic": anthropic,
    "observers": observers,
    "batches": batches,
    "cached": cached,
    "store": stores,
    "distant": distant_store,
    "limits": limits,
    "long": long_run,
    "step": step_overhead,
    "embedded": embedded,
}
