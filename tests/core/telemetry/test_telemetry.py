"""The stream of events agrees with the report, and no observer can harm the run."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondine_core import (
    Call,
    ConfigError,
    ModelSpec,
    Options,
    Price,
    Progress,
    Prompt,
    ProviderError,
    Rates,
    RefusedError,
    Reply,
    Report,
    ScriptedModel,
    TransientError,
    Usage,
    enrich,
    enrich_sync,
)
from ondine_core.telemetry import (
    AskedBatch,
    BatchEnded,
    Booked,
    CallEnded,
    CallsEnded,
    Endpoint,
    Event,
    Held,
    Observer,
    Progressed,
    Retried,
    RowsFailed,
    Run,
    RunEnded,
    RunStarted,
    register_observer,
)
from ondine_core.telemetry.call_sampler import CallSampler, OrdinaryCall
from ondine_core.telemetry.stream import Opened, Stream
from ondine_core.types.ledger import CallStarted, Origin
from tests.support.asking import PROMPT, ask, echo_each, options, texts
from tests.support.provider import Fault, Provider, after, error, first, matching, refusal, status, truncated

E = TypeVar("E")
RUN, ENDPOINT = Run(Origin("r"), "m", 1), Endpoint("p", "m")
PRICE = Price(Decimal("0.000001"), Decimal("0.000002"), Decimal("0.0000005"))


def watched(provider: Provider, table: Any, batch_size: int = 1, **chosen: Any) -> tuple[Report, list[Event]]:
    """The report of a run, and all its events."""
    seen: list[Event] = []
    base = replace(options(batch_size=batch_size), price=PRICE, observers=(seen.append,))
    return ask(provider, table, replace(base, **chosen), max_output_tokens=2000), seen


def of(kind: type[E], events: list[Event]) -> list[E]:
    """The events of one kind."""
    return [event for event in events if isinstance(event, kind)]


def counted(what: RunEnded | Report) -> Progress:
    """The figures of a run, except the microseconds between its last event and its report."""
    assert what.progress is not None
    return replace(what.progress, elapsed_s=0.0)


# -- events -------------------------------------------------------------------------------------------------------

FAULTS = st.sampled_from(
    [
        None,
        None,
        TransientError("busy", kind="overloaded"),
        TransientError("gone", cost_unknown=True),
        RefusedError("no"),
        RefusedError("no, and it costs", usage=Usage(7, 2, 3)),
    ]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(FAULTS, max_size=12), st.integers(1, 12))
def test_events_add_up_to_the_report(faults: list[ProviderError | None], rows: int) -> None:
    """Calls, tokens, dollars and failed rows summed over events equal the report's, with any faults."""
    seen: list[Event] = []
    chosen = replace(options(), price=PRICE, observers=(seen.append,))
    table = {"text": [f"row {number // 2}" for number in range(rows)]}
    model = ScriptedModel(lambda text: {"answer": text}, faults=faults)
    report = enrich_sync(table, prompt=PROMPT, output={"answer": "string"}, model=model, options=chosen)
    calls, batches = of(CallEnded, seen), of(BatchEnded, seen)
    assert isinstance(seen[0], RunStarted)
    assert isinstance(seen[-1], RunEnded)
    assert counted(seen[-1]) == counted(report)
    assert len(calls) == report.spend.calls
    assert sum((call.usage for call in calls if call.usage), Usage()) == report.spend.usage
    assert sum((call.usd for call in calls if call.usd), Decimal(0)) == report.spend.usd
    assert sum(event.rows for event in of(RowsFailed, seen)) == report.progress.rows_failed
    assert sum(batch.answered + batch.failed for batch in batches) == report.prompts
    assert len({batch.batch.number for batch in batches}) == len(batches)
    assert {call.batch.number for call in calls} == {batch.batch.number for batch in batches}
    assert len(calls) == len(batches) + len(of(Retried, seen))


class Sampling:
    """An observer that receives only a few calls one by one."""

    def __init__(self, calls_per_second: float | None = 0.0, wants: frozenset[type] | None = None) -> None:
        self.calls_per_second, self.wants = calls_per_second, wants
        self.seen: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.seen.append(event)


