"""How a run reacts to refusals: a row fails, a batch is halved, a model is asked again, or the run stops."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from ondine_core import FatalError, Options, Policy, Price, TransientError, enrich_sync
from ondine_core.api import answer
from ondine_core.limits.retry import RetryPolicy
from ondine_core.prompts.task import compile_task
from ondine_core.types.clock import Clock
from ondine_core.types.values import Call, ModelSpec, Reply
from tests.support.asking import QUICK, ask, echo, echo_each, options, texts
from tests.support.provider import Effect, Fault, Provider, ReceivedRequest, after, error, first, matching, status
from tests.support.unreliable import MemoryStore
from tests.support.virtual_clock import run_virtually

CREDIT = {"error": {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API."}}
UNHEARD_OF = {"error": {"message": "The wallet of tenant 4711 is empty, request 9f3a-77", "type": "x"}}
MODERATED = {"error": {"code": 403, "message": "Input was flagged by moderation", "metadata": {"reasons": ["x"]}}}
WALL = b"<html><head><title>Attention Required! | Cloudflare</title></head></html>"

# -- the account ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (400, CREDIT),
        (
            429,
            {
                "error": {
                    "message": "Budget has been exceeded! Current cost: 2",
                    "type": "budget_exceeded",
                    "code": "429",
                }
            },
        ),
        (429, {"error": {"message": "recharge", "type": "exceeded_current_quota_error"}}),
        (402, {"error": {"message": "Insufficient Balance"}}),
        (403, {"code": 30001, "message": "Sorry, your account balance is insufficient"}),
        (401, {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}),
    ],
)
def test_exhausted_credit_or_revoked_key_stops_the_run_at_once(code: int, body: Any) -> None:
    """In mid-run only the calls in flight are still made, however many rows were answered before."""
    with Provider(fault=after(40, status(code, body))) as provider, pytest.raises(FatalError):
        ask(provider, texts(2000))
    assert len(provider.ledger.requests) <= 40 + 2 * 8


@pytest.mark.parametrize("code", [302, 401, 404])
def test_single_error_of_the_account_between_answers_is_asked_again(code: int) -> None:
    """Gateways refuse a valid key now and then; the run neither ends nor loses the row."""
    with Provider(
        fault=lambda asked: status(code)(asked) if len(provider.ledger.requests) % 9 == 8 else None
    ) as provider:
        report = ask(provider, texts(40), options(max_concurrency=2))
    assert report.errors() == [None] * 40
    assert report.spend.unknown == 0


@pytest.mark.parametrize("answered", [0, 40, 300])
@pytest.mark.parametrize("code", [400, 403, 422])
def test_repeated_unknown_refusals_stop_the_run(code: int, answered: int) -> None:
    """A refusal without a rule stops the run after a few dozen calls, although its figures differ from call to call."""
    numbers = iter(range(10**6))

    def fault(_: ReceivedRequest) -> Effect:
        message = f"The wallet of tenant {next(numbers)} is empty"
        return status(code, {"error": {"message": message, "request_id": "r"}})(_)

    with Provider(fault=after(answered, fault)) as provider, pytest.raises(FatalError, match=r"refused|permission"):
        ask(provider, texts(2000))
    assert len(provider.ledger.requests) <= answered + 20 + 2 * 8


def test_refusals_between_answers_fail_their_rows() -> None:
    """However many there are, the run continues as long as others are answered."""
    table = {"text": [f"{'bad' if number % 2 else 'good'} {number}" for number in range(120)]}
    with Provider(fault=matching("bad", status(400, UNHEARD_OF))) as provider:
        report = ask(provider, table, options(max_concurrency=1))
    assert report.progress.rows_failed == 60


def test_forty_consecutive_filtered_rows_fail_alone() -> None:
    """Each fails by itself, and its content is named as the reason."""
    table = {"text": [f"{'bad' if number < 40 else 'good'} {number}" for number in reversed(range(100))]}
    with Provider(
        fault=matching("bad", status(400, {"error": {"message": "no", "code": "content_filter"}}))
    ) as provider:
        report = ask(provider, table, options(max_concurrency=1))
    assert report.progress.rows_failed == 40


def test_quota_exhausted_for_hours_stops_the_run() -> None:
    """It is not waited for, and no other row runs into it."""
    body = {
        "error": {"message": "Rate limit reached (TPD): Limit 100, Used 100, Requested 9. Please try again in 7h2m."}
    }
    with Provider(fault=after(10, status(429, body))) as provider, pytest.raises(FatalError, match="longer than 600 s"):
        ask(provider, texts(2000))
    assert len(provider.ledger.requests) <= 10 + 2 * 8


# -- the row -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 15])
@pytest.mark.parametrize(
    "fault",
    [status(403, MODERATED), status(403, WALL), status(403, {"message": "Forbidden"}), status(451, b"")],
    ids=["moderation", "firewall", "gateway", "451"],
)
def test_forbidden_row_fails_alone(fault: Fault, place: int) -> None:
    """A 403 for one row is that row's failure, also for the first row; alone and in batches."""
    table = texts(30)
    table["text"][place] = "BAD"
    for size in (1, 5):
        with Provider(echo_each, fault=matching("BAD", fault)) as provider:
            report = ask(provider, table, options(batch_size=size))
        assert [row for row, why in enumerate(report.errors()) if why] == [place]
        assert "403" in report.errors()[place] or "451" in report.errors()[place]
        assert "permission" not in report.errors()[place]


