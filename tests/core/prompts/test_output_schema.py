import json
import re
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, SecretBytes, SecretStr

from ondine_core.errors import ConfigError
from ondine_core.prompts.output_schema import Column, compile_schema
from tests.support.reviews import REPLY, Review, refusal

# -- forms ---------------------------------------------------------------------------------------------------------


def test_model_has_a_column_for_each_field() -> None:
    """Replies use aliases and columns field names; enums, dates and nested models become plain JSON."""
    schema = compile_schema(Review)
    assert [column.name for column in schema.columns] == ["mood", "topic", "parts", "day", "stars"]
    assert schema.columns[1].description == "what it is about"
    assert schema.columns[3].description is None
    values = schema.parse(json.dumps(REPLY))
    assert values == {**{k: v for k, v in REPLY.items() if k != "theTopic"}, "topic": None}


def test_the_wire_schema_is_closed_and_inlined() -> None:
    """Every property is required and no other allowed; references are inlined, titles and defaults removed."""
    schema = compile_schema(Review)
    assert schema.json_schema is not None
    mood = {"enum": ["good", "bad"], "type": "string", "description": "The mood of a review."}
    assert json.loads(schema.json_schema) == {
        "type": "object",
        "description": "The content of a review.",
        "properties": {
            "mood": mood,
            "theTopic": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "what it is about"},
            "parts": {
                "type": "array",
                "items": {
                    "type": "object",
                    "description": "A part of a review.",
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
    """Columns called `title`, `default` or `$defs` are not read as JSON-schema keywords."""
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
def test_mapping_has_a_column_for_each_type(kind: Any, column: dict[str, Any]) -> None:
    """Python types, type names and JSON-schema fragments may be mixed; each equals its schema."""
    assert compile_schema({"c": kind, "d": "string"}).columns == (Column("c", column), Column("d", STRING))


@pytest.mark.parametrize(
    "kind",
    [
        {"enum": [True, "x", 1]},
        {"enum": ["x", None]},
        {"type": "string", "enum": ["x", None]},
        {"type": "string", "enum": ["x", None], "nullable": True},
        {"type": ["string", "null"], "enum": ["x", None]},
        {"type": ["string", "integer"], "enum": ["x", 1]},
        {"type": "integer", "enum": [1]},
        {"type": "number", "enum": [1, 1.5]},
        {"type": "boolean", "enum": [True]},
        {"type": "boolean", "const": True},
    ],
    ids=str,
)
def test_enum_with_a_type_accepts_values_of_that_type(kind: dict[str, Any]) -> None:
    """Null is accepted as well if it is a choice."""
    schema = compile_schema({"c": kind})
    for value in kind.get("enum", [kind.get("const")]):
        assert schema.parse(json.dumps({"c": value})) == {"c": value}


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ("date", "2026-01-02", "2026-13-02"),
        ("date-time", "2026-01-02T03:04:05Z", "noon"),
        ("time", "12:34:56", "25:00:00"),
        ("uuid", "8c6b4f3e-31b5-4d0e-8f39-5d8f5a8b3b4e", "8c6b4f3e"),
    ],
)
@pytest.mark.parametrize("kind", ["string", ["string", "null"]], ids=str)
def test_a_format_is_checked(kind: Any, form: str, good: str, bad: str) -> None:
    """Replies are validated against every accepted format, also if null is allowed."""
    schema = compile_schema({"c": {"type": kind, "format": form}})
    assert schema.parse(json.dumps({"c": good})) == {"c": good}
    assert refusal(schema, json.dumps({"c": bad})).startswith("c")
    assert form in (schema.json_schema or b"").decode()


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ({"type": {"type": "string"}}, ["type"]),
        ({"type": str}, ["type"]),
        ({"type": "string", "description": "string"}, ["type", "description"]),
        ({"type": "string", "mood": {"enum": ["a"]}}, ["type", "mood"]),
        ({"enum": {"enum": ["a"]}}, ["enum"]),
        ({"properties": "string"}, ["properties"]),
        ({"properties": {"type": "string"}}, ["properties"]),
        ({"properties": {"enum": ["a", "b"]}}, ["properties"]),
        ({"properties": {"type": {"type": "string"}}}, ["type"]),
        ({"properties": {"a": "string", "b": "integer"}}, ["a", "b"]),
        ({"$schema": "x", "properties": {"a": "string", "b": "integer"}, "required": ["a"]}, ["a", "b"]),
    ],
    ids=str,
)
def test_columns_may_be_called_like_words_of_json_schema(output: Any, names: list[str]) -> None:
    """Only an unambiguous schema is read as one; `properties` makes it an object, with or without `type`."""
    assert [column.name for column in compile_schema(output).columns] == names


