"""What an answer must look like: the output columns, the JSON schema a provider is held to, and the strict parser.

Whatever form the user declares (Pydantic model, JSON schema, mapping of column to type, regular expression, column
name), one Pydantic `TypeAdapter` validates it, so that "valid" means the same thing everywhere. A reply is parsed as it
stands: a code fence around it is stripped, nothing else is repaired or guessed.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, NotRequired, TypeAlias, Union

import orjson
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaError
from typing_extensions import TypedDict

from ondine_core.errors import ConfigError
from ondine_core.values import Json

__all__ = ["Column", "Invalid", "Output", "OutputSchema", "compile_schema"]

Output: TypeAlias = type[BaseModel] | Mapping[str, Any] | re.Pattern[str] | str
"""How a user declares output columns; see `compile_schema`."""


@dataclass(frozen=True, slots=True)
class Column:
    """An output column: its name and the JSON schema of its values."""

    name: str
    json_schema: Mapping[str, Json]

    @property
    def description(self) -> str | None:
        """What the column means, if the user said so."""
        return self.json_schema.get("description")


@dataclass(frozen=True, slots=True)
class Invalid:
    """Why a reply is not an answer, in one line that quotes nothing of the reply's free text."""

    reason: str


@dataclass(frozen=True, slots=True)
class OutputSchema:
    """A declared output, ready for use.

    Args:
        columns: The output columns, in order.
        json_schema: JSON text of the schema a provider can be held to; `None` for free text and regular expressions.
        identity: Bytes that change when the meaning of the schema does; part of every answer's key.
        parse: Reply text to values by column, or why not.
        dump: A value of the user's (mapping, model, text) to the very text a model should reply.
    """

    columns: tuple[Column, ...]
    json_schema: bytes | None
    identity: bytes
    parse: Callable[[str], Mapping[str, Json] | Invalid] = field(repr=False, compare=False)
    dump: Callable[[Any], str] = field(repr=False, compare=False)


def compile_schema(output: Output) -> OutputSchema:
    """Make an `OutputSchema` of what the user declared.

    Args:
        output: One of: a Pydantic model, a column a field; a JSON schema `{"type": "object", "properties": {...}}`;
            a mapping of column to Python type (`str`, `int`, `float`, `bool`, `Literal[...]`, `list[str]`, ...) or to a
            type name or JSON schema (`"string"`, `{"type": "string", "enum": [...]}`); a compiled regular expression,
            a column a named group; the name of one column of free text.

    Raises:
        ConfigError: The declaration has no columns or cannot be understood.
    """
    match output:
        case str():
            return _free_text(output)
        case re.Pattern():
            return _regular_expression(output)
        case type() if issubclass(output, BaseModel):
            return _structured(output, tuple(output.model_fields))
        case Mapping() if isinstance(output.get("properties"), Mapping):
            return _structured(_object(output, "output"), tuple(output["properties"]))
        case Mapping():
            return _structured(_object({"properties": output}, "output"), tuple(output))
        case _:
            raise ConfigError(
                f"output={output!r} is not understood; give a Pydantic model, a JSON schema of an object, a mapping of "
                "column to type, a compiled regular expression with named groups, or a column name."
            )


# -- one free-text column, or named groups -------------------------------------------------------------------------


def _free_text(name: str) -> OutputSchema:
    if not name.strip():
        raise ConfigError("The output column has an empty name.")

    def parse(text: str) -> Mapping[str, Json] | Invalid:
        return {name: stripped} if (stripped := text.strip()) else Invalid("the reply is empty")

    return OutputSchema((Column(name, {"type": "string"}),), None, b"text:" + name.encode(), parse, partial(_one, name))


def _one(name: str, value: Any) -> str:
    text = value.get(name) if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        raise ConfigError(f"a text for column {name!r} was expected, not {type(text).__name__}.")
    return text


