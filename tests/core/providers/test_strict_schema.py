"""Schemas sent in strict mode, checked against its rules, which are written here independently from OpenAI's guide."""

from __future__ import annotations

import datetime as dt
import enum
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, Field, HttpUrl, create_model

from ondine_core import ModelSpec, Options, Policy, enrich_sync
from ondine_core.prompts.output_schema import compile_schema
from ondine_core.providers.strict_schema import SchemaSubset, strict_schema
from tests.support.openai_description import request_faults
from tests.support.provider import Provider, ReceivedRequest

FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
ANYWHERE = {"type", "enum", "anyOf", "description"}
BY_TYPE = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"pattern", "format"},
    "number": {"multipleOf", "maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum"},
    "integer": {"multipleOf", "maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum"},
    "boolean": set(),
    "null": set(),
}


def faults(node: Any, path: str = "", level: int = 1) -> list[str]:
    """What strict mode would refuse in a schema."""
    if not isinstance(node, dict):
        return [f"{path}: not a schema"]
    found = [f"{path}: {fault}" for fault in own_faults(node)]
    if level > 10:
        found.append(f"{path}: too deep")
    for name, child in node.get("properties", {}).items():
        found += faults(child, f"{path}.{name}", level + 1)
    for number, child in enumerate(node.get("anyOf", ())):
        found += faults(child, f"{path}|{number}", level)
    return found + faults(node["items"], f"{path}[]", level + 1) if "items" in node else found


def own_faults(node: dict[str, Any]) -> list[str]:
    kind = node.get("type")
    found = [f"{key!r} is not permitted" for key in node.keys() - ANYWHERE - BY_TYPE.get(str(kind), set())]
    is_closed = node.get("additionalProperties") is False
    wrong = {
        "a schema has a type or options": ("anyOf" in node) == (kind is not None),
        "no such type": kind is not None and kind not in BY_TYPE,
        "additionalProperties must be false": kind == "object" and not is_closed,
        "not all are required": kind == "object" and set(node.get("required", ())) != set(node.get("properties", {})),
        "items are missing": kind == "array" and "items" not in node,
        "no such format": node.get("format", "uuid") not in FORMATS,
        "look-around": bool(re.search(r"\(\?[=!<]", node.get("pattern", ""))),
    }
    return found + [fault for fault, holds in wrong.items() if holds]


class Mood(enum.Enum):
    """A choice."""

    good = "good"
    bad = "bad"


class Rank(enum.IntEnum):
    """Numbers."""

    first = 1
    second = 2


class One(enum.Enum):
    """No choice."""

    only = "only"


class Cat(BaseModel):
    """One kind."""

    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    """Another kind."""

    kind: Literal["dog"]
    barks: bool


class Point(BaseModel):
    """Nested."""

    x: float = Field(description="metres east")
    y: float


def model(annotation: Any, **field: Any) -> type[BaseModel]:
    return create_model("Out", x=(annotation, Field(**field)))


