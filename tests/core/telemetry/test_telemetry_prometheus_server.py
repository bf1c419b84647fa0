"""Metrics in a real Prometheus that scrapes a real push gateway."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ondine_core.types.ledger import Origin
from tests.support.asking import ask, options, texts
from tests.support.deployment import until
from tests.support.prometheus import PROGRAMS, empty, prometheus, push_gateway, query
from tests.support.provider import Provider

GUIDE = Path(__file__).parents[3] / "docs" / "observability.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(None in PROGRAMS, reason="apt install prometheus prometheus-pushgateway"),
]


def test_rows_of_all_runs_are_counted(tmp_path: Path) -> None:
    """The guide's query has the rows of every run: sequential runs, a second attempt, and another partition."""
    origins = [Origin("a", "labels"), Origin("b", "labels"), Origin("b", "labels"), Origin("c", "labels", "2026-01-01")]
    sizes = (10, 25, 5, 30)
    (expression,) = re.findall(r"```promql\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    with push_gateway() as gateway, prometheus(tmp_path, gateway) as server:

        def rows() -> float | None:
            found = query(server, expression)
            answered = [value for labels, value in found if labels["ondine_outcome"] == "answered"]
            assert {labels["ondine_asset"] for labels, _ in found} <= {"labels"}
            return sum(answered) if len(answered) == 1 else None

        run_all(gateway, origins, sizes)
        until(lambda: rows() == sum(sizes) or None, 20, "sum over all runs")

        empty(gateway)
        until(lambda: not query(server, "ondine_rows_total") or None, 20, "scrape of the empty gateway")
        run_all(gateway, [Origin("d", "labels")], [7])
        until(
            lambda: rows() == sum(sizes) + 7 or None, 20, "sum over the runs before and after the gateway was emptied"
        )


def run_all(gateway: str, origins: Sequence[Origin], sizes: Sequence[int]) -> None:
    """Make runs one after another, each of which pushes."""
    with Provider() as provider:
        for origin, size in zip(origins, sizes, strict=True):
            observer = {"name": "prometheus", "push_gateway": f"http://{gateway}"}
            report = ask(provider, texts(size), replace(options(), observers=(observer,), origin=origin))
            assert report.failures == {}
