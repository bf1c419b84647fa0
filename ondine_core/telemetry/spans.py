"""Runs, batches and calls as spans, named as OpenTelemetry's conventions for generative AI have it.

A table of a million rows makes a million calls, and no tool shows a trace of a million spans; writing them would also
cost more than making the calls does. So ordinary calls beyond a rate are recorded together, some seconds in one span,
with their tokens and their cost added up: sums over spans are always the run's own. A call that fails, and a batch with
rows that fail, is always recorded by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ondine_core.telemetry.attributes import Attributes, of_batch, of_call, of_calls, of_progress, of_run
from ondine_core.telemetry.events import (
    AskedBatch,
    BatchEnded,
    Booked,
    CallEnded,
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
from ondine_core.telemetry.rest import Rest

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

__all__ = ["Describe", "Spans"]

Describe = Callable[[Literal["run", "batch", "call"], Attributes], Mapping[str, Any]]
"""Further attributes of a span, by what it is and those that it has."""

_BURST = 100
_TOGETHER_S = 5.0
"""Calls that are recorded together lie no further apart."""


@dataclass(slots=True)
class _Open:
    """The spans of a run that have not ended, those of batches by number; a batch that is not recorded has none."""

    span: Span
    batches: dict[int, Span | None] = field(default_factory=dict)
    rest: dict[Endpoint, Rest] = field(default_factory=dict)


class Spans:
    """Writes spans; an observer.

    Args:
        tracer: Makes them.
        parent: Of runs that name no other.
        calls_per_second: So many ordinary calls are recorded one by one, and a hundred more at the start; `None`
            records all.
        describe: Further attributes.
    """

    wants = frozenset({RunStarted, RunEnded, BatchEnded, CallEnded, Retried, Held, Booked, RowsFailed})

    def __init__(
        self,
        tracer: Tracer,
        parent: Context | None = None,
        calls_per_second: float | None = 20.0,
        describe: Describe = lambda _kind, _attributes: {},
    ) -> None:
        self._tracer, self._parent, self._per_second, self._describe = tracer, parent, calls_per_second, describe
        self._runs: dict[Run, _Open] = {}
        self._allowed, self._allowed_at = float(_BURST), 0.0

    def __call__(self, event: Event) -> None:
        """Take account of an event."""
        match event:
            case CallEnded():
                self._call(event)
            case BatchEnded():
                self._end_batch(event)
            case RunStarted():
                self._begin(event)
            case RunEnded():
                self._end(event)
            case RowsFailed():
                owner = self._record(event.batch) if event.batch else self._runs[event.run].span
                said = {"ondine.reason": event.reason, "ondine.detail": event.detail}
                _note(owner, "rows failed", event.at, {**said, "ondine.rows": event.rows})
            case Retried():
                _note(self._span_of(event.batch), "retry", event.at, {"ondine.attempt": event.attempt})
            case Held():
                waited = {"ondine.usd": float(event.usd), "ondine.waited_s": event.waited_s}
                _note(self._span_of(event.batch), "hold", event.at, waited)
            case Booked():
                waited = {"ondine.tokens": event.tokens, "ondine.waited_s": event.waited_s}
                _note(self._span_of(event.batch), "booking", event.at, waited)
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
        opened = self._runs.pop(event.run)
        for endpoint in [*opened.rest]:
            self._write_rest(event.run, opened, endpoint)
        for span in filter(None, opened.batches.values()):  # cancelled, or their end was lost on the way
            span.end(_ns(event.at))
        if event.progress is not None:
            opened.span.set_attributes(of_progress(event.progress))
        _fail(opened.span, event.error_type, event.error)
        opened.span.end(_ns(event.at))

    # -- batches ---------------------------------------------------------------------------------------------------

    def _span_of(self, batch: AskedBatch) -> Span | None:
        """The span of a batch, begun if it is one of those that are recorded."""
        batches = self._runs[batch.run].batches
        if batch.number in batches:
            return batches[batch.number]
        if self._is_allowed(batch.began_at):
            return self._record(batch)
        batches[batch.number] = None
        return None

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
        return span

    def _is_allowed(self, at: float) -> bool:
        if self._per_second is None:
            return True
        since = max(0.0, at - self._allowed_at)
        self._allowed = min(_BURST, self._allowed + since * self._per_second)
        self._allowed_at = max(at, self._allowed_at)
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True

    def _end_batch(self, event: BatchEnded) -> None:
        span = self._runs[event.batch.run].batches.pop(event.batch.number, None)
        if span is None:
            return
        settled = {"answered": event.answered, "failed": event.failed, "owed": event.owed}
        span.set_attributes({f"ondine.prompts.{name}": number for name, number in settled.items()})
        _fail(span, event.error_type, None)
        span.end(_ns(event.at))

    # -- calls -----------------------------------------------------------------------------------------------------

    def _call(self, event: CallEnded) -> None:
        batch, failed = event.batch, event.error_type is not None
        batches = self._runs[batch.run].batches
        if (
            not failed
            and batches.get(batch.number) is None
            and (batch.number in batches or not self._is_allowed(batch.began_at))
        ):
            self._add_to_rest(event)
            return
        parent = self._record(batch)
        span = self._start_call(batch.endpoint, parent, of_call(event), event.at - event.duration_s)
        _fail(span, event.error_type, event.error)
        span.end(_ns(event.at))

    def _add_to_rest(self, event: CallEnded) -> None:
        opened, endpoint = self._runs[event.batch.run], event.batch.endpoint
        rest = opened.rest.get(endpoint)
        if rest is None:
            rest = opened.rest[endpoint] = Rest(event.at - event.duration_s, event.at)
        rest.add(event)
        if event.at - rest.began_at > _TOGETHER_S:
            self._write_rest(event.batch.run, opened, endpoint)

    def _write_rest(self, run: Run, opened: _Open, endpoint: Endpoint) -> None:
        rest = opened.rest.pop(endpoint)
        attributes = of_calls(run, endpoint, rest.calls, rest.prompts, rest.usage, rest.usd)
        self._start_call(endpoint, opened.span, attributes, rest.began_at).end(_ns(rest.ended_at))

    def _start_call(self, endpoint: Endpoint, parent: Span, attributes: Attributes, began_at: float) -> Span:
        from opentelemetry.trace import SpanKind

        kind = SpanKind.INTERNAL if endpoint.provider in IN_PROCESS else SpanKind.CLIENT
        name = f"{OPERATION} {endpoint.model}"
        described = {**attributes, **self._describe("call", attributes)}
        return self._tracer.start_span(name, _inside(parent), kind, described, start_time=_ns(began_at))


def _inside(span: Span) -> Context:
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(span)


def _note(span: Span | None, what: str, at: float, attributes: Attributes) -> None:
    if span is not None:
        span.add_event(what, attributes, _ns(at))


def _fail(span: Span, error_type: str | None, error: str | None) -> None:
    from opentelemetry.trace import Status, StatusCode

    if error_type is not None:
        span.set_attribute("error.type", error_type)
        span.set_status(Status(StatusCode.ERROR, error))


def _ns(at: float) -> int:
    return int(at * 1e9)
