"""Spans and metrics as a loopback collector receives them: totals equal the report's, without secrets."""

from __future__ import annotations

import base64
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from ondine_core import ConfigError, Price, ProviderError, Rates, Report
from ondine_core.telemetry.registry import open_observers
from ondine_core.types.ledger import Origin
from tests.support.asking import ask, echo_each, options, texts
from tests.support.collector import Collector, Span
from tests.support.provider import Provider, error, first, matching, refusal, shares, status

PRICE = Price(Decimal("0.00000015"), Decimal("0.0000006"), Decimal("0.000000075"))
ALL = {"name": "opentelemetry", "calls_per_second": None}
LANGFUSE = "/api/public/otel/v1/traces"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the usual variables name, for Langfuse, too."""
    with Collector() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        monkeypatch.setenv("LANGFUSE_HOST", running.url)
        monkeypatch.setenv("LANGFUSE_PUBLIC_KEY", "pk-lf-1")
        monkeypatch.setenv("LANGFUSE_SECRET_KEY", "sk-lf-2")
        yield running


def observed(provider: Provider, *observers: Any, rows: int = 20, batch_size: int = 1, **changes: Any) -> Report:
    """The report of a run that these observe."""
    chosen = replace(options(batch_size=batch_size), observers=observers, price=PRICE)
    return ask(provider, texts(rows), replace(chosen, **changes), max_output_tokens=2000)


def calls_of(spans: list[Span]) -> list[Span]:
    """The spans of calls."""
    return [span for span in spans if span.name.startswith("chat ")]


def total(spans: list[Span], attribute: str) -> Any:
    """The sum of an attribute over the spans that have it."""
    return sum(span.attributes.get(attribute, 0) for span in spans)


# -- totals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "batch_size", "rate"), [(60, 1, None), (60, 7, None), (200, 1, 0)])
def test_totals_are_the_reports_to_the_token_and_the_cent(
    collector: Collector, rows: int, batch_size: int, rate: int | None
) -> None:
    """Over spans, over metrics, and on the run's span; with failed, refused and retried calls."""
    faults = shares((0.2, status(503)), (0.1, status(429)))
    with Provider(echo_each, fault=faults, cached_tokens=1) as provider:
        watching = {"name": "opentelemetry", "calls_per_second": rate}
        report = observed(provider, watching, rows=rows, batch_size=batch_size, max_cost_usd=1, rates=Rates(6_000_000))
    spend, spans = report.spend, collector.spans()
    calls, run = calls_of(spans), next(span for span in spans if span.name == "enrich")
    assert spend.calls > spend.answered > 0
    assert len(calls) == spend.calls if rate is None else len(calls) < spend.calls
    assert total(calls, "ondine.calls") == spend.calls
    assert total(calls, "gen_ai.usage.input_tokens") == spend.usage.input_tokens
    assert total(calls, "gen_ai.usage.cache_read.input_tokens") == spend.usage.cached_input_tokens
    assert total(calls, "gen_ai.usage.output_tokens") == spend.usage.output_tokens
    assert spend.usd is not None
    assert total(calls, "ondine.cost.usd") == pytest.approx(float(spend.usd), abs=1e-12)
    assert run.attributes["ondine.calls"] == spend.calls
    assert run.attributes["ondine.cost.usd"] == float(spend.usd)
    assert run.attributes["ondine.rows.done"] == rows
    tokens = "gen_ai.client.token.usage"
    assert collector.total(tokens, {"gen_ai.token.type": "input"}) == spend.usage.input_tokens
    assert collector.total(tokens, {"gen_ai.token.type": "output"}) == spend.usage.output_tokens
    assert collector.total("ondine.cost.usd") == pytest.approx(float(spend.usd), abs=1e-12)
    assert collector.total("ondine.rows", {"ondine.outcome": "answered"}) == rows - report.progress.rows_failed
    assert collector.total("ondine.rows", {"ondine.outcome": "failed"}) == report.progress.rows_failed
    durations = collector.metrics()["gen_ai.client.operation.duration"].histogram.data_points
    waits = collector.metrics()["ondine.wait.duration"].histogram.data_points
    assert sum(point.count for point in durations) == spend.calls
    assert [point.count for point in waits] == [spend.calls, spend.calls], "for the budget, and for the rate"
    assert all(sum(point.bucket_counts) == point.count for point in (*durations, *waits))


