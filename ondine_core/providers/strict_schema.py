"""Rewrites a JSON schema into the subset that strict structured output takes.

By OpenAI's guide to structured outputs, the subset has the keywords, formats and limits named here, all properties
required and no other allowed, and an object at the root. A keyword outside the subset that only narrows values is
written into the description, and the parser checks it. A schema that cannot be expressed at all (a mapping with any
keys, a value of any type) is put into the prompt by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import orjson

_FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"])
_NUMBERS = ("multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum")
_CONSTRAINTS: Mapping[str, tuple[str, ...]] = {
    "string": ("pattern", "format"),
    "number": _NUMBERS,
    "integer": _NUMBERS,
    "array": ("minItems", "maxItems"),
}
_DESCRIBED = ("minLength", "maxLength", "uniqueItems", "pattern", "format", *_NUMBERS, "minItems", "maxItems")
_SHAPING = (
    "$ref $dynamicRef not if then else dependentSchemas dependentRequired patternProperties propertyNames contains "
    "unevaluatedProperties unevaluatedItems"
)
_BEYOND = frozenset(_SHAPING.split())
"""Keywords that change the shape of a value."""
_MAX_LEVELS = 10
_MAX_PROPERTIES = 5_000
_MAX_CHOICES = 1_000
_MAX_CHARACTERS = 120_000
_MANY_CHOICES, _MAX_CHARACTERS_OF_MANY = 250, 15_000


class _NotStrictError(Exception):
    """The schema cannot be expressed in the subset."""


@dataclass(frozen=True, slots=True)
class SchemaSubset:
    """The part of JSON schema that a server's strict mode supports.

    Args:
        constraints: Whether it supports patterns, formats and bounds; Azure and Cerebras do not.
        any_choices: Whether it supports choices of any values; Gemini supports choices of non-empty texts only.
    """

    constraints: bool = True
    any_choices: bool = True


ALL: Final = SchemaSubset()


@lru_cache(maxsize=64)
def strict_schema(json_schema: bytes, subset: SchemaSubset = ALL) -> bytes | None:
    """`json_schema`, which is inlined, rewritten into `subset`; `None` if that is not possible."""
    try:
        strict = _rewrite(orjson.loads(json_schema), subset)
        _check_limits(strict)
    except _NotStrictError:
        return None
    return orjson.dumps(strict) if strict.get("type") == "object" else None


def _rewrite(node: Any, subset: SchemaSubset) -> dict[str, Any]:
    if not isinstance(node, Mapping) or node.keys() & _BEYOND:
        raise _NotStrictError
    if "allOf" in node:
        node = _merge(node)
    shape = _shape(node, subset)
    kept = _CONSTRAINTS.get(str(shape.get("type")), ()) if subset.constraints else ()
    allowed = {key: node[key] for key in kept if key in node and key not in shape and _is_allowed(key, node[key])}
    kept_keys = {*allowed, *shape}
    describable = _DESCRIBED if subset.any_choices else (*_DESCRIBED, "enum", "const")
    hints = [f"{key}: {_text(node[key])}" for key in describable if key in node and key not in kept_keys]
    description = " ".join(filter(None, (node.get("description"), f"({', '.join(hints)})" if hints else "")))
    return {**shape, **allowed, **({"description": description} if description else {})}


def _shape(node: Mapping[str, Any], subset: SchemaSubset) -> dict[str, Any]:  # noqa: PLR0911  (one case a kind)
    match node:
        case {"anyOf": [_, *_] as options} | {"oneOf": [_, *_] as options}:
            if "properties" in node:
                raise _NotStrictError
            return _any_of(_rewrite(option, subset) for option in options)
        case {"enum": [_, *_] as values}:
            return _choices(values, subset)
        case {"const": value}:
            return _choices([value], subset)
        case {"type": [_, *_] as types}:
            bare = {key: value for key, value in node.items() if key != "description"}
            return _any_of(_shape({**bare, "type": name}, subset) for name in types)
        case {"properties": Mapping() as properties}:
            inner = {name: _rewrite(child, subset) for name, child in properties.items()}
            return {"type": "object", "properties": inner, "required": [*inner], "additionalProperties": False}
        case {"type": "array", "prefixItems": [_, *_] as parts} if node.get("items", False) is False:
            items = _any_of(_rewrite(part, subset) for part in parts)
            exactly = {"minItems": len(parts), "maxItems": len(parts)} if subset.constraints else {}
            return {"type": "array", "items": items, **exactly}
        case {"type": "array", "items": items} if "prefixItems" not in node:
            return {"type": "array", "items": _rewrite(items, subset)}
        case {"type": "string" | "number" | "integer" | "boolean" | "null" as name}:
            return {"type": name}
        case _:
            raise _NotStrictError


def _merge(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """`node` merged with the only schema of its `allOf`; the keywords of `node` take precedence."""
    parts = node["allOf"]
    if not isinstance(parts, list) or len(parts) != 1 or not isinstance(parts[0], Mapping):
        raise _NotStrictError
    return {**parts[0], **{key: value for key, value in node.items() if key != "allOf"}}


def _any_of(options: Iterable[dict[str, Any]]) -> dict[str, Any]:
    unique: list[dict[str, Any]] = []
    for option in options:
        if option not in unique:
            unique.append(option)
    return unique[0] if len(unique) == 1 else {"anyOf": unique}


def _choices(values: list[Any], subset: SchemaSubset) -> dict[str, Any]:
    """A choice of `values`, with the type that strict mode requires beside it."""
    by_type: dict[str, list[Any]] = {}
    for value in values:
        if type(value) not in _TYPE_NAMES:
            raise _NotStrictError
        by_type.setdefault(_TYPE_NAMES[type(value)], []).append(value)
    return _any_of(
        {"type": name} if _is_plain(name, choices, subset) else {"type": name, "enum": choices}
        for name, choices in by_type.items()
    )


def _is_plain(name: str, values: list[Any], subset: SchemaSubset) -> bool:
    """Whether the type alone describes a choice of these values."""
    if name == "null" or set(values) == {True, False}:
        return True
    return not subset.any_choices and (name != "string" or "" in values)


_TYPE_NAMES: Mapping[type, str] = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string"}


_BEYOND_REGULAR = re.compile(r"\(\?(?!:)|\\[1-9bBAZzpPkX]")
"""Look-around, flags, named groups, references and anchors, which constrained decoding does not support."""


def _is_allowed(key: str, value: Any) -> bool:
    if key == "format":
        return value in _FORMATS
    return key != "pattern" or _BEYOND_REGULAR.search(str(value)) is None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _check_limits(schema: Mapping[str, Any]) -> None:
    properties = choices = characters = 0
    waiting = [(schema, 1)]
    while waiting:
        node, level = waiting.pop()
        if level > _MAX_LEVELS:
            raise _NotStrictError
        inner = node.get("properties", {})
        values = node.get("enum", ())
        length = sum(len(value) for value in values if isinstance(value, str))
        if len(values) > _MANY_CHOICES and length > _MAX_CHARACTERS_OF_MANY:
            raise _NotStrictError
        properties += len(inner)
        choices += len(values)
        characters += length + sum(map(len, inner))
        waiting += [(child, level + 1) for child in inner.values()]
        waiting += [(child, level) for child in node.get("anyOf", ())]
        waiting += [(node["items"], level + 1)] if "items" in node else []
    if properties > _MAX_PROPERTIES or choices > _MAX_CHOICES or characters > _MAX_CHARACTERS:
        raise _NotStrictError
