"""Exports spans and metrics over OTLP, as the usual `OTEL_*` variables say.

If the program has a tracer provider, spans go through that one, with its sampler and processors. Otherwise the run has
a provider of its own, which is flushed and shut down at the end of the run, when the step's process also ends.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ondine_core.errors import ConfigError
from ondine_core.telemetry.events import Event, Observer
from ondine_core.telemetry.metrics import Metrics
from ondine_core.telemetry.spans import Spans

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.metrics.export import Metric, MetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.sampling import Sampler

SCOPE = "ondine"
"""The name of the instrumentation scope."""

_EXPORT_EVERY_S = 60.0
_MAX_SPANS = 20_000
"""The most spans that wait for the collector; the SDK's 2,048 are those of a second if every call has a span."""


def open_opentelemetry(
    *, content: bool = False, calls_per_second: float | None = 10.0, metrics: bool = True
) -> Observer:
    """Open an observer that exports spans and metrics.

    Args:
        content: Whether spans have prompts and replies, unchanged.
        calls_per_second: Ordinary calls a second with a span of their own, and a hundred more at the start; `None`:
            all.
        metrics: Whether metrics are also exported.
    """
    require("opentelemetry.sdk", "opentelemetry", "otel")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return lambda _: None
    provider, owned = trace.get_tracer_provider(), False
    if not isinstance(provider, TracerProvider):
        provider, owned = make_provider(_exporter("trace", "OTLPSpanExporter")), True
    exporter = _exporter("metric", "OTLPMetricExporter") if metrics else None
    spans = Spans(provider.get_tracer(SCOPE), find_caller())
    return OpenTelemetryObserver(spans, provider, owned, content, calls_per_second, exporter)


@dataclass
class OpenTelemetryObserver:
    """An observer that exports spans, and metrics if it has an exporter for them.

    The tracer provider is shut down at the end if it is `owned`.
    """

    spans: Spans
    provider: TracerProvider
    owned: bool
    content: bool
    calls_per_second: float | None
    exporter: MetricExporter | None = None

    def __post_init__(self) -> None:
        self._metrics, self._began_ns = Metrics(), time.time_ns()
        self._every_s = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL") or 1000 * _EXPORT_EVERY_S) / 1000
        self._due = time.monotonic() + self._every_s
        self._resource = _with_id(self.provider.resource)

    def __call__(self, event: Event) -> None:
        """Add an event to the spans and metrics, and export metrics from time to time."""
        self.spans(event)
        self._metrics(event)
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._every_s
            self._export_metrics()

    def close(self, timeout_s: float) -> None:
        """Export the rest: spans in a thread, so that spans and metrics do not wait for each other's collector."""
        flush: Callable[[], object] = partial(self.provider.force_flush, int(1000 * timeout_s))
        if self.owned:
            flush = self.provider.shutdown
        flushing = threading.Thread(target=flush, name="ondine-spans", daemon=True)
        flushing.start()
        self._export_metrics()
        if self.exporter is not None:
            self.exporter.shutdown()
        flushing.join(timeout_s)

    def _export_metrics(self) -> None:
        from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        metrics = _sdk_metrics(self._metrics, self._began_ns, time.time_ns())
        if metrics and self.exporter is not None:
            scope = ScopeMetrics(InstrumentationScope(SCOPE), metrics, "")
            self.exporter.export(MetricsData([ResourceMetrics(self._resource, [scope], "")]))


def require(module: str, observer: str, extra: str) -> None:
    """Refuse an observer whose package is not installed, with a `ConfigError`."""
    try:
        import_module(module)
    except ModuleNotFoundError:
        raise ConfigError(
            f"The observer {observer!r} needs a package: pip install 'ondine-dagster[{extra}]'."
        ) from None


def make_provider(exporter: SpanExporter | None, sampler: Sampler | None = None) -> TracerProvider:
    """A tracer provider of our own; by default its sampler is that of `OTEL_TRACES_SAMPLER`."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    has_name = "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "") or "OTEL_SERVICE_NAME" in os.environ
    resource = Resource.create({} if has_name else {"service.name": SCOPE})
    provider = TracerProvider(sampler, _with_id(resource), shutdown_on_exit=False)
    if exporter is not None:
        queue = None if "OTEL_BSP_MAX_QUEUE_SIZE" in os.environ else _MAX_SPANS
        provider.add_span_processor(BatchSpanProcessor(exporter, queue))
    return provider


def _with_id(resource: Resource) -> Resource:
    """`resource` with an instance id: otherwise the sums of two processes with one name would overwrite each other."""
    from opentelemetry.sdk.resources import Resource

    if "service.instance.id" in resource.attributes:
        return resource
    return resource.merge(Resource({"service.instance.id": str(uuid4())}))


def find_caller() -> Context | None:
    """The context of the active span, else of the span in the variable `TRACEPARENT`; `None` without either."""
    from opentelemetry import context, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if trace.get_current_span().get_span_context().is_valid:
        return context.get_current()
    carrier = {name: os.environ.get(name.upper(), "") for name in ("traceparent", "tracestate")}
    headers = {name: value for name, value in carrier.items() if value}
    return TraceContextTextMapPropagator().extract(headers) if headers else None


def _exporter(signal: str, name: str) -> Any:
    """The exporter of a signal by the variables; `None` if they turn it off."""
    variable = f"OTEL_{signal.upper()}S"
    if os.environ.get(f"{variable}_EXPORTER", "").strip().lower() == "none":
        return None
    otlp = variable.replace("OTEL_", "OTEL_EXPORTER_OTLP_")
    protocol = os.environ.get(f"{otlp}_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    kind = "grpc" if protocol.strip().lower() == "grpc" else "http"
    try:
        module = import_module(f"opentelemetry.exporter.otlp.proto.{kind}.{signal}_exporter")
    except ModuleNotFoundError:
        raise ConfigError(
            f"The protocol {protocol!r} needs a package: pip install opentelemetry-exporter-otlp-proto-{kind}."
        ) from None
    return getattr(module, name)()


def _sdk_metrics(metrics: Metrics, began_ns: int, now_ns: int) -> list[Metric]:
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        Histogram,
        HistogramDataPoint,
        Metric,
        NumberDataPoint,
        Sum,
    )

    cumulative = AggregationTemporality.CUMULATIVE
    sdk_metrics = []
    for instrument, totals in metrics.counters().items():
        numbers = [
            NumberDataPoint(labels, began_ns, now_ns, total if isinstance(total, int) else float(total))
            for labels, total in totals
        ]
        sums = Sum(numbers, cumulative, is_monotonic=True)
        sdk_metrics.append(Metric(instrument.name, instrument.description, instrument.unit, sums))
    for instrument, distributions in metrics.histograms().items():
        points = [
            HistogramDataPoint(
                labels,
                began_ns,
                now_ns,
                count=sum(values.counts),
                sum=values.sum,
                bucket_counts=values.counts,
                explicit_bounds=values.bounds,
                min=values.lowest,
                max=values.highest,
            )
            for labels, values in distributions
        ]
        histogram = Histogram(points, cumulative)
        sdk_metrics.append(Metric(instrument.name, instrument.description, instrument.unit, histogram))
    return sdk_metrics
