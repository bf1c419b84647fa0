"""`python -m tests.benchmarks`: measure, print tables, and write `results.json`, `results.md` and `rows_per_s.svg`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.findings import findings, table
from tests.benchmarks.plotting import plot
from tests.benchmarks.scenarios import SCENARIOS, Measured, Scale

_SCALES = {
    "tiny": Scale(200, 40, 400, 1, 100),
    "quick": Scale(6_000, 1_500, 60_000, 3),
    "full": Scale(20_000, 3_000, 1_000_000, 5),
}
_PACKAGES = ("aiohttp", "dagster", "litellm", "openai", "orjson", "pydantic")


def main() -> int:
    """Run what was asked for; 0 if all of its targets are met."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(SCENARIOS)}; all by default")
    parser.add_argument("--scale", choices=_SCALES, default="quick", help="how many rows, and how often")
    parser.add_argument("--output", type=Path, default=Path("benchmark"), help="folder for the results")
    options = parser.parse_args()
    if unknown := set(options.scenarios) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    scale, runs = _SCALES[options.scale], list[Measured]()
    for name in options.scenarios or SCENARIOS:
        for run in SCENARIOS[name](scale):
            runs.append(run)
            sys.stderr.write(f"{run['scenario']}: {run['client']}, {run['rows_per_s']:,.0f} rows/s\n")
    found = list(findings(runs, scale))
    heads = "| what | median | spread | target | |\n|---|---|---|---|---|"
    report = "\n\n".join([_circumstances(options.scale), table(runs), "\n".join([heads, *map(str, found)])]) + "\n"
    sys.stdout.write(report)
    options.output.mkdir(parents=True, exist_ok=True)
    written = {"runs": runs, "findings": [asdict(one) for one in found], "scale": asdict(scale)}
    (options.output / "results.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    (options.output / "results.md").write_text(report, encoding="utf-8")
    (options.output / "rows_per_s.svg").write_text(plot(runs), encoding="utf-8")
    return 0 if all(one.met for one in found) else 1


def _circumstances(scale: str) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{time.strftime('%Y-%m-%d')}, scale {scale!r}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"load {load} at the end, {versions}. A figure is the median of its runs, then the least and the most of them."
    )


if __name__ == "__main__":
    sys.exit(main())
