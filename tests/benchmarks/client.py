"""Run one client in a process of its own: `python -m tests.benchmarks.client NAME`, with the workload as JSON on stdin.

The measurement is printed as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from typing import Any

from tests.benchmarks.workload import Workload, is_right

__all__ = ["main"]


def main() -> None:
    """Run the client and print its measurement."""
    given = json.load(sys.stdin)
    if given["core"] >= 0:
        os.sched_setaffinity(0, {given["core"]})
    work = Workload(**given["work"])
    from tests.benchmarks.clients import CLIENTS

    run = CLIENTS[sys.argv[1]](work)
    start_up_s, before_mib = time.time() - given["started"], _peak_mib()
    began, cpu = time.perf_counter(), time.process_time()
    outcome: Any = run()
    if asyncio.iscoroutine(outcome):
        outcome = asyncio.run(outcome)
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    wrong = sum(not is_right(number, answer) for number, answer in enumerate(outcome.answers, work.first))
    result = {
        "rows_per_s": work.rows / took_s,
        "cpu_ms_per_row": 1000 * cpu_s / work.rows,
        "peak_rss_mib": _peak_mib(),
        "rss_before_mib": before_mib,
        "start_up_s": start_up_s,
        "took_s": took_s,
        "wrong": wrong,
        "tokens_per_row": (outcome.input_tokens + outcome.output_tokens) / work.rows,
        "details": outcome.details,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def _peak_mib() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main()
