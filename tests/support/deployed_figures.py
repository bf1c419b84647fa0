"""Constants and checks that the definitions of a deployment under test share with its tests."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:  # every run of the deployment imports this module, too
    from tests.support.provider import Ledger

DAYS = [f"2026-01-{day:02}" for day in range(1, 5)]
PARTS = [f"part-{number}" for number in range(3)]
ROWS_A_DAY, ROWS_A_PART, ROWS = 20, 27, 240
CONCURRENCY = 4
PER_S, BURST = 4, 2
INPUT_USD_PER_1K, OUTPUT_USD_PER_1K = 1.0, 2.0
MAX_CALL_USD = Decimal("0.1")
"""More than any call costs."""
_TOLERANCE_S = 1.5
"""A call may leave this late on a busy machine, so that the call after it seems early. With one limiter for each run
calls would be early by tens of seconds."""


def billed(ledger: Ledger) -> Decimal:
    """The cost in USD of the calls that a provider processed."""
    usd = ledger.input_tokens * Decimal(str(INPUT_USD_PER_1K)) + ledger.output_tokens * Decimal(str(OUTPUT_USD_PER_1K))
    return usd / 1000


def keeps_rate(ledger: Ledger) -> bool:
    """Whether no window of any length has more calls than burst and rate allow."""
    arrivals = [asked.arrived_at for asked in ledger.requests]
    free_at = itertools.accumulate(arrivals, lambda free, at: max(free, at) + 1 / PER_S, initial=0.0)
    return max(free - at - (BURST - 1) / PER_S for free, at in zip(free_at, arrivals, strict=False)) <= _TOLERANCE_S


def texts(asset: str, partition: str, count: int) -> Sequence[str]:
    """The texts of rows; the answer to each is the text itself."""
    return [f"{asset} {partition} row {number}" for number in range(count)]


def table_file(home: Path, asset: str, partition: str = "all") -> Path:
    """The file in which a partition is stored."""
    return home / f"{asset}-{partition}.parquet"


def is_complete(home: Path, asset: str, partition: str, count: int) -> bool:
    """Whether every row of a stored partition has its own answer."""
    return pl.read_parquet(table_file(home, asset, partition))["answer"].to_list() == texts(asset, partition, count)
