"""Run many rows by batch jobs in a process of its own: `python -m tests.support.job_scale base_url store rows`.

Prints JSON: the number of rows without an answer, the requests of the first run and of a second one in which one row
has changed, and the memory in MiB in addition to the table's.
"""

from __future__ import annotations

import json
import resource
import sys
from decimal import Decimal
from pathlib import Path

import aiohttp
import orjson

from ondine_core import ModelSpec, Options, Policy, Report, enrich_sync

__all__ = ["main"]

_IMPORTED = (aiohttp, orjson)
"""Imported first, so that the memory of imports does not count."""


def main(base_url: str, store: str, rows: int) -> None:
    """Run, change a row, run again, and print the figures."""
    table = {"text": [f"review number {number} of a kettle that someone bought and used" for number in range(rows)]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = ModelSpec("openai/gpt-4o-mini", "key", base_url, max_output_tokens=64, tier="batch")

    def ask() -> Report:
        policy = Policy(batch_wait_s=600.0, batch_min_rows=1)
        options = Options(store=Path(store), policy=policy, max_cost_usd=Decimal(50))
        return enrich_sync(table, prompt="Repeat: {text}", output={"answer": "string"}, model=model, options=options)

    first = ask()
    added_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    table["text"][0] = "another review"
    second = ask()
    print(  # noqa: T201  (the test reads it)
        json.dumps(
            {
                "lost": first.column("answer").count(None) + second.column("answer").count(None),
                "first": first.spend.calls,
                "second": second.spend.calls,
                "mib": added_kib / 1024,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