@pytest.mark.parametrize("rows", [1, 2, 50])
@pytest.mark.parametrize("body", [{"message": "Forbidden"}, WALL])
def test_403_without_any_answer_is_the_set_up(rows: int, body: Any) -> None:
    """If no row at all is answered, 403 is an error of the set-up, however few rows there are."""
    with Provider(fault=status(403, body)) as provider, pytest.raises(FatalError, match="permission"):
        ask(provider, texts(rows))
    assert len(provider.ledger.requests) <= 8


def test_forbidden_row_does_not_end_a_later_run(tmp_path: Path) -> None:
    """A later run that has only the forbidden row left to ask ends as well as the one before."""
    chosen = options(tmp_path / "answers.db", max_concurrency=1)
    with Provider(fault=matching("row 7", status(403, WALL))) as provider:
        assert ask(provider, texts(9), chosen).progress.rows_failed == 1
        assert ask(provider, texts(9), chosen).progress.rows_failed == 1


# -- the set-up ----------------------------------------------------------------------------------------------------

RENAMED = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."


@pytest.mark.parametrize(
    ("code", "message", "error_code", "hint"),
    [
        (400, RENAMED, "unsupported_parameter", "knows the bound on output tokens only as max_completion_tokens"),
        (400, "Unsupported value: 'temperature' does not support 0.2 with this model.", None, "leave temperature out"),
        (422, "Extra inputs are not permitted", "extra_forbidden", "leave it out"),
        (400, "Invalid schema for response_format 'answer': 'oneOf' is not permitted.", None, "change the output"),
    ],
)
def test_refused_set_up_stops_the_run_at_once(code: int, message: str, error_code: str, hint: str) -> None:
    """After one call, or two where the schema can be put into the prompt; the error says what to change."""
    with Provider(fault=error(code, message, error_code)) as provider, pytest.raises(FatalError) as caught:
        ask(provider, texts(500), options(max_concurrency=1))
    assert hint in str(caught.value)
    assert message.rstrip(".") in str(caught.value)
    assert len(provider.ledger.requests) == (2 if "response_format" in message else 1)


def test_refused_set_up_after_answers_fails_its_row() -> None:
    """A router that sends one call in ten to a server with other requirements does not end the run."""
    with Provider(fault=matching("row 7", error(400, RENAMED, "unsupported_parameter"))) as provider:
        report = ask(provider, texts(30), options(max_concurrency=1))
    assert [row for row, why in enumerate(report.errors()) if why] == [7]