def test_a_json_schema_is_understood() -> None:
    """Its properties are the columns; one that is not required may be absent and is then null."""
    properties = {"a": {"type": "string"}, "b": {"type": "integer"}}
    schema = compile_schema({"type": "object", "properties": properties, "required": ["a"]})
    assert schema.parse('{"a": "x"}') == {"a": "x", "b": None}
    assert schema.parse('{"a": "x", "b": 1}') == {"a": "x", "b": 1}
    assert refusal(schema, '{"b": 1}') == "a: field required"


def test_named_groups_are_columns() -> None:
    """A pattern is searched in the reply; an unused group is null, a reply without a match invalid."""
    schema = compile_schema(re.compile(r"(?P<label>pos|neg)(?: (?P<score>\d+))?$", re.IGNORECASE))
    assert schema.json_schema is None
    assert [column.name for column in schema.columns] == ["label", "score"]
    assert schema.parse("It is POS 5") == {"label": "POS", "score": "5"}
    assert schema.parse("neg") == {"label": "neg", "score": None}
    assert "does not match" in refusal(schema, "no idea")
    assert compile_schema(r"(?P<label>pos|neg)").parse("it is neg") == {"label": "neg"}


def test_a_name_is_a_column_of_free_text() -> None:
    """Free text is kept except for surrounding white space; an empty reply is invalid."""
    schema = compile_schema("summary")
    assert (schema.json_schema, schema.columns) == (None, (Column("summary", STRING),))
    assert schema.parse(' ```{"a": 1}``` \n') == {"summary": '```{"a": 1}```'}
    assert refusal(schema, " \n ") == "the reply is empty"


def test_schema_identity_distinguishes_meanings() -> None:
    """Other columns, types, descriptions, flags or forms never share answers; equal ones always do."""
    pattern = r"(?P<a>x)"
    forms: list[Any] = [{"a": str}, {"b": str}, {"a": int}, {"a": {"type": "string", "description": "d"}}, "a", "b"]
    forms += [re.compile(pattern), re.compile(pattern, re.IGNORECASE), Review]
    assert len({compile_schema(form).identity for form in forms}) == len(forms)
    assert compile_schema({"a": "string"}).identity == compile_schema({"a": str}).identity


# -- invalid outputs -----------------------------------------------------------------------------------------------


class Empty(BaseModel):
    """Has no fields."""


class Tree(BaseModel):
    """Contains itself."""

    children: "list[Tree]"


class Odd(BaseModel):
    """Has a field of a type that JSON lacks."""

    f: Callable[[], int]


class Login(BaseModel):
    """Has a secret text field."""

    user: str
    codes: list[SecretStr] | None


class Token(BaseModel):
    """Has a secret bytes field."""

    token: SecretBytes


@pytest.mark.parametrize(
    ("output", "field"), [(Login, "codes"), (Token, "token"), ({"k": SecretStr}, "k"), ({"m": list[Login]}, "m")]
)
def test_secret_field_is_refused(output: Any, field: str) -> None:
    """At any depth, since it would be stored as asterisks."""
    with pytest.raises(ConfigError, match=rf"field '{field}' is a secret, of which only '\*+' would be kept"):
        compile_schema(output)


