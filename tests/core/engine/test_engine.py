"""The laws of the engine, over random schedules of faults on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.api import answer
from ondine_core.engine.options import Options
from ondine_core.engine.policy import Policy
from ondine_core.engine.report import Report
from ondine_core.errors import FatalError, OndineError, TransientError
from ondine_core.limits.rates import Rates
from ondine_core.limits.retry import RetryPolicy
from ondine_core.prompts.task import compile_task
from ondine_core.providers.pricing import Price
from ondine_core.types.clock import Clock
from ondine_core.types.values import Answer, Call, Failure, ModelSpec, Reply, Usage
from tests.support.unreliable import FAULTS, MemoryStore, UnreliableModel, image_of, schedules
from tests.support.virtual_clock import run_virtually

QUESTION = compile_task("Say: {text}", {"answer": str}, ModelSpec("test/unreliable", max_output_tokens=1000))
RETRY = RetryPolicy(max_attempts=3, max_outage_s=10)
POLICY = Policy(max_concurrency=4, max_repairs=1, retry=RETRY)
HEALTHY = ((), "none")

BATCHED = replace(POLICY, batch_size=5)
SIGHT = compile_task("Say: {text:image}", {"answer": str}, ModelSpec("test/unreliable", max_output_tokens=1000))


def by_size(law: Callable[..., None]) -> Callable[..., None]:
    """Alone and in batches, of texts and of images."""
    by_kind = pytest.mark.parametrize("kind", ["texts", "images"])
    return by_kind(pytest.mark.parametrize("policy", [POLICY, BATCHED], ids=["alone", "batched"])(law))


def cells(texts: list[str], kind: str) -> list[str | bytes]:
    """Rows that hold these texts, or images that show them."""
    return [image_of(text) for text in texts] if kind == "images" else list(texts)


# With one row a call these faults change nothing.
HARMLESS_ALONE = ("none", "slow", "fenced", "reorder", "drop", "repeat", "contradict", "alien", "text ids", "shift")

tables = st.lists(st.text("abc", min_size=1, max_size=2), min_size=1, max_size=30)


def enrich(
    texts: list[str],
    model: UnreliableModel,
    store: MemoryStore,
    policy: Policy = POLICY,
    *,
    kind: str = "texts",
    **options: object,
) -> Report:
    """One run on virtual time."""

    def main(clock: Clock) -> object:
        chosen = Options(store=store, policy=policy, clock=clock)
        task = SIGHT if kind == "images" else QUESTION
        return answer({"text": cells(texts, kind)}, task, replace(chosen, **options), model)

    return run_virtually(main)


@by_size
@given(tables, schedules)
def test_total_and_aligned(kind: str, policy: Policy, texts: list[str], schedule: tuple) -> None:
    """A table of n rows gives n outcomes, each an answer that repeats its own row's text or a failure with a reason."""
    model, store = UnreliableModel(schedule), MemoryStore()
    try:
        report = enrich(texts, model, store, policy, kind=kind)
    except TransientError:  # a long outage; what was answered is kept
        report = enrich(texts, UnreliableModel(HEALTHY), store, policy, kind=kind)
    assert len(report.outcomes) == len(texts)
    for text, outcome in zip(texts, report.outcomes, strict=True):
        assert isinstance(outcome, Failure) or outcome.values == {"answer": text}
    failed = sum(isinstance(outcome, Failure) for outcome in report.outcomes)
    assert (report.progress.rows_done, report.progress.rows_failed) == (len(texts), failed)


@by_size
@given(tables, schedules)
def test_terminating(kind: str, policy: Policy, texts: list[str], schedule: tuple) -> None:
    """No prompt is asked more often than repairs times attempts allow, whatever keeps failing."""
    model = UnreliableModel(schedule)
    with suppress(TransientError):
        enrich(texts, model, MemoryStore(), policy, kind=kind)
    # A batch of 5 may be repaired once, halved to 3, to 2 and to 1, and repaired when it is alone.
    asks = 1 + policy.max_repairs + (4 if policy.batch_size > 1 else 0)
    # During an outage the provider is probed at most four times a second.
    probes = 4 * RETRY.max_outage_s
    bound = asks * RETRY.max_attempts + probes
    assert all(model.asked.count(text) <= bound for text in set(texts))


@by_size
@given(tables, schedules)
def test_duplicates_are_asked_once(kind: str, policy: Policy, texts: list[str], schedule: tuple) -> None:
    """Rows with the same text share one call and one outcome."""
    model = UnreliableModel((schedule[0], "none"))
    report = enrich(texts, model, MemoryStore(), policy, kind=kind)
    by_text: dict[str, object] = {}
    for text, outcome in zip(texts, report.outcomes, strict=True):
        assert by_text.setdefault(text, outcome) == outcome
    assert report.prompts == len(set(texts))