# -- the size ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "message", "error_code"),
    [
        (429, "Request too large for gpt-4o on tokens per min (TPM): Limit 300, Requested 451.", "rate_limit_exceeded"),
        (413, "Request too large", "rate_limit_exceeded"),
        (400, "This model's maximum context length is 300 tokens.", None),
        (500, "Context size has been exceeded.", None),
    ],
)
def test_call_that_is_too_large_is_halved(code: int, message: str, error_code: str | None) -> None:
    """Halves that fit are answered, no call is repeated as it was, and no row is lost."""
    sizes: list[int] = []

    def fault(asked: ReceivedRequest) -> Effect:
        rows = len(orjson.loads(asked.prompt)) if asked.prompt.startswith("[") else 1
        sizes.append(rows)
        return error(code, message, error_code)(asked) if rows > 5 else None

    with Provider(echo_each, fault=fault) as provider:
        report = ask(provider, texts(200), options(batch_size=20))
    assert report.errors() == [None] * 200
    assert max(provider.ledger.calls_by_prompt.values()) == 1
    assert sorted(set(sizes), reverse=True) == [20, 10, 5]


def test_single_row_that_is_too_large_fails() -> None:
    """It is not retried, since waiting does not make it smaller."""
    message = "Request too large on tokens per min (TPM): Limit 300, Requested 451."
    with Provider(echo_each, fault=matching("row 7", error(429, message, "rate_limit_exceeded"))) as provider:
        report = ask(provider, texts(12), options(batch_size=4, max_concurrency=1))
    assert [row for row, why in enumerate(report.errors()) if why] == [7]


# -- the model's reply ---------------------------------------------------------------------------------------------


def failed(generation: str | None) -> Fault:
    body = {"error": {"message": "Failed to generate JSON.", "code": "json_validate_failed"}}
    return status(400, {"error": {**body["error"], "failed_generation": generation}} if generation else body)


@pytest.mark.parametrize("generation", ['{"answer": "go', '{"other": 1}', None])
def test_reply_refused_by_the_provider_is_asked_again(generation: str | None) -> None:
    """With the reason, as any invalid reply, up to `max_repairs`; its cost never counts as zero."""
    price = Price(Decimal("0.001"), Decimal("0.002"), Decimal("0.001"))
    chosen = Options(price=price, policy=Policy(retry=QUICK, max_concurrency=4))
    with Provider(fault=first(5, failed(generation))) as provider:
        model = ModelSpec("openai_compatible/m", base_url=provider.base_url)
        report = enrich_sync(
            texts(9), prompt="Repeat: {text}", output={"answer": "string"}, model=model, options=chosen
        )
        prompts = [asked.prompt for asked in provider.ledger.requests]
    assert report.errors() == [None] * 9
    assert len(prompts) == 14
    assert sum("could not be used" in prompt for prompt in prompts) == 5
    billed = provider.ledger.input_tokens * price.input + provider.ledger.output_tokens * price.output
    assert report.spend.usd is None or report.spend.usd > billed


@pytest.mark.parametrize("max_repairs", [0, 2])
def test_row_fails_when_its_replies_stay_refused(max_repairs: int) -> None:
    """The repairs are bounded, and the row gives the reason."""
    with Provider(fault=matching("row 3", failed('{"answer": 7}'))) as provider:
        report = ask(provider, texts(6), options(max_repairs=max_repairs))
        calls = sum("row 3" in asked.prompt for asked in provider.ledger.requests)
    assert [row for row, why in enumerate(report.errors()) if why] == [3]
    assert report.errors()[3].startswith("invalid")
    assert calls == max_repairs + 1


def test_refused_reply_that_fits_the_output_is_an_answer() -> None:
    """Some providers refuse valid replies and quote them: such a reply is used, and not paid again."""
    with Provider(fault=failed('{"answer": "sound"}')) as provider:
        report = ask(provider, texts(3))
    assert report.column("answer") == ["sound"] * 3
    assert report.spend.calls == 3


