import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from ondine_core.errors import ConfigError
from ondine_core.schema import Column, compile_schema
from tests.support.reviews import REPLY, Review, refusal

# -- forms ---------------------------------------------------------------------------------------------------------


def test_a_model_is_a_column_a_field() -> None:
    """A reply speaks in aliases and the columns in field names; enums, dates and nested models become plain JSON."""
    schema = compile_schema(Review)
    assert [column.name for column in schema.columns] == ["mood", "topic", "parts", "day", "stars"]
    assert schema.columns[1].description == "what it is about"
    assert schema.columns[3].description is None
    values = schema.parse(json.dumps(REPLY))
    assert values == {**{k: v for k, v in REPLY.items() if k != "theTopic"}, "topic": None}


def test_the_wire_schema_is_closed_and_inlined() -> None:
    """A provider is held to every property and no other; references are in place, titles and defaults gone."""
    schema = compile_schema(Review)
    assert schema.json_schema is not None
    mood = {"enum": ["good", "bad"], "type": "string", "description": "How it sounds."}
    assert json.loads(schema.json_schema) == {
        "type": "object",
        "description": "What a review says.",
        "properties": {
            "mood": mood,
            "theTopic": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "what it is about"},
            "parts": {
                "type": "array",
                "items": {
                    "type": "object",
                    "description": "A part of it.",
                    "properties": {"name": {"type": "string"}, "mood": {"anyOf": [mood, {"type": "null"}]}},
                    "required": ["name", "mood"],
                    "additionalProperties": False,
                },
            },
            "day": {"type": "string", "format": "date"},
            "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        },
        "required": ["mood", "theTopic", "parts", "day", "stars"],
        "additionalProperties": False,
    }


def test_columns_may_have_any_name() -> None:
    """Columns called `title`, `default` or `$defs` are columns, not words of JSON schema."""
    names = ["title", "default", "$defs", "required", "model_config", "two words"]
    schema = compile_schema(dict.fromkeys(names, "string"))
    assert [column.name for column in schema.columns] == names
    assert json.loads(schema.json_schema or b"")["required"] == names
    assert schema.parse(json.dumps(dict.fromkeys(names, "x"))) == dict.fromkeys(names, "x")


STRING, INTEGER = {"type": "string"}, {"type": "integer"}


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        (str, STRING),
        ("string", STRING),
        ("integer", INTEGER),
        ("number", {"type": "number"}),
        ("boolean", {"type": "boolean"}),
        (bool, {"type": "boolean"}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        ({"type": "string", "enum": ["a", "b"]}, {"type": "string", "enum": ["a", "b"]}),
        ({"const": "a"}, {"type": "string", "const": "a"}),
        (list[str], {"type": "array", "items": STRING}),
        ({"type": "array", "items": "integer", "maxItems": 3}, {"type": "array", "items": INTEGER, "maxItems": 3}),
        (str | None, {"anyOf": [STRING, {"type": "null"}]}),
        ({"type": ["string", "null"]}, {"anyOf": [STRING, {"type": "null"}]}),
        ({"type": "string", "nullable": True}, {"anyOf": [STRING, {"type": "null"}]}),
        ({"anyOf": ["string", "integer"]}, {"anyOf": [STRING, INTEGER]}),
        ({"type": "null"}, {"type": "null"}),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
        ({"type": "string", "format": "date-time"}, {"type": "string", "format": "date-time"}),
        ({"type": "integer", "minimum": 1, "exclusiveMaximum": 9}, {**INTEGER, "minimum": 1, "exclusiveMaximum": 9}),
        ({"type": "string", "description": "d", "pattern": "^x"}, {**STRING, "description": "d", "pattern": "^x"}),
        (Annotated[int, Field(description="d")], {**INTEGER, "description": "d"}),
        (
            {"type": "object", "properties": {"k": "string"}},
            {"type": "object", "properties": {"k": STRING}, "required": ["k"], "additionalProperties": False},
        ),
    ],
    ids=str,
)
def test_a_mapping_is_a_column_a_type(kind: Any, column: dict[str, Any]) -> None:
    """Python types, type names and fragments of JSON schema may be mixed; each says the same as its schema."""
    assert compile_schema({"c": kind, "d": "string"}).columns == (Column("c", column), Column("d", STRING))