@by_size
@given(tables, schedules)
def test_idempotent(kind: str, policy: Policy, texts: list[str], schedule: tuple) -> None:
    """A re-run asks only what has no answer yet, and a third asks nothing."""
    store = MemoryStore()
    with suppress(TransientError):
        enrich(texts, UnreliableModel(schedule), store, policy, kind=kind)
    answered = {stored.values["answer"] for stored in store.answers.values()}
    again = UnreliableModel(HEALTHY)
    report = enrich(texts, again, store, policy, kind=kind)
    assert sorted(again.asked) == sorted(set(texts) - answered)
    assert report.progress.rows_reused == sum(text in answered for text in texts)
    idle = UnreliableModel(HEALTHY)
    enrich(texts, idle, store, kind=kind)
    assert idle.asked == []


@by_size
@given(tables, schedules)
def test_report_equals_what_the_provider_counted(kind: str, policy: Policy, texts: list[str], schedule: tuple) -> None:
    """Calls, replies, tokens and dollars of the report are those that the provider counted."""
    model, price = UnreliableModel((schedule[0], "none")), Price(Decimal(1), Decimal(2), Decimal("0.5"))
    spend = enrich(texts, model, MemoryStore(), policy, price=price, kind=kind).spend
    assert (spend.calls, spend.answered) == (len(model.sizes), len(model.replies))
    assert spend.usage == sum(model.replies, Usage())
    assert spend.usd == len(model.replies) * (6 * price.input + 4 * price.cached_input + 3 * price.output)


@by_size
@given(tables, schedules, st.floats(0.0, 3.0))
def test_an_interrupt_stops_at_once(kind: str, policy: Policy, texts: list[str], schedule: tuple, at_s: float) -> None:
    """After a cancellation, whenever it comes, no call leaves and none is in flight."""
    model, store = UnreliableModel(schedule), MemoryStore()

    async def main(clock: Clock) -> int:
        options = Options(store=store, policy=policy, clock=clock)
        asked = SIGHT if kind == "images" else QUESTION
        task = asyncio.create_task(answer({"text": cells(texts, kind)}, asked, options, model))
        await asyncio.wait({task}, timeout=at_s)
        cancelled_at = clock.now()
        task.cancel()
        with suppress(asyncio.CancelledError, OndineError):
            await task
        await asyncio.sleep(60)
        assert model.in_flight == 0
        return sum(at > cancelled_at for at in model.arrivals)

    assert run_virtually(main) == 0


@given(st.lists(st.text("abcdefgh", min_size=3, max_size=3), unique=True, min_size=5, max_size=40), st.integers(6, 600))
def test_paced(texts: list[str], requests_per_minute: int) -> None:
    """No window has more calls than the rate allows, and a waiting worker occupies no concurrency slot."""
    model = UnreliableModel(HEALTHY, latency_s=0.001)
    enrich(texts, model, MemoryStore(), rates=Rates(requests_per_minute=requests_per_minute))
    spacing_s = 60 / requests_per_minute
    gaps = [later - earlier for earlier, later in zip(model.arrivals, model.arrivals[1:], strict=False)]
    assert all(gap >= spacing_s * 0.999 for gap in gaps)


def test_retry_after_delays_its_own_call_only() -> None:
    """One 429 among answers delays its own row by two seconds, and no other."""
    model = UnreliableModel((("none",) * 10 + ("429 later",), "none"))
    report = enrich([str(number) for number in range(40)], model, MemoryStore())
    assert report.failures == {}
    refused = model.asked[10]
    first, again = (at for at, text in zip(model.arrivals, model.asked, strict=True) if text == refused)
    assert again >= first + 2
    assert max(at for at, text in zip(model.arrivals, model.asked, strict=True) if text != refused) < first + 1


def test_retry_after_delays_all_calls_while_all_are_refused() -> None:
    """If all of forty rows would be refused, a dozen are; then no call leaves for the two seconds asked for."""
    model = UnreliableModel((("429 later",) * 11, "none"))
    report = enrich([str(number) for number in range(40)], model, MemoryStore())
    assert report.failures == {}
    refused_at = model.arrivals[7] + 0.05
    assert not [at for at in model.arrivals if refused_at + 0.1 < at < model.arrivals[7] + 2]
    assert sum(at < refused_at + 0.1 for at in model.arrivals) <= 12


@pytest.mark.parametrize("parallel_limit", [1, 3, 8])
def test_calls_in_flight_are_bounded_by_the_policy_and_by_the_model(parallel_limit: int) -> None:
    """The smaller of the two bounds holds, and is used in full."""
    model = UnreliableModel(HEALTHY, parallel_limit=parallel_limit)
    enrich([str(number) for number in range(40)], model, MemoryStore())
    assert model.peak_in_flight == min(POLICY.max_concurrency, parallel_limit)