# -- the moment ----------------------------------------------------------------------------------------------------

QUESTION = compile_task("Repeat: {text}", {"answer": str}, ModelSpec("test/m"))


class Starting:
    """A server that fails for some seconds, then answers."""

    max_concurrency: int | None = None
    max_batch_size: int | None = None

    def __init__(self, clock: Clock, seconds: float, failure: dict[str, Any]) -> None:
        self._clock, self._ready_at, self._failure = clock, clock.elapsed() + seconds, failure
        self.calls = 0

    async def __call__(self, call: Call) -> Reply:
        self.calls += 1
        await self._clock.sleep(0.05)
        if self._clock.elapsed() < self._ready_at:
            raise TransientError("Not yet.", **self._failure)
        return Reply(orjson.dumps(echo(call.messages[-1].content)).decode())

    async def aclose(self) -> None:
        """Nothing to close."""


def start(seconds: float, rows: int, **failure: Any) -> list[str | None]:
    """The report of a run that begins while a server starts."""

    def main(clock: Clock) -> Any:
        chosen = Options(store=MemoryStore(), policy=Policy(retry=RetryPolicy()), clock=clock)
        return answer(texts(rows), QUESTION, chosen, Starting(clock, seconds, failure))

    return run_virtually(main).errors()


@pytest.mark.parametrize("rows", [20, 400])
@pytest.mark.parametrize("failure", [{"kind": "overloaded"}, {"kind": "broken"}], ids=str)
def test_loading_model_is_waited_for_minutes(rows: int, failure: dict[str, Any]) -> None:
    """A server that reports that it is loading is waited for like any outage, even before its first answer."""
    assert start(200, rows, **failure) == [None] * rows
    with pytest.raises(TransientError):
        start(400, rows, **failure)


def test_outage_met_by_one_batch_ends_the_run_in_time() -> None:
    """The halves of a batch that is all there is to ask do not each go through all attempts."""

    def main(clock: Clock) -> Any:
        async def ask() -> float:
            chosen = Options(store=MemoryStore(), policy=Policy(retry=RetryPolicy(), batch_size=20), clock=clock)
            with pytest.raises(TransientError):
                await answer(texts(20), QUESTION, chosen, Starting(clock, 10_000, {"kind": "broken"}))
            return clock.elapsed()

        return ask()

    assert run_virtually(main) < 360


def test_server_without_connection_is_waited_for_30_s() -> None:
    """Its address is more likely wrong than the server starting."""
    assert start(25, 20, cause="connection") == [None] * 20
    with pytest.raises(TransientError):
        start(60, 20, cause="connection")


class Poisoned(Starting):
    """A server that crashes on certain rows, each time."""

    async def __call__(self, call: Call) -> Reply:
        if "row 1" not in call.messages[-1].content:
            self._ready_at = 0.0
        elif self._ready_at == 0.0:
            await self._clock.sleep(0.05)
            raise TransientError("The provider replied 502.", **self._failure)
        return await super().__call__(call)


@pytest.mark.parametrize(("rows", "ends"), [(10, False), (15, True)])
@pytest.mark.parametrize("failure", [{"kind": "overloaded"}, {"kind": "broken"}], ids=str)
def test_row_that_crashes_the_server_fails_alone(rows: int, ends: bool, failure: dict[str, Any]) -> None:
    """When all others were answered, a row that stays unanswered for longer than an outage may last fails."""

    def main(clock: Clock) -> Any:
        chosen = Options(store=MemoryStore(), policy=Policy(retry=RetryPolicy()), clock=clock)
        return answer(texts(rows), QUESTION, chosen, Poisoned(clock, 0, failure))

    if ends:  # row 1 and rows 10 to 14: that is an outage
        with pytest.raises(TransientError):
            run_virtually(main)
        return
    errors = run_virtually(main).errors()
    assert [row for row, why in enumerate(errors) if why] == [1]
    assert "unreachable" in errors[1]
