"""A run cancelled where no signal reaches its step, as with Celery or after a network failure."""

import dagster as dg
import pandas as pd
import pytest

from ondine_dagster import LLMResource, llm_asset
from tests.support import instances
from tests.support.provider import Provider

ROWS, CONCURRENCY = 400, 4


@pytest.mark.parametrize("reports", [["canceling"], ["canceled"], ["canceling", "failed"]])
def test_step_stops_when_its_run_was_cancelled(reports: list[str]) -> None:
    """Within its progress interval it stops calling, keeps the answers and reports the spend.

    A run past its `dagster/max_runtime` is cancelled and marked as failed at once.
    """

    @llm_asset(prompt="Say it again.\nText: {text}", output={"answer": str})
    def answers(context: dg.AssetExecutionContext) -> pd.DataFrame:
        if not attempts:
            for report in reports:
                getattr(context.instance, f"report_run_{report}")(context.run)
        attempts.append(context.run.run_id)
        return pd.DataFrame({"text": [f"row {number}" for number in range(ROWS)]})

    attempts: list[str] = []
    with Provider(latency_s=0.02) as provider, instances.ephemeral() as instance:
        llm = LLMResource(
            model="openai_compatible/m", base_url=provider.base_url, max_concurrency=CONCURRENCY, progress_every_s=0.5
        )
        with pytest.raises(dg.DagsterExecutionInterruptedError, match="was cancelled"):
            dg.materialize([answers], resources={"llm": llm}, instance=instance)
        calls = len(provider.ledger.requests)
        assert 0 < calls < ROWS
        observed = instance.fetch_observations(answers.key, limit=1).records[0].asset_observation
        assert observed is not None
        assert observed.metadata["ondine/progress/requests"].value == calls

        assert dg.materialize([answers], resources={"llm": llm}, instance=instance).success
        assert sum(provider.ledger.billed_by_prompt.values()) - ROWS <= CONCURRENCY