@pytest.mark.parametrize(
    ("output", "fix"),
    [
        (" ", "empty name"),
        (re.compile("x"), "write (?P<column>...) for each column"),
        ("(?P<mood>good|bad", "output='(?P<mood>good|bad' is not a regular expression: missing )"),
        (Empty, "no columns; each field or property is an output column"),
        ({}, "no columns"),
        ({"type": "object", "properties": {}}, "no columns"),
        (Tree, "recursive at 'Tree'"),
        (Odd, "not understood"),
        (3, "output=3 is not understood; give a Pydantic model, a JSON schema of an object, a mapping"),
        (int, "is not understood; give a Pydantic model"),
        ({"a": "strin"}, "output['a']={'type': 'strin'} is not understood; a type is one of 'string', 'integer'"),
        ({"a": {"enum": []}}, "has enum=[]; give a list of values"),
        (
            {"a": {"type": "string", "enum": "positive, negative"}},
            "output['a'] has enum='positive, negative'; give a list of values, as in ['positive', 'negative'].",
        ),
        ({"a": {"type": "integer", "enum": 3}}, "output['a'] has enum=3; give a list of values"),
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
        ({"a": ...}, "not understood"),
        # contradictions: YAML's bare [yes, no], a choice of another type
        (
            {"a": {"type": "string", "enum": [True, False]}},
            "output['a'] allows True, which is not of type 'string'; quote",
        ),
        ({"a": {"type": "string", "enum": ["x", 1]}}, "output['a'] allows 1, which is not of type 'string'; quote"),
        ({"a": {"type": "string", "const": True}}, "output['a'] allows True, which is not of type 'string'"),
        (
            {"a": {"type": "integer", "enum": ["x"]}},
            "allows 'x', which is not of type 'integer'; correct one of the two",
        ),
        ({"a": {"type": "integer", "enum": [True]}}, "allows True, which is not of type 'integer'"),
        ({"a": {"type": "number", "enum": [False]}}, "allows False, which is not of type 'number'"),
        ({"a": {"type": "boolean", "enum": [0, 1]}}, "allows 0, which is not of type 'boolean'"),
        ({"a": {"type": ["string", "null"], "enum": ["x", 2]}}, "allows 2, which is not of type ['string', 'null']"),
        # formats that are not validated
        ({"a": {"type": "string", "format": "email"}}, "has the format 'email' of type 'string', which is not checked"),
        ({"a": {"type": "string", "format": "uri"}}, "those of 'string' that are: 'date', 'date-time', 'time', 'uuid'"),
        ({"a": {"type": "integer", "format": "date"}}, "has the format 'date' of type 'integer', which is not checked"),
        ({"a": {"type": ["integer", "null"], "format": "int32"}}, "has the format 'int32'"),
        # the schema of a value where columns belong
        ({"type": "string"}, "output={'type': 'string'} reads as the JSON schema of a value, which has no columns"),
        ({"type": "string"}, "give its name, {'label': {'type': 'string'}}"),
        ({"type": "string"}, "a column itself, write its type as a schema, {'type': {'type': 'string'}}"),
        ({"type": ["string", "null"]}, "reads as the JSON schema of a value"),
        ({"type": "string", "enum": ["a", "b"]}, "reads as the JSON schema of a value"),
        ({"type": "string", "description": "the mood"}, "reads as the JSON schema of a value"),
        ({"type": "array", "items": "string"}, "reads as the JSON schema of a value"),
        ({"enum": ["a", "b"]}, "reads as the JSON schema of a value"),
        # names and types that are none
        ({1: str}, "output has a column named 1; names are texts, so quote it: '1'"),
        ({"a": {"type": "object", "properties": {True: str}}}, "output['a'] has a column named True"),
        ({"a": None}, "output['a']=None is not a type; write one, as in 'string', or {'type': 'null'}"),
        ({"properties": {"a": str}, "required": 5}, "output has required=5; give a list of names"),
        # no reply can be equal to a tuple
        (
            {"a": list[Enum("Colour", {"red": (255, 0, 0)})]},
            "'Colour.red' is a tuple, which no JSON is equal to",
        ),
        # no reply can be valid
        ({"a": Enum("Colour", {})}, "has an enum without values; no reply could be valid"),
        ({"a": {"type": "string", "enum": []}}, "has enum=[]; give a list of values"),
        (
            {"a": {"type": "integer", "minimum": 5, "maximum": 3}},
            "has minimum=5 and maximum=3; no reply could be valid",
        ),
        ({"a": Annotated[float, Field(gt=1, le=0.5)]}, "has exclusiveMinimum=1 and maximum=0.5"),
        ({"a": list[Annotated[str, Field(min_length=5, max_length=3)]]}, "has minLength=5 and maxLength=3"),
        ({"a": {"type": "array", "items": "string", "minItems": 3, "maxItems": 1}}, "has minItems=3 and maxItems=1"),
    ],
    ids=str,
)
def test_invalid_output_is_refused_with_the_fix(output: Any, fix: str) -> None:
    """When it is defined, with the place and what is valid."""
    with pytest.raises(ConfigError) as caught:
        compile_schema(output)
    assert fix in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
