"""Runs, batches and calls as spans, named by OpenTelemetry's conventions for generative AI.

Ordinary calls beyond a rate arrive together and are one span with their total tokens and cost, so sums over spans are
always the totals of the run. Failed calls, and batches with failed rows, have spans of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from ondine_core.providers.pricing import IN_PROCESS
from ondine_core.telemetry import events
from ondine_core.telemetry.attributes import OPERATION, Attributes, of_batch, of_call, of_calls, of_progress, of_run
from ondine_core.telemetry.events import AskedBatch, BatchEnded, Event, Run, RunEnded, RunStarted, figures_of

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

Kind = Literal["run", "batch", "call"]
Describe = Callable[[Kind, Attributes], Mapping[str, Any]]
"""Returns further attributes of a span, from its kind and its other attributes."""
_NOTES: Mapping[type, str] = {
    events.Retried: "retry",
    events.Held: "hold",
    events.Booked: "booking",
    events.RowsFailed: "rows failed",
}
"""Events that are added to the span of their batch, with their names there."""


class Spans:
    """An observer that writes spans with `tracer`.

    The spans of runs are inside `parent`, unless a run names another parent; `describe` adds attributes.
    """

    def __init__(
        self, tracer: Tracer, parent: Context | None = None, describe: Describe = lambda _kind, _attributes: {}
    ) -> None:
        self._tracer = tracer
        self._parent = parent
        self._describe = describe
        self._runs: dict[Run, Span] = {}
        self._batches: dict[AskedBatch, Span] = {}

    def __call__(self, event: Event) -> None:
        """Begin, end or annotate the span of an event."""
        match event:
            case events.CallsEnded():
                span = self._start_call(of_calls(event), self._runs[event.run], event.began_at)
                span.end(_ns(event.at))
            case events.CallEnded():
                span = self._start_call(of_call(event), self._span_of(event.batch), event.at - event.duration_s)
                _end(span, event.at, event.error_type, event.error)
            case BatchEnded():
                self._end_batch(event)
            case RunStarted():
                self._begin_run(event)
            case RunEnded():
                self._end_run(event)
            case events.RowsFailed():
                _note(self._span_of(event.batch) if event.batch else self._runs[event.run], event)
            case events.Retried() | events.Held() | events.Booked():
                _note(self._span_of(event.batch), event)

    def _begin_run(self, event: RunStarted) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        run, parent = event.run, self._parent
        if run.traceparent:
            parent = TraceContextTextMapPropagator().extract({"traceparent": run.traceparent}, parent)
        attributes = self._described("run", of_run(run))
        name = f"enrich {run.origin.asset}".rstrip()
        self._runs[run] = self._tracer.start_span(name, parent, attributes=attributes, start_time=_ns(event.at))

    def _end_run(self, event: RunEnded) -> None:
        for batch in [batch for batch in self._batches if batch.run is event.run]:
            self._batches.pop(batch).end(_ns(event.at))  # it was cancelled, or the event of its end was dropped
        span = self._runs.pop(event.run)
        if event.progress is not None:
            span.set_attributes(of_progress(event.progress))
        _end(span, event.at, event.error_type, event.error)

    def _span_of(self, batch: AskedBatch) -> Span:
        """The span of a batch, which is begun when it is first needed."""
        if batch not in self._batches:
            attributes = self._described("batch", of_batch(batch))
            parent, began_ns = _inside(self._runs[batch.run]), _ns(batch.began_at)
            self._batches[batch] = self._tracer.start_span("batch", parent, attributes=attributes, start_time=began_ns)
        return self._batches[batch]

    def _end_batch(self, event: BatchEnded) -> None:
        span = self._span_of(event.batch)
        for name in ("answered", "failed", "retried"):
            span.set_attribute(f"ondine.prompts.{name}", getattr(event, name))
        _end(span, event.at, event.error_type)
        del self._batches[event.batch]

    def _start_call(self, attributes: Attributes, parent: Span, began_at: float) -> Span:
        from opentelemetry.trace import SpanKind

        kind = SpanKind.INTERNAL if attributes["gen_ai.provider.name"] in IN_PROCESS else SpanKind.CLIENT
        name = f"{OPERATION} {attributes['gen_ai.request.model']}"
        described = self._described("call", attributes)
        return self._tracer.start_span(name, _inside(parent), kind, described, start_time=_ns(began_at))

    def _described(self, kind: Kind, attributes: Attributes) -> Attributes:
        return {**attributes, **self._describe(kind, attributes)}


def _inside(span: Span) -> Context:
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(span)


def _note(span: Span, event: events.Retried | events.Held | events.Booked | events.RowsFailed) -> None:
    figures = {
        f"ondine.{name}": float(figure) if isinstance(figure, Decimal) else figure
        for name, figure in figures_of(event).items()
    }
    span.add_event(_NOTES[type(event)], figures, _ns(event.at))


def _end(span: Span, at: float, error_type: str | None, error: str | None = None) -> None:
    from opentelemetry.trace import Status, StatusCode

    if error_type is not None:
        span.set_attribute("error.type", error_type)
        span.set_status(Status(StatusCode.ERROR, error))
    span.end(_ns(at))


def _ns(at: float) -> int:
    return int(at * 1e9)
