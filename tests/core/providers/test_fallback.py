"""Fallback models take over the rows left by a model that fails for good."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ondine_core import (
    BudgetLimit,
    ConfigError,
    FatalError,
    ModelSpec,
    Options,
    Policy,
    Price,
    RetryPolicy,
    enrich_sync,
)
from tests.support.provider import Provider, after, status

TABLE = {"text": [f"row {number}" for number in range(40)]}
QUICK = RetryPolicy(max_attempts=2, first_wait_s=0.001, max_wait_s=0.01, max_outage_s=0.5)


def ask(first: Provider, second: Provider, warnings: list[str] | None = None, **options: object):  # noqa: ANN201
    """Both providers under one name each; the second is the first's fallback."""
    chosen = Options(
        policy=Policy(max_concurrency=4, retry=QUICK),
        fallbacks=(ModelSpec("openai_compatible/second", base_url=second.base_url),),
        on_warning=(warnings if warnings is not None else []).append,
        **options,
    )
    model = ModelSpec("openai_compatible/first", base_url=first.base_url, max_output_tokens=50)
    return enrich_sync(TABLE, prompt="Repeat: {text}", output={"answer": "string"}, model=model, options=chosen)


@pytest.mark.parametrize("code", [401, 503])
def test_fallback_answers_the_remaining_rows(code: int) -> None:
    """After an expired key or a lasting outage no row is lost, and each names the model that answered it."""
    warnings: list[str] = []
    with Provider(fault=after(10, status(code))) as first, Provider() as second:
        report = ask(first, second, warnings)
    assert report.column("answer") == TABLE["text"]
    assert report.models == {"openai_compatible/first": 10, "openai_compatible/second": 30}
    assert [outcome.model.endswith("second") for outcome in report.outcomes].count(True) == 30
    assert len(second.ledger.requests) == 30
    assert (report.progress.rows_done, report.progress.rows_failed, report.spend.answered) == (40, 0, 40)
    assert len(warnings) == 1
    assert "second" in warnings[0]
    assert str(code) in warnings[0]


def test_a_healthy_model_needs_no_fallback() -> None:
    """The fallback is not asked, not even connected."""
    with Provider() as first, Provider() as second:
        report = ask(first, second)
    assert report.models == {"openai_compatible/first": 40}
    assert not second.ledger.requests


@pytest.mark.parametrize(("answers", "known"), [(0, True), (10, False)])
def test_model_of_unknown_price_that_answered_nothing_leaves_the_cost_known(answers: int, known: bool) -> None:
    """What it refused cost nothing; the cost is that of the fallback."""
    with Provider(fault=after(answers, status(401))) as first, Provider() as second:
        priced = ModelSpec("openai/gpt-4o-mini", base_url=second.base_url)
        chosen = Options(policy=Policy(max_concurrency=4, retry=QUICK), fallbacks=(priced,))
        model = ModelSpec("openai_compatible/first", base_url=first.base_url)
        report = enrich_sync(TABLE, prompt="Repeat: {text}", output="answer", model=model, options=chosen)
    assert report.spend.answered == 40
    assert (report.spend.usd is not None and report.spend.usd > 0) == known


def test_run_fails_with_the_error_of_the_last_fallback() -> None:
    """The error is the last model's."""
    with (
        Provider(fault=status(401)) as first,
        Provider(fault=status(403)) as second,
        pytest.raises(FatalError, match="403"),
    ):
        ask(first, second)


def test_second_run_reuses_the_answers_of_both_models(tmp_path: object) -> None:
    """Each model's answers have its own keys, so nothing is asked again while the first model is out."""
    store = f"{tmp_path}/answers.db"
    with Provider(fault=after(10, status(503))) as first, Provider() as second:
        ask(first, second, store=store)
        calls = len(second.ledger.requests)
        report = ask(first, second, store=store)
    assert len(second.ledger.requests) == calls
    assert report.progress.rows_reused == 40


def test_cap_needs_the_price_of_every_model() -> None:
    """The user's own price is the first model's; without a price of the second the cap is refused before any call."""
    price = Price(Decimal("0.001"), Decimal("0.001"), Decimal("0.001"))
    with Provider() as first, Provider() as second:
        with pytest.raises(ConfigError, match="openai_compatible/second"):
            ask(first, second, price=price, caps=(BudgetLimit(Decimal(1000), "both", "ever"),))
        assert not first.ledger.requests