def test_calls_beyond_the_rate_are_recorded_together(collector: Collector) -> None:
    """The sums are unchanged, and every failed call has a span of its own."""
    with Provider(fault=matching("row 199", first(3, status(503)))) as provider:
        report = observed(provider, {"name": "opentelemetry", "calls_per_second": 0}, rows=250)
    calls = calls_of(collector.spans())
    assert len(calls) < 110
    assert total(calls, "ondine.calls") == report.spend.calls
    assert total(calls, "ondine.prompts") == report.spend.calls
    assert total(calls, "gen_ai.usage.input_tokens") == report.spend.usage.input_tokens
    assert total(calls, "gen_ai.usage.output_tokens") == report.spend.usage.output_tokens
    assert total(calls, "ondine.cost.usd") == pytest.approx(float(report.spend.usd or 0), abs=1e-12)
    assert sum(span.failed for span in calls) == 3


def test_failed_call_beyond_the_rate_has_the_waits_of_its_batch(collector: Collector) -> None:
    """The budget and rate waits of every attempt, the failed one included."""
    with Provider(fault=matching("row 149", first(1, status(503)))) as provider:
        watching = {"name": "opentelemetry", "calls_per_second": 0}
        observed(provider, watching, rows=150, max_cost_usd=1, rates=Rates(6_000_000))
    spans = {span.id: span for span in collector.spans()}
    (failed,) = (span for span in calls_of([*spans.values()]) if span.failed)
    assert [name for name, _ in spans[failed.parent].events] == ["hold", "booking", "retry", "hold", "booking"]


def test_reused_rows_have_a_metric_of_their_own(collector: Collector, tmp_path: Any) -> None:
    """A second run makes no call, and its metrics say so."""
    with Provider() as provider:
        observed(provider, rows=10, store=tmp_path / "answers.db")
        observed(provider, ALL, rows=10, store=tmp_path / "answers.db")
    assert collector.total("ondine.rows.reused") == collector.total("ondine.rows", {"ondine.outcome": "answered"}) == 10
    assert calls_of(collector.spans()) == []


# -- spans ---------------------------------------------------------------------------------------------------------


def test_spans_follow_the_conventions(collector: Collector) -> None:
    """A call is a client span `chat {model}` with provider, models, usage, finish reason and server."""
    origin = Origin("run-1", "labels", "2026-01-01")
    with Provider(echo_each) as provider:
        observed(provider, "opentelemetry", rows=4, batch_size=4, origin=origin)
        port = int(provider.base_url.split(":")[2].removesuffix("/v1"))
    (call,) = calls_of(collector.spans())
    assert (call.name, call.kind, call.failed) == ("chat m", "CLIENT", False)
    assert call.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai_compatible",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.response.id": "req-1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": call.attributes["gen_ai.usage.input_tokens"],
        "gen_ai.usage.output_tokens": call.attributes["gen_ai.usage.output_tokens"],
        "server.address": "127.0.0.1",
        "server.port": port,
        "ondine.asset": "labels",
        "ondine.batch": 1,
        "ondine.call.id": call.attributes["ondine.call.id"],
        "ondine.calls": 1,
        "ondine.cost.usd": call.attributes["ondine.cost.usd"],
        "ondine.partition": "2026-01-01",
        "ondine.prompts": 4,
        "ondine.run.id": "run-1",
        "ondine.stage": "ask",
    }
    assert len(call.attributes["ondine.call.id"]) == 32
    assert call.resource["service.name"] == "ondine"


def test_calls_are_in_batches_and_batches_in_the_run(collector: Collector) -> None:
    """One trace: times nest, a retry is in the batch of its first attempt, and errors are recorded."""
    fault = first(1, status(429, {"error": {"message": "slow down"}}))
    with Provider(fault=fault) as provider:
        observed(provider, ALL, rows=3)
    spans = {span.id: span for span in collector.spans()}
    (run,) = (span for span in spans.values() if span.name == "enrich")
    calls, batches = calls_of([*spans.values()]), [span for span in spans.values() if span.name == "batch"]
    assert (len(batches), len(calls), len({span.trace for span in spans.values()})) == (3, 4, 1)
    assert {span.parent for span in batches} == {run.id}
    for call in calls:
        batch = spans[call.parent]
        assert batch.name == "batch"
        assert run.began_at <= batch.began_at <= call.began_at <= call.ended_at <= batch.ended_at <= run.ended_at
    (failed,) = (span for span in calls if span.failed)
    assert failed.attributes["error.type"] == "limited"
    assert "429" in failed.status_message
    assert [name for name, _ in spans[failed.parent].events] == ["retry"]