STRICT: dict[str, Any] = {
    "text": model(str),
    "optional text": model(str | None),
    "default": model(str, default="a"),
    "choice": model(Literal["a", "b"]),
    "choice of kinds": model(Literal["a", 1, True] | None),
    "enumeration": model(Mood),
    "optional enumeration": model(Mood | None),
    "enumeration of numbers": model(Rank),
    "enumeration of one": model(One),
    "range": model(int, ge=1, le=5),
    "steps": model(float, multiple_of=0.5, gt=0),
    "length": model(str, min_length=2, max_length=9),
    "pattern": model(str, pattern=r"^\d{4}$"),
    "list": model(list[str], min_length=1, max_length=3),
    "set": model(set[str]),
    "frozen set of numbers": model(frozenset[int]),
    "pair": model(tuple[float, float]),
    "mixed triple": model(tuple[str, int, Mood]),
    "any number of": model(tuple[int, ...]),
    "nested": model(Point),
    "optional nested": model(Point | None),
    "list of nested": model(list[Point]),
    "union": model(Cat | Dog),
    "discriminated union": model(Annotated[Cat | Dog, Field(discriminator="kind")]),
    "list of discriminated unions": model(list[Annotated[Cat | Dog, Field(discriminator="kind")]]),
    "decimal": model(Decimal),
    "optional decimal": model(Decimal | None, ge=0),
    "decimal as some versions of pydantic write it": model(
        str, json_schema_extra={"pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}
    ),
    "web address": model(HttpUrl),
    "any address": model(AnyUrl),
    "date": model(dt.date),
    "moment": model(dt.datetime),
    "time": model(dt.time),
    "duration": model(dt.timedelta),
    "identifier": model(UUID),
    "bytes": model(bytes),
    "deprecated": model(str, deprecated=True),
    "extension": model(str, json_schema_extra={"x-note": "hi", "readOnly": True}),
    "alias": model(str, alias="the x"),
    "annotation of no meaning": model(str, json_schema_extra={"contentMediaType": "text/html", "$comment": "hm"}),
    "types as JSON schema": {"x": {"type": ["string", "null"], "maxLength": 3}, "y": "number"},
    "untyped choice": {"x": {"enum": ["a", 1, None]}},
}
IN_WORDS: dict[str, Any] = {
    "mapping to numbers": model(dict[str, int]),
    "mapping to texts": model(dict[str, str]),
    "mapping": model(dict),
    "optional mapping": model(dict[str, int] | None),
    "list of mappings": model(list[dict[str, int]]),
    "any value": model(Any),
    "object": model(object),
    "list of anything": model(list[Any]),
    "bare list": model(list),
    "bare tuple": model(tuple),
    "far too many choices": model(Literal[tuple(f"choice {number}" for number in range(1001))]),
    "many long choices": model(Literal[tuple(f"{number:080}" for number in range(251))]),
    "conditional": model(int, json_schema_extra={"not": {"const": 3}}),
}


def sent(
    output: Any, model_name: str = "openai_compatible/m", batch_size: int = 1
) -> tuple[ReceivedRequest, list[str]]:
    """A request that asks for `output`, and what strict mode would refuse in it."""
    with Provider(lambda _: {"x": None}) as provider:
        enrich_sync(
            {"text": ["a", "b"][:batch_size]},
            prompt="Judge: {text}",
            output=output,
            model=ModelSpec(model_name, base_url=provider.base_url),
            options=Options(store=":memory:", policy=Policy(batch_size=batch_size, max_repairs=0)),
        )
    asked = provider.ledger.requests[0]
    assert request_faults(asked.body) == []
    form = asked.body.get("response_format")
    if form is None:
        return asked, []
    assert (form["type"], form["json_schema"]["strict"]) == ("json_schema", True)
    schema = form["json_schema"]["schema"]
    return asked, faults(schema) if schema.get("type") == "object" else ["the root is not an object"]


@pytest.mark.parametrize("output", STRICT.values(), ids=STRICT)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_common_outputs_are_sent_within_strict_mode(output: Any, batch_size: int) -> None:
    """Each is enforced by the provider, in the accepted subset, for single rows and batches."""
    asked, refused = sent(output, batch_size=batch_size)
    assert "response_format" in asked.body
    assert refused == []


@pytest.mark.parametrize("output", IN_WORDS.values(), ids=IN_WORDS)
@pytest.mark.parametrize("model_name", ["openai_compatible/m", "openai/gpt-4o-mini", "hosted_vllm/m"])
def test_schema_beyond_strict_mode_is_put_into_the_prompt(output: Any, model_name: str) -> None:
    """No row is lost to a schema that the provider would refuse; the parser validates."""
    asked, _ = sent(output, model_name)
    assert "response_format" not in asked.body
    assert compile_schema(output).json_schema.decode() in asked.messages[0]["content"]  # type: ignore[union-attr]


def test_schema_in_the_prompt_is_still_validated() -> None:
    """Valid mappings are kept, invalid ones fail."""
    replies = {"a": {"x": {"apples": 3}}, "b": {"x": {"apples": "three"}}}
    with Provider(lambda prompt: replies[prompt[-1]]) as provider:
        report = enrich_sync(
            {"text": ["a", "b"]},
            prompt="Count: {text}",
            output=model(dict[str, int]),
            model=ModelSpec("openai_compatible/m", base_url=provider.base_url),
            options=Options(store=":memory:", policy=Policy(max_repairs=0)),
        )
    assert report.column("x") == [{"apples": 3}, None]


def test_unsupported_constraints_are_described_and_validated() -> None:
    """A length is added to the user's description; a reply that violates it is not an answer."""
    output = model(str, max_length=3, description="A code.")
    asked, _ = sent(output)
    schema = asked.body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["x"] == {"type": "string", "description": "A code. (maxLength: 3)"}


def test_pair_keeps_its_length() -> None:
    """A tuple becomes an array of exactly its number of items."""
    asked, _ = sent(model(tuple[float, float]))
    schema = asked.body["response_format"]["json_schema"]["schema"]["properties"]["x"]
    assert schema == {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}


def test_servers_without_constraints_get_them_as_descriptions() -> None:
    """Azure and Cerebras refuse patterns, formats and bounds."""
    schema = compile_schema(model(int, ge=1, le=5)).json_schema
    assert schema is not None
    narrow = orjson.loads(strict_schema(schema, SchemaSubset(constraints=False)) or b"")
    assert narrow["properties"]["x"] == {"type": "integer", "description": "(maximum: 5, minimum: 1)"}


def nested(levels: int) -> type[BaseModel]:
    inner = model(str)
    for _ in range(levels - 2):
        inner = model(inner)
    return inner


@pytest.mark.parametrize(("levels", "is_strict"), [(9, True), (10, True), (12, False)])
def test_schema_nested_over_ten_levels_is_put_into_the_prompt(levels: int, is_strict: bool) -> None:
    """Strict mode accepts ten levels."""
    asked, refused = sent(nested(levels))
    assert ("response_format" in asked.body, refused) == (is_strict, [])


def test_form_of_the_schema_is_not_part_of_the_key(tmp_path: Path) -> None:
    """Answers are found whether the schema was sent as text or as structured output."""
    with Provider(lambda _: {"x": "a"}) as provider:
        for structure in ("words", "json_schema"):
            enrich_sync(
                {"text": ["a"]},
                prompt="{text}",
                output=model(str),
                model=ModelSpec(
                    "openai_compatible/m", base_url=provider.base_url, settings={"structured_output": structure}
                ),
                options=Options(store=tmp_path / "answers.db"),
            )
    assert len(provider.ledger.requests) == 1


SCALARS = st.sampled_from([str, int, float, bool, Mood, Rank, Point, Decimal, dt.date, HttpUrl, Literal["a", 1], None])
TYPES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        inner.map(lambda kind: list[kind]),  # type: ignore[valid-type]
        inner.map(lambda kind: set[int] | kind),  # type: ignore[valid-type]
        st.tuples(inner, inner).map(lambda kinds: tuple[kinds]),  # type: ignore[valid-type]
        inner.map(model),
    ),
    max_leaves=5,
)


