"""The user's regular expressions as outputs: none can stall a run, whatever a model replies."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from ondine_core import ConfigError, Options, Policy, Prompt, ScriptedModel, enrich_sync
from ondine_core.prompts.output_schema import Invalid, compile_schema

AMBIGUOUS = [
    r"(?P<x>(a+)+)$",
    r"(?P<x>(?:[a-z]+,?)*)!",
    r"Answer: (?P<x>(?:\w+\s?)+)\.",
    r"^Answer: (?P<x>(?:\w|\w\w)*)\.$",
    r"(?P<x>(a|ab|b)*)c",
    r"(?P<x>(.*,){12}P)",
]


@pytest.mark.parametrize("pattern", AMBIGUOUS)
def test_an_ambiguous_pattern_is_refused_when_it_is_declared(pattern: str) -> None:
    """A pattern that takes minutes for a reply of forty characters is an error that says what to change."""
    with pytest.raises(ConfigError, match=r"is ambiguous.*Repeat nothing"):
        compile_schema(re.compile(pattern))


class Compiled(BaseModel):
    """A pattern for Python's engine, since it is compiled."""

    x: str = Field(pattern=re.compile(r"^(a+)+$"))


class Chosen(BaseModel):
    """A model that configures Python's engine."""

    model_config = ConfigDict(regex_engine="python-re")
    x: list[str | None] = Field(min_length=1)
    y: dict[str, Compiled]


class Inner(BaseModel):
    """A nested model that does so."""

    model_config = ConfigDict(regex_engine="python-re")
    x: str = Field(pattern=r"^(?:[a-z]+,?)*!$")


class Outer(BaseModel):
    """A model that contains it."""

    inner: list[Inner]


@pytest.mark.parametrize("output", [Compiled, Chosen, Outer])
def test_patterns_for_pythons_engine_are_checked(output: type[BaseModel]) -> None:
    """Wherever they are in a model."""
    with pytest.raises(ConfigError, match="is ambiguous"):
        compile_schema(output)


def test_patterns_for_pydantics_engine_are_not_checked() -> None:
    """That engine takes linear time."""
    schema = compile_schema({"x": {"type": "string", "pattern": "^(a+)+$"}})
    assert isinstance(schema.parse('{"x": "' + "a" * 10_000 + '!"}'), Invalid)


@pytest.mark.parametrize(
    ("pattern", "reply", "values"),
    [
        (r"(?P<score>\d+)/10", "I say 7/10.", {"score": "7"}),
        (r"(?P<label>pos|neg)(?: (?P<score>\d+))?$", "neg", {"label": "neg", "score": None}),
        (
            r"Sentiment: (?P<s>\w+)\s*\n+Topic: (?P<t>.*)",
            "Sentiment: good\n\nTopic: tea, 5",
            {"s": "good", "t": "tea, 5"},
        ),
        (r"<x>(?P<x>(.|\n)*?)</x>", "<x>a\nb</x>", {"x": "a\nb"}),
        (r"(?i)(?P<x>ÜBER|straße)", "über", {"x": "über"}),
        (r"(?x) (?P<x> \w+ )  # a word", "tea!", {"x": "tea"}),
        (r"(?as)(?P<x>\w+)(?P<y>.*)", "né\nx", {"x": "n", "y": "é\nx"}),
    ],
)
def test_time_limited_engine_matches_like_pythons(pattern: str, reply: str, values: dict[str, Any]) -> None:
    """Flags included."""
    compiled = re.compile(pattern)
    found = compiled.search(reply)
    assert found is not None
    assert compile_schema(compiled).parse(reply) == values == found.groupdict()


HIDDEN = r"(?P<a>q)\d(?P<b>(?:z|y|zy|[yz]z?)+)(?P<c>!)\1"
"""The trial texts never match its digit."""
HOSTILE = "q1" + "zy" * 3_000 + "!"


def test_reply_that_stalls_a_pattern_is_invalid_in_bounded_time() -> None:
    """If the trials missed a slow pattern, the reply that stalls it fails, and the next row is answered."""
    model = ScriptedModel({"row 0": HOSTILE, "": "q1z!q"})
    chosen = Options(policy=Policy(max_repairs=1))
    table = {"text": ["row 0", "row 1"]}
    report = enrich_sync(table, prompt="{text}", output=re.compile(HIDDEN), model=model, options=chosen)
    assert report.column("b") == [None, "z"]
    assert "invalid" in report.errors()[0]


# -- names ---------------------------------------------------------------------------------------------------------

HALF = "la\ud800bel"


@pytest.mark.parametrize(
    ("prompt", "output"),
    [
        ("{text}", HALF),
        ("{text}", {HALF: str}),
        ("{text}", {"label": {"enum": [HALF, "b"]}}),
        ("{text}", {"label": {"type": "string", "description": HALF}}),
        ("{text}", {"label": {"type": "object", "properties": {HALF: {"type": "string"}}}}),
        ("{text}", re.compile(f"(?P<label>.*){HALF}")),
        (f"{{text}} {HALF}", "label"),
        (Prompt("{text}", system=HALF), "label"),
    ],
    ids=["column", "field", "value", "description", "nested", "pattern", "template", "system"],
)
def test_lone_surrogate_in_a_name_is_an_error(prompt: Any, output: Any) -> None:
    """Before any call, with the text and the position."""
    with pytest.raises(ConfigError, match=r"la\\ud800bel.*half of a character"):
        enrich_sync({"text": ["a"]}, prompt=prompt, output=output, model=ScriptedModel({"": "x"}))


def test_lone_surrogate_in_a_row_is_replaced() -> None:
    """The row is asked, and the others are not affected."""
    report = enrich_sync({"text": [HALF]}, prompt="{text}", output="label", model=ScriptedModel({"": "x"}))
    assert report.column("label") == ["x"]