@settings(max_examples=15, deadline=None)
@given(st.lists(FAULTS, max_size=30), st.integers(140, 160))
def test_gathered_calls_add_up_to_the_report(faults: list[ProviderError | None], rows: int) -> None:
    """After the first hundred ordinary calls arrive gathered, others alone with their batch; none is lost."""
    some = Sampling()
    chosen = replace(options(), price=PRICE, observers=(some,), rates=Rates(6_000_000))
    model = ScriptedModel(lambda text: {"answer": text}, faults=[None] * 100 + faults)
    output = {"answer": "string"}
    report = enrich_sync(texts(rows), prompt=PROMPT, output=output, model=model, options=chosen)
    alone, together = of(CallEnded, some.seen), of(CallsEnded, some.seen)
    failed = [call for call in alone if call.error_type is not None]
    assert len(alone) + sum(len(calls.durations_s) for calls in together) == report.spend.calls
    assert together
    assert len(failed) == sum(fault is not None for fault in faults[: report.spend.calls - 100])
    usages = [*(call.usage for call in alone), *(usage for calls in together for usage in calls.usages)]
    assert sum(filter(None, usages), Usage()) == report.spend.usage
    usds = [*(call.usd for call in alone), *(usd for calls in together for usd in calls.usds)]
    assert sum(filter(None, usds), Decimal(0)) == report.spend.usd
    assert sum(calls.prompts for calls in together) == sum(len(calls.durations_s) for calls in together)
    assert all(calls.began_at <= calls.at for calls in together)
    assert len(of(Booked, some.seen)) + sum(len(calls.booked_s) for calls in together) == report.spend.calls
    assert {call.batch.number for call in alone} == {event.batch.number for event in of(BatchEnded, some.seen)}
    assert sum(event.rows for event in of(RowsFailed, some.seen)) == report.progress.rows_failed


def test_waits_of_gathered_calls_are_gathered_with_them() -> None:
    """For budget and rate; those of a failed call arrive alone, like the call."""
    some = Sampling()
    with Provider(fault=matching("row 119", first(1, status(503)))) as provider:
        chosen = replace(options(), price=PRICE, max_cost_usd=1, rates=Rates(6_000_000), observers=(some,))
        report = ask(provider, texts(120), chosen, max_output_tokens=2000)
    together = of(CallsEnded, some.seen)
    assert report.spend.calls == 121
    assert 102 <= len(of(Held, some.seen)) == len(of(Booked, some.seen)) < 121
    assert len(of(Held, some.seen)) + sum(len(calls.held_s) for calls in together) == 121
    assert len(of(Booked, some.seen)) + sum(len(calls.booked_s) for calls in together) == 121


@pytest.mark.parametrize(
    ("fault", "errors"),
    [(matching("row 119", first(1, truncated)), {None}), (matching("row 119", refusal), {"refused"})],
)
def test_call_without_every_answer_is_emitted_alone(fault: Fault, errors: set[str | None]) -> None:
    """With its batch, which says what is asked again or failed; here after a hundred single ones."""
    some = Sampling()
    with Provider(fault=fault) as provider:
        ask(provider, texts(120), replace(options(max_concurrency=1), observers=(some,)))
    late = [event for event in some.seen if isinstance(event, CallEnded) and event.batch.number > 100]
    assert {call.error_type for call in late} == errors
    ended = {event.batch.number: event for event in of(BatchEnded, some.seen)}
    assert all(ended[call.batch.number].retried + ended[call.batch.number].failed for call in late[:1])


def test_gathered_calls_are_emitted_when_a_run_ends_early() -> None:
    """Before the run's last event."""
    some = Sampling()
    with Provider(fault=after(120, status(401))) as provider, pytest.raises(ProviderError):
        ask(provider, texts(200), replace(options(), observers=(some,)))
    together = sum(len(calls.durations_s) for calls in of(CallsEnded, some.seen))
    answered = sum(call.error_type is None for call in of(CallEnded, some.seen))
    ended = some.seen[-1]
    assert isinstance(ended, RunEnded)
    assert ended.error_type == "fatal"
    assert ended.progress is not None
    assert together > 0
    assert together + answered == ended.progress.spend.answered


def ordinary(at: float, duration_s: float) -> OrdinaryCall:
    """A call that ended at `at`."""
    batch = AskedBatch(RUN, ENDPOINT, 1, 1, 1, at - duration_s)
    sent = CallStarted(b"", RUN.origin, RUN.model, "ask", (), at - duration_s)
    return OrdinaryCall(CallEnded(at, batch, sent, duration_s, Usage(1, 0, 1)))


