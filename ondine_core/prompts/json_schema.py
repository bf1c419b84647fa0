"""Converts a JSON schema, as users write it in YAML, to Python types, and a schema to the form providers take.

Only keywords that Pydantic can check are accepted; any other is an error when the schema is declared, since a
constraint that is not checked is worse than none.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, Literal, NotRequired, Union
from uuid import UUID

from pydantic import Field
from typing_extensions import TypedDict

from ondine_core.errors import ConfigError
from ondine_core.types.values import Json


def inline(schema: Mapping[str, Json]) -> dict[str, Any]:
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
            if key not in ("title", "default", "$defs", "discriminator")
        }
        if "properties" in out:
            out |= {"required": list(out["properties"]), "additionalProperties": False}
        return out

    result: dict[str, Any] = walk(dict(schema), ())
    return result


def allowed_values(schema: Mapping[str, Json]) -> tuple[Json, ...] | None:
    """The values that `schema`, an inlined one, allows if they are a closed set of scalars; otherwise `None`."""
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
_CONSTRAINTS = {**_OF_TEXT, **_OF_NUMBERS, **_OF_ARRAYS}
_OF_TYPE = {"string": _OF_TEXT, "integer": _OF_NUMBERS, "number": _OF_NUMBERS, "array": _OF_ARRAYS}
_BINDING = {**_OF_TYPE, "string": (*_OF_TEXT, "format")}
_SHAPES = ("type", "enum", "const", "format", "items", "properties", "required", "additionalProperties", "anyOf")
_KNOWN = frozenset({*_CONSTRAINTS, *_SHAPES, "nullable", "description", "title", "examples"})


def as_object(output: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON schema of an object that `output` is, or of one whose properties are the columns that it names."""
    of_words = all(key in _KNOWN or str(key).startswith("$") for key in output)
    properties = output.get("properties")
    if isinstance(properties, Mapping) and (
        output.get("type") == "object" or ("type" not in output and of_words and not _has_type(properties))
    ):
        return output
    # A column may be called `type` and another `description`, so words alone do not make it a schema.
    columns_only = all(kind in (*_PLAIN, "null") or _is_kind(kind) for kind in output.values())
    if of_words and _has_type(output) and (list(output) == ["type"] or not columns_only):
        raise ConfigError(
            f"output={dict(output)!r} reads as the JSON schema of a value, which has no columns. For a column of such "
            f"values give its name, {{'label': {dict(output)!r}}}; if 'type' is to be a column itself, write its type "
            "as a schema, {'type': {'type': 'string'}}."
        )
    return {"properties": output}


def _is_kind(kind: Any) -> bool:
    """Whether `kind` is a JSON schema or a Python type, as a column has one, and not the operand of a keyword."""
    return isinstance(kind, Mapping) or not isinstance(kind, str | int | float | list | tuple | set | None)


def _has_type(schema: Mapping[str, Any]) -> bool:
    """Whether `schema` says itself of which type or of which choice its value is, rather than naming columns."""
    stated = schema.get("type")
    names = stated if isinstance(stated, list) else [stated]
    typed = bool(names) and all(name in tuple(_VALUES) for name in names)
    return all(key in _KNOWN for key in schema) and (
        typed or any(key in schema and not _is_kind(schema[key]) for key in ("enum", "const", "anyOf"))
    )


def _annotation(kind: Any, where: str) -> Any:
    """The type that `kind` (a Python type, a type name or a JSON schema) stands for."""
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
    sayable = {key for name in names for key in _OF_TYPE.get(str(name), ())}
    misplaced = [key for key in kind if key in _CONSTRAINTS and key not in sayable]
    if misplaced:
        raise ConfigError(f"{where} has {misplaced[0]!r}, which says nothing about type {kind.get('type')!r}.")
    if "enum" in kind and not isinstance(kind["enum"], list | tuple):
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
    """What was probably meant by a single value or a text with commas, as a list."""
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else ["a", "b"]
    return f"[{', '.join(map(repr, parts))}]"


def _check_format(kind: Mapping[str, Any], names: list[Any], where: str) -> None:
    if "format" in kind and not ("string" in names and kind["format"] in tuple(_FORMATS)):
        raise ConfigError(
            f"{where} has the format {kind['format']!r} of type {kind.get('type')!r}, which is not checked; those of "
            f"'string' that are: {', '.join(map(repr, _FORMATS))}. Leave it out, or say it with 'pattern'."
        )


def _check_values(kind: Mapping[str, Any], names: list[Any], where: str) -> None:
    """Check that each value of an enum is of the type beside it; null may always be one of them."""
    values = kind["enum"] if isinstance(kind.get("enum"), list | tuple) else [kind["const"]] if "const" in kind else []
    types = tuple(_VALUES[name] for name in ("null", *names) if name in tuple(_VALUES))
    for value in values if "type" in kind else ():
        if not ("boolean" in names if isinstance(value, bool) else isinstance(value, types)):  # True is an int, too
            quote = "; quote a text, since YAML reads a bare yes, no, on, off, number or date as something else: 'yes'"
            raise ConfigError(
                f"{where} allows {value!r}, which is not of type {kind['type']!r}"
                f"{quote if 'string' in names else '; correct one of the two'}."
            )


def _base(kind: Mapping[str, Any], where: str) -> Any:  # noqa: PLR0911  (one case a kind)
    match kind:
        case {"enum": [_, *_] as values}:
            return Literal[tuple(values)]
        case {"const": value}:
            return Literal[value]
        case {"anyOf": [_, *_] as options}:
            return Union[tuple(_annotation(option, f"{where}.anyOf") for option in options)]  # noqa: UP007
        case {"type": [_, *_] as names}:
            # Each constraint binds the types that it says something about.
            plain = {key: value for key, value in kind.items() if key not in ("description", "nullable")}
            loose = {key: value for key, value in plain.items() if key not in _CONSTRAINTS and key != "format"}
            bound = [{key: plain[key] for key in plain if key in _BINDING.get(str(name), ())} for name in names]
            options = [{**loose, **own, "type": name} for own, name in zip(bound, names, strict=True)]
            return Union[tuple(_annotation(option, where) for option in options)]  # noqa: UP007
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


def object_type(kind: Mapping[str, Any], where: str) -> Any:
    """A typed dictionary rather than a model: its keys may be any text, also what a model keeps for itself."""
    odd = [name for name in kind["properties"] if not isinstance(name, str)]
    if odd:
        raise ConfigError(f"{where} has a column named {odd[0]!r}; names are texts, so quote it: '{odd[0]}'.")
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


# -- what a column can hold ---------------------------------------------------------------------------------------


def storable(value: Json) -> bool:
    """Whether JSON and a 64-bit column can hold `value` exactly: no NaN, no infinity, no huge integer."""
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
