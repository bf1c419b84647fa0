"""Models that their provider withdraws soon, by the dates in the price data."""

from __future__ import annotations

import asyncio
import datetime as dt
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from ondine_core import ModelSpec, Options
from ondine_core.engine.runtime import open_options_store, open_runtime
from ondine_core.providers.model_data import model_facts, source
from ondine_core.providers.withdrawal import find_withdrawal, read_date
from ondine_core.types.clock import Clock

MODEL = ModelSpec("openai/gpt-4o-mini", api_key="k")
DATE: str = model_facts()["gpt-4o-mini"]["deprecation_date"]


def before(days: int) -> float:
    """The instant that many days before the withdrawal."""
    day = dt.date.fromisoformat(DATE) - dt.timedelta(days)
    return dt.datetime.combine(day, dt.time(12), dt.UTC).timestamp()


@pytest.mark.parametrize(("days", "is_warned"), [(31, False), (30, True), (0, True), (-1, True)])
def test_warned_from_thirty_days_before(days: int, *, is_warned: bool) -> None:
    """The sentence names the model, the date and where the date comes from."""
    warning = find_withdrawal(MODEL, before(days)) or ""
    assert (DATE in warning) is is_warned
    assert ("'openai/gpt-4o-mini'" in warning) is is_warned
    assert (str(source()) in warning) is is_warned


@pytest.mark.parametrize(
    "model",
    [
        ModelSpec("openai/gpt-6-luna", api_key="k"),
        ModelSpec("openai/gpt-4o-mini", api_key="k", base_url="http://127.0.0.1:1/v1"),
        ModelSpec("openai_compatible/gpt-4o-mini", base_url="http://127.0.0.1:1/v1"),
        ModelSpec("llama_cpp/gemma-3-270m"),
    ],
)
def test_not_warned_without_a_date_or_at_an_address_of_the_users(model: ModelSpec) -> None:
    """A server of the user's keeps its models as long as the user likes."""
    assert find_withdrawal(model, before(0)) is None


@pytest.mark.parametrize("text", [None, "", "YYYY-MM-DD", "2026-02-30", "soon", 2026])
def test_a_date_that_cannot_be_read_warns_of_nothing(text: object) -> None:
    """The data of an installed litellm is not checked, and a run must not end because of a warning."""
    assert read_date(text) is None


def test_deployment_at_azure_is_warned_of_the_model_that_it_deploys() -> None:
    """Azure has dates of its own."""
    deployed = ModelSpec("azure/mine", base_url="https://r.openai.azure.com", settings={"base_model": "gpt-4o-mini"})
    date = model_facts()["azure/gpt-4o-mini"]["deprecation_date"]
    assert find_withdrawal(deployed, before(30)) is None
    assert date in (find_withdrawal(deployed, before(-365)) or "")


def test_a_run_warns_when_it_starts() -> None:
    """`on_warning` receives, before the first call, the sentence and another one about a misspelt parameter."""
    warned: list[str] = []
    spec = replace(MODEL, params={"temprature": 0, "top_a": 1, "stop": "END"})

    async def start() -> None:
        options = Options(on_warning=warned.append, clock=Clock(now=lambda: before(3)))
        async with AsyncExitStack() as stack:
            await open_runtime(spec, open_options_store(options, stack), options, stack)

    asyncio.run(start())
    misspelt = f"params: 'temprature' of {MODEL.model!r} is sent as it is; did you mean 'temperature'?"
    assert warned == [find_withdrawal(MODEL, before(3)), misspelt]
