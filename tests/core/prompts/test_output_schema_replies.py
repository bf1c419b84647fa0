import datetime as dt
import json
import re
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator

from ondine_core.errors import ConfigError
from ondine_core.prompts.output_schema import Invalid, compile_schema
from tests.support.reviews import REPLY, Mood, Part, Review, refusal
from tests.support.strategies import TEXTS

# -- strictness ----------------------------------------------------------------------------------------------------

STRICT = compile_schema({"n": "integer", "s": "string", "b": "boolean", "f": "number"})
GOOD = '{"n": 1, "s": "x", "b": true, "f": 2}'


@pytest.mark.parametrize(
    "reply", [GOOD, f" {GOOD}\n", f"```json\n{GOOD}\n```", f"```\n{GOOD}\n```\n", f"```JSON\n{GOOD}```"]
)
def test_a_code_fence_is_stripped(reply: str) -> None:
    """An object, alone or in a code fence, is an answer; an integer is accepted as a number."""
    assert STRICT.parse(reply) == {"n": 1, "s": "x", "b": True, "f": 2.0}


@pytest.mark.parametrize("cut", range(len(GOOD)))
def test_a_truncated_reply_is_never_an_answer(cut: int) -> None:
    """Cut anywhere it is invalid: nothing is completed."""
    assert refusal(STRICT, GOOD[:cut]) == ("the reply is not the JSON asked for" if cut else "the reply is empty")


@pytest.mark.parametrize(
    "reply",
    [
        f"Sure! {GOOD}",
        f"{GOOD} Done.",
        f"{GOOD}{GOOD}",
        f"Sure:\n```json\n{GOOD}\n```",
        f"```json\n{GOOD}\n```\nDone.",
        f"```json\n{GOOD}",
        GOOD.replace('"', "'"),
        GOOD[:-1] + ",}",
        "```json\n```x",
    ],
)
def test_no_answer_is_extracted_from_prose(reply: str) -> None:
    """Prose around the object, several objects and almost-JSON are invalid."""
    assert refusal(STRICT, reply) == "the reply is not the JSON asked for"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"n": 1', '"n": "1"', "n: input should be a valid integer"),
        ('"n": 1', '"n": 1.0', "n: input should be a valid integer"),
        ('"n": 1', '"n": true', "n: input should be a valid integer"),
        ('"n": 1', '"n": null', "n: input should be a valid integer"),
        ('"n": 1, ', "", "n: field required"),
        ('"s": "x"', '"s": 1', "s: input should be a valid string"),
        ("true", '"true"', "b: input should be a valid boolean"),
        ("true", "1", "b: input should be a valid boolean"),
        ('"f": 2', '"f": "2"', "f: input should be a valid number"),
        (GOOD, f"[{GOOD}]", "the reply: input should be an object"),
        (GOOD, "null", "the reply: input should be an object"),
        ('1, "s": "x"', '"1", "s": 1', "n: input should be a valid integer (and 1 more)"),
    ],
)
def test_types_are_not_converted(old: str, new: str, reason: str) -> None:
    """A text is not a number, a number not a boolean, an array not an object; the reason has place and type."""
    assert refusal(STRICT, GOOD.replace(old, new)) == reason


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_number_that_json_cannot_hold_is_invalid(value: str) -> None:
    """What JSON cannot carry, and so no store could give back, is not an answer."""
    assert refusal(STRICT, GOOD.replace('"f": 2', f'"f": {value}')) == "a number is out of range"


@pytest.mark.parametrize(
    ("value", "kept"), [(2**63 - 1, True), (-(2**63), True), (2**70, False), (-(2**63) - 1, False)]
)
def test_integers_are_kept_within_64_bits(value: int, kept: bool) -> None:
    """Integers that a table can hold are exact; larger ones are invalid."""
    outcome = STRICT.parse(GOOD.replace('"n": 1', f'"n": {value}'))
    assert outcome == ({"n": value, "s": "x", "b": True, "f": 2.0} if kept else Invalid("a number is out of range"))


class Checked(BaseModel):
    """Fields with every kind of constraint, all optional."""

    mood: Mood = Mood.GOOD
    day: dt.date = dt.date(2026, 1, 2)
    text: str = Field(default="x", pattern="^x$", max_length=5)
    inner: Part | None = None
    own: str = ""

    @field_validator("own")
    @classmethod
    def quotes(cls, value: str) -> str:
        """Raise an error with the value in it, as users' validators do."""
        if value:
            raise ValueError(f"what is {value}?")
        return value


@pytest.mark.parametrize("field", ["mood", "day", "text", "inner", "own"])
@given(secret=st.text(st.characters(categories=["L", "N", "Z", "Cc"]), max_size=60).map("zq{}".format))
def test_a_reason_is_one_line_and_quotes_nothing(field: str, secret: str) -> None:
    """The invalid value is not in it, even if the user's validator quotes it."""
    reason = refusal(compile_schema(Checked), json.dumps({field: secret}))
    assert "zq" not in reason
    assert reason.startswith((f"{field}: ", f"{field}."))
    assert len(reason.splitlines()) == 1