@given(TYPES)
def test_any_schema_sent_as_strict_is_strict(kind: Any) -> None:
    """For any combination of types; others are put into the prompt."""
    schema = compile_schema(model(kind)).json_schema
    assert schema is not None
    strict = strict_schema(schema)
    assert strict is None or faults(orjson.loads(strict)) == []


def test_choices_unsupported_by_gemini_are_in_descriptions() -> None:
    """It supports choices of non-empty texts; of others the type is sent and the description lists the values."""
    properties = {
        "grade": {"type": "integer", "enum": [1, 2, 3]},
        "side": {"type": "string", "enum": ["left", ""]},
        "mood": {"type": "string", "enum": ["good", "bad"]},
        "fixed": {"const": 7, "description": "Always."},
        "grade_or_none": {"anyOf": [{"type": "integer", "enum": [1, 2]}, {"type": "null"}]},
    }
    schema = orjson.dumps({"type": "object", "properties": properties})
    plain = strict_schema(schema, SchemaSubset(constraints=False))
    sent = strict_schema(schema, SchemaSubset(constraints=False, any_choices=False))
    assert plain is not None
    assert sent is not None
    assert orjson.loads(plain)["properties"]["grade"] == {"type": "integer", "enum": [1, 2, 3]}
    assert orjson.loads(sent)["properties"] == {
        "grade": {"type": "integer", "description": "(enum: [1,2,3])"},
        "side": {"type": "string", "description": '(enum: ["left",""])'},
        "mood": {"type": "string", "enum": ["good", "bad"]},
        "fixed": {"type": "integer", "description": "Always. (const: 7)"},
        "grade_or_none": {"anyOf": [{"type": "integer", "description": "(enum: [1,2])"}, {"type": "null"}]},
    }
