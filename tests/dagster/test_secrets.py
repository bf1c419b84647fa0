"""An API key is shown nowhere: not in the event log, the metadata, the store, or an error."""

from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from ondine_core import FatalError
from ondine_dagster import LLMResource, llm_asset
from tests.support.provider import Provider, error

KEY = "sentinel-5up3r-53cr3t"


@llm_asset(prompt="Repeat: {text}", output={"answer": str}, max_cost_usd=1)
def answers() -> pd.DataFrame:
    return pd.DataFrame({"text": ["a", "b"]})


@pytest.mark.parametrize("refused", [False, True])
def test_api_key_is_in_no_file_and_no_output(refused: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whether the step succeeds or the provider repeats the key in an error."""
    fault = error(401, f"Incorrect API key provided: {KEY}.") if refused else None
    with Provider(fault=fault) as provider, dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        llm = LLMResource(
            model="openai_compatible/m",
            base_url=provider.base_url,
            api_key=KEY,
            input_cost_per_1k_tokens=0.001,
            output_cost_per_1k_tokens=0.001,
            max_output_tokens=50,
        )
        result = dg.materialize([answers], resources={"llm": llm}, instance=instance, raise_on_error=False)
        assert result.success is not refused
        assert provider.ledger.requests[0].headers["Authorization"] == f"Bearer {KEY}"
        shown = [repr(llm), repr(llm.spec()), str(llm.options("store"))]
        shown += [repr(event) for event in instance.all_logs(result.run_id)]
    if refused:
        failure = result.failure_data_for_node("answers")
        assert failure is not None
        assert FatalError.__name__ in str(failure)
    shown += capfd.readouterr()
    assert not [text for text in shown if KEY in text]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 3
    assert not [file for file in files if KEY.encode() in file.read_bytes()]