def _regular_expression(pattern: re.Pattern[str]) -> OutputSchema:
    names = tuple(pattern.groupindex)
    if not names:
        raise ConfigError(
            f"The pattern {pattern.pattern!r} has no named groups; write (?P<column>...) for each column."
        )

    def parse(text: str) -> Mapping[str, Json] | Invalid:
        found = pattern.search(text)
        return found.groupdict() if found else Invalid(f"the reply does not match {pattern.pattern!r}")

    def dump(value: Any) -> str:
        if not isinstance(value, str) or not pattern.search(value):
            raise ConfigError(f"a text that matches {pattern.pattern!r} was expected.")
        return value

    columns = tuple(Column(name, {"type": ["string", "null"]}) for name in names)
    identity = b"regex:%d:" % pattern.flags + pattern.pattern.encode()
    return OutputSchema(columns, None, identity, parse, dump)


# -- objects -------------------------------------------------------------------------------------------------------


def _structured(kind: Any, names: Sequence[str]) -> OutputSchema:
    if not names:
        raise ConfigError("The output has no columns; each field or property is an output column.")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        wire = orjson.dumps(_inline(adapter.json_schema(mode="validation")))
        shown = _inline(adapter.json_schema(mode="serialization", by_alias=False))["properties"]
    except (PydanticUserError, SchemaError) as error:
        raise ConfigError(f"The output is not understood: {' '.join(str(error).split())}") from None
    columns = tuple(Column(name, shown[name]) for name in names)

    def parse(text: str) -> Mapping[str, Json] | Invalid:
        body = _strip_fence(text)
        if not body:
            return Invalid("the reply is empty")
        try:
            values = adapter.dump_python(adapter.validate_json(body, strict=True), mode="json", by_alias=False)
        except ValidationError as error:
            return Invalid(_reason(error))
        # What cannot be kept exactly is not an answer: NaN, infinity, integers beyond 64 bits.
        try:
            kept = orjson.loads(orjson.dumps(values)) == values
        except TypeError:
            kept = False
        return {name: values.get(name) for name in names} if kept else Invalid("a number is out of range")

    def dump(value: Any) -> str:
        try:
            valid = adapter.validate_python(value if isinstance(value, Mapping | BaseModel) else _only(columns, value))
        except ValidationError as error:
            raise ConfigError(f"{_reason(error)}.") from None
        # A space after each separator, as models write JSON themselves.
        return json.dumps(adapter.dump_python(valid, mode="json", by_alias=True), ensure_ascii=False)

    return OutputSchema(columns, wire, b"json:" + wire, parse, dump)


def _only(columns: Sequence[Column], value: Any) -> Mapping[str, Any]:
    if len(columns) != 1:
        raise ConfigError(f"a mapping with {', '.join(repr(c.name) for c in columns)} was expected.")
    return {columns[0].name: value}


_FENCE = re.compile(r"\A\s*```[\w-]*[ \t]*\n(.*?)\n?[ \t]*```\s*\Z", re.DOTALL)


def _strip_fence(text: str) -> str:
    fenced = _FENCE.match(text)
    return (fenced.group(1) if fenced else text).strip()


def _reason(error: ValidationError) -> str:
    """The first complaint of a validation, and how many more there are; input values are left out on purpose."""
    first, count = error.errors(include_url=False, include_input=False)[0], error.error_count()
    if first["type"] == "json_invalid":
        return "the reply is not the JSON asked for"
    where = ".".join(str(part) for part in first["loc"])
    # A message of the user's own validator may quote the value it was given.
    what = "does not pass its validator" if first["type"] in ("value_error", "assertion_error") else first["msg"]
    return f"{where or 'the reply'}: {what[:1].lower()}{what[1:]}" + (f" (and {count - 1} more)" if count > 1 else "")