@given(st.lists(st.floats(0, 30), min_size=1, max_size=50), st.floats(0.1, 100))
def test_gathered_calls_are_emitted_after_two_seconds_or_a_thousand_calls(
    pauses: list[float], duration_s: float
) -> None:
    """However long the calls take; and none is lost."""
    sampler, at, first_at, waiting = CallSampler(0), 1e9, None, 0
    for _ in range(100):
        assert isinstance(sampler.receive(ordinary(at, duration_s))[0], OrdinaryCall)
    for pause in [*pauses, *[0.0] * 1100]:
        at += pause
        first_at, waiting = first_at or at, waiting + 1
        emitted = sampler.receive(ordinary(at, duration_s))
        assert bool(emitted) == (at - first_at > 2 or waiting == 1000)
        if emitted:
            (calls,) = emitted
            assert isinstance(calls, CallsEnded)
            assert len(calls.durations_s) == waiting
            assert (calls.began_at, calls.at) == (first_at - duration_s, at)
            first_at, waiting = None, 0
    rest, end = sampler.receive(RunEnded(at, RUN, None))
    assert isinstance(rest, CallsEnded)
    assert len(rest.durations_s) == waiting
    assert isinstance(end, RunEnded)


@given(st.lists(st.floats(-1, 5), max_size=300), st.floats(0, 50))
def test_a_sampler_never_takes_more_than_its_rate(steps: list[float], per_second: float) -> None:
    """At most a hundred plus its rate for each second passed; also when the clock is set back."""
    sampler, at, latest, taken = CallSampler(per_second), 1e9, 1e9, 0
    assert sum(sampler.takes(at) for _ in range(150)) == 100
    for step in steps:
        at += step
        latest = max(latest, at)
        taken += sum(sampler.takes(at) for _ in range(20))
        assert taken <= (latest - 1e9) * per_second + 1e-3


def test_a_sampler_takes_its_rate() -> None:
    """Of a hundred calls a second it takes the ten that are allowed."""
    sampler = CallSampler(10)
    taken = [sampler.takes(1e9 + number / 100) for number in range(6000)]
    assert sum(taken[:100]) == 100
    assert 575 <= sum(taken[200:]) <= 585


def test_each_observer_has_its_own_calls_per_second() -> None:
    """Whatever the others ask for; the totals are the same."""
    none, every, runs = Sampling(0.0), Sampling(None), Sampling(None, frozenset({RunEnded}))
    own: list[Event] = []
    model = ScriptedModel(lambda text: {"answer": text})
    chosen = replace(options(), observers=(none, every, runs, own.append, "logging", "prometheus"))
    enrich_sync(texts(150), prompt=PROMPT, output={"answer": "string"}, model=model, options=chosen)
    for seen, alone in ((none.seen, 100), (every.seen, 150), (own, 150)):
        together = of(CallsEnded, seen)
        assert len(of(CallEnded, seen)) == len(of(BatchEnded, seen)) == alone
        assert sum(calls.prompts for calls in together) == 150 - alone
        assert bool(together) == (alone < 150)
    assert [type(event) for event in runs.seen] == [RunEnded]


def test_every_event_names_its_run_and_call() -> None:
    """Run, asset, partition, model, server and the provider's request id are in every call's event."""
    origin = Origin("run-1", "labels", "2026-01-01")
    with Provider(echo_each) as provider:
        _, seen = watched(provider, texts(5), batch_size=5, origin=origin)
        port = int(provider.base_url.split(":")[2].removesuffix("/v1"))
    (call,) = of(CallEnded, seen)
    assert call.batch.run.origin == call.sent.origin == origin
    assert (call.batch.endpoint.provider, call.batch.endpoint.model) == ("openai_compatible", "m")
    assert (call.batch.endpoint.address, call.batch.endpoint.port) == ("127.0.0.1", port)
    assert (call.batch.prompts, call.sent.stage, call.finish_reason, call.request_id) == (5, "ask", "stop", "req-1")
    assert call.model == "m"
    assert 0 < call.duration_s < 5


def test_waits_and_retries_are_emitted() -> None:
    """A budget and a rate wait for each sent call, and each retry with its reason."""
    with Provider(fault=first(2, status(503))) as provider:
        report, seen = watched(provider, texts(1), max_cost_usd=1, rates=Rates(60_000))
    assert report.failures == {}
    assert [call.error_type for call in of(CallEnded, seen)] == ["overloaded", "overloaded", None]
    assert [retry.attempt for retry in of(Retried, seen)] == [2, 3]
    assert len(of(Held, seen)) == len(of(Booked, seen)) == 3
    assert all(held.usd > 0 for held in of(Held, seen))


