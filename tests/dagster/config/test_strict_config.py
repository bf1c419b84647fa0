"""Misspelt or invalid config is an error where it is written, not a missing cap."""

from __future__ import annotations

import pickle
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from pydantic import ConfigDict, ValidationError

from ondine_core.errors import ConfigError
from ondine_core.providers import connect
from ondine_core.types.values import ModelSpec
from ondine_dagster import LLMAssetConfig, LLMResource, SharedBudget, llm_asset
from tests.support import instances

MODEL = "openai/gpt-4o-mini"


@pytest.mark.parametrize(
    ("kind", "given", "complaint"),
    [
        (LLMResource, {"model": MODEL, "max_cost_usd": 0.01}, "'max_cost_usd'. Did you mean 'budgets'?"),
        (LLMResource, {"model": MODEL, "api_base": "http://h/v1"}, "'api_base'. Did you mean 'base_url'?"),
        (LLMResource, {"model": MODEL, "stop": "END"}, "'stop'. Did you mean 'params'?"),
        (LLMResource, {"model": MODEL, "organization": "org-1"}, "'organization'. Did you mean 'settings'?"),
        (LLMResource, {"model": MODEL, "rpm": 3}, "'rpm'. Did you mean 'requests_per_minute'?"),
        (LLMResource, {"model": MODEL, "max_tokens": 3}, "'max_tokens'. Did you mean 'max_output_tokens'?"),
        (LLMResource, {"model": MODEL, "request_timeout": 3}, "'request_timeout'. Did you mean 'timeout_s'?"),
        (LLMResource, {"model_name": MODEL}, "'model_name'. Did you mean 'model'?"),
        (LLMResource, {"model": MODEL, "zzz": 3}, "'zzz'. Valid are api_key, base_url, batch_min_rows"),
        (SharedBudget, {"name": "b", "max_cost_usd": 1, "perod": "day"}, "'perod'. Did you mean 'period'?"),
        (LLMAssetConfig, {"maxrows": 10}, "'maxrows'. Did you mean 'max_rows'?"),
    ],
)
def test_an_unknown_field_is_an_error(kind: Any, given: dict[str, Any], complaint: str) -> None:
    """With a suggestion or the valid fields; no value is repeated."""
    with pytest.raises(ValidationError) as caught:
        kind(**given)
    assert f"{kind.__name__} has no field {complaint}" in str(caught.value)
    assert "input_value" not in str(caught.value)


def test_budget_mapping_is_validated() -> None:
    """As in run config and YAML."""
    budget: Any = {"name": "b", "max_cost_usd": 1}
    assert LLMResource(model=MODEL, budgets=[budget]).budgets == [SharedBudget(name="b", max_cost_usd=1)]
    with pytest.raises(ValidationError, match=r"has no field 'max_cost'\. Did you mean 'max_cost_usd'"):
        LLMResource(model=MODEL, budgets=[budget | {"max_cost": 1}])


class Open(LLMAssetConfig):
    """A config that accepts any name."""

    model_config = ConfigDict(extra="allow")


class Loud(LLMAssetConfig):
    """A config with a field of its own."""

    loud: bool = False


def test_subclasses_have_fields_of_their_own() -> None:
    """They are accepted, and a subclass may accept any name."""
    assert Loud(loud=True, max_rows=3).loud
    assert Open(max_rows=3, anything=1).max_rows == 3  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="Did you mean 'loud'"):
        Loud(lout=True)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"model": "gpt-4o-mini"}, "Did you mean 'openai/gpt-4o-mini'?"),
        ({"model": "openai:gpt-4o-mini"}, "Did you mean 'openai/gpt-4o-mini'?"),
        ({"model": MODEL, "fallbacks": ["gpt-4o"]}, "model='gpt-4o' is not understood"),
        ({"model": MODEL, "base_url": "localhost:1"}, "base_url='localhost:1'"),
        ({"model": MODEL, "params": {"max_tokens": 3}}, "it follows from max_output_tokens"),
        ({"model": dg.EnvVar("M"), "params": {"n": 3}}, "'n' of 'the model' is not yours"),
    ],
)
def test_values_that_a_step_refuses_are_refused_when_written(given: dict[str, Any], complaint: str) -> None:
    """With the step's message, without the values of other fields."""
    with pytest.raises(ValidationError) as caught:
        LLMResource(**given, api_key="sentinel-5up3r-53cr3t")
    assert complaint in str(caught.value)
    assert "sentinel" not in str(caught.value)


