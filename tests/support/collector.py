"""A loopback server for telemetry: OTLP/HTTP collector, Langfuse endpoint and push gateway in one.

It decodes requests with the published protobuf messages, as a real collector does.
"""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Span:
    """An exported span; ids are in hex, times in seconds."""

    name: str
    trace: str
    id: str
    parent: str
    kind: str
    began_at: float
    ended_at: float
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    events: tuple[tuple[str, Mapping[str, Any]], ...]
    failed: bool
    status_message: str


@dataclass(frozen=True)
class Request:
    """A received request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Collector:
    """The server, as a context manager.

    Args:
        status: The status of its replies.
        stalls: Whether it reads requests and never replies.
    """

    status: int = 200
    stalls: bool = False
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> Self:
        self._stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="collector")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.requests.append(Request(self.command, self.path, dict(self.headers), body))
                if collector.stalls:
                    collector._stopped.wait(60)
                    self.close_connection = True
                    return
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = handle_request  # noqa: N815  (the server calls methods of these names)
            do_PUT = handle_request  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        return Handler

    def wait_for(self, predicate: Callable[[Collector], object], timeout_s: float = 60.0) -> None:
        """Block until what was received satisfies `predicate`; fail after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not predicate(self):
            assert time.monotonic() < deadline, f"The condition was not met within {timeout_s} s."
            time.sleep(0.01)

    # -- requests --------------------------------------------------------------------------------------------------

    def to(self, path: str) -> list[Request]:
        """The requests whose path starts with `path`."""
        return [request for request in self.requests if request.path.startswith(path)]

    def spans(self, path: str = "/v1/traces") -> list[Span]:
        """All spans, in order of arrival."""
        messages = (ExportTraceServiceRequest.FromString(request.body) for request in self.to(path))
        return [span for message in messages for span in _spans(message)]

    def metrics(self) -> dict[str, Metric]:
        """The metrics by name, as last exported."""
        found: dict[str, Metric] = {}
        for request in self.to("/v1/metrics"):
            message = ExportMetricsServiceRequest.FromString(request.body)
            for of_resource in message.resource_metrics:
                for of_scope in of_resource.scope_metrics:
                    found |= {metric.name: metric for metric in of_scope.metrics}
        return found

    def total(self, name: str, wanted: Mapping[str, str] | None = None) -> float:
        """The sum of a counter, or of a histogram's values, over the series with these attributes."""
        metric = self.metrics()[name]
        counts = [point for point in metric.sum.data_points if _matches(point, wanted)]
        spread = [point for point in metric.histogram.data_points if _matches(point, wanted)]
        return sum(point.as_double or point.as_int for point in counts) + sum(point.sum for point in spread)

    def pushed(self) -> dict[str, float]:
        """The last pushed samples as `name{label="value"}`, without empty labels."""
        text = self.to("/metrics/job/")[-1].body.decode()
        return {
            name_of(sample.name, sample.labels): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def name_of(name: str, labels: Mapping[str, str]) -> str:
    """A sample's name with its labels, as Prometheus writes it."""
    shown = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()) if value)
    return f"{name}{{{shown}}}" if shown else name


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes by name, as Python values."""
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def _matches(point: Any, wanted: Mapping[str, str] | None) -> bool:
    return not wanted or wanted.items() <= plain(point.attributes).items()


def _spans(message: ExportTraceServiceRequest) -> Iterator[Span]:
    for of_resource in message.resource_spans:
        resource = plain(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield Span(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    SpanMessage.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    span.start_time_unix_nano / 1e9,
                    span.end_time_unix_nano / 1e9,
                    plain(span.attributes),
                    resource,
                    tuple((event.name, plain(event.attributes)) for event in span.events),
                    span.status.code == Status.STATUS_CODE_ERROR,
                    span.status.message,
                )
