from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ondine_core import (
    Failure,
    FatalError,
    ModelSpec,
    Report,
    RetryPolicy,
    ScriptedModel,
    TransientError,
    enrich,
    enrich_sync,
)
from ondine_core.providers import connect
from tests.support.asking import PROMPT, ask, echo_each, options, texts
from tests.support.provider import (
    Fault,
    Provider,
    after,
    cut,
    cut_body,
    echo,
    error,
    filtered,
    first,
    garbage,
    matching,
    slow,
    status,
)

# -- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [401, 402, 403, 404])
def test_fatal_failure_stops_at_once(code: int) -> None:
    """If no request can succeed, only the calls in flight are made, and the error says what to do."""
    with Provider(fault=error(code)) as provider, pytest.raises(FatalError, match=str(code)):
        ask(provider, texts(500))
    assert len(provider.ledger.requests) <= 8


def test_answers_before_a_fatal_failure_are_kept(tmp_path: Path) -> None:
    """Answers from before a key was revoked are not asked again with a new key."""
    chosen = options(tmp_path / "answers.db")
    revoked = lambda asked: error(401)(asked) if asked.headers["Authorization"] == "Bearer old" else None  # noqa: E731
    with Provider(fault=after(50, revoked)) as provider:
        with pytest.raises(FatalError):
            ask(provider, texts(200), chosen, api_key="old")
        assert ask(provider, texts(200), chosen, api_key="new").spend.calls == 150


def test_no_call_follows_a_fatal_failure() -> None:
    """After a fatal failure no further call leaves, not even a pending retry."""
    busy = status(503, headers={"retry-after-ms": "300"})
    with Provider(fault=lambda asked: (busy if "row 0" in asked.prompt else error(401))(asked)) as provider:
        with pytest.raises(FatalError):
            ask(provider, texts(2), options(retry=RetryPolicy(max_attempts=3)))
        assert provider.ledger.calls_by_prompt["Repeat: row 0"] <= 1


def test_refused_row_fails_alone() -> None:
    """A row that the provider refuses fails with a reason, asked once; all others are answered."""
    with Provider(fault=matching("row 7", error(400, "too long", "context_length_exceeded"))) as provider:
        report = ask(provider, texts(30))
    assert provider.ledger.calls_by_prompt["Repeat: row 7"] == 1
    assert [row for row, reason in enumerate(report.errors()) if reason] == [7]
    outcome = report.outcomes[7]
    assert isinstance(outcome, Failure)
    assert (outcome.reason, report.column("answer")[7]) == ("refused", None)
    assert "context_length_exceeded" in outcome.detail
    assert report.error_rate == pytest.approx(1 / 30)


def test_run_whose_every_row_is_refused_stops() -> None:
    """Twenty refusals without an answer end the run: the set-up is refused, not the rows."""
    with Provider(fault=status(400)) as provider, pytest.raises(FatalError, match="first 20 calls"):
        ask(provider, texts(500), options(max_concurrency=1))
    assert len(provider.ledger.requests) == 20


def test_rows_that_stay_refused_do_not_end_a_later_run(tmp_path: Path) -> None:
    """A later run in which only refused rows are left ends well; the rows fail again."""
    chosen = options(tmp_path / "answers.db", max_concurrency=1)
    table = {"text": [f"{'bad' if number % 2 else 'good'} {number}" for number in range(60)]}
    with Provider(fault=matching("bad", status(400))) as provider:
        assert ask(provider, table, chosen).progress.rows_failed == 30
        assert ask(provider, table, chosen).progress.rows_failed == 30


def test_declined_answers_are_counted_as_spent() -> None:
    """A reply that a content filter emptied was billed, so it is in the report's spend."""
    with Provider(fault=matching("row 1", filtered)) as provider:
        report = ask(provider, texts(3))
    assert report.spend.usage.input_tokens == provider.ledger.input_tokens