def test_failed_rows_are_events_of_their_batch(collector: Collector) -> None:
    """With reason and detail, without their text."""
    with Provider(fault=matching("row 1", refusal)) as provider:
        observed(provider, ALL, rows=3)
    notes = [note for span in collector.spans() if span.name == "batch" for note in span.events]
    ((name, attributes),) = notes
    assert (name, attributes["ondine.reason"], attributes["ondine.rows"]) == ("rows failed", "refused", 1)
    assert collector.total("ondine.row.failures", {"ondine.reason": "refused"}) == 1


@pytest.mark.parametrize("how", ["option", "variable", "active span"])
def test_callers_trace_is_continued(collector: Collector, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is passed, in the environment, or active where the run is started."""
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    traceparent = f"00-{trace}-{span}-01"
    with Provider() as provider:
        if how == "option":
            observed(provider, ALL, rows=1, traceparent=traceparent)
        elif how == "variable":
            monkeypatch.setenv("TRACEPARENT", traceparent)
            observed(provider, ALL, rows=1)
        else:
            with TracerProvider(shutdown_on_exit=False).get_tracer("mine").start_as_current_span("mine") as active:
                observed(provider, ALL, rows=1)
            trace, span = f"{active.get_span_context().trace_id:032x}", f"{active.get_span_context().span_id:016x}"
    (run,) = (span for span in collector.spans() if span.name == "enrich")
    assert (run.trace, run.parent) == (trace, span)


def test_the_programs_own_tracer_provider_is_used() -> None:
    """Its processors get the spans, and it is not shut down with the run."""
    code = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from ondine_core import Options, ScriptedModel, enrich_sync
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
for number in range(2):
    enrich_sync({"t": [f"{number}"]}, prompt="{t}", output="answer", model=ScriptedModel({"": "x"}),
        options=Options(observers=({"name": "opentelemetry", "metrics": False},)))
print(*sorted(span.name for span in exporter.get_finished_spans()))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split("\n")[0] == "batch batch chat ScriptedModel chat ScriptedModel enrich enrich"


# -- secrets and content -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [False, True])
def test_content_is_recorded_only_on_request(collector: Collector, content: bool) -> None:
    """By default no request to the collector has a word of a row or a reply."""
    with Provider() as provider:
        observed(provider, *({"name": name, "content": content} for name in ("opentelemetry", "langfuse")), rows=2)
    assert collector.requests
    for path in ("/v1/traces", LANGFUSE):
        sent = b"".join(request.body for request in collector.to(path))
        assert (b"row 1" in sent) is content
    if content:
        call = calls_of(collector.spans())[0]
        assert '"role":"user"' in call.attributes["gen_ai.input.messages"]
        assert '"finish_reason":"stop"' in call.attributes["gen_ai.output.messages"]


def test_no_key_is_exported(collector: Collector) -> None:
    """Neither the provider's nor Langfuse's, also if the provider repeats it in an error."""
    key = "sentinel-5up3r-53cr3t"
    chosen = replace(options(), observers=({**ALL, "content": True}, "langfuse"))
    with Provider(fault=error(401, f"Incorrect API key provided: {key}.")) as provider, pytest.raises(ProviderError):
        ask(provider, texts(1), chosen, api_key=key)
    bodies = b"".join(request.body for request in collector.requests)
    assert b"fatal" in bodies
    assert key.encode() not in bodies
    assert b"sk-lf-2" not in bodies


def test_lone_surrogates_and_nul_do_not_break_the_export(collector: Collector) -> None:
    """They are replaced; nothing else of the run is lost."""
    table = {"text": ["a\ud800b", "nul\0", "c"]}
    chosen = replace(options(), observers=({**ALL, "content": True},))
    with Provider() as provider:
        report = ask(provider, table, chosen)
    assert len(calls_of(collector.spans())) == report.spend.calls == 3


# -- Langfuse ------------------------------------------------------------------------------------------------------


def test_langfuse_gets_generations_with_costs(collector: Collector) -> None:
    """At its own address, with its own credentials, with the report's tokens and dollars."""
    origin = Origin("run-1", "labels", "2026-01-01")
    with Provider(echo_each) as provider:
        report = observed(provider, "langfuse", rows=20, batch_size=5, origin=origin)
    credentials = base64.b64encode(b"pk-lf-1:sk-lf-2").decode()
    assert {request.headers["Authorization"] for request in collector.requests} == {f"Basic {credentials}"}
    calls = calls_of(collector.spans(LANGFUSE))
    assert {call.attributes["langfuse.observation.type"] for call in calls} == {"generation"}
    assert {call.attributes["langfuse.trace.name"] for call in calls} == {"labels"}
    assert {call.attributes["langfuse.session.id"] for call in calls} == {"run-1"}
    assert total(calls, "gen_ai.usage.input_tokens") == report.spend.usage.input_tokens
    costs = [Decimal(call.attributes["langfuse.observation.cost_details"][9:-1]) for call in calls]
    assert sum(costs) == report.spend.usd
    assert collector.to("/v1/") == []


def test_langfuse_does_not_get_headers_of_other_collectors(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers of the OTLP variables are not sent to Langfuse."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-their-key=for-them-only")
    with Provider() as provider:
        observed(provider, "langfuse", "opentelemetry", rows=1)
    assert all(request.headers["x-their-key"] == "for-them-only" for request in collector.to("/v1/"))
    assert collector.to(LANGFUSE)
    assert not any("x-their-key" in request.headers for request in collector.to(LANGFUSE))


def test_langfuse_without_keys_is_an_error_that_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any call."""
    monkeypatch.delenv("LANGFUSE_SECRET_KEY", raising=False)
    monkeypatch.setenv("LANGFUSE_PUBLIC_KEY", "pk")
    with pytest.raises(ConfigError, match="LANGFUSE_SECRET_KEY"):
        open_observers(["langfuse"])


# -- without a collector -------------------------------------------------------------------------------------------


def test_variables_switch_signals_off(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """`OTEL_METRICS_EXPORTER=none` for metrics, and `OTEL_SDK_DISABLED` for all."""
    with Provider() as provider:
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
        observed(provider, "opentelemetry", rows=1)
        assert {request.path for request in collector.requests} == {"/v1/traces"}
        collector.requests.clear()
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        observed(provider, "opentelemetry", rows=1)
    assert collector.requests == []


@pytest.mark.parametrize("stalls", [False, True], ids=["gone", "stalled"])
def test_dead_collector_costs_only_the_export_time_out(stalls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is as fast as usual, and its end waits for the time-out of an export, here 1 s."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with socket.socket() as closed, Collector(stalls=True) as stalled, Provider() as provider:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", stalled.url if stalls else dead)
        began = time.monotonic()
        report = observed(provider, "opentelemetry", rows=20)
        assert report.failures == {}
        assert time.monotonic() - began - report.progress.elapsed_s < 20


def test_interrupted_process_exports_everything(collector: Collector) -> None:
    """After Ctrl-C the collector has the run's span, and one for every call, cancelled ones included."""
    code = """
import os, signal, sys
from ondine_core import ModelSpec, Options, Policy, enrich_sync
sent = []
def interrupt(progress):
    if progress.rows_done >= 20 and not sent:
        sent.append(os.kill(os.getpid(), signal.SIGINT))
model = ModelSpec("openai_compatible/m", base_url=sys.argv[1])
options = Options(observers=("opentelemetry",), on_progress=interrupt, policy=Policy(max_concurrency=8))
enrich_sync({"t": [f"{n}" for n in range(5000)]}, prompt="{t}", output={"answer": str}, model=model, options=options)
"""
    with Provider(latency_s=0.02) as provider:
        command = [sys.executable, "-c", code, provider.base_url]
        assert "KeyboardInterrupt" in subprocess.run(command, capture_output=True, text=True, check=False).stderr
    spans = collector.spans()
    (run,) = (span for span in spans if span.name == "enrich")
    assert run.attributes["error.type"] == "cancelled"
    assert total(calls_of(spans), "ondine.calls") == run.attributes["ondine.calls"] < 5000
    cancelled = [span for span in calls_of(spans) if span.failed]
    assert len(cancelled) == run.attributes["ondine.calls.unknown"]


def test_a_missing_package_is_an_error_that_says_what_to_install() -> None:
    """With the extra's name."""
    code = """
import sys
sys.modules["opentelemetry.sdk"] = sys.modules["prometheus_client"] = None
from ondine_core import ConfigError
from ondine_core.telemetry.registry import open_observers
for name in ("opentelemetry", "langfuse", "prometheus"):
    try:
        open_observers([name])
    except ConfigError as error:
        print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.count("ondine-dagster[otel]") == 2
    assert found.count("ondine-dagster[prometheus]") == 1


def test_observer_packages_are_imported_on_use() -> None:
    """Neither they nor structlog are imported with the core."""
    code = """
import sys, ondine_core
print([name for name in ("opentelemetry", "prometheus_client", "structlog", "requests") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
