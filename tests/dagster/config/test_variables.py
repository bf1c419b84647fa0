"""Environment variables in every field of a resource and of a budget."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from ondine_dagster import LLMResource, SharedBudget, llm_asset
from tests.dagster.component.test_component import causes
from tests.support import instances
from tests.support.provider import Provider, error, first

SET = {"TENANT": "acme", "SEED": "7", "SHARE": "0.5", "RATE": "600", "USD": "2.5", "MODEL": "openai_compatible/other"}
SET |= {"TIER": "flex", "PROMPT_CACHE": "1h", "DURABILITY": "power", "OBSERVER": "logging", "LEVEL": "debug"}


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SET.items():
        monkeypatch.setenv(name, value)


@llm_asset(prompt="Team? {body}", output={"team": str})
def teams() -> pd.DataFrame:
    """One ticket."""
    return pd.DataFrame({"body": ["late"]})


def asked(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request of a step with these fields."""
    with Provider(lambda _: {"team": "x"}) as provider:
        return asked_of(provider, fields)


def asked_of(provider: Provider, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The last request to `provider` of a step with these fields."""
    with instances.ephemeral() as instance:
        llm = LLMResource(**({"model": "openai_compatible/m", "base_url": provider.base_url} | dict(fields)))
        assert dg.materialize([teams], resources={"llm": llm}, instance=instance).success
        return provider.ledger.requests[-1].body


def started(fields: Mapping[str, Any]) -> LLMResource:
    """The resource as a step gets it."""
    llm = LLMResource(**({"model": "openai_compatible/m", "base_url": "http://127.0.0.1:1/v1"} | dict(fields)))
    seen: list[LLMResource] = []

    @dg.asset
    def probe(llm: LLMResource) -> None:
        llm.spec()
        seen.append(llm)

    with instances.ephemeral() as instance:
        dg.materialize([probe], resources={"llm": llm}, instance=instance)
    return seen[0]


@pytest.mark.parametrize(
    ("params", "sent"),
    [
        ({"user": dg.EnvVar("TENANT")}, {"user": "acme"}),
        ({"metadata": {"tenant": dg.EnvVar("TENANT"), "shop": "a"}}, {"metadata": {"tenant": "acme", "shop": "a"}}),
        ({"stop": ["#", dg.EnvVar("TENANT")]}, {"stop": ["#", "acme"]}),
        ({"seed": dg.EnvVar.int("SEED")}, {"seed": 7}),
    ],
    ids=["text", "nested", "list", "whole number"],
)
def test_a_variable_in_params_is_sent_as_its_value(params: dict[str, Any], sent: dict[str, Any]) -> None:
    """At any depth, and as a number for a numeric variable."""
    body = asked({"params": params})
    assert {name: body[name] for name in sent} == sent


NUMBERS = [name for name, field in LLMResource.model_fields.items() if "Any" in str(field.annotation)]
CHOICES = {"tier": "flex", "prompt_cache": "1h", "durability": "power"}
NUMBERS = [name for name in NUMBERS if name not in ("params", "settings", "observers", *CHOICES)]


def test_the_numbers_of_a_resource_are_known_to_this_test() -> None:
    """A new numeric field must accept variables, too."""
    assert len(NUMBERS) == 16


@pytest.mark.parametrize("variable", [dg.EnvVar("RATE"), dg.EnvVar.int("RATE")], ids=["EnvVar", "EnvVar.int"])
@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_of_a_resource_may_be_a_variable(name: str, variable: Any) -> None:
    """As a text or an integer variable."""
    assert getattr(started({name: variable}), name) == 600


def test_variable_may_hold_a_fraction() -> None:
    """Dagster has no `EnvVar.float`."""
    assert started({"temperature": dg.EnvVar("SHARE")}).temperature == 0.5


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_of_a_resource_may_be_a_variable(name: str) -> None:
    """Projects choose the tier by the environment that they run in."""
    assert getattr(started({name: dg.EnvVar(name.upper())}), name) == CHOICES[name]


def test_observers_and_their_options_may_be_variables() -> None:
    """The names are checked when the step starts."""
    observers = [dg.EnvVar("OBSERVER"), {"name": "logging", "level": dg.EnvVar("LEVEL")}]
    options = started({"observers": observers}).options("answers.db")
    assert options.observers == ("logging", {"name": "logging", "level": "debug"})


def test_the_numbers_of_a_budget_may_be_variables() -> None:
    """Its cap, and its warning shares."""
    budget = SharedBudget(name=dg.EnvVar("TENANT"), max_cost_usd=dg.EnvVar("USD"), warn_at=[dg.EnvVar("SHARE"), 0.9])
    (cap,) = started({"budgets": [budget]}).options("answers.db").caps
    assert (cap.name, float(cap.max_cost_usd), cap.warn_at) == ("acme", 2.5, (0.5, 0.9))


def test_a_launchpad_may_name_variables() -> None:
    """In Dagster's YAML form."""
    with Provider(lambda _: {"team": "x"}) as provider, instances.ephemeral() as instance:
        config = {"model": {"env": "MODEL"}, "base_url": provider.base_url, "requests_per_minute": {"env": "RATE"}}
        config["params"] = {"user": {"env": "TENANT"}}
        result = dg.materialize(
            [teams],
            resources={"llm": LLMResource.configure_at_launch()},
            run_config={"resources": {"llm": {"config": config}}},
            instance=instance,
        )
        assert result.success
        body = provider.ledger.requests[-1].body
    assert (body["model"], body["user"]) == ("other", "acme")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"params": {"user": dg.EnvVar("NOT_SET")}}, "names the variable 'NOT_SET', which is not set"),
        ({"requests_per_minute": dg.EnvVar("NOT_SET")}, "names the variable 'NOT_SET', which is not set"),
        ({"requests_per_minute": dg.EnvVar("TENANT")}, "The variable 'TENANT': Input should be a valid number"),
        (
            {"tier": dg.EnvVar("TENANT")},
            "The variable 'TENANT': Input should be 'standard', 'flex', 'priority' or 'batch'",
        ),
        ({"max_concurrency": dg.EnvVar("SHARE")}, "The variable 'SHARE': Input should be a valid integer"),
        ({"params": {"seed": dg.EnvVar.int("TENANT")}}, "The variable 'TENANT' is not a whole number"),
    ],
)
def test_invalid_variable_is_named_without_its_value(fields: dict[str, Any], message: str) -> None:
    """The value may be a secret."""
    with pytest.raises(Exception, match=None) as caught:  # noqa: PT011  (what was its cause is checked)
        started(fields)
    expected_message = "\n".join(map(str, causes(caught.value)))
    assert message in expected_message
    assert "acme" not in expected_message


@pytest.mark.parametrize(
    ("name", "value"),
    [("requests_per_minute", 0), ("requests_per_minute", True), ("burst", 0.5), ("max_concurrency", 1.5)],
)
def test_literal_number_is_validated_when_written(name: str, value: float) -> None:
    """Bounds hold as they did."""
    with pytest.raises(ValueError, match=name):
        LLMResource(model="openai_compatible/m", **{name: value})


def test_a_fallback_of_the_same_provider_has_its_address() -> None:
    """A second model at the same address needs no second resource; its name may be a variable."""
    no_such_model = error(404, "The model `m` does not exist", "model_not_found")
    with Provider(lambda _: {"team": "x"}, fault=first(1, no_such_model)) as provider:
        body = asked_of(provider, {"fallbacks": [dg.EnvVar("MODEL")], "api_key": "k"})
        assert body["model"] == "other"
        assert provider.ledger.requests[-1].headers["Authorization"] == "Bearer k"