@pytest.mark.parametrize(
    ("fault", "unknown"),
    [
        (status(500), 0),
        (status(529), 0),
        (status(429, headers={"retry-after-ms": "5"}), 0),
        (cut, 3),
        (cut_body, 3),
        (garbage, 3),
    ],
)
def test_transient_faults_are_retried_until_answered(fault: Fault, unknown: int) -> None:
    """Calls that fail transiently are retried until every row is answered; possible double payments are counted."""
    with Provider(fault=first(3, fault)) as provider:
        report = ask(provider, texts(20))
    assert report.column("answer") == texts(20)["text"]
    assert (report.spend.calls, report.spend.answered, report.spend.unknown) == (23, 20, unknown)
    assert len(provider.ledger.requests) == 23
    assert provider.ledger.billed_by_prompt.total() == 20 + unknown


def test_timed_out_call_is_cancelled_and_retried() -> None:
    """A call past its time-out is dropped at the provider, counted as possibly paid, and retried."""
    with Provider(fault=first(1, slow(30))) as provider:
        report = ask(provider, texts(5), timeout_s=0.3)
        provider.ledger.wait_for(lambda ledger: ledger.client_gone == 1)
    assert report.errors() == [None] * 5
    assert (report.spend.calls, report.spend.answered, report.spend.unknown) == (6, 5, 1)


def test_unreachable_rows_fail_with_the_reason() -> None:
    """A row whose calls keep failing transiently fails after `max_attempts` calls; the others are answered."""
    retry = RetryPolicy(max_attempts=3, first_wait_s=0.001)
    with Provider(fault=matching("row 3", status(503))) as provider:
        report = ask(provider, texts(10), options(retry=retry))
    assert provider.ledger.calls_by_prompt["Repeat: row 3"] == 3
    assert [row for row, reason in enumerate(report.errors()) if reason] == [3]
    assert "unreachable" in report.errors()[3]
    assert "tried 3 times" in report.errors()[3]


@pytest.mark.parametrize(
    ("fault", "rows", "max_outage_s"), [(status(500), 30, 0.5), (cut, 5, 10.0), (cut, 30, 10.0), (garbage, 30, 10.0)]
)
def test_row_that_the_server_cannot_bear_costs_its_batch_nothing(fault: Fault, rows: int, max_outage_s: float) -> None:
    """A batch whose calls all fail is halved down to the row that makes them fail; its neighbours are answered.

    Only the whole batch may lose `max_lost` calls, and each half one.
    """
    retry = RetryPolicy(max_attempts=3, max_lost=3, first_wait_s=0.001, max_wait_s=0.01, max_outage_s=max_outage_s)
    with Provider(echo_each, fault=matching("row 3", fault)) as provider:
        report = ask(provider, texts(rows), options(retry=retry, batch_size=5))
    assert [row for row, reason in enumerate(report.errors()) if reason] == [3]
    assert "unreachable" in report.errors()[3]
    assert report.spend.unknown <= retry.max_lost + 3


@pytest.mark.parametrize(("rows", "failed"), [([3], [3]), ([0, 1, 2, 3, 4], [3])])
def test_row_that_the_server_cannot_bear_fails_also_if_nothing_else_is_asked(
    rows: list[int], failed: list[int]
) -> None:
    """A run of one call that always gets a 500 is no outage; it ends after a bounded number of attempts."""
    retry = RetryPolicy(max_attempts=3, first_wait_s=0.001, max_wait_s=0.01, max_outage_s=0.5)
    table = {"text": [f"row {number}" for number in rows]}
    with Provider(echo_each, fault=matching("row 3", status(500))) as provider:
        report = ask(provider, table, options(retry=retry, batch_size=5))
    assert [row for row, reason in zip(rows, report.errors(), strict=True) if reason] == failed
    assert len(provider.ledger.requests) < 30


def test_batch_that_is_to_wait_for_too_long_is_not_halved() -> None:
    """Its halves would get the same reply."""
    wait = status(503, headers={"Retry-After": "3600"})
    with Provider(echo_each, fault=matching("row 3", wait)) as provider:
        report = ask(provider, texts(10), options(batch_size=5))
    assert [row for row, reason in enumerate(report.errors()) if reason] == [0, 1, 2, 3, 4]
    assert len(provider.ledger.requests) == 2