def test_failed_rows_are_emitted_with_their_reason() -> None:
    """Refused rows and rows without a prompt, with their batch if any."""
    seen: list[Event] = []
    with Provider(fault=matching("BAD", refusal)) as provider:
        prompt = Prompt("{{ text.upper() }}", syntax="jinja2")
        chosen = replace(options(), observers=(seen.append,))
        report = ask(provider, {"text": ["good", "bad", "bad", 3]}, chosen, prompt)
    emitted = {(event.reason, event.rows, event.batch is not None) for event in of(RowsFailed, seen)}
    assert emitted == {("refused", 2, True), ("prompt", 1, False)}
    assert report.progress.rows_failed == 3


def test_a_run_with_a_fallback_is_one_run() -> None:
    """It begins and ends once, its batches are numbered through, and each call names its model."""
    seen: list[Event] = []
    with Provider(fault=status(401)) as broken, Provider() as sound:
        fallback = ModelSpec("openai_compatible/other", base_url=sound.base_url)
        chosen = replace(options(), fallbacks=(fallback,), observers=(seen.append,))
        report = ask(broken, texts(3), chosen)
    assert report.failures == {}
    assert len(of(RunStarted, seen)) == len(of(RunEnded, seen)) == 1
    assert {call.batch.endpoint.model for call in of(CallEnded, seen) if call.error_type is None} == {"other"}
    assert {call.error_type for call in of(CallEnded, seen) if call.batch.endpoint.model == "m"} == {"fatal"}
    assert counted(of(RunEnded, seen)[0]) == counted(report)


def test_content_is_given_only_to_observers_that_ask_for_it() -> None:
    """Of two observers of one run only the one with `content` gets messages and replies."""
    plain: list[Event] = []

    class Curious:
        content = True

        def __init__(self) -> None:
            self.seen: list[Event] = []

        def __call__(self, event: Event) -> None:
            self.seen.append(event)

    curious = Curious()
    with Provider() as provider:
        ask(provider, texts(1), replace(options(), observers=(plain.append, curious)))
    (call,) = of(CallEnded, curious.seen)
    assert call.content is not None
    assert "row 0" in call.content.messages[-1].content
    assert "row 0" in str(call.content.text)
    assert "row 0" not in repr(plain)


def test_no_event_has_the_key() -> None:
    """Not even if the provider repeats it in an error."""
    key, seen = "sentinel-5up3r-53cr3t", list[Event]()
    with Provider(fault=error(401, f"Incorrect API key provided: {key}.")) as provider, pytest.raises(ProviderError):
        ask(provider, texts(1), replace(options(), observers=(seen.append,)), api_key=key)
    assert of(RunEnded, seen)[0].error_type == "fatal"
    assert key not in repr(seen)


def test_text_of_a_models_own_exception_is_not_emitted() -> None:
    """It may contain anything; the event has the exception's name only."""
    seen: list[Event] = []

    class Careless(ScriptedModel):
        async def __call__(self, call: Call) -> Reply:
            raise ValueError(f"cannot answer {call.messages[-1].content}")

    model, chosen = Careless({"": "x"}), replace(options(), observers=(seen.append,))
    with pytest.raises(ValueError, match="cannot answer"):
        enrich_sync(texts(1), prompt=PROMPT, output="answer", model=model, options=chosen)
    assert of(RunEnded, seen)[0].error_type == of(CallEnded, seen)[0].error_type == "ValueError"
    assert "cannot answer" not in repr(seen)


# -- failing observers ---------------------------------------------------------------------------------------------


def test_run_without_observers_starts_no_thread() -> None:
    """And needs none."""
    threads: list[str] = []
    with Provider() as provider:
        chosen = replace(options(), on_progress=lambda _: threads.extend(t.name for t in threading.enumerate()))
        ask(provider, texts(3), chosen)
    assert threads
    assert not [name for name in threads if "observer" in name]


