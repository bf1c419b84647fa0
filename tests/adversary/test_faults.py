"""The engine's laws with a fault-injecting proxy in front of a real HTTP server."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ondine_core import BudgetExhaustedError, ModelSpec, Options, Policy, Price, enrich_sync
from tests.support.asking import PROMPT, QUICK, echo_each, texts
from tests.support.fault_proxy import Fault, FaultProxy, cut, delay, duplicate, inject, reorder, stall
from tests.support.provider import Provider

ROWS = 60
IN_FLIGHT = 4
FAULTS = [delay, stall, cut, duplicate, reorder, inject]


def run(provider: Provider, proxy: FaultProxy, store: Path, batch_size: int = 1, **chosen: object) -> list[str | None]:
    """The answers to these rows, asked through the proxy."""
    model = ModelSpec(
        "openai_compatible/m", base_url=f"http://127.0.0.1:{proxy.port}/v1", timeout_s=0.5, max_output_tokens=50
    )
    policy = Policy(retry=QUICK, max_concurrency=IN_FLIGHT, batch_size=batch_size)
    report = enrich_sync(
        texts(ROWS),
        prompt=PROMPT,
        output={"answer": "string"},
        model=model,
        options=Options(store=store, policy=policy, **chosen),  # type: ignore[arg-type]
    )
    assert report.spend.calls <= len(provider.ledger.requests) + report.spend.refused + report.spend.unknown
    return report.column("answer")


@pytest.mark.parametrize("batch_size", [1, 6])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_rows_keep_their_answers_and_are_paid_once(tmp_path: Path, fault: Fault, batch_size: int) -> None:
    """Each row has its own answer or none, and a second run asks only rows without one."""
    store = tmp_path / "answers.db"
    with Provider(echo_each, latency_s=0.03) as provider:
        port = urlsplit(provider.base_url).port or 0
        with FaultProxy(port, fault, share=0.4) as proxy:
            answers = run(provider, proxy, store, batch_size)
            first = len(provider.ledger.requests)
            assert proxy.faults_injected
            proxy.share = 0.0
            again = run(provider, proxy, store, batch_size)
        asked_again = len(provider.ledger.requests) - first
    assert len(answers) == ROWS
    assert all(answer in (None, f"row {number}") for number, answer in enumerate(answers))
    assert all(answer == f"row {number}" for number, answer in enumerate(again) if answers[number] is not None)
    assert asked_again <= sum(answer is None for answer in answers)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_providers_bill_stays_below_the_cap(tmp_path: Path, fault: Fault) -> None:
    """Whatever replies are lost."""
    price, cap = Price(Decimal(1000), Decimal(1000), Decimal(1000)), Decimal("0.5")
    with Provider(latency_s=0.03) as provider:
        port = urlsplit(provider.base_url).port or 0
        with FaultProxy(port, fault, share=0.5) as proxy, pytest.raises(BudgetExhaustedError):
            run(provider, proxy, tmp_path / "answers.db", price=price, max_cost_usd=cap)
        ledger = provider.ledger
    assert (ledger.input_tokens + ledger.output_tokens) * Decimal(1000) / 10**6 <= cap