def _inline(schema: Mapping[str, Json]) -> dict[str, Any]:
    """`schema` with its `$defs` written in place and titles and defaults left out, as providers want it.

    Every property is required and no other is allowed: a model that may leave a column out will.
    """
    definitions = schema.get("$defs", {})

    def walk(node: Any, trail: tuple[str, ...]) -> Any:
        if isinstance(node, list):
            return [walk(item, trail) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            name = node["$ref"].rsplit("/", 1)[-1]
            if name in trail:
                raise ConfigError(f"The output model is recursive at {name!r}; a column cannot hold itself.")
            rest = {key: value for key, value in node.items() if key != "$ref"}
            return walk({**definitions[name], **rest}, (*trail, name))
        out = {
            key: {name: walk(child, trail) for name, child in value.items()}
            if key == "properties"
            else walk(value, trail)
            for key, value in node.items()
            if key not in ("title", "default", "$defs")
        }
        if "properties" in out:
            out |= {"required": list(out["properties"]), "additionalProperties": False}
        return out

    result: dict[str, Any] = walk(dict(schema), ())
    return result


# -- from JSON schema to types -------------------------------------------------------------------------------------

_PLAIN: Mapping[str, type] = {"string": str, "integer": int, "number": float, "boolean": bool}
_OF_TEXT = {"minLength": "min_length", "maxLength": "max_length", "pattern": "pattern"}
_OF_NUMBERS = {
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
}
_OF_ARRAYS = {"minItems": "min_length", "maxItems": "max_length"}
_CONSTRAINTS = {**_OF_TEXT, **_OF_NUMBERS, **_OF_ARRAYS}
_OF_TYPE = {"string": _OF_TEXT, "integer": _OF_NUMBERS, "number": _OF_NUMBERS, "array": _OF_ARRAYS}
_SHAPES = ("type", "enum", "const", "format", "items", "properties", "required", "additionalProperties", "anyOf")
_KNOWN = frozenset({*_CONSTRAINTS, *_SHAPES, "nullable", "description", "title", "examples"})


def _annotation(kind: Any, where: str) -> Any:
    """The type that `kind` (a Python type, a type name or a JSON schema) stands for."""
    if isinstance(kind, str):
        kind = {"type": kind}
    if not isinstance(kind, Mapping):
        return kind
    if unknown := [key for key in kind if key not in _KNOWN]:
        raise ConfigError(
            f"{where} uses {unknown[0]!r}, which is not supported; valid are {', '.join(sorted(_KNOWN))}."
        )
    base = _base(kind, where)
    names = kind["type"] if isinstance(kind.get("type"), list) else [kind.get("type")]
    allowed = {key: limit for name in names for key, limit in _OF_TYPE.get(str(name), {}).items()}
    if misplaced := [key for key in kind if key in _CONSTRAINTS and key not in allowed]:
        raise ConfigError(f"{where} has {misplaced[0]!r}, which says nothing about type {kind.get('type')!r}.")
    limits = {allowed[key]: value for key, value in kind.items() if key in allowed}
    if limits or "description" in kind:
        base = Annotated[base, Field(**limits, description=kind.get("description"))]
    return base | None if kind.get("nullable") else base


def _base(kind: Mapping[str, Any], where: str) -> Any:  # noqa: C901, PLR0911  (one case a kind)
    match kind:
        case {"enum": [_, *_] as values}:
            return Literal[tuple(values)]
        case {"const": value}:
            return Literal[value]
        case {"anyOf": [_, *_] as options}:
            return Union[tuple(_annotation(option, f"{where}.anyOf") for option in options)]  # noqa: UP007
        case {"type": [_, *_] as names}:
            return Union[tuple(_base({**kind, "type": name}, where) for name in names)]  # noqa: UP007
        case {"type": "null"}:
            return None
        case {"type": "string", "format": "date"}:
            return dt.date
        case {"type": "string", "format": "date-time"}:
            return dt.datetime
        case {"type": "array", "items": items}:
            return list[_annotation(items, f"{where}.items")]  # type: ignore[misc]
        case {"type": "object", "properties": Mapping()}:
            return _object(kind, where)
        case {"type": str(name)} if name in _PLAIN:
            return _PLAIN[name]
        case _:
            raise ConfigError(
                f"{where}={dict(kind)!r} is not understood; a type is one of {', '.join(map(repr, _PLAIN))}, "
                "'array' with items, 'object' with properties, or has an enum."
            )


def _object(kind: Mapping[str, Any], where: str) -> Any:
    """A typed dictionary rather than a model: its keys may be any text, also what a model keeps for itself."""
    required = set(kind.get("required", kind["properties"]))
    fields = {}
    for name, child in kind["properties"].items():
        annotation = _annotation(child, f"{where}[{name!r}]")
        fields[name] = annotation if name in required else NotRequired[annotation | None]
    return TypedDict("Output", fields)  # type: ignore[operator]
