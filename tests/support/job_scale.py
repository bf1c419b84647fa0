"""A run of many rows by batch jobs, as a process of its own: `python -m tests.support.job_scale base_url store rows`.

Prints JSON: rows without an answer, requests of the first run and of one after a change of one row, and MiB beyond the
table.
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
    """Ask, change a row, and ask again."""
    table = {"text": [f"review number {number} of a kettle that someone bought and used" for number in range(rows)]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = ModelSpec("openai/gpt-4o-mini", "key", base_url, max_output_tokens=64, tier="batch")

    def ask() -> Report:
        policy = Policy(batch_wait_s=600.0, batch_min_rows=1)
        options = Options(store=Path(store), policy=policy, max_cost_usd=Decimal(50))
        return enrich_sync(table, prompt="Repeat: {text}", output={"answer": "string"}, model=model, options=options)

    first = ask()
    beyond_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    table["text"][0] = "another review"
    second = ask()
    print(  # noqa: T201  (it is the reply)
        json.dumps(
            {
                "lost": first.column("answer").count(None) + second.column("answer").count(None),
                "first": first.spend.calls,
                "second": second.spend.calls,
                "mib": beyond_kib / 1024,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
