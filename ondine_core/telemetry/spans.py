"""Runs, batches and calls as spans, named as OpenTelemetry's conventions for generative AI have it.

A table of a million rows makes a million calls, and no tool shows a trace of a million spans; writing them would also
cost more than making the calls does. So ordinary calls beyond a rate are recorded together, as they are told, with
their tokens and their cost added up: sums over spans are always the run's own. A call that fails, and a batch with rows
that fail, is always recorded by itself. Ordinary calls that another observer wanted one by one are put together here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ondine_core.telemetry.attributes import Attributes, of_batch, of_call, of_calls, of_progress, of_run
from ondine_core.telemetry.call_aggregator import CallAggregator
from ondine_core.telemetry.call_sampler import Sampler
from ondine_core.telemetry.events import (
    AskedBatch,
    BatchEnded,
    Booked,
    CallEnded,
    CallsEnded,
    Endpoint,
    Event,
    Held,
    Progressed,
    Retried,
    RowsFailed,
    Run,
    RunEnded,
    RunStarted,
)
from ondine_core.telemetry.names import IN_PROCESS, OPERATION

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

__all__ = ["Describe", "Spans"]

Describe = Callable[[Literal["run", "batch", "call"], Attributes], Mapping[str, Any]]
"""Further attributes of a span, by what it is and those that it has."""


@dataclass(slots=True)
class _Open:
    """The spans of a run that have not ended, by the number of the batch, and what befell batches that have none."""

    span: Span
    batches: dict[int, Span] = field(default_factory=dict)
    befell: dict[int, list[Retried | Held | Booked]] = field(default_factory=dict)
    rest: dict[tuple[Endpoint, str], CallAggregator] = field(default_factory=dict)


class Spans:
    """Writes spans; an observer.

    Args:
        tracer: Makes them.
        parent: Of runs that name no other.
        calls_per_second: So many ordinary calls are recorded one by one, and a hundred more at the start; `None`
            records all.
        describe: Further attributes.
    """

    wants = frozenset({RunStarted, RunEnded, BatchEnded, CallEnded, CallsEnded, Retried, Held, Booked, RowsFailed})

    def __init__(
        self,
        tracer: Tracer,
        parent: Context | None = None,
        calls_per_second: float | None = 10.0,
        describe: Describe = lambda _kind, _attributes: {},
    ) -> None:
        self._tracer = tracer
        self._parent = parent
        self._describe = describe
        self.calls_per_second, self._sampler = calls_per_second, Sampler(calls_per_second)
        self._runs: dict[Run, _Open] = {}

    def __call__(self, event: Event) -> None:
        """Take account of an event."""
        match event:
            case CallEnded():
                self._call(event)
            case CallsEnded():
                self._calls(event)
            case BatchEnded():
                self._end_batch(event)
            case RunStarted():
                self._begin(event)
            case RunEnded():
                self._end(event)
            case RowsFailed():
                owner = self._record(event.batch) if event.batch else self._runs[event.run].span
                said: Attributes = {
                    "ondine.reason": event.reason,
                    "ondine.detail": event.detail,
                    "ondine.rows": event.rows,
                }
                owner.add_event("rows failed", said, _ns(event.at))
            case Retried() | Held() | Booked():
                self._befall(event)
            case Progressed():
                pass

    # -- runs ------------------------------------------------------------------------------------------------------

    def _begin(self, event: RunStarted) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        run, parent = event.run, self._parent
        if run.traceparent:
            parent = TraceContextTextMapPropagator().extract({"traceparent": run.traceparent}, parent)
        attributes = of_run(run)
        span = self._tracer.start_span(
            f"enrich {run.origin.asset}".rstrip(),
            parent,
            attributes={**attributes, **self._describe("run", attributes)},
            start_time=_ns(event.at),
        )
        self._runs[run] = _Open(span)

    def _end(self, event: RunEnded) -> None:
        opened = self._runs[event.run]
        for rest in opened.rest.values():
            self._calls(rest.event())
        for span in opened.batches.values():  # cancelled, or their end was lost on the way
            span.end(_ns(event.at))
        if event.progress is not None:
            opened.span.set_attributes(of_progress(event.progress))
        _fail(opened.span, event.error_type, event.error)
        opened.span.end(_ns(event.at))
        del self._runs[event.run]

    # -- batches ---------------------------------------------------------------------------------------------------

    def _befall(self, event: Retried | Held | Booked) -> None:
        opened, number = self._runs[event.batch.run], event.batch.number
        span = opened.batches.get(number)
        if span:
            span.add_event(*_described(event), _ns(event.at))
        else:
            opened.befell.setdefault(number, []).append(event)

    def _record(self, batch: AskedBatch) -> Span:
        """The span of a batch, begun if it has none."""
        opened = self._runs[batch.run]
        span = opened.batches.get(batch.number)
        if span is None:
            attributes = of_batch(batch)
            described = {**attributes, **self._describe("batch", attributes)}
            began_ns = _ns(batch.began_at)
            span = self._tracer.start_span("batch", _inside(opened.span), attributes=described, start_time=began_ns)
            opened.batches[batch.number] = span
            for event in opened.befell.pop(batch.number, ()):
                self._befall(event)
        return span

    def _end_batch(self, event: BatchEnded) -> None:
        opened, number = self._runs[event.batch.run], event.batch.number
        if event.error_type is not None:
            self._record(event.batch)
        opened.befell.pop(number, None)
        span = opened.batches.pop(number, None)
        if span:
            settled = {"answered": event.answered, "failed": event.failed, "owed": event.owed}
            span.set_attributes({f"ondine.prompts.{name}": number for name, number in settled.items()})
            _fail(span, event.error_type, None)
            span.end(_ns(event.at))

    # -- calls -----------------------------------------------------------------------------------------------------

    def _call(self, event: CallEnded) -> None:
        batch, opened = event.batch, self._runs[event.batch.run]
        if (
            event.error_type is None
            and event.usage is not None
            and batch.number not in opened.batches
            and not self._sampler.takes(batch.began_at)
        ):
            kind = (batch.endpoint, event.sent.stage)
            rest = opened.rest.get(kind) or opened.rest.setdefault(kind, CallAggregator(batch.run, *kind))
            rest.add(event.at, batch.prompts, event.duration_s, event.usage, event.usd)
            if rest.is_due(event.at):
                self._calls(opened.rest.pop(kind).event())
        else:
            parent = self._record(batch)
            span = self._start_call(batch.endpoint, parent, of_call(event), event.at - event.duration_s)
            _fail(span, event.error_type, event.error)
            span.end(_ns(event.at))

    def _calls(self, event: CallsEnded) -> None:
        attributes = of_calls(event.run, event.endpoint, event.prompts, event.usages, event.usds)
        attributes["ondine.stage"] = event.stage
        span = self._start_call(event.endpoint, self._runs[event.run].span, attributes, event.began_at)
        span.end(_ns(event.at))

    def _start_call(self, endpoint: Endpoint, parent: Span, attributes: Attributes, began_at: float) -> Span:
        from opentelemetry.trace import SpanKind

        kind = SpanKind.INTERNAL if endpoint.provider in IN_PROCESS else SpanKind.CLIENT
        name = f"{OPERATION} {endpoint.model}"
        described = {**attributes, **self._describe("call", attributes)}
        return self._tracer.start_span(name, _inside(parent), kind, described, start_time=_ns(began_at))


def _inside(span: Span) -> Context:
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(span)


def _described(event: Retried | Held | Booked) -> tuple[str, Attributes]:
    match event:
        case Retried():
            return "retry", {"ondine.attempt": event.attempt}
        case Held():
            return "hold", {"ondine.usd": float(event.usd), "ondine.waited_s": event.waited_s}
        case Booked():
            return "booking", {"ondine.tokens": event.tokens, "ondine.waited_s": event.waited_s}


def _fail(span: Span, error_type: str | None, error: str | None) -> None:
    from opentelemetry.trace import Status, StatusCode

    if error_type is not None:
        span.set_attribute("error.type", error_type)
        span.set_status(Status(StatusCode.ERROR, error))


def _ns(at: float) -> int:
    return int(at * 1e9)
