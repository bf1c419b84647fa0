"""An unset variable in a template is an error where null would mean no cap or no limit."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ondine_dagster import LLMAssetComponent
from tests.dagster.component.test_component import causes, labels_of, loaded

# Dagster's own functions that read YAML.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Class `(LocalFileCodeReference|CodeReferencesMetadataValue)`"),
    pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated"),
]


def read(**attributes: Any) -> LLMAssetComponent:
    shared = {"asset": {"key": "labels"}, "upstream": "tickets", "prompt": "{body}", "output": "mood"}
    parted = {"partitions_def": {"type": "static", "partition_keys": ["1"]}} if attributes.get("partition_by") else {}
    shared["asset"] |= parted
    component: LLMAssetComponent = LLMAssetComponent.resolve_from_dict(shared | attributes)
    return component


@pytest.mark.parametrize(
    ("attributes", "complaint"),
    [
        ({"max_cost_usd": "{{ env.CAP }}"}, "max_cost_usd='{{ env.CAP }}' stands for nothing: the variable 'CAP' is"),
        ({"max_cost_usd": "{{ env('CAP', none) }}"}, "the variable 'CAP' is not set"),
        ({"max_cost_usd": "{{ none }}"}, "what it names is null"),
        ({"partition_by": {"day": "{{ env.DAY }}"}}, "partition_by.day='{{ env.DAY }}' stands for nothing"),
        ({"sanitize": "{{ env.MODE }}"}, "sanitize='{{ env.MODE }}' stands for nothing"),
    ],
)
def test_a_variable_that_is_not_set_is_an_error(
    attributes: dict[str, Any], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the attribute and the variable."""
    for name in ("CAP", "DAY", "MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Exception, match=re.escape(complaint)):
        read(**attributes)


def test_set_variables_and_literal_nulls_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A literal null means null."""
    monkeypatch.setenv("CAP", "2.5")
    monkeypatch.setenv("COLUMN", "at")
    monkeypatch.setenv("MODE", "redact")
    caps = read(max_cost_usd="{{ env.CAP }}", partition_by="{{ env.COLUMN }}", sanitize="{{ env.MODE }}")
    assert (caps.max_cost_usd, caps.partition_by, caps.sanitize) == (2.5, "at", "redact")
    nothing = read(max_cost_usd=None, partition_by=None)
    assert (nothing.max_cost_usd, nothing.partition_by) == (None, None)


@pytest.mark.parametrize("name", ["max_cost_usd", "max_error_rate", "partition_by"])
def test_component_with_an_unset_cap_variable_does_not_load(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have no cap."""
    monkeypatch.delenv("CAP", raising=False)
    with pytest.raises(Exception, match="labels") as caught, loaded({name: "{{ env.CAP }}"}) as defs:
        labels_of(defs)
    message = "\n".join(map(str, causes(caught.value)))
    assert f"{name}='{{{{ env.CAP }}}}' stands for nothing: the variable 'CAP' is not set" in message


def test_a_component_has_the_cap_that_a_variable_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text is read as a number and validated; a null beside it stays null."""
    attributes = {"max_cost_usd": "{{ env.CAP }}", "max_error_rate": None}
    monkeypatch.setenv("CAP", "0.5")
    with loaded(attributes) as defs:
        labels_of(defs)
    monkeypatch.setenv("CAP", "-0.5")
    with pytest.raises(Exception, match="labels") as caught, loaded(attributes) as defs:
        labels_of(defs)
    assert "max_cost_usd=-0.5: Input should be greater than 0" in "\n".join(map(str, causes(caught.value)))