def test_a_json_schema_is_understood() -> None:
    """A whole JSON schema is its properties; what it does not require may be absent and is then null."""
    properties = {"a": {"type": "string"}, "b": {"type": "integer"}}
    schema = compile_schema({"type": "object", "properties": properties, "required": ["a"]})
    assert schema.parse('{"a": "x"}') == {"a": "x", "b": None}
    assert schema.parse('{"a": "x", "b": 1}') == {"a": "x", "b": 1}
    assert refusal(schema, '{"b": 1}') == "a: field required"


def test_named_groups_are_columns() -> None:
    """A pattern is searched in the reply; a group that took no part is null, a reply without a match invalid."""
    schema = compile_schema(re.compile(r"(?P<label>pos|neg)(?: (?P<score>\d+))?$", re.IGNORECASE))
    assert schema.json_schema is None
    assert [column.name for column in schema.columns] == ["label", "score"]
    assert schema.parse("It is POS 5") == {"label": "POS", "score": "5"}
    assert schema.parse("neg") == {"label": "neg", "score": None}
    assert "does not match" in refusal(schema, "no idea")


def test_a_name_is_a_column_of_free_text() -> None:
    """Free text is kept as it is but for white space around it; nothing is not an answer."""
    schema = compile_schema("summary")
    assert (schema.json_schema, schema.columns) == (None, (Column("summary", STRING),))
    assert schema.parse(' ```{"a": 1}``` \n') == {"summary": '```{"a": 1}```'}
    assert refusal(schema, " \n ") == "the reply is empty"


def test_the_identity_tells_meanings_apart() -> None:
    """Schemas of other columns, types, descriptions, flags or forms never share answers; equal ones always do."""
    pattern = r"(?P<a>x)"
    forms: list[Any] = [{"a": str}, {"b": str}, {"a": int}, {"a": {"type": "string", "description": "d"}}, "a", "b"]
    forms += [re.compile(pattern), re.compile(pattern, re.IGNORECASE), Review]
    assert len({compile_schema(form).identity for form in forms}) == len(forms)
    assert compile_schema({"a": "string"}).identity == compile_schema({"a": str}).identity


# -- what cannot be understood -------------------------------------------------------------------------------------


class Empty(BaseModel):
    """Has no fields."""


class Tree(BaseModel):
    """Holds itself."""

    children: "list[Tree]"


class Odd(BaseModel):
    """Has a field that JSON does not know."""

    f: Callable[[], int]


@pytest.mark.parametrize(
    ("output", "fix"),
    [
        (" ", "empty name"),
        (re.compile("x"), "write (?P<column>...) for each column"),
        (Empty, "no columns; each field or property is an output column"),
        ({}, "no columns"),
        ({"type": "object", "properties": {}}, "no columns"),
        (Tree, "recursive at 'Tree'"),
        (Odd, "not understood"),
        (3, "output=3 is not understood; give a Pydantic model, a JSON schema of an object, a mapping"),
        (int, "is not understood; give a Pydantic model"),
        ({"a": "strin"}, "output['a']={'type': 'strin'} is not understood; a type is one of 'string', 'integer'"),
        ({"a": {"enum": []}}, "or has an enum"),
        ({"a": {"type": "array"}}, "'array' with items"),
        ({"a": {"type": "object"}}, "'object' with properties"),
        ({"a": {"type": "array", "items": "x"}}, "output['a'].items={'type': 'x'} is not understood"),
        ({"a": {"anyOf": ["x"]}}, "output['a'].anyOf={'type': 'x'} is not understood"),
        ({"a": {"type": "string", "default": "x"}}, "output['a'] uses 'default', which is not supported; valid are"),
        ({"a": {"$ref": "#/$defs/X"}}, "uses '$ref', which is not supported"),
        ({"a": {"type": "string", "minimum": 3}}, "has 'minimum', which says nothing about type 'string'"),
        ({"a": {"type": "integer", "maxLength": 3}}, "has 'maxLength', which says nothing about type 'integer'"),
        ({"a": {"type": "string", "pattern": "("}}, "unclosed group"),
        ({"a": {"type": "integer", "minimum": "x"}}, "not understood"),
        ({"a": object()}, "not understood"),
    ],
    ids=str,
)
def test_an_output_that_cannot_work_is_refused_with_the_fix(output: Any, fix: str) -> None:
    """Whatever is wrong with an output is said when it is defined, with where it is and what is valid."""
    with pytest.raises(ConfigError) as caught:
        compile_schema(output)
    assert fix in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