# -- dump ----------------------------------------------------------------------------------------------------------

ROUND = compile_schema(
    {
        "label": Literal["a", "b"],
        "stars": Annotated[int, Field(ge=1, le=5)],
        "note": str | None,
        "tags": list[str],
        "day": {"type": "string", "format": "date"},
    }
)
ANSWERS = st.fixed_dictionaries(
    {
        "label": st.sampled_from("ab"),
        "stars": st.integers(1, 5),
        "note": st.none() | TEXTS,
        "tags": st.lists(TEXTS, max_size=3),
        "day": st.dates().map(dt.date.isoformat),
    }
)


@given(ANSWERS)
def test_dumped_answer_parses_to_the_same_values(values: dict[str, Any]) -> None:
    """The text of an example's answer is itself a valid reply."""
    assert ROUND.parse(ROUND.dump(values)) == values


@given(ANSWERS, st.sampled_from([("stars", 0), ("stars", 6), ("label", "c"), ("tags", [None]), ("note", 1)]))
def test_a_value_out_of_range_is_invalid(values: dict[str, Any], wrong: tuple[str, Any]) -> None:
    """Limits and choices are validated, not only types."""
    assert refusal(ROUND, json.dumps(values | dict([wrong]))).startswith(wrong[0])


@pytest.mark.parametrize(
    "value", [REPLY, Review.model_validate(REPLY), {**REPLY, "mood": Mood.GOOD, "day": dt.date(2026, 1, 2)}]
)
def test_an_answer_may_be_given_in_python(value: Any) -> None:
    """An example's answer may be a model or have enums and dates; it is dumped as a reply, by alias."""
    assert json.loads(compile_schema(Review).dump(value)) == REPLY


def test_free_text_and_patterns_dump_as_they_are() -> None:
    """Examples of text are unchanged, and validated like replies."""
    assert compile_schema("a").dump("x") == compile_schema("a").dump({"a": "x"}) == "x"
    assert compile_schema(re.compile("(?P<a>x)")).dump("xx") == "xx"


@pytest.mark.parametrize(
    ("output", "value", "fix"),
    [
        ({"a": int}, {"a": "x"}, "a: input should be a valid integer"),
        ({"a": int, "b": int}, 3, "a mapping with 'a', 'b' was expected"),
        ("a", 3, "a text for column 'a' was expected, not int"),
        ("a", {"b": "x"}, "a text for column 'a' was expected, not NoneType"),
        (re.compile("(?P<a>x)"), "y", "a text that matches '(?P<a>x)' was expected"),
        (re.compile("(?P<a>x)"), {"a": "x"}, "a text that matches '(?P<a>x)' was expected"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(output: Any, value: Any, fix: str) -> None:
    """An example's answer that would be an invalid reply is refused with the reason."""
    with pytest.raises(ConfigError) as caught:
        compile_schema(output).dump(value)
    assert fix in str(caught.value)


class Picky(BaseModel):
    """A model whose validator raises a look-up error."""

    a: str

    @field_validator("a")
    @classmethod
    def look_up(cls, value: str) -> str:
        return {"x": "y"}[value]


def test_any_exception_of_a_validator_fails_its_row() -> None:
    """Not the run."""
    assert refusal(compile_schema(Picky), '{"a": "z"}') == "a validator of the output raised KeyError"


@pytest.mark.parametrize(
    ("output", "reply"),
    [
        ({"a": dict[str, int]}, '{"a": {"SECRET": "x"}}'),
        (
            type("Closed", (BaseModel,), {"__annotations__": {"a": int}, "model_config": {"extra": "forbid"}}),
            '{"SECRET": 1}',
        ),
    ],
)
def test_reason_names_no_key_that_the_model_made_up(output: Any, reply: str) -> None:
    """Such keys are text of the reply."""
    assert "SECRET" not in refusal(compile_schema(output), reply)


@pytest.mark.parametrize("output", ["a", re.compile("(?P<a>.*)", re.DOTALL)])
def test_lone_surrogates_do_not_reach_the_store(output: Any) -> None:
    """They are replaced."""
    assert compile_schema(output).parse("x\ud800y") == {"a": "x?y"}


@pytest.mark.parametrize(
    ("reply", "good"), [('{"a": "xy"}', True), ('{"a": "x"}', False), ('{"a": 3}', True), ('{"a": 2}', False)]
)
def test_each_constraint_applies_to_its_type(reply: str, good: bool) -> None:
    """A column of two types is held to the bounds of each."""
    schema = compile_schema({"a": {"type": ["string", "integer"], "minLength": 2, "minimum": 3}})
    assert isinstance(schema.parse(reply), Invalid) is not good


def test_renaming_a_field_asks_again() -> None:
    """An alias alone does not make an answer of one column an answer of another."""

    class Old(BaseModel):
        topic: str = Field(alias="t")

    class New(BaseModel):
        subject: str = Field(alias="t")

    assert compile_schema(Old).identity != compile_schema(New).identity
