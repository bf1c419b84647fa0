"""The declared output: its columns, the JSON schema for the provider, and the strict parser.

Objects, declared as a Pydantic model, a JSON schema or a mapping of column to type, are validated by one Pydantic
`TypeAdapter`, so "valid" means the same everywhere. A code fence around a reply is removed; nothing else is repaired or
guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias, get_args

import orjson
from pydantic import BaseModel, RootModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, SchemaError
from pydantic_core.core_schema import ErrorType

from ondine_core.errors import ConfigError
from ondine_core.preprocessing.safe_regex import compile_bounded, find_stall
from ondine_core.prompts.json_schema import as_object, inline, object_type, storable
from ondine_core.providers.reply_text import strip_fence
from ondine_core.providers.wire_text import check_text, storable_text
from ondine_core.types.values import Json

Output: TypeAlias = type[BaseModel] | Mapping[str, Any] | re.Pattern[str] | str
"""How a user declares output columns; see `compile_schema`."""


@dataclass(frozen=True, slots=True)
class Column:
    """An output column: its name and the JSON schema of its values."""

    name: str
    json_schema: Mapping[str, Json]

    @property
    def description(self) -> str | None:
        """The user's description of the column, if there is one."""
        return self.json_schema.get("description")


@dataclass(frozen=True, slots=True)
class Invalid:
    """The reason why a reply is not an answer, in one line without free text of the reply."""

    reason: str