def test_failing_observer_is_reported_once_and_affects_no_other() -> None:
    """The run continues, and its end says how often the observer failed, without the error's text."""
    seen: list[Event] = []
    trouble: list[str] = []

    def fail(event: Event) -> None:
        raise ValueError(f"a secret {event!r}")

    with Provider() as provider:
        chosen = replace(options(), observers=(fail, seen.append), on_observer_error=trouble.append)
        report = ask(provider, texts(10), chosen)
    assert report.failures == {}
    assert len(of(CallEnded, seen)) == 10
    assert len(trouble) == 2
    assert "failed with ValueError" in trouble[0]
    assert f"failed {len(seen)} times in {len(seen)} events" in trouble[1]
    assert "secret" not in "".join(trouble)


def test_observer_that_raises_system_exit_does_not_end_the_run() -> None:
    """Not even where it means to end the program."""
    trouble: list[str] = []
    with Provider() as provider:
        chosen = replace(options(), observers=(lambda _: sys.exit(1),), on_observer_error=trouble.append)
        assert ask(provider, texts(3), chosen).failures == {}
    assert "failed with SystemExit" in trouble[0]


def test_blocked_observer_does_not_delay_the_run() -> None:
    """Every row is answered while it waits at its first event; it gets all others afterwards."""
    done, seen = threading.Event(), list[Event]()

    def wait(event: Event) -> None:
        assert done.wait(30)
        seen.append(event)

    def finish(progress: Any) -> None:
        if progress.rows_done == progress.rows_total:
            done.set()

    with Provider() as provider:
        ask(provider, texts(20), replace(options(), observers=(wait,), on_progress=finish))
    assert len(of(CallEnded, seen)) == 20


def test_events_beyond_the_buffer_are_dropped_and_counted() -> None:
    """A buffer never exceeds its capacity; the number of dropped events is exact."""
    busy, go, seen, trouble = threading.Event(), threading.Event(), list[Event](), list[str]()
    run = Run(Origin("r"), "m", 1)

    def slow(event: Event) -> None:
        busy.set()
        go.wait(30)
        seen.append(event)

    stream = Stream([Opened("slow", slow, owned=False)], trouble.append, capacity=10)
    stream.emit(RunStarted(0.0, run))
    assert busy.wait(30)
    for _ in range(50):
        stream.emit(RowsFailed(1.0, run, None, "refused", "", 1))
    stream.emit(RunEnded(2.0, run, None))
    go.set()
    stream.close(10)
    assert len(seen) == 12
    assert type(seen[-1]) is RunEnded, "without it nothing that was seen adds up"
    assert trouble == ["The observer 'slow' was too slow and missed 40 of 52 events."]


def test_observer_that_never_returns_is_abandoned() -> None:
    """Closing ends after its time-out; unseen events are counted."""
    never, trouble = threading.Event(), list[str]()
    stream = Stream([Opened("stuck", lambda _: never.wait(30), owned=False)], trouble.append)
    for _ in range(3):
        stream.emit(RunStarted(0.0, Run(Origin("r"), "m", 1)))
    began = time.monotonic()
    stream.close(0.4)
    assert 0.3 < time.monotonic() - began < 20
    assert "missed 2 of 3 events" in trouble[0]
    never.set()


def test_an_interrupt_does_not_wait_for_observers() -> None:
    """A cancelled run emits its end and ends, although an observer never returns."""
    never, seen = threading.Event(), list[Event]()

    async def main() -> float:
        waiting = asyncio.Semaphore(0)

        async def hang(_seconds: float) -> None:
            waiting.release()
            await asyncio.Event().wait()

        model = ScriptedModel({"": {"answer": "x"}}, sleep=hang)
        chosen = replace(options(), observers=(seen.append, lambda _: never.wait(30)))
        asking = enrich(texts(2), prompt=PROMPT, output={"answer": "string"}, model=model, options=chosen)
        task = asyncio.create_task(asking)
        for _ in range(2):  # both calls are under way
            await waiting.acquire()
        task.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - began

    assert asyncio.run(main()) < 20
    assert of(RunEnded, seen)[0].error_type == "cancelled"
    assert {call.error_type for call in of(CallEnded, seen)} == {"cancelled"}
    never.set()


def test_observer_receives_only_the_events_it_wants() -> None:
    """`wants` names the types of events."""

    class Ends:
        wants = frozenset({RunEnded})

        def __init__(self) -> None:
            self.seen: list[Event] = []

        def __call__(self, event: Event) -> None:
            self.seen.append(event)

    ends = Ends()
    with Provider() as provider:
        ask(provider, texts(3), replace(options(), observers=(ends,)))
    assert [type(event) for event in ends.seen] == [RunEnded]