def test_model_without_provider_has_the_message_of_the_step() -> None:
    """One mistake has one message."""
    with pytest.raises(ValidationError) as early:
        LLMResource(model="gpt-4o-mini")
    with pytest.raises(ConfigError) as late:
        connect(ModelSpec("gpt-4o-mini"))
    assert str(late.value) in str(early.value)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"period": "week"}, "period='week'; valid are 'run', 'day', 'month', 'ever'."),
        ({"name": ""}, "needs a name"),
        ({"warn_at": [75]}, r"must be shares of the cap"),
    ],
)
def test_invalid_budget_is_refused_when_written(given: dict[str, Any], complaint: str) -> None:
    """With what is valid."""
    with pytest.raises(ValidationError) as caught:
        SharedBudget(**{"name": "b", "max_cost_usd": 1.0} | given)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("budget", [5, None, "b"])
def test_budget_that_is_no_budget_is_refused_when_written(budget: Any) -> None:
    """In Pydantic's words, with its place in the list."""
    with pytest.raises(
        ValidationError, match=r"budgets\.0\n  Input should be a valid dictionary or instance of Shared"
    ):
        LLMResource(model=MODEL, budgets=[budget])


def test_variables_are_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable is validated when it is read."""
    llm = LLMResource(model=dg.EnvVar("ODD_MODEL"), base_url=dg.EnvVar("ODD_URL"))
    monkeypatch.setenv("ODD_MODEL", MODEL)
    monkeypatch.setenv("ODD_URL", "http://127.0.0.1:1/v1")
    ready = llm.process_config_and_initialize()
    assert (ready.model, ready.base_url) == (MODEL, "http://127.0.0.1:1/v1")
    monkeypatch.setenv("ODD_MODEL", "gpt-4o-mini")
    with pytest.raises(Exception, match="Did you mean 'openai/gpt-4o-mini'"):
        llm.process_config_and_initialize()


def test_resource_can_be_copied_pickled_and_configured() -> None:
    """Dagster does all three."""
    llm = LLMResource(model=MODEL, budgets=[SharedBudget(name="b", max_cost_usd=1)], params={"seed": 1})
    assert llm.model_copy().spec() == llm.spec()
    assert pickle.loads(pickle.dumps(llm.budgets)) == llm.budgets
    assert pickle.loads(pickle.dumps(LLMAssetConfig(max_rows=3))).max_rows == 3

    @dg.asset
    def who(llm: LLMResource) -> str:
        return f"{llm.model} {llm.budgets[0].name}"

    asked = {"model": "openai/gpt-4o", "budgets": [{"name": "c", "max_cost_usd": 2.0, "period": "day"}]}
    result = instances.materialize(
        [who],
        resources={"llm": LLMResource.configure_at_launch()},
        run_config={"resources": {"llm": {"config": asked}}},
    )
    assert result.output_for_node("who") == "openai/gpt-4o c"


def test_an_unknown_field_of_run_config_is_dagsters_error() -> None:
    """No call is made."""

    @llm_asset(prompt="Repeat: {text}", output="answer")
    def answers():  # noqa: ANN202
        return pd.DataFrame({"text": ["a"]})

    with pytest.raises(dg.DagsterInvalidConfigError, match="maxrows"):
        instances.materialize(
            [answers],
            resources={"llm": LLMResource(model=MODEL)},
            run_config={"ops": {"answers": {"config": {"maxrows": 1}}}},
        )
