"""Metrics for Prometheus: exposed for scraping, or pushed to a gateway from processes that end soon."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING

from ondine_core.telemetry.events import Event, Observer, RunStarted
from ondine_core.telemetry.metrics import Distribution, Instrument, Metrics
from ondine_core.telemetry.otel import require

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_PUSH_TIMEOUT_S = 4.0
_UNITS = {"s": "_seconds"}


def open_prometheus(*, push_gateway: str | None = None, job: str = "ondine", push_every_s: float = 15.0) -> Observer:
    """Open an observer that computes metrics for Prometheus.

    Args:
        push_gateway: Address of a push gateway, where the figures of each run are a group of their own: in a common
            group, each run would replace the figures of the one before. Without a gateway, the figures of all runs of
            this process are in the default registry of `prometheus_client`.
        job: The job of the figures at the gateway.
        push_every_s: Seconds between two pushes; the last push is made when the run ends.
    """
    require("prometheus_client", "prometheus", "prometheus")
    return _process_metrics() if push_gateway is None else _Pushed(push_gateway, job, push_every_s)


class _Collected(Metrics):
    """An observer whose metrics a registry collects."""

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily

        for instrument, totals in self.counters().items():
            counter = CounterMetricFamily(_name(instrument), instrument.description, labels=_labels(instrument))
            for labels, total in totals:
                counter.add_metric(_values(instrument, labels), float(total))
            yield counter
        for instrument, distributions in self.histograms().items():
            histogram = HistogramMetricFamily(_name(instrument), instrument.description, labels=_labels(instrument))
            for labels, distribution in distributions:
                histogram.add_metric(_values(instrument, labels), _buckets(distribution), distribution.sum)
            yield histogram


@cache
def _process_metrics() -> Metrics:
    """The observer of this process: a registry takes a collector once, and scrapes continue after a run."""
    from prometheus_client import REGISTRY

    metrics = _Collected()
    REGISTRY.register(metrics)
    return metrics


class _Pushed(_Collected):
    """An observer that pushes the metrics of one run."""

    def __init__(self, gateway: str, job: str, every_s: float) -> None:
        from prometheus_client import CollectorRegistry

        super().__init__()
        self._gateway = gateway
        self._job = job
        self._every_s = every_s
        self._registry = CollectorRegistry()
        self._registry.register(self)
        # With an instance, since a repeated step has the same run, asset and partition.
        self._group = {"instance": secrets.token_hex(4)}
        self._due = time.monotonic() + every_s

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, RunStarted):
            origin = event.run.origin
            named = {"ondine_run": origin.run, "ondine_asset": origin.asset, "ondine_partition": origin.partition}
            self._group |= {name: value for name, value in named.items() if value}
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._every_s
            self.close(_PUSH_TIMEOUT_S)

    def close(self, timeout_s: float) -> None:
        """Push the final values."""
        from prometheus_client import push_to_gateway

        push_to_gateway(self._gateway, self._job, self._registry, self._group, max(0.1, timeout_s))


def _buckets(distribution: Distribution) -> list[tuple[str, float]]:
    """The bounds and cumulative counts of the buckets, in Prometheus' form."""
    bounds = [*map(repr, distribution.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(distribution.counts)), strict=True))


def _name(instrument: Instrument) -> str:
    return instrument.name.replace(".", "_") + _UNITS.get(instrument.unit, "")


def _labels(instrument: Instrument) -> list[str]:
    return [key.replace(".", "_") for key in instrument.keys]


def _values(instrument: Instrument, labels: Mapping[str, str | int]) -> list[str]:
    return [str(labels.get(key, "")) for key in instrument.keys]
