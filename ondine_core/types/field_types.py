"""Checks that the values given to a dataclass or a function have the types that it declares.

Ranges and other conditions are checked by the class itself. A list is accepted where a tuple is declared, and any type
of number where one is declared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ondine_core.types.protocols import AnswerStore

_NAMES: Mapping[Any, str] = {
    NoneType: "None",
    bool: "True or False",
    str: "a text",
    bytes: "bytes",
    int: "a whole number",
    float: "a number",
    Decimal: "a Decimal",
    Callable: "a function",
    Any: "any value",
    AnswerStore: "an open store",
}
_NUMBERS: Mapping[Any, tuple[type, ...]] = {int: (Integral,), float: (Real, Decimal), Decimal: (Real, Decimal)}


def check_types(owner: Any, error: Callable[[str], Exception], skip: Collection[str] = ()) -> None:
    """Raise `error` if a field of a dataclass, except those in `skip`, has a value of another type than declared.

    The message does not show the value, since it may be secret. A value that is a dataclass without `__post_init__` is
    checked, too. Defaults are not, as options are replaced several times in a run.
    """
    hints = _hints(owner.__class__)
    for field in fields(owner):
        if not field.init or field.name in skip:
            continue
        value = getattr(owner, field.name)
        if value is field.default:
            continue
        hint = hints[field.name]
        check_type(f"{field.name} of {type(owner).__name__}", value, hint, error)
        if is_dataclass(hint) and type(value) is hint and not hasattr(value, "__post_init__"):
            check_types(value, error)


def check_type(name: str, value: Any, hint: Any, error: Callable[[str], Exception]) -> None:
    """Raise `error` if the value called `name` is not of the type `hint`; a protocol's has its public attributes."""
    if not _fits(value, hint):
        raise error(_explain(name, value, hint))


def _explain(name: str, value: Any, hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if isinstance(value, list | tuple) and isinstance(origin, type) and (len(parts) == 1 or ... in parts):
        wrong = next(item for item in value if not _fits(item, parts[0]))
        return f"{name} has a {type(wrong).__name__} in it; each item must be {_describe(parts[0])}."
    return f"{name} is a {type(value).__name__}; give {_describe(hint)}."


@cache
def _hints(owner: Any) -> Mapping[str, Any]:
    return get_type_hints(owner)


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Callable:
        return callable(value)
    if origin in _NUMBERS:
        return isinstance(value, _NUMBERS[origin]) and not isinstance(value, bool)
    if parts:
        return value in parts if origin is Literal else _fits_container(value, origin, parts)
    if getattr(origin, "_is_protocol", False):
        return all(hasattr(value, name) for name in vars(origin) if not name.startswith("_"))
    return isinstance(value, origin) if isinstance(origin, type) and origin is not Any else True


def _fits_container(value: Any, origin: type, parts: tuple[Any, ...]) -> bool:
    """Whether `value` is an `origin` whose items have the types `parts`; the items of a mapping are not checked."""
    if issubclass(origin, Mapping) or not issubclass(origin, Iterable):
        return isinstance(value, origin)
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        return False
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        if ... not in parts:
            return len(value) == len(parts) and all(map(_fits, value, parts))
    # An iterator is accepted unchecked, since checking its items would consume them.
    return not isinstance(value, Collection) or all(_fits(item, parts[0]) for item in value)


def _describe(hint: Any) -> str:
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_describe, parts)))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in _NAMES:
        return _NAMES[origin]
    if parts and not issubclass(origin, Mapping):
        return f"a list, each item {_describe(parts[0])}"
    return "a mapping" if parts else f"{origin.__name__}(...)"