@dataclass(frozen=True, slots=True)
class OutputSchema:
    """A compiled output declaration.

    Args:
        columns: The output columns, in order.
        json_schema: The JSON text of the schema for the provider; `None` for free text and regular expressions.
        identity: Bytes that change with the meaning of the schema; part of every answer's key.
        parse: Reads the text of a reply; returns the values by column, or why it is not valid.
        dump: Writes a value of the user's (mapping, model, text) as the text that a model should reply.
    """

    columns: tuple[Column, ...]
    json_schema: bytes | None
    identity: bytes
    parse: Callable[[str], Mapping[str, Json] | Invalid] = field(repr=False, compare=False)
    dump: Callable[[Any], str] = field(repr=False, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the output columns, in order."""
        return tuple(column.name for column in self.columns)


def compile_schema(output: Output) -> OutputSchema:
    """Compile an output declaration.

    Args:
        output: One of: a Pydantic model, with a column for each field; a JSON schema `{"type": "object", "properties":
            {...}}`; a mapping of column to Python type (`str`, `int`, `float`, `bool`, `Literal[...]`, `list[str]`,
            ...) or to a type name or JSON schema (`"string"`, `{"type": "string", "enum": [...]}`); a regular
            expression, compiled or as text, with a column for each named group; the name of one column of free text.

    Raises:
        ConfigError: It is none of these, or is not valid.
    """
    if isinstance(output, str | Mapping):
        check_text(output, "output")
    match output:
        case str() if is_pattern(output):
            try:
                return _regular_expression(re.compile(output))
            except re.error as error:
                raise ConfigError(f"output={output!r} is not a regular expression: {error}.") from None
        case str():
            return _free_text(output)
        case re.Pattern():
            return _regular_expression(output)
        case type() if issubclass(output, RootModel):
            raise ConfigError(f"{output.__name__!r} is a RootModel, which has no fields to make columns of.")
        case type() if issubclass(output, BaseModel):
            return _structured(output, tuple(output.model_fields))
        case Mapping():
            schema = as_object(output)
            return _structured(object_type(schema, "output"), tuple(schema["properties"]))
        case _:
            raise ConfigError(
                f"output={output!r} is not understood; give a Pydantic model, a JSON schema of an object, a mapping of "
                "column to type, a regular expression with named groups, or a column name."
            )


def is_pattern(output: Any) -> bool:
    """Whether `output` is a text with a regular expression, and not the name of a column."""
    return isinstance(output, str) and "(?P<" in output


# -- one free-text column, or named groups -------------------------------------------------------------------------


def _free_text(name: str) -> OutputSchema:
    if not name.strip():
        raise ConfigError("The output column has an empty name.")

    def parse(text: str) -> Mapping[str, Json] | Invalid:
        stripped = storable_text(text).strip()
        return {name: stripped} if stripped else Invalid("the reply is empty")

    def dump(value: Any) -> str:
        text = value.get(name) if isinstance(value, Mapping) else value
        if not isinstance(text, str):
            raise ConfigError(f"a text for column {name!r} was expected, not {type(text).__name__}.")
        return text

    return OutputSchema((Column(name, {"type": "string"}),), None, b"text:" + name.encode(), parse, dump)


def _regular_expression(pattern: re.Pattern[str]) -> OutputSchema:
    names = tuple(pattern.groupindex)
    if not names or not isinstance(pattern.pattern, str):
        raise ConfigError(
            f"The pattern {pattern.pattern!r} is not a text with named groups; write (?P<column>...) for each column."
        )

    check_text(pattern.pattern, "output")
    _check_time(pattern)
    search = compile_bounded(pattern)

    def parse(text: str) -> Mapping[str, Json] | Invalid:
        try:
            values = search(storable_text(text))
        except TimeoutError:
            return Invalid(f"the reply cannot be matched with {pattern.pattern!r} in reasonable time")
        return Invalid(f"the reply does not match {pattern.pattern!r}") if values is None else values

    def dump(value: Any) -> str:
        if not isinstance(value, str) or not pattern.search(value):
            raise ConfigError(f"a text that matches {pattern.pattern!r} was expected.")
        return value

    columns = tuple(Column(name, {"type": ["string", "null"]}) for name in names)
    identity = b"regex:%d:" % pattern.flags + pattern.pattern.encode()
    return OutputSchema(columns, None, identity, parse, dump)


_MAX_TRIAL, _STALLED_S = 900, 0.25


def _check_time(pattern: re.Pattern[str]) -> None:
    """Refuse a pattern that takes too long to match some text."""
    text = find_stall(pattern, max_length=_MAX_TRIAL, max_s=_STALLED_S)
    if text is not None:
        raise ConfigError(
            f"The pattern {pattern.pattern!r} is ambiguous: a reply such as {text[:12]!r} and so on, of {len(text)} "
            "characters, can match in too many ways to try them all. Repeat nothing that is itself "
            r"repeated, as in (\w+\s?)+; write [\w\s]+ for it."
        )


def _check_core_schema(node: Any, *, by_python: bool = False) -> None:
    """Check the parts of a Pydantic schema that cost or lose every answer: slow patterns, and enums no reply can name.

    Only patterns that Python's own engine matches are slow; Pydantic's engine takes linear time.
    """
    if isinstance(node, Mapping):
        if node.get("type") == "enum":
            _check_enum(node["cls"])
        config = node.get("config")
        by_python = by_python or (isinstance(config, Mapping) and config.get("regex_engine") == "python-re")
        pattern = node.get("pattern")
        if isinstance(pattern, re.Pattern):
            _check_time(pattern)
        elif isinstance(pattern, str) and by_python:
            _check_time(re.compile(pattern))
        for child in node.values():
            _check_core_schema(child, by_python=by_python)
    elif isinstance(node, list | tuple):
        for child in node:
            _check_core_schema(child, by_python=by_python)


def _check_enum(enum: type[Enum]) -> None:
    for member in enum:
        if not isinstance(member.value, str | int | float | list | dict | None):
            raise ConfigError(
                f"The value of {str(member)!r} is a {type(member.value).__name__}, which no JSON is equal to; give the "
                "members texts or numbers as their values."
            )


# -- objects -------------------------------------------------------------------------------------------------------


def _structured(kind: Any, names: Sequence[str]) -> OutputSchema:
    if not names:
        raise ConfigError("The output has no columns; each field or property is an output column.")
    if not all(map(str.strip, names)):
        raise ConfigError("An output column has an empty name.")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        _check_core_schema(adapter.core_schema)
        wire = inline(adapter.json_schema(mode="validation"))
        written = inline(adapter.json_schema(mode="serialization", by_alias=False))["properties"]
    except (PydanticUserError, SchemaError) as error:
        raise ConfigError(f"The output is not understood: {' '.join(str(error).split())}") from None
    excluded = [name for name in names if name not in written]
    if excluded:
        raise ConfigError(f"The output field {excluded[0]!r} is left out when the model is written; drop exclude=True.")
    masked = [name for name in names if _is_masked(written[name])]
    if masked:
        raise ConfigError(
            f"The output field {masked[0]!r} is a secret, of which only '**********' would be kept; declare it as str."
        )
    columns = tuple(Column(name, written[name]) for name in names)
    # With the names, since an alias may stay the same when its column is renamed.
    identity = b"json:" + orjson.dumps([names, wire], option=orjson.OPT_SORT_KEYS)
    json_object = _Object(adapter, tuple(names), frozenset({*names, *wire["properties"]}))
    return OutputSchema(columns, orjson.dumps(wire), identity, json_object.parse, json_object.dump)


def _is_masked(node: Any) -> bool:
    """Whether Pydantic writes a value of this JSON schema, or a part of the value, as asterisks."""
    if isinstance(node, dict):
        masked = node.get("writeOnly") is True and node.get("format") == "password"
        return masked or any(map(_is_masked, node.values()))
    return isinstance(node, list) and any(map(_is_masked, node))


@dataclass(frozen=True, slots=True)
class _Object:
    """A JSON object with a property for each column; `known` are the names of the columns and their aliases."""

    adapter: TypeAdapter[Any]
    names: tuple[str, ...]
    known: frozenset[str]

    def parse(self, text: str) -> Mapping[str, Json] | Invalid:
        body = strip_fence(text)
        if not body:
            return Invalid("the reply is empty")
        try:
            valid = self.adapter.validator.validate_json(body, strict=True)
            written = self.adapter.serializer.to_python(valid, mode="json", by_alias=False)
            values = {name: written.get(name) for name in self.names}
        except ValidationError as error:
            return Invalid(_reason(error, self.known))
        except Exception as error:  # noqa: BLE001  (a validator of the user's may raise anything; only its row fails)
            return Invalid(f"a validator of the output raised {type(error).__name__}")
        return values if storable(values) else Invalid("a number is out of range")

    def dump(self, value: Any) -> str:
        if not isinstance(value, Mapping | BaseModel):
            if len(self.names) != 1:
                raise ConfigError(f"a mapping with {', '.join(map(repr, self.names))} was expected.")
            value = {self.names[0]: value}
        unknown = [key for key in value if key not in self.known] if isinstance(value, Mapping) else []
        if unknown:
            raise ConfigError(f"{unknown[0]!r} is not an output column; those are {', '.join(map(repr, self.names))}.")
        try:
            valid = self.adapter.validate_python(value)
            # With a space after each separator, as models write JSON.
            text = json.dumps(self.adapter.dump_python(valid, mode="json", by_alias=True), ensure_ascii=False)
        except ValidationError as error:
            raise ConfigError(f"{_reason(error, self.known)}.") from None
        except PydanticSerializationError as error:
            raise ConfigError(f"it cannot be written as JSON: {error}.") from None
        parsed = self.parse(text)
        if isinstance(parsed, Invalid):
            raise ConfigError(f"written as JSON it is not valid itself: {parsed.reason}.")
        return text


def _reason(error: ValidationError, known: Collection[str]) -> str:
    """The first error of a validation and the number of others, without text of the reply."""
    first, count = error.errors(include_url=False, include_input=False)[0], error.error_count()
    if first["type"] == "json_invalid":
        return "the reply is not the JSON asked for"
    # Only names from the schema, since other keys are text of the reply.
    where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in known)
    what = " ".join(first["msg"].split()) if first["type"] in _WITHOUT_VALUE else "does not pass its validator"
    what = what if what[1:2].isupper() else what[:1].lower() + what[1:]
    return f"{where or 'the reply'}: {what}" + (f" (and {count - 1} more)" if count > 1 else "")


_WITH_VALUE = frozenset({"value_error", "assertion_error", "union_tag_invalid"})
_WITHOUT_VALUE = frozenset(get_args(ErrorType)) - _WITH_VALUE
"""Pydantic's errors whose messages name the rule and do not quote the value."""