def test_progress_is_emitted_at_most_twice_a_second() -> None:
    """However many batches a run has."""
    with Provider() as provider:
        report, seen = watched(provider, texts(200))
    assert 1 <= len(of(Progressed, seen)) <= 2 * report.progress.elapsed_s + 2


# -- observers by name ---------------------------------------------------------------------------------------------


def test_user_observer_is_registered_by_decorator() -> None:
    """It is opened with its options, sees the run, and is closed once after the last event."""
    seen: list[str] = []

    class Mine:
        def __init__(self, prefix: str) -> None:
            self._prefix = prefix

        def __call__(self, event: Event) -> None:
            seen.append(f"{self._prefix}{type(event).__name__}")

        def close(self, timeout_s: float) -> None:
            seen.append(f"closed within {timeout_s:.0f}")

    @register_observer("mine")
    def open_mine(*, prefix: str = "") -> Observer:
        return Mine(prefix)

    with Provider() as provider:
        ask(provider, texts(1), replace(options(), observers=({"name": "mine", "prefix": "a "},)))
    assert seen[0] == "a RunStarted"
    assert seen[-2:] == ["a RunEnded", "closed within 5"]


def test_observer_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point of a distribution is found by its name."""
    (tmp_path / "their_observer.py").write_text("seen = []\ndef open_theirs(*, to=None):\n    return seen.append\n")
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[ondine.observers]\ntheirs = their_observer:open_theirs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Provider() as provider:
        ask(provider, texts(1), replace(options(), observers=("theirs",)))
    assert len(of(CallEnded, sys.modules["their_observer"].seen)) == 1


@pytest.mark.parametrize(
    ("observers", "message"),
    [
        (("opentelemetri",), "Did you mean 'opentelemetry'"),
        (({"name": "prometheus", "gateway": "x"},), "'prometheus' has no option 'gateway'; it has 'push_gateway'"),
        (({"level": "debug"},), "lacks a name"),
        ((3,), "a int is not a name"),
        ("logging", "must be a sequence"),
        ((asyncio.sleep,), "is asynchronous"),
    ],
)
def test_unknown_observer_is_a_config_error(observers: Any, message: str) -> None:
    """When `Options` is created, not when the run starts."""
    with pytest.raises(ConfigError, match=message):
        Options(observers=observers)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (None, "no such place"),
        ({"calls_per_second": "10"}, "calls_per_second='10' of 'second' must be 0 or a positive number"),
        ({"calls_per_second": -1.0}, "must be 0 or a positive number"),
        ({"content": "no"}, "content='no' of 'second' must be true or false"),
        ({"wants": RunEnded}, "must be a set of event types"),
        ({"wants": {"RunEnded"}}, "must be a set of event types"),
    ],
)
def test_an_observer_that_cannot_be_opened_is_an_error_before_the_first_call(
    wish: dict[str, Any] | None, message: str
) -> None:
    """Also one that wants unknown events; observers opened before it are closed."""
    closed: list[float] = []

    class Closing:
        def __call__(self, event: Event) -> None: ...

        def close(self, timeout_s: float) -> None:
            closed.append(timeout_s)

    @register_observer("first")
    def open_first() -> Observer:
        return Closing()

    @register_observer("second")
    def open_second() -> Observer:
        if wish is None:
            raise ConfigError("There is no such place.")
        observer = Closing()
        vars(observer).update(wish)
        return observer

    with Provider() as provider, pytest.raises(ConfigError, match=message):
        ask(provider, texts(1), replace(options(), observers=("first", "second")))
    assert provider.ledger.requests == []
    assert closed == ([0.0] if wish is None else [0.0, 0.0])


def test_two_runs_may_share_an_observer() -> None:
    """Their events differ by their run."""
    seen: list[Event] = []

    async def main() -> tuple[Report, ...]:
        def run(rows: int) -> Any:
            model = ScriptedModel({"": {"answer": "x"}}, latency_s=0.01, name=f"{rows}")
            chosen = replace(options(), observers=(seen.append,))
            return enrich(texts(rows), prompt=PROMPT, output={"answer": "string"}, model=model, options=chosen)

        return tuple(await asyncio.gather(run(3), run(5)))

    asyncio.run(main())
    calls: Mapping[int, int] = {
        run.rows: sum(call.batch.run is run for call in of(CallEnded, seen))
        for run in (event.run for event in of(RunStarted, seen))
    }
    assert calls == {3: 3, 5: 5}
