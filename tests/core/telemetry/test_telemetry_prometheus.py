"""Prometheus metrics: pushed and scraped values equal the report's."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ondine_core import Price, Report
from ondine_core.types.ledger import Origin
from tests.support.asking import ask, echo_each, options, texts
from tests.support.collector import Collector
from tests.support.provider import Provider, matching, refusal, shares, status

PRICE = Price(Decimal("0.00000015"), Decimal("0.0000006"), Decimal("0.00000015"))


def observed(provider: Provider, observer: Any, rows: int = 30, **changes: Any) -> Report:
    """The report of a run with this observer."""
    chosen = replace(options(batch_size=4), observers=(observer,), price=PRICE, **changes)
    return ask(provider, texts(rows), chosen, max_output_tokens=2000)


def total(samples: Mapping[str, float], name: str, part: str = "") -> float:
    """The sum over the samples of this name with `part` among their labels."""
    return sum(value for key, value in samples.items() if key.partition("{")[0] == name and part in key)


def test_pushed_values_equal_the_report() -> None:
    """To the token and the cent, by run, asset and partition, with any faults."""
    with Provider(echo_each, fault=shares((0.2, status(503)))) as provider, Collector() as gateway:
        spec = {"name": "prometheus", "push_gateway": gateway.url}
        report = observed(provider, spec, max_cost_usd=1, origin=Origin("r", "labels", "2026-01-01"))
    last = gateway.to("/metrics/job/")[-1]
    assert last.method == "PUT"
    group = r"/metrics/job/ondine/instance/[0-9a-f]{8}/ondine_asset/labels/ondine_partition/2026-01-01/ondine_run/r"
    assert re.fullmatch(group, last.path)
    samples, spend = gateway.pushed(), report.spend
    assert total(samples, "gen_ai_client_token_usage_sum", 'type="input"') == spend.usage.input_tokens
    assert total(samples, "gen_ai_client_token_usage_sum", 'type="output"') == spend.usage.output_tokens
    assert total(samples, "gen_ai_client_operation_duration_seconds_count") == spend.calls
    assert total(samples, "ondine_cost_usd_total") == pytest.approx(float(spend.usd or 0), abs=1e-12)
    assert total(samples, "ondine_rows_total", 'outcome="answered"') == 30
    assert total(samples, "ondine_retries_total") == spend.calls - spend.answered
    assert total(samples, "ondine_wait_duration_seconds_count", 'reason="budget"') == spend.calls


def test_histograms_are_cumulative() -> None:
    """No bucket has less than the one before it, and `+Inf` has all."""
    with Provider() as provider, Collector() as gateway:
        observed(provider, {"name": "prometheus", "push_gateway": gateway.url})
    text = gateway.to("/metrics/job/")[-1].body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    family = families["gen_ai_client_operation_duration_seconds"]
    buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
    (count,) = (sample.value for sample in family.samples if sample.name.endswith("_count"))
    assert buckets == sorted(buckets)
    assert buckets[-1] == count > 0


def test_a_long_lived_process_offers_the_sum_of_its_runs() -> None:
    """In the default registry, however many runs there were; also with failed runs and reused rows."""

    def scraped() -> dict[str, float]:
        families = text_string_to_metric_families(generate_latest(REGISTRY).decode())
        samples = (sample for family in families for sample in family.samples)
        return {f"{sample.name}{sample.labels}": sample.value for sample in samples if "scraped" in str(sample.labels)}

    with Provider(fault=matching("row 2", refusal)) as provider:
        origin = Origin("r", "scraped")
        reports = [observed(provider, "prometheus", rows, origin=origin) for rows in (3, 5)]
    found = scraped()
    failed = sum(report.progress.rows_failed for report in reports)
    assert failed == 2
    assert total(found, "ondine_rows_total", "'answered'") == 8 - failed
    assert total(found, "ondine_rows_total", "'failed'") == failed
    assert total(found, "gen_ai_client_operation_duration_seconds_count") == sum(r.spend.calls for r in reports)
    assert total(found, "gen_ai_client_operation_duration_seconds_count", "'refused'") > 0


def test_missing_gateway_is_warned_of() -> None:
    """The run is not affected."""
    trouble: list[str] = []
    with socket.socket() as closed, Provider() as provider:
        closed.bind(("127.0.0.1", 0))
        spec = {"name": "prometheus", "push_gateway": f"http://127.0.0.1:{closed.getsockname()[1]}"}
        report = observed(provider, spec, on_observer_error=trouble.append)
    assert report.failures == {}
    assert len(trouble) == 1
    assert "'prometheus' failed with URLError" in trouble[0]
