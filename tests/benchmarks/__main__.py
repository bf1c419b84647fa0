"""`python -m tests.benchmarks`: measure, print tables, and write `results.json`, `results.md` and `rows_per_s.svg`.

`python -m tests.benchmarks peers` measures other tools beside Ondine, and writes `peers.json` and `peers.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.findings import findings, table
from tests.benchmarks.peers.comparison import PEER_SCALES, SITUATIONS, Figures, clients, compare_peers, peers_table
from tests.benchmarks.plotting import plot
from tests.benchmarks.scenarios import SCENARIOS, Measured, Scale

_SCALES = {
    "tiny": Scale(200, 40, 400, 1, 100),
    "quick": Scale(6_000, 1_500, 60_000, 3),
    "full": Scale(20_000, 3_000, 1_000_000, 5),
}
_PACKAGES = ("aiohttp", "dagster", "litellm", "openai", "orjson", "pydantic")
_PEERS = "peers"


def main() -> int:
    """Run the requested scenarios; 0 if all of their targets are met."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    scenarios = f"one of {', '.join(SCENARIOS)}; all of them by default; or {_PEERS} alone"
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=scenarios)
    parser.add_argument("--scale", choices=_SCALES, default="quick", help="number of rows and of repetitions")
    parser.add_argument("--output", type=Path, default=Path("benchmark"), help="folder for the results")
    cache = Path(tempfile.gettempdir()) / "ondine-benchmark-peers"
    parser.add_argument("--environments", type=Path, default=cache, help="folder for the peers' environments")
    parser.add_argument("--situations", nargs="*", choices=SITUATIONS, default=list(SITUATIONS), help="for the peers")
    options = parser.parse_args()
    if options.scenarios == [_PEERS]:
        return _peers(options)
    if unknown := set(options.scenarios) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}, {_PEERS}")
    scale = _SCALES[options.scale]
    runs = list[Measured]()
    for name in options.scenarios or SCENARIOS:
        for run in SCENARIOS[name](scale):
            runs.append(run)
            sys.stderr.write(f"{run['scenario']}: {run['client']}, {run['rows_per_s']:,.0f} rows/s\n")
    found = list(findings(runs, scale))
    heads = "| what | median | spread | target | |\n|---|---|---|---|---|"
    report = "\n\n".join([_conditions(options.scale), table(runs), "\n".join([heads, *map(str, found)])]) + "\n"
    sys.stdout.write(report)
    options.output.mkdir(parents=True, exist_ok=True)
    written = {"runs": runs, "findings": [asdict(one) for one in found], "scale": asdict(scale)}
    (options.output / "results.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    (options.output / "results.md").write_text(report, encoding="utf-8")
    (options.output / "rows_per_s.svg").write_text(plot(runs), encoding="utf-8")
    return 0 if all(one.met for one in found) else 1


def _peers(options: argparse.Namespace) -> int:
    """Measure the peers; the exit code is always 0, because they have no targets."""
    scale = PEER_SCALES[options.scale]
    found = []
    for client in clients(options.environments):
        found.append(client)
        sys.stderr.write(f"{client.name}: {client.reason or client.python}\n")
    figures = {client.name: Figures() for client in found}
    for name, situation, run in compare_peers(found, scale, options.situations):
        sys.stderr.write(f"{situation}: {name}, {run}\n")
        figures[name].add(situation, run)
    report = f"{_machine(options.scale)}.\n\n{peers_table(found, figures, scale)}\n"
    sys.stdout.write(report)
    options.output.mkdir(parents=True, exist_ok=True)
    written = {name: asdict(measured) for name, measured in figures.items()}
    (options.output / "peers.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    (options.output / "peers.md").write_text(report, encoding="utf-8")
    return 0


def _conditions(scale: str) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return f"{_machine(scale)}, {versions}. A figure is the median of its runs, followed by their minimum and maximum."


def _machine(scale: str) -> str:
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{time.strftime('%Y-%m-%d')}, scale {scale!r}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"load {load} at the end"
    )


if __name__ == "__main__":
    sys.exit(main())
