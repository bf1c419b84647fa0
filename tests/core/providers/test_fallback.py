"""When the model fails for good, the next one takes over what it left."""

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


def ask(first: Provider, second: Provider, told: list[str] | None = None, **options: object):  # noqa: ANN201
    """Both providers under one name each; the second is the first's fallback."""
    chosen = Options(
        policy=Policy(max_concurrency=4, retry=QUICK),
        fallbacks=(ModelSpec("openai_compatible/second", base_url=second.base_url),),
        on_warning=(told if told is not None else []).append,
        **options,
    )
    model = ModelSpec("openai_compatible/first", base_url=first.base_url, max_output_tokens=50)
    return enrich_sync(TABLE, prompt="Repeat: {text}", output={"answer": "string"}, model=model, options=chosen)


@pytest.mark.parametrize("code", [401, 503])
def test_the_next_model_takes_the_rows_that_are_left(code: int) -> None:
    """A key that expires, or a provider that stays away: no row is lost, and each says who answered it."""
    told: list[str] = []
    with Provider(fault=after(10, status(code))) as first, Provider() as second:
        report = ask(first, second, told)
    assert report.column("answer") == TABLE["text"]
    assert report.models == {"openai_compatible/first": 10, "openai_compatible/second": 30}
    assert [outcome.model.endswith("second") for outcome in report.outcomes].count(True) == 30
    assert len(second.books.requests) == 30
    assert (report.progress.rows_done, report.progress.rows_failed, report.spend.answered) == (40, 0, 40)
    assert len(told) == 1
    assert "second" in told[0]
    assert str(code) in told[0]


def test_a_healthy_model_needs_no_fallback() -> None:
    """The second is not asked, not even connected to."""
    with Provider() as first, Provider() as second:
        report = ask(first, second)
    assert report.models == {"openai_compatible/first": 40}
    assert not second.books.requests


def test_when_the_last_one_fails_the_run_does() -> None:
    """The error is the last model's."""
    with (
        Provider(fault=status(401)) as first,
        Provider(fault=status(403)) as second,
        pytest.raises(FatalError, match="403"),
    ):
        ask(first, second)


def test_a_second_run_knows_the_answers_of_both(tmp_path: object) -> None:
    """Each model's answers are kept under its own name, so nothing is asked again while the first one is out."""
    store = f"{tmp_path}/answers.db"
    with Provider(fault=after(10, status(503))) as first, Provider() as second:
        ask(first, second, store=store)
        calls = len(second.books.requests)
        report = ask(first, second, store=store)
    assert len(second.books.requests) == calls
    assert report.progress.rows_reused == 40


def test_a_cap_needs_the_price_of_each_before_the_first_call() -> None:
    """A price of the user's own is the first model's; the second's has to be known as well."""
    price = Price(Decimal("0.001"), Decimal("0.001"), Decimal("0.001"))
    with Provider() as first, Provider() as second:
        with pytest.raises(ConfigError, match="openai_compatible/second"):
            ask(first, second, price=price, caps=(BudgetLimit(Decimal(1000), "both", "ever"),))
        assert not first.books.requests