def test_lasting_outage_ends_the_run() -> None:
    """A provider that answers no call is probed by a few calls; then the run ends instead of trying every row."""
    retry = RetryPolicy(max_attempts=2, first_wait_s=0.001, max_outage_s=1.0)
    with Provider(fault=status(503)) as provider, pytest.raises(TransientError, match="503"):
        ask(provider, texts(500), options(retry=retry, max_concurrency=2))
    assert len(provider.ledger.requests) <= 24


@pytest.mark.parametrize("fault", [garbage, cut])
def test_lasting_outage_in_which_calls_get_lost_ends_the_run(fault: Fault) -> None:
    """A server that takes every call and answers none as a provider does ends the run like one that is down."""
    retry = RetryPolicy(first_wait_s=0.001, max_outage_s=1.0)
    with Provider(fault=fault) as provider, pytest.raises(TransientError, match=r"not a chat completion|broke"):
        ask(provider, texts(500), options(retry=retry, max_concurrency=256))
    assert len(provider.ledger.requests) <= 40


# -- repairs -------------------------------------------------------------------------------------------------------


def test_invalid_reply_is_asked_again_with_the_reason() -> None:
    """An invalid reply is asked again once, with the reason; the provenance says so."""
    wrong_first = lambda prompt: echo("x: mended") if "could not be used" in prompt else {"answer": 42}  # noqa: E731
    with Provider(wrong_first) as provider:
        report = ask(provider, texts(1))
    assert report.column("answer") == ["mended"]
    assert report.outcomes[0].attempts == report.spend.calls == report.spend.answered == 2
    original, repair = (asked.prompt for asked in provider.ledger.requests)
    assert repair.startswith(original)
    assert "answer: input should be a valid string" in repair


@pytest.mark.parametrize("max_repairs", [0, 1, 3])
def test_repairs_are_bounded(max_repairs: int) -> None:
    """A prompt without a valid reply fails after `max_repairs` further calls, all of them counted."""
    with Provider(lambda _: {"other": 1}) as provider:
        report = ask(provider, texts(2), options(max_repairs=max_repairs))
    assert {outcome.reason for outcome in report.outcomes} == {"invalid"}
    assert f"asked {max_repairs + 1} times" in report.errors()[0]
    assert report.spend.answered == len(provider.ledger.requests) == 2 * (max_repairs + 1)


def test_row_that_half_a_batch_leaves_out_is_asked_alone() -> None:
    """A batch that cannot be read is halved; a row without an answer in a half fails only after it was asked alone."""

    def answer(prompt: str) -> Any:
        if not prompt.startswith("["):
            return echo(prompt.partition("\n\n(")[0])
        answers = echo_each(prompt)["answers"]
        return {"answers": answers[1:]} if len(answers) == 4 else "no JSON"

    with Provider(answer) as provider:
        report = ask(provider, texts(8), options(batch_size=8))
    assert report.column("answer") == texts(8)["text"]
    assert sum(not asked.prompt.startswith("[") for asked in provider.ledger.requests) == 2


@pytest.mark.parametrize(("kind", "reply"), [(int, '{"answer": 1' + "0" * 30 + "}"), (float, '{"answer": NaN}')])
def test_numbers_outside_the_stores_range_affect_no_other_row(kind: type, reply: str, tmp_path: Path) -> None:
    """A number that the store cannot hold fails its row, or is read from the store as it was written."""
    model, chosen = ScriptedModel({"row 1": reply, "": {"answer": 0}}), options(tmp_path / "answers.db", max_repairs=0)
    asked = {"prompt": PROMPT, "output": {"answer": kind}, "model": model, "options": chosen}
    outcomes = [repr(enrich_sync(texts(3), **asked).column("answer")) for _ in range(2)]
    assert outcomes[0] == outcomes[1]


def test_open_model_of_unknown_price_costs_an_unknown_amount() -> None:
    """Its cost is unknown, not zero, also when an open model is passed."""

    async def main(base_url: str) -> Report:
        model = connect(ModelSpec("openai_compatible/unheard-of", base_url=base_url))
        try:
            return await enrich(texts(1), prompt=PROMPT, output="answer", model=model)
        finally:
            await model.aclose()

    with Provider() as provider:
        assert asyncio.run(main(provider.base_url)).spend.usd is None
