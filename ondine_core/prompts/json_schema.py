"""Converts a JSON schema, as users write it in YAML, to Python types, and a schema to the form that providers take.

Only keywords that Pydantic can check are accepted; any other is an error when the schema is declared, since an
unchecked constraint is worse than none.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, Literal, NotRequired, Union
from uuid import UUID

from pydantic import Field
from typing_extensions import TypedDict

from ondine_core.errors import ConfigError
from ondine_core.types.values import Json


def inline(schema: Mapping[str, Json]) -> dict[str, Any]:
    """`schema` in the form that providers take: `$defs` written in place, without titles and defaults.

    All properties are required and no other is allowed, since a model leaves optional columns out.

    Raises:
        ConfigError: The schema is recursive, or a part of it allows no value.
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
        inlined: dict[str, Any] = {}
        for key, value in node.items():
            if key == "properties":  # its keys are names of columns
                inlined[key] = {name: walk(child, trail) for name, child in value.items()}
            elif key not in ("title", "default", "$defs", "discriminator"):
                inlined[key] = walk(value, trail)
        if "properties" in inlined:
            inlined |= {"required": list(inlined["properties"]), "additionalProperties": False}
        _check_allows_a_value(inlined)
        return inlined

    result: dict[str, Any] = walk(dict(schema), ())
    return result


def _check_allows_a_value(schema: Mapping[str, Any]) -> None:
    if schema.get("enum") == []:
        raise ConfigError("The output has an enum without values; no reply could be valid.")
    for low, high in _RANGES:
        if low in schema and high in schema and schema[low] > schema[high]:
            limits = f"{low}={schema[low]!r} and {high}={schema[high]!r}"
            raise ConfigError(f"The output has {limits}; no reply could be valid.")


def allowed_values(schema: Mapping[str, Json]) -> tuple[Json, ...] | None:
    """The values that an inlined `schema` allows, if they are a finite set of scalars; otherwise `None`."""
    match schema:
        case {"enum": [*values]} if not any(isinstance(value, list | dict) for value in values):
            return tuple(values)
        case {"const": value} if not isinstance(value, list | dict):
            return (value,)
        case {"anyOf": [*options]}:
            sets = [allowed_values(option) for option in options]
            known = [values for values in sets if values is not None]
            return tuple(value for values in known for value in values) if len(known) == len(sets) else None
        case {"type": "boolean"}:
            return (True, False)
        case {"type": "null"}:
            return (None,)
        case _:
            return None


# -- from JSON schema to types -------------------------------------------------------------------------------------

_PLAIN: Mapping[str, type] = {"string": str, "integer": int, "number": float, "boolean": bool}
_FORMATS: Mapping[str, type] = {"date": dt.date, "date-time": dt.datetime, "time": dt.time, "uuid": UUID}
_VALUES: Mapping[str, Any] = {**_PLAIN, "number": (int, float), "array": list, "object": Mapping, "null": type(None)}
_OF_TEXT = {"minLength": "min_length", "maxLength": "max_length", "pattern": "pattern"}
_OF_NUMBERS = {
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
}
_OF_ARRAYS = {"minItems": "min_length", "maxItems": "max_length"}
_RANGES = (
    *itertools.product(("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")),
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
)
_CONSTRAINTS = {**_OF_TEXT, **_OF_NUMBERS, **_OF_ARRAYS}
_OF_TYPE = {"string": _OF_TEXT, "integer": _OF_NUMBERS, "number": _OF_NUMBERS, "array": _OF_ARRAYS}
_BINDING = {**_OF_TYPE, "string": (*_OF_TEXT, "format")}
_SHAPES = ("type", "enum", "const", "format", "items", "properties", "required", "additionalProperties", "anyOf")
_KNOWN = frozenset({*_CONSTRAINTS, *_SHAPES, "nullable", "description", "title", "examples"})


