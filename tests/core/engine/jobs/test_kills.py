"""Real processes that are killed with SIGKILL around every write of a batch job, against real servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from ondine_core.store.connect import connect
from ondine_core.store.queries import read_spending
from tests.support.job_server import JobServer, servers
from tests.support.meter import Meter, Rates
from tests.support.postgres import server as postgres
from tests.support.worker import PRICE, Job, Workers

ROWS = 5
MODELS = {"openai": "openai/gpt-4o-mini", "anthropic": "anthropic/claude-sonnet-4-5"}
HOUR_S = 3600.0
MANY = 200
"""More requests to the store than any run here makes."""


def metered(provider: str) -> JobServer:
    """A server that bills at the price of the worker's runs."""
    rates = Rates(PRICE.input, PRICE.cached_input, PRICE.input, PRICE.output)
    return servers()[provider](meter=Meter({"batch": rates}))


def job_of(server: JobServer, store: str, kill_at: int | None = None, skew_s: float = 0.0, first: int = 0) -> Job:
    return Job(
        server.base_url,
        store,
        rows=ROWS,
        first=first,
        model_name=MODELS[server.name],
        api_key="key",
        tier="batch",
        asset="asset",
        kill_at=kill_at,
        skew_s=skew_s,
        budget_usd="1",
    )


def finish(workers: Workers, server: JobServer, store: str) -> list[str]:
    """The answers, after as many runs as needed, hours apart, since a request may stay on its way for long."""
    for hours in range(10):
        result = workers.wait(workers.start(job_of(server, store, skew_s=hours * HOUR_S)))
        assert result is not None
        if result["error"] is None:
            answers: list[str] = result["answers"]
            return answers
        assert "under way" in result["error"]
    raise AssertionError("After ten hours rows have no answer.")


def check(server: JobServer, store: str) -> None:
    """Each row was billed once, and the ledger agrees."""
    assert len(server.ledger.billed) == ROWS
    assert set(server.ledger.billed.values()) == {1}
    database = connect(store)
    try:
        spent = read_spending(database, "asset")["asset",]
    finally:
        database.close()
    assert (spent.usd, spent.unknown, spent.paid_twice) == (server.ledger.usd, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("provider", sorted(MODELS))
def test_kill_before_any_write_loses_no_row_and_pays_none_twice(provider: str, tmp_path: Path) -> None:
    """Also after the provider created the job but before its id is stored: the marker finds it."""
    with Workers() as workers:
        for kill_at in range(MANY):
            with metered(provider) as server:
                store = str(tmp_path / f"{kill_at}.db")
                survived = workers.wait(workers.start(job_of(server, store, kill_at))) is not None
                assert finish(workers, server, store) == [f"row {number}" for number in range(ROWS)]
                check(server, store)
            if survived:
                break
        assert 10 < kill_at < MANY - 1


@pytest.mark.slow
def test_runs_on_several_hosts_submit_each_row_once() -> None:
    """Processes that share a Postgres store and ask for overlapping rows at the same time."""
    store = postgres().new_database()
    with metered("openai") as server, Workers() as workers:
        runs = [workers.start(job_of(server, store)) for _ in range(4)]
        results = [workers.wait(run) for run in runs]
        assert all(result is not None for result in results)
        assert finish(workers, server, store) == [f"row {number}" for number in range(ROWS)]
        check(server, store)