def test_no_call_starts_before_earlier_answers_are_queued_for_commit() -> None:
    """While a commit hangs, no further call starts and no progress is reported: a kill costs the calls in flight."""
    model, store = UnreliableModel(HEALTHY), MemoryStore(commit_s=1000)

    async def main(clock: Clock) -> None:
        options = Options(
            store=store, policy=POLICY, clock=clock, on_progress=lambda now: observer.append(now.rows_done)
        )
        task = asyncio.create_task(answer({"text": list("abcdefghij")}, QUESTION, options, model))
        # Recording a call takes 1,000 s and keeping its answer another 1,000 s; the record of the call that takes its
        # slot comes with it or after it.
        await asyncio.wait({task}, timeout=1999)
        seen.append((len(model.asked), max(observer, default=0)))
        await asyncio.wait({task}, timeout=2)
        seen.append((len(model.asked), max(observer, default=0)))
        task.cancel()
        await asyncio.wait({task})

    most, observer, seen = POLICY.max_concurrency, list[int](), list[tuple[int, int]]()
    run_virtually(main)
    assert seen == [(most, 0), (2 * most, most)]


def test_full_refresh_asks_everything_again() -> None:
    """`reuse_since=inf` ignores the store and renews it."""
    store = MemoryStore()
    enrich(["a", "b"], UnreliableModel(HEALTHY), store)
    model = UnreliableModel(HEALTHY)
    report = enrich(["a", "b"], model, store, replace(POLICY, reuse_since=inf))
    assert sorted(model.asked) == ["a", "b"]
    assert report.progress.rows_reused == 0


def test_a_fatal_error_lets_calls_in_flight_finish() -> None:
    """Calls in flight are awaited and their answers kept; no new call starts."""

    class Expiring(UnreliableModel):
        async def __call__(self, call: Call) -> Reply:
            reply = await super().__call__(call)
            if len(self.replies) == 3:
                raise FatalError("the key expired")
            return reply

    model, store = Expiring(HEALTHY), MemoryStore()
    with pytest.raises(FatalError, match="expired"):
        enrich([str(number) for number in range(40)], model, store)
    assert len(store.answers) == len(model.replies) - 1 == len(model.asked) - 1


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in HARMLESS_ALONE])
def test_unreachable_rows_are_not_stored(fault: str) -> None:
    """A row that kept failing transiently leaves nothing in the store, so a re-run asks it."""
    store = MemoryStore()
    with suppress(TransientError):
        report = enrich(["a", "b"], UnreliableModel(((), fault)), store)
        assert all(isinstance(outcome, Failure) for outcome in report.outcomes)
    assert not store.answers
    model = UnreliableModel(HEALTHY)
    enrich(["a", "b"], model, store)
    assert sorted(model.asked) == ["a", "b"]


def test_answers_keep_their_provenance() -> None:
    """Model, attempts, batch size and share of the cost are stored with the answer."""
    report = enrich(["a"], UnreliableModel((("garbage",), "none")), MemoryStore(), price=Price(*[Decimal(1)] * 3))
    (outcome,) = report.outcomes
    assert isinstance(outcome, Answer)
    assert (outcome.model, outcome.attempts, outcome.batch_size) == ("test/unreliable", 2, 1)
    assert outcome.cost_usd == Decimal(13)


# -- several rows a call -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["reorder", "repeat", "alien", "text ids", "fenced"])
def test_reordered_repeated_or_unknown_ids_cost_no_call(fault: str) -> None:
    """Order, repetition, unknown ids and ids as texts: one call, and every row has its own answer."""
    model = UnreliableModel(((), fault))
    report = enrich(list("abcde"), model, MemoryStore(), BATCHED)
    assert report.column("answer") == list("abcde")
    assert model.sizes == [5]


@pytest.mark.parametrize("fault", ["drop", "contradict", "wrong type"])
def test_only_rows_without_a_clear_answer_are_asked_again(fault: str) -> None:
    """A row without one clear answer is asked again by itself; the others are kept."""
    model = UnreliableModel(((fault,), "none"))
    report = enrich(list("abcde"), model, MemoryStore(), BATCHED)
    assert report.column("answer") == list("abcde")
    assert model.sizes == [5, 1]


@pytest.mark.parametrize("fault", ["garbage", "prose", "truncated", "refused", "empty", "null"])
def test_unreadable_batches_are_halved(fault: str) -> None:
    """Nothing of a cut or unreadable reply is used, and one refused row does not fail its neighbours."""
    model = UnreliableModel(((fault,), "none"))
    report = enrich(list("abcde"), model, MemoryStore(), BATCHED)
    assert report.column("answer") == list("abcde")
    assert sorted(model.sizes) == [2, 3, 5]


def test_shifted_ids_lose_nothing() -> None:
    """Ids that belong to no row are not answers; the rows are asked again, in the end alone."""
    model = UnreliableModel(((), "shift"))
    report = enrich(list("abcde"), model, MemoryStore(), BATCHED)
    assert report.column("answer") == list("abcde")
    assert model.sizes[0] == 5
    assert model.sizes.count(1) == 5


def test_changing_the_batch_size_asks_nothing_again() -> None:
    """The batch size is not part of an answer's key."""
    store = MemoryStore()
    enrich(list("abcdefg"), UnreliableModel(HEALTHY), store, BATCHED)
    model = UnreliableModel(HEALTHY)
    report = enrich(list("abcdefg"), model, store, replace(POLICY, batch_size=3))
    assert model.asked == []
    assert {outcome.batch_size for outcome in report.outcomes} == {5, 2}