def as_object(output: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON schema of an object: `output` itself, or a schema with the entries of `output` as properties.

    Raises:
        ConfigError: `output` is the schema of a value that is no object.
    """
    has_only_keywords = all(key in _KNOWN or str(key).startswith("$") for key in output)
    properties = output.get("properties")
    if isinstance(properties, Mapping):
        implies_object = "type" not in output and has_only_keywords and not _has_type(properties)
        if output.get("type") == "object" or implies_object:
            return output
    # A column may be called `type` and another `description`, so keywords alone do not make it a schema.
    has_only_columns = all(kind in (*_PLAIN, "null") or _is_kind(kind) for kind in output.values())
    if has_only_keywords and _has_type(output) and (list(output) == ["type"] or not has_only_columns):
        raise ConfigError(
            f"output={dict(output)!r} reads as the JSON schema of a value, which has no columns. For a column of such "
            f"values give its name, {{'label': {dict(output)!r}}}; if 'type' is to be a column itself, write its type "
            "as a schema, {'type': {'type': 'string'}}."
        )
    return {"properties": output}


def _is_kind(kind: Any) -> bool:
    """Whether `kind` is a JSON schema or a Python type, and not the value of a keyword."""
    return isinstance(kind, Mapping) or not isinstance(kind, str | int | float | list | tuple | set | None)


def _has_type(schema: Mapping[str, Any]) -> bool:
    """Whether `schema` has a type or a choice of values, and is not a mapping of columns."""
    if not all(key in _KNOWN for key in schema):
        return False
    stated = schema.get("type")
    names = stated if isinstance(stated, list) else [stated]
    if names and all(name in tuple(_VALUES) for name in names):
        return True
    return any(key in schema and not _is_kind(schema[key]) for key in ("enum", "const", "anyOf"))


def _annotation(kind: Any, where: str) -> Any:
    """The Python type for `kind`, which is a Python type, a type name or a JSON schema."""
    if isinstance(kind, str):
        kind = {"type": kind}
    if kind is None:
        raise ConfigError(f"{where}=None is not a type; write one, as in 'string', or {{'type': 'null'}}.")
    if isinstance(kind, list | tuple | set):
        raise ConfigError(f"{where}={kind!r} is not a type; for a choice write {{'enum': [...]}} or Literal[...].")
    if not isinstance(kind, Mapping):
        return kind
    unknown = [key for key in kind if key not in _KNOWN]
    if unknown:
        raise ConfigError(
            f"{where} uses {unknown[0]!r}, which is not supported; valid are {', '.join(sorted(_KNOWN))}."
        )
    names = kind["type"] if isinstance(kind.get("type"), list) else [kind.get("type")]
    applicable = {key for name in names for key in _OF_TYPE.get(str(name), ())}
    misplaced = [key for key in kind if key in _CONSTRAINTS and key not in applicable]
    if misplaced:
        raise ConfigError(f"{where} has {misplaced[0]!r}, which says nothing about type {kind.get('type')!r}.")
    if "enum" in kind and not (kind["enum"] and isinstance(kind["enum"], list | tuple)):
        raise ConfigError(f"{where} has enum={kind['enum']!r}; give a list of values, as in {_as_list(kind['enum'])}.")
    _check_format(kind, names, where)
    _check_values(kind, names, where)
    allowed = _OF_TYPE.get(str(kind.get("type")), {})
    limits = {allowed[key]: value for key, value in kind.items() if key in allowed}
    base = _base(kind, where)
    if limits or "description" in kind:
        base = Annotated[base, Field(**limits, description=kind.get("description"))]
    return base | None if kind.get("nullable") else base


def _as_list(value: Any) -> str:
    """A list for an error message: the parts of a text between commas, else an example."""
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else ["a", "b"]
    return f"[{', '.join(map(repr, parts))}]"


def _check_format(kind: Mapping[str, Any], names: list[Any], where: str) -> None:
    if "format" in kind and not ("string" in names and kind["format"] in tuple(_FORMATS)):
        raise ConfigError(
            f"{where} has the format {kind['format']!r} of type {kind.get('type')!r}, which is not checked; those of "
            f"'string' that are: {', '.join(map(repr, _FORMATS))}. Leave it out, or say it with 'pattern'."
        )


def _check_values(kind: Mapping[str, Any], names: list[Any], where: str) -> None:
    """Refuse a value of an enum or const that is not of the type beside it; null is always allowed."""
    if "type" not in kind:
        return
    values = [kind["const"]] if "const" in kind else []
    if isinstance(kind.get("enum"), list | tuple):
        values = kind["enum"]
    types = tuple(_VALUES[name] for name in ("null", *names) if name in tuple(_VALUES))
    hint = "correct one of the two"
    if "string" in names:
        hint = "quote a text, since YAML reads a bare yes, no, on, off, number or date as something else: 'yes'"
    for value in values:
        # A bool is also an int in Python.
        is_of_type = "boolean" in names if isinstance(value, bool) else isinstance(value, types)
        if not is_of_type:
            raise ConfigError(f"{where} allows {value!r}, which is not of type {kind['type']!r}; {hint}.")


def _base(kind: Mapping[str, Any], where: str) -> Any:  # noqa: PLR0911  (one case a kind)
    match kind:
        case {"enum": [_, *_] as values}:
            return Literal[tuple(values)]
        case {"const": value}:
            return Literal[value]
        case {"anyOf": [_, *_] as options}:
            return Union[tuple(_annotation(option, f"{where}.anyOf") for option in options)]  # noqa: UP007
        case {"type": [_, *_] as names}:
            return Union[tuple(_annotation(_for_type(kind, name), where) for name in names)]  # noqa: UP007
        case {"type": "null"}:
            return None
        case {"type": "string", "format": form}:
            return _FORMATS[form]
        case {"type": "array", "items": items}:
            return list[_annotation(items, f"{where}.items")]  # type: ignore[misc]
        case {"properties": Mapping()} if kind.get("type", "object") == "object":
            return object_type(kind, where)
        case {"type": str(name)} if name in _PLAIN:
            return _PLAIN[name]
        case _:
            raise ConfigError(
                f"{where}={dict(kind)!r} is not understood; a type is one of {', '.join(map(repr, _PLAIN))}, "
                "'array' with items, 'object' with properties, or has an enum."
            )


def _for_type(kind: Mapping[str, Any], name: Any) -> dict[str, Any]:
    """The part of the schema `kind` for one of its types: without constraints of other types."""
    others = {*_CONSTRAINTS, "format", "description", "nullable"} - {*_BINDING.get(str(name), ())}
    return {**{key: value for key, value in kind.items() if key not in others}, "type": name}


def object_type(kind: Mapping[str, Any], where: str) -> Any:
    """The typed dictionary for the JSON schema of an object; unlike a model's, its keys may be any texts.

    Raises:
        ConfigError: A name, a type or `required` is not valid.
    """
    invalid = [name for name in kind["properties"] if not isinstance(name, str)]
    if invalid:
        raise ConfigError(f"{where} has a column named {invalid[0]!r}; names are texts, so quote it: '{invalid[0]}'.")
    if not isinstance(kind.get("required", []), list | tuple | set):
        raise ConfigError(f"{where} has required={kind['required']!r}; give a list of names.")
    required = set(kind.get("required", kind["properties"]))
    unknown = sorted(required - set(kind["properties"]))
    if unknown:
        raise ConfigError(f"{where} requires {unknown[0]!r}, which is not one of its properties.")
    fields = {}
    for name, child in kind["properties"].items():
        annotation = _annotation(child, f"{where}[{name!r}]")
        fields[name] = annotation if name in required else NotRequired[annotation | None]
    return TypedDict("Output", fields)  # type: ignore[operator]


# -- values of columns --------------------------------------------------------------------------------------------


def storable(value: Json) -> bool:
    """Whether JSON and a 64-bit column can represent `value` exactly: no NaN, no infinity, no huge integer."""
    match value:
        case str() | bool() | None:
            return True
        case int():
            return -(2**63) <= value < 2**63
        case float():
            return isfinite(value)
        case list():
            return all(map(storable, value))
        case dict():
            return all(map(storable, value.values()))
        case _:
            return True
